"""wakeq peek: look at messages of a stream without taking them."""

import time
from typing import Any

from wakeq.cli.parser import Arguments, Subparsers, add_json, name, positive
from wakeq.cli.screen import as_json, colours, paint, print_json, readable, span
from wakeq.cli.session import Session, warn
from wakeq.errors import UsageError

_EXAMPLES = """\
  wakeq peek orders                         the oldest messages
  wakeq peek orders --last                  the newest ones
  wakeq peek orders --group billing         what billing has not read yet
  wakeq peek orders --from 1700000000000-0  from this id on
  wakeq peek orders --json | jq .fields     whole values, for programs
"""

Entry = tuple[bytes, dict[bytes, bytes]]


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add(
        "peek", "Look at messages of a stream; nothing is changed.", _EXAMPLES, run
    )
    parser.add_argument("stream", metavar="STREAM", type=name)
    parser.add_argument("--count", metavar="N", type=positive, default=10,
                        help="at most so many (default: 10)")  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--from", metavar="ID", dest="first", help="from this id on")
    where.add_argument(
        "--group", metavar="G", type=name, help="only what this group has not read yet"
    )
    where.add_argument("--last", action="store_true", help="the newest messages")
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Print messages."""
    stream = arguments.stream
    with session.explaining():
        entries = _read(session, arguments)
        seconds, microseconds = session.call(stream, "TIME")
    if not entries:
        what = f"nothing unread for group {arguments.group}" if arguments.group else "no message"
        warn(f"{stream}: {what}{' from there on' if arguments.first is not None else ''}")
    for entry_id, fields in entries:
        age_s = seconds + microseconds / 1e6 - _published(entry_id)
        if arguments.json:
            print_json(_message(entry_id, fields, age_s))
        else:
            _show(entry_id, fields, age_s)
    return 0


def _read(session: Session, arguments: Arguments) -> list[Entry]:
    stream, count = arguments.stream, arguments.count
    if arguments.last:
        newest = session.call(stream, "XREVRANGE", stream, "+", "-", "COUNT", count)
        return list(reversed(newest))
    first = "-"
    if arguments.first is not None:
        first = _checked_id(arguments.first)
    elif arguments.group is not None:
        first = "(" + _last_delivered(session, stream, arguments.group)
    return list(session.call(stream, "XRANGE", stream, first, "+", "COUNT", count))


def _checked_id(text: str) -> str:
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"peek: --from must be an id such as 1700000000000-0, not {text!r}")
    return text


def _last_delivered(session: Session, stream: str, group: str) -> str:
    groups = {}
    # Of a stream that is not there, XINFO says "no such key".
    if session.call(stream, "EXISTS", stream):
        found = session.call(stream, "XINFO GROUPS", stream)
        groups = {_text(entry["name"]): _text(entry["last-delivered-id"]) for entry in found}
    if group not in groups:
        known = f"it has {', '.join(sorted(groups))}" if groups else "it has none"
        raise UsageError(f"peek: stream {stream} has no group {group!r}; {known}")
    return groups[group]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _published(entry_id: bytes) -> float:
    """Return when a message was published, in seconds, by its id."""
    return int(entry_id.partition(b"-")[0]) / 1000


def _message(entry_id: bytes, fields: dict[bytes, bytes], age_s: float) -> dict[str, Any]:
    published = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_published(entry_id)))
    return {
        "id": entry_id.decode(),
        "published": published,
        "age_seconds": round(age_s, 3),
        "fields": {
            field.decode(errors="backslashreplace"): as_json(value)
            for field, value in fields.items()
        },
    }


def _show(entry_id: bytes, fields: dict[bytes, bytes], age_s: float) -> None:
    on = colours()
    age = f"{span(age_s)} old" if age_s >= 0 else f"{span(-age_s)} ahead of the server's clock"
    print(f"{paint(entry_id.decode(), 'bold', on)}  {paint(age, 'dim', on)}")
    names = {field: readable(field, 40) for field in fields}
    width = max((len(text) for text in names.values()), default=0)
    for field, value in fields.items():
        print(f"  {names[field].ljust(width)}  {readable(value)}")
