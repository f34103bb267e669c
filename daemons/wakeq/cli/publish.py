"""wakeq publish: publish messages from the command line or from stdin."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from wakeq.cli import channels
from wakeq.cli.parser import Arguments, Subparsers, add_json, name, positive, seconds
from wakeq.cli.screen import print_json
from wakeq.cli.session import Session
from wakeq.cli.times import time
from wakeq.errors import UsageError
from wakeq.settings import Wrong, parse_duration

if TYPE_CHECKING:
    from wakeq.message import Publish
    from wakeq.publisher import Publisher

_EXAMPLES = """\
  wakeq publish orders '{"id": 7}'              a body
  wakeq publish orders --field id=7             a field
  wakeq publish orders - <invoice.pdf           a body from stdin
  seq 1000 | wakeq publish orders --lines       a message for each line
  wakeq publish orders hello --dedup order-7    only once, if called again
  wakeq publish orders hello --delay 5min       in five minutes
  wakeq publish orders hello --at 18:00         at six, local time
  wakeq publish --channel news hello            to a channel, for those that listen
"""
_BATCH = 1000
_LONGEST_SECONDS = 100 * 366 * 86400.0


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add("publish", "Publish messages to a stream.", _EXAMPLES, run)
    parser.add_argument("stream", metavar="STREAM", nargs="?",
                        help="the stream; not with --channel")  # fmt: skip
    parser.add_argument("body", metavar="BODY", nargs="?", help="the body; - reads it from stdin")
    parser.add_argument("--field", metavar="K=V", action="append", default=[],
                        help="a field; may be given several times")  # fmt: skip
    parser.add_argument("--key", metavar="KEY", help="messages with one key are handled in order")
    parser.add_argument("--dedup", metavar="KEY", type=name,
                        help="publish only if no message was with this key, lately")  # fmt: skip
    parser.add_argument("--dedup-window", metavar="SPAN", type=seconds, default=86400.0,
                        help="how long --dedup is remembered (default: 24h)")  # fmt: skip
    parser.add_argument("--delay", metavar="SPAN", type=_delay, help="deliver it so much later")
    parser.add_argument("--at", metavar="TIME", type=_moment,
                        help="deliver it then: 2026-11-22 18:00, 18:00, 2026-11-22T18:00Z,"
                        " @1795370400 or +5min")  # fmt: skip
    parser.add_argument("--count", metavar="N", type=positive, default=1,
                        help="publish the same message N times (default: 1)")  # fmt: skip
    parser.add_argument("--channel", metavar="CHANNEL", type=name,
                        help="publish to a channel instead, as PUBLISH does")  # fmt: skip
    parser.add_argument("--lines", action="store_true",
                        help="each line of stdin is the body of a message")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="do not print the ids")
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Publish, and print the ids; of a channel, how many were listening."""
    if arguments.channel is not None:
        return channels.publish(session, arguments, _available_lines)
    _check(arguments)
    fields = _fields(arguments.field)
    printer = _Printer(arguments)
    if not arguments.lines:
        body = sys.stdin.buffer.read() if arguments.body == "-" else _raw(arguments.body)
    try:
        with session.publisher() as publisher:
            if arguments.lines:
                _publish_lines(publisher, arguments, fields, printer)
            elif arguments.count > 1 and not _is_delayed(arguments):
                message = _message(arguments, body, fields)
                _publish_many(publisher, (message for _ in range(arguments.count)), printer)
            else:
                for _ in range(arguments.count):
                    printer.take([_publish_one(publisher, arguments, body, fields)])
    except ValueError as error:
        raise UsageError(f"publish: {error}") from None
    return 0


