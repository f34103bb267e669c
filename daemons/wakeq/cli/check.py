"""wakeq check: look for what is wrong with configuration, Redis, sockets and units."""

from wakeq.cli.parser import Arguments, Subparsers, add_json
from wakeq.cli.screen import colours, paint, print_json
from wakeq.cli.session import Session
from wakeq.config import instance_base

_EXAMPLES = """\
  wakeq check               everything on this host
  wakeq check orders        one consumer
  wakeq check --import      also import the handlers, which runs their code

Each finding is one line: ok, warning or error. Exit code 0 if there is no error, 78 if
something must be corrected here, 69 if only Redis cannot be reached.
"""
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add(
        "check", "Look for what is wrong on this host; wakes nobody.", _EXAMPLES, run
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="consumers (default: all)")
    parser.add_argument("--import", action="store_true", dest="imports",
                        help="import the handlers, too")  # fmt: skip
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Print the findings and return the exit code."""
    from wakeq.cli.inspector import Inspector

    for name in arguments.names:
        instance_base(name)
    inspector = Inspector(session, arguments.imports)
    on = colours()
    for finding in inspector.run(arguments.names):
        if arguments.json:
            print_json({"level": finding.level, "about": finding.about, "text": finding.text})
        else:
            level = paint(finding.level.ljust(7), _COLOURS[finding.level], on)
            print(f"{level}  {finding.about}: {finding.text}")
    return inspector.exit_code
