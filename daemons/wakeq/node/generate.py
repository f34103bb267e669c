"""The process that makes a node's messages, a set at a time: python -m wakeq.node.generate FD.

What it calls returns None (nothing is to be said), bytes or text (a message with that body), a
dict (a message with these fields), a `Publish` for the node's own stream, or a list of such. What
it runs prints the body of one message; nothing is nothing. In a list, a message is its text alone.
"""

import asyncio
import inspect
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from wakeq import journal
from wakeq.consumer.handler import find
from wakeq.consumer.program import judge
from wakeq.errors import ConfigError, HandlerFailure, Reject, Retry
from wakeq.message import Publish, encode
from wakeq.node.source import BAD, MADE, READY
from wakeq.worker import Inbox, packed, receive

_LONGEST_ERROR = 1000
_LONGEST_TRACEBACK = 8000
_MOST_MESSAGES = 1000
# So many fill a Lua script's stack.
_MOST_FIELDS = 3900
# Redis takes no request of more than a million arguments, or of a gigabyte, and all messages of an
# emission go out in one.
_MOST_ITEMS = 900_000
_MOST_BYTES = 512 << 20
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "WAKEQ_FAILPOINT")

# Takes the number of the emission and the time that it is for; returns what was made.
Make = Callable[[int, str], object]


def callable_make(path: str) -> Make:
    """Return what calls a callable.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    what = f"generate {path!r}"
    call: Callable[..., Any] = find(path, what)
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise ConfigError(f"{what} has a yield, so calling it runs nothing: return a list instead")
    is_async = inspect.iscoroutinefunction(call)

    def make(_seq: int, _at: str) -> object:
        return asyncio.run(call()) if is_async else call()

    return make


def program_make(argv: list[str], name: str) -> Make:
    """Return what runs a program.

    Raises:
        ConfigError: there is no such program.
    """
    if not os.path.exists(argv[0]):
        raise ConfigError(f"generate_exec: there is no program {argv[0]}")
    if os.path.isdir(argv[0]) or not os.access(argv[0], os.X_OK):
        raise ConfigError(f"generate_exec: {argv[0]} is not executable")
    log = journal.Log("node")
    base = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}

    def make(seq: int, at: str) -> object:
        environment = base | {"WAKEQ_NODE": name, "WAKEQ_SEQ": str(seq), "WAKEQ_TIME": at}
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
        )
        for line in done.stderr.decode(errors="backslashreplace").splitlines():
            log.info(line, name=name, program=argv[0])
        judge(done.returncode, False)
        return done.stdout or None

    return make


def as_items(made: object, stream: str, is_list: bool) -> list[list[bytes]]:
    """Return messages as they are sent: their fields, or their text for a list.

    Raises:
        TypeError, ValueError: they are no messages, or too many.
    """
    if made is None:
        return []
    several = list(made) if isinstance(made, list | tuple) else [made]
    if len(several) > _MOST_MESSAGES:
        raise ValueError(f"at most {_MOST_MESSAGES} messages at a time, not {len(several)}")
    messages = [_text_item(one) if is_list else _fields(one, stream) for one in several]
    count = sum(map(len, messages))
    if count > _MOST_ITEMS:
        raise ValueError(f"at most {_MOST_ITEMS // 2} fields at a time, not {count // 2}")
    if sum(len(item) for items in messages for item in items) > _MOST_BYTES:
        raise ValueError(f"at most {_MOST_BYTES >> 20} MiB of messages at a time")
    return messages


def _text_item(one: object) -> list[bytes]:
    if isinstance(one, str):
        return [one.encode()]
    if isinstance(one, bytes | bytearray):
        return [bytes(one)]
    raise TypeError(f"a message for a list is text or bytes, not {one!r:.100}")


def _fields(one: object, stream: str) -> list[bytes]:
    if isinstance(one, Publish):
        if one.stream != stream:
            raise ValueError(f"a node publishes to its stream, {stream}, not to {one.stream}")
        items = one.items
    elif isinstance(one, Mapping):
        items = encode(None, one)
    elif isinstance(one, str | bytes | bytearray):
        items = encode(one)
    else:
        raise TypeError(
            "a message is text, bytes, a dict of fields or a Publish, or a list of such, not"
            f" {one!r:.100}"
        )
    if len(items) // 2 > _MOST_FIELDS:
        raise ValueError(f"a message has at most {_MOST_FIELDS} fields, not {len(items) // 2}")
    return items


def answer(make: Make, job: tuple[int, str], stream: str, is_list: bool) -> tuple[Any, ...]:
    """Make the messages of one emission and return what to say."""
    try:
        return (MADE, as_items(make(*job), stream, is_list), "", "")
    # Whatever it raises, also by an exit, is its failure.
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())[:_LONGEST_ERROR]
        plain = isinstance(error, Reject | Retry | HandlerFailure)
        trace = "" if plain else journal.describe(error)[-_LONGEST_TRACEBACK:]
        return (MADE, [], text, trace)


def main() -> int:
    """Make what is asked for until the node hangs up."""
    # A terminal's Ctrl+C is for the node.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    journal.open_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a callable prints is in the journal at once.
        sys.stdout.reconfigure(line_buffering=True)
    inbox = Inbox()
    make: Make | None = None
    stream, is_list = "", False
    while piece := receive(channel):
        said = inbox.take(piece)
        if said is None:
            continue
        if make is not None:
            reply = answer(make, said, stream, is_list)
        else:
            name, path, argv, stream, kind = said
            is_list = kind == "list"
            try:
                make = callable_make(path) if path else program_make(argv, name)
                reply = (READY,)
            except ConfigError as error:
                reply = (BAD, str(error))
        try:
            channel.sendall(packed(reply))
        except OSError:
            return 0  # the node is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
