"""wakeq delayed: look at delayed messages, drop them, or have them delivered now."""

import sys
from collections.abc import Iterator
from typing import Any

from wakeq import keys
from wakeq.cli import streams, times
from wakeq.cli.parser import Arguments, Subparsers, add_json, count, name
from wakeq.cli.screen import agreed, as_json, colours, paint, print_json, readable, span, table
from wakeq.cli.session import Session, warn
from wakeq.errors import MissingError, UsageError

_EXAMPLES = """\
  wakeq delayed list orders                             what is delivered when, and why
  wakeq delayed now orders 1700000000000-0@billing      do not wait for it
  wakeq delayed cancel orders 1700000000000-1234000     drop it
"""
_LIST_EXAMPLES = """\
  wakeq delayed list orders
  wakeq delayed list orders --json --limit 0 | jq -r .id

A message that failed goes to its group, and its ID ends with that; one that was published with a
delay goes to the stream.
"""
_CANCEL_EXAMPLES = """\
  wakeq delayed cancel orders 1700000000000-1234000
  wakeq delayed cancel orders --all --yes

What is dropped is gone for good, and is no dead letter either. The deduplication key that it was
published with stays taken.
"""
_NOW_EXAMPLES = """\
  wakeq delayed now orders 1700000000000-0@billing
  wakeq delayed now orders --all

It is wakeq-delay that delivers them.
"""
_LIST_LIMIT = 100
_PAGE = 100
_BATCH = 500
_WHOLE = 1 << 31
_SHORT = 200
_DECLINED = 130  # as if it had been answered with Ctrl+C
_HEADER = ("ID", "DUE IN", "TO", "ATTEMPT", "ERROR", "BODY")
_RIGHT = (1, 3)


def add(subparsers: Subparsers) -> None:
    """Add the subcommands."""
    family = subparsers.add_family(
        "delayed", "Look at delayed messages, drop them or deliver them now.", _EXAMPLES
    )
    lister = family.add(
        "list", "List delayed messages, the next one that is due first.", _LIST_EXAMPLES, run_list
    )
    canceller = family.add("cancel", "Drop delayed messages.", _CANCEL_EXAMPLES, run_cancel)
    hastener = family.add("now", "Deliver delayed messages now.", _NOW_EXAMPLES, run_now)
    for parser in (lister, canceller, hastener):
        parser.add_argument("stream", metavar="STREAM", type=name)
    lister.add_argument("--limit", metavar="N", type=count, default=_LIST_LIMIT,
                        help="at most so many, 0 for all (default: 100)")  # fmt: skip
    for parser in (canceller, hastener):
        parser.add_argument("ids", metavar="ID", nargs="*", help="as wakeq delayed list shows it")
        parser.add_argument("--all", action="store_true", help="all of the stream")
        parser.add_argument("--yes", action="store_true", help="do not ask")
    for parser in (lister, canceller, hastener):
        add_json(parser)


def run_list(session: Session, arguments: Arguments) -> int:
    """Print a line for each message."""
    shown = total = 0
    with session.explaining():
        for now_ms, there, rows in _pages(session, arguments):
            total = there
            if arguments.json:
                for row in rows:
                    print_json(_as_json(row, now_ms))
            elif rows:
                _show(rows, now_ms, headed=bool(shown))
            shown += len(rows)
        if not total:
            streams.require(session, arguments.stream)
        late, seconds = streams.overdue(session, arguments.stream, now_ms)
    if late and seconds is not None:
        warn(f"{arguments.stream}: {streams.overdue_told(late, seconds)}")
    if not total:
        warn(f"{arguments.stream}: nothing is delayed")
    elif shown < total:
        warn(f"{arguments.stream}: {total:,} are delayed; --limit 0 shows all")
    return 0


def run_cancel(session: Session, arguments: Arguments) -> int:
    """Drop messages."""
    return _change(session, arguments, "cancel_delayed", "cancelled")


def run_now(session: Session, arguments: Arguments) -> int:
    """Make messages due."""
    return _change(session, arguments, "make_due", "made due")


def _run(session: Session, script: str, stream: str, *arguments: Any) -> Any:
    """Run one of the scripts of delayed messages, which takes its keys in this order."""
    from wakeq.scripts import Script

    names = [keys.delayed(stream), keys.repairs(stream), keys.delayed_data(stream)]
    if script == "make_due":
        del names[2]
        arguments = (keys.DOORBELL, stream, *arguments)
    return session.call(stream, *Script(script).whole(names, arguments))


