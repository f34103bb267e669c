"""wakeq publish --channel: publish to a channel, for trying what listens to it."""

import sys
from collections.abc import Callable, Iterator

from wakeq.cli.parser import Arguments
from wakeq.cli.screen import print_json
from wakeq.cli.session import Session
from wakeq.errors import UnavailableError, UsageError

_OF_STREAMS = ("field", "key", "dedup", "delay", "at")


def publish(
    session: Session, arguments: Arguments, lines: Callable[[], Iterator[list[bytes]]]
) -> int:
    """Publish, and print how many have received each message.

    Args:
        session: to Redis.
        arguments: what was asked for; what stands in the place of STREAM is the body.
        lines: reads the lines of stdin.

    On Cluster, the nodes tell one another, and each counts those alone that listen to it.

    Raises:
        UsageError: something was asked for that a channel does not have.
        UnavailableError: nobody has received a message; not on Cluster, where nobody knows.
    """
    unheard = 0
    for body in _bodies(arguments, lines):
        heard = session.servers.call(arguments.channel, "PUBLISH", arguments.channel, body)
        unheard += not heard and not session.servers.cluster
        if arguments.json:
            print_json({"channel": arguments.channel, "receivers": heard})
        elif not arguments.quiet:
            print(f"received by {heard}{' at this node' if session.servers.cluster else ''}")
        sys.stdout.flush()
    if unheard:
        raise UnavailableError(
            f"nobody listens to {arguments.channel}: {unheard:,} messages were lost"
            if unheard > 1
            else f"nobody listens to {arguments.channel}: the message was lost"
        )
    return 0


def _bodies(arguments: Arguments, lines: Callable[[], Iterator[list[bytes]]]) -> Iterator[bytes]:
    body: str | None = arguments.stream
    if arguments.body is not None:
        raise UsageError("publish: give a STREAM or --channel, not both")
    for option in _OF_STREAMS:
        if getattr(arguments, option):
            raise UsageError(f"publish: --{option} is for a stream, a channel has none")
    if arguments.lines and body not in (None, "-"):
        raise UsageError("publish: the bodies come from BODY or from --lines, not from both")
    if arguments.lines:
        for some in lines():
            yield from (line for line in some for _ in range(arguments.count))
        return
    if body is None:
        raise UsageError("publish: give a BODY, or - to read it from stdin")
    raw = sys.stdin.buffer.read() if body == "-" else body.encode("utf-8", "surrogateescape")
    yield from (raw for _ in range(arguments.count))
