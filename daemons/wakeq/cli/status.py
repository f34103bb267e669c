"""wakeq status: streams, their groups, and which consumers are awake."""

from collections import Counter
from typing import Any

from wakeq.cli.parser import Arguments, Subparsers, add_json
from wakeq.cli.screen import colours, paint, print_json, readable, span, table
from wakeq.cli.session import Session, warn
from wakeq.cli.streams import overdue_told, pause_told

_EXAMPLES = """\
  wakeq status
  wakeq status --json | jq '.streams[].groups[] | select(.unread > 1000)'

Unread messages were not given to any consumer of the group yet; pending ones were, and are not
acknowledged. OLDEST is the age of the oldest of them. RETRY are those that failed or were delayed
and are due again, for the group alone; DELAYED those of the stream that wait for that; DEAD the
dead letters. Below, it is told of what has been due for more than 5 seconds. Of the consumers,
those are asleep that have a socket on this host; absent ones are asleep on another host, or gone.
In strict order one is awake, and others may be standing by.

Of a bridge, CUT OFF is how often messages may have been lost on their way to it, INSTANCES how many
of it run, on whatever host.
"""
_HEADER = ("STREAM", "LENGTH", "DELAYED", "GROUP", "UNREAD", "OLDEST", "PENDING", "OLDEST",
           "RETRY", "HANDLED", "FAILED", "DEAD", "CONSUMERS")  # fmt: skip
_RIGHT = (1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
_BRIDGES = ("BRIDGE", "SOURCE", "STREAM", "HANDLED", "PUBLISHED", "DEAD", "CUT OFF", "INSTANCES",
            "WORKERS")  # fmt: skip
_STATES = ("awake", "standing by", "asleep", "absent")


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add(
        "status", "Show streams, groups and consumers; wakes nobody.", _EXAMPLES, run
    )
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Print a table, or one JSON value."""
    from wakeq.cli.bridges import reports
    from wakeq.cli.survey import Survey

    server = session.check_server()
    survey = Survey(session)
    with session.explaining():
        streams, bridges = survey.run(), reports(session)
    for problem in survey.problems:
        warn(problem)
    if arguments.json:
        report = {"streams": streams, "bridges": bridges}
        print_json({"redis": server, "url": str(session.url), **report})
        return 0
    if not streams and not bridges:
        print("No streams yet: none was published to with wakeq, and no consumer is configured.")
        return 0
    if streams:
        _print_table(streams)
    if bridges:
        _print_bridges(bridges)
    return 0


def _print_bridges(bridges: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [_BRIDGES]
    for report in bridges:
        names = (readable(report[key].encode(), 60) for key in ("bridge", "source", "stream"))
        counts = (f"{report[key]:,}" for key in ("handled", "published", "dead", "cuts"))
        rows.append((*names, *counts, str(len(report["instances"])), str(report["workers"])))
    on = colours()
    print()
    tints = ["bold", *("" if report["workers"] else "yellow" for report in bridges)]
    for cells, tint in zip(table(rows, range(3, 9)), tints, strict=True):
        print(paint("  ".join(cells).rstrip(), tint, on))


def _print_table(streams: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [_HEADER]
    tints = ["bold"]
    for stream in streams:
        for row, tint in _rows(stream):
            rows.append(row)
            tints.append(tint)
    on = colours()
    for cells, tint in zip(table(rows, _RIGHT), tints, strict=True):
        print(paint("  ".join(cells).rstrip(), tint, on))
    for stream in streams:
        name = readable(stream["stream"].encode(), 60)
        if stream["paused"]:
            told = readable(pause_told(stream["paused"]).encode(), 200)
            print(paint(f"{name} is {told}", "yellow", on))
        if stream["overdue"]:
            told = overdue_told(stream["overdue"], stream["overdue_seconds"])
            print(paint(f"{name}: {told}", "red", on))


def _rows(stream: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Return the rows of one stream, each with its colour."""
    name = readable(stream["stream"].encode(), 60)
    if "problem" in stream:
        return [((name, "-", "-", stream["problem"], *["-"] * 9), "red")]
    whole = (name, f"{stream['length']:,}", f"{stream['delayed']:,}")
    if not stream["groups"]:
        return [((*whole, *["-"] * 10), "")]
    return [
        ((*whole, *_cells(group)), "yellow" if _is_stuck(group) else "")
        for group in stream["groups"]
    ]


def _cells(group: dict[str, Any]) -> tuple[str, ...]:
    at_least = "" if group["unread_exact"] else "≥"
    return (
        readable(group["group"].encode(), 60),
        f"{at_least}{group['unread']:,}",
        _age(group["oldest_unread_seconds"]),
        f"{group['pending']:,}",
        _age(group["oldest_pending_seconds"]),
        f"{group['retry']:,}",
        f"{group['handled']:,}",
        f"{group['failed']:,}",
        f"{group['dead']:,}",
        _consumers(group["consumers"]),
    )


def _is_stuck(group: dict[str, Any]) -> bool:
    """Tell whether there is work and nobody at it, as far as can be seen from here."""
    awake = any(consumer["state"] == "awake" for consumer in group["consumers"])
    return bool(group["unread"] or group["pending"] or group["retry"]) and not awake


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


def _consumers(consumers: list[dict[str, Any]]) -> str:
    counts = Counter(consumer["state"] for consumer in consumers)
    return ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]) or "-"