def _check(arguments: Arguments) -> None:
    if arguments.stream is None:
        raise UsageError("publish: give a STREAM, or --channel")
    try:
        name(arguments.stream)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"publish: argument STREAM: {error}") from None
    if arguments.lines and arguments.body not in (None, "-"):
        raise UsageError("publish: the bodies come from BODY or from --lines, not from both")
    if arguments.dedup is not None and (arguments.lines or arguments.count > 1):
        raise UsageError("publish: --dedup is for one message, not for --lines or --count")
    if arguments.delay is not None and arguments.at is not None:
        raise UsageError("publish: --delay and --at both say when; give one of them")
    if not (arguments.body is not None or arguments.field or arguments.lines):
        raise UsageError("publish: give a BODY, - to read it from stdin, or --field K=V")


def _fields(pairs: list[str]) -> dict[str | bytes, bytes | str | int | float]:
    fields: dict[str | bytes, bytes | str | int | float] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals or not field:
            raise UsageError(f"publish: --field must be K=V, not {pair!r}")
        fields[_raw(field) or b""] = _raw(value) or b""
    return fields


def _raw(text: str | None) -> bytes | None:
    """Return the bytes of an argument as they were given, whatever their encoding."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _message(
    arguments: Arguments,
    body: bytes | None,
    fields: dict[str | bytes, bytes | str | int | float],
) -> "Publish":
    from wakeq.message import Publish

    return Publish(arguments.stream, body, fields=fields, key=_raw(arguments.key))


def _delay(text: str) -> float:
    """Return the seconds of a time span, for argparse; years are as good as minutes."""
    try:
        return parse_duration(text, _LONGEST_SECONDS)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _moment(text: str) -> tuple[str, float]:
    """Return `delay` and seconds, or `at` and seconds since 1970, for argparse."""
    if text.strip().startswith("+"):
        return "delay", _delay(text.strip()[1:])
    return "at", time(text)


def _is_delayed(arguments: Arguments) -> bool:
    return arguments.delay is not None or arguments.at is not None


def _publish_one(
    publisher: "Publisher",
    arguments: Arguments,
    body: bytes | None,
    fields: dict[str | bytes, bytes | str | int | float],
) -> str:
    when = {"delay": arguments.delay}
    if arguments.at is not None:
        kind, of_it = arguments.at
        when = {kind: of_it}
    return publisher.publish(
        arguments.stream, body, fields=fields, key=_raw(arguments.key), dedup=arguments.dedup,
        dedup_window=arguments.dedup_window, **when,
    )  # fmt: skip


def _publish_many(
    publisher: "Publisher", messages: Iterable["Publish"], printer: "_Printer"
) -> None:
    """Publish in batches, and print the ids of each, so that output keeps up with input."""
    from wakeq.publisher import UnconfirmedError

    source = iter(messages)
    while chunk := list(islice(source, _BATCH)):
        try:
            printer.take(publisher.publish_many(chunk, _BATCH))
        except UnconfirmedError as error:
            printer.take([known for known in error.ids if known is not None])
            raise


def _publish_lines(
    publisher: "Publisher",
    arguments: Arguments,
    fields: dict[str | bytes, bytes | str | int | float],
    printer: "_Printer",
) -> None:
    for lines in _available_lines():
        if _is_delayed(arguments):
            for line in [line for line in lines for _ in range(arguments.count)]:
                printer.take([_publish_one(publisher, arguments, line, fields)])
            continue
        messages = (
            _message(arguments, line, fields) for line in lines for _ in range(arguments.count)
        )
        _publish_many(publisher, messages, printer)


def _available_lines() -> Iterator[list[bytes]]:
    """Yield the lines of stdin as they come: what can be read at once together."""
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 1 << 20):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


class _Printer:
    """Prints ids, a line for each."""

    def __init__(self, arguments: Arguments) -> None:
        self._quiet = arguments.quiet
        self._json = arguments.json
        self._stream = arguments.stream

    def take(self, ids: list[str]) -> None:
        if self._quiet:
            return
        for message_id in ids:
            if self._json:
                print_json({"stream": self._stream, "id": message_id})
            else:
                print(message_id)
        sys.stdout.flush()
