"""wakeq trim: remove what all groups have handled from streams, or tell what would go."""

from typing import Any

from wakeq.cli.parser import Arguments, Subparsers, add_json, name
from wakeq.cli.screen import colours, paint, print_json, readable, table
from wakeq.cli.session import Session, warn
from wakeq.errors import EX_CONFIG, EX_NOINPUT, RefusedError, UnavailableError, UsageError

_EXAMPLES = """\
  wakeq trim --dry-run        see what would go, of all streams that wakeq-trim looks after
  wakeq trim                  remove it now
  wakeq trim orders           of this stream alone

Of each stream at least the newest messages stay that keep in wakeq.toml says, and everything
from the first message on that is unread or pending in any group. LOST are those that max_length
removes all the same; it is off unless it is set.
"""
_RIGHT = (1, 2, 3)


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add(
        "trim", "Remove from streams what every group has handled.", _EXAMPLES, run
    )
    parser.add_argument("streams", metavar="STREAM", type=name, nargs="*",
                        help="streams (default: all that wakeq-trim trims)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Trim, and print a table or one JSON value."""
    from wakeq.trim.finder import Finder, is_own
    from wakeq.trim.trimmer import Trimmer

    settings = session.config.trim()
    for stream in arguments.streams:
        if is_own(stream.encode()):
            raise UsageError(f"trim: {stream} is wakeq's own, and is not trimmed")
    trimmer = Trimmer(session.servers, settings)
    session.check_server()
    names = sorted({stream.encode() for stream in arguments.streams})
    names = names or Finder(session.servers, settings).run()
    code = 0
    reports = []
    for stream in names:
        report, problem = _trim(trimmer, stream, arguments.dry_run)
        code = max(code, problem)
        if report is not None:
            reports.append(report)
        elif arguments.streams:
            warn(f"{readable(stream)}: there is no such stream")
            code = max(code, EX_NOINPUT)
    if arguments.json:
        print_json({"dry_run": arguments.dry_run, "streams": reports})
    elif reports or not arguments.streams:
        _print_table(reports, arguments.dry_run)
    return code


def _trim(trimmer: Any, stream: bytes, dry: bool) -> tuple[dict[str, Any] | None, int]:
    """Return what has become of a stream, None if there is none, and the exit code."""
    from wakeq.trim.trimmer import Trimmed

    report: dict[str, Any] = {"stream": stream.decode(errors="backslashreplace")}
    trimmed = Trimmed(stream)
    try:
        if dry:
            trimmed = trimmer.count(stream)
        else:
            while trimmer.slice(trimmed):
                pass
    except UnavailableError as error:
        if dry or not trimmed.removed + trimmed.lost:
            raise
        gone = f"{trimmed.removed} messages were removed and {trimmed.lost} lost"
        raise UnavailableError(f"stream {readable(stream)}: {gone}, then: {error}") from None
    except RefusedError as error:
        return report | {"problem": str(error)}, error.exit_code
    if trimmed.kind == "none":
        return None, 0
    if trimmed.kind != "stream":
        return report | {"problem": f"is a {trimmed.kind}, not a stream"}, EX_CONFIG
    return report | {"removed": trimmed.removed, "lost": trimmed.lost, "left": trimmed.left}, 0


def _print_table(reports: list[dict[str, Any]], dry: bool) -> None:
    if not reports:
        print("No streams to trim: wakeq has seen none, and [trim] in wakeq.toml names none.")
        return
    rows: list[tuple[str, ...]] = [("STREAM", "REMOVED", "LOST", "LEFT")]
    tints = ["bold"]
    for report in reports:
        stream = readable(report["stream"].encode(), 60)
        if "problem" in report:
            rows.append((stream, "-", "-", report["problem"]))
            tints.append("red")
        else:
            figures = (f"{report[key]:,}" for key in ("removed", "lost", "left"))
            rows.append((stream, *figures))
            tints.append("red" if report["lost"] else "")
    on = colours()
    for cells, tint in zip(table(rows, _RIGHT), tints, strict=True):
        print(paint("  ".join(cells).rstrip(), tint, on))
    if dry:
        print("Nothing was removed: this is what would be.")