def _pages(session: Session, arguments: Arguments) -> Iterator[tuple[int, int, list[Any]]]:
    """Yield the time (ms), how many there are and some of them, page after page."""
    limit = arguments.limit or sys.maxsize
    most = _WHOLE if arguments.json else _SHORT
    start = 0
    while start < limit:
        size = min(_PAGE, limit - start)
        now_ms, total, rows = _run(session, "list_delayed", arguments.stream, start, size, most)
        yield now_ms, total, rows
        start += len(rows)
        if not rows or start >= total:
            return


def _change(session: Session, arguments: Arguments, script: str, word: str) -> int:
    stream, command = arguments.stream, f"delayed {arguments.action}"
    if bool(arguments.ids) == arguments.all:
        raise UsageError(f"{command}: give IDs, or --all")
    missing: list[str] = []
    done = 0
    with session.explaining():
        if arguments.all:
            total = _run(session, "list_delayed", stream, 0, 1, 0)[1]
            if not total:
                streams.require(session, stream)
                warn(f"{stream}: nothing is delayed")
                return 0
            if not arguments.yes and not _asked(command, stream, total):
                return _DECLINED
            # No more than there were: others may come in all the time.
            while done < total:
                (some, *_) = _run(session, script, stream, min(_BATCH, total - done))
                if not some:
                    break
                done += some
        for start in range(0, len(arguments.ids), _BATCH):
            ids = [_raw(each) for each in arguments.ids[start : start + _BATCH]]
            some, *gone = _run(session, script, stream, 0, *ids)
            done += some
            missing += [streams.text(each) for each in gone]
    if arguments.json:
        print_json({"stream": stream, word.replace(" ", "_"): done, "missing": missing})
    else:
        print(f"{word} {done:,} message{'s' * (done != 1)} of {stream}", flush=True)
    if missing:
        names = ", ".join(readable(_raw(each), 60) for each in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingError(f"{stream}: not among the delayed messages: {names}{more}")
    return 0


def _asked(command: str, stream: str, total: int) -> bool:
    verb = {"delayed cancel": "Drop", "delayed now": "Deliver"}[command]
    what = f"{total:,} delayed message{'s' * (total != 1)} of {stream}"
    return agreed(command, f"{verb} {what}")


def _raw(text: str) -> bytes:
    """Return the bytes of an argument as they were given, whatever their encoding."""
    return text.encode("utf-8", "surrogateescape")


def _show(rows: list[Any], now_ms: int, headed: bool) -> None:
    on = colours()
    for index, cells in enumerate(table([_HEADER, *(_cells(row, now_ms) for row in rows)], _RIGHT)):
        if index or not headed:
            print(paint("  ".join(cells).rstrip(), "" if index else "bold", on))


def _cells(row: Any, now_ms: int) -> tuple[str, ...]:
    member, due, waits, *rest = row
    due_in = "repair" if waits else _due_in((float(due) - now_ms) / 1000)
    if not rest:
        return (readable(member, 60), due_in, "", "", "", "(cannot be read)")
    group, _, attempt, error, body, size = rest
    shown = readable(body, 50)
    if len(body) > 50:  # and maybe not all of it is here
        shown = f"{shown.rpartition('…')[0]}… ({size:,} bytes)"
    target = f"group {readable(group, 40)}" if group else "stream"
    return (readable(member, 60), due_in, target, readable(attempt, 10), readable(error, 50), shown)


def _due_in(seconds: float) -> str:
    # Years ahead or ago, by a foreign hand, are no time that could be shown.
    if abs(seconds) >= 1e11:
        return "never" if seconds > 0 else "overdue"
    return span(seconds) if seconds >= 0 else f"overdue {span(-seconds)}"


def _as_json(row: Any, now_ms: int) -> dict[str, Any]:
    member, due, waits, *rest = row
    seconds = float(due) / 1000
    # What no calendar has is told in seconds alone.
    within = 0 <= seconds < 2.5e11
    made: dict[str, Any] = {
        "id": streams.text(member),
        "due": times.iso(seconds) if within else None,
        "due_in_seconds": round(seconds - now_ms / 1000, 3) if within else None,
        "waits_for_repair": bool(waits),
    }
    if rest:
        group, first_id, attempt, error, body, _ = rest
        made |= {
            "message": streams.text(first_id),
            "group": streams.text(group) or None,
            "attempt": int(attempt) if attempt.isdigit() else 1,
            "error": streams.text(error) or None,
            "body": as_json(body),
        }
    return made
