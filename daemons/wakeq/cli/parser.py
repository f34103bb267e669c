"""The command line of `wakeq`: options that all subcommands have, help, and wrong usage."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

from wakeq import __version__
from wakeq.config import Common, Place
from wakeq.errors import UsageError
from wakeq.service import shown_default
from wakeq.settings import Wrong, parse_duration

SUMMARY = "Publish to streams, look at them and at their consumers, and wake consumers."

EXAMPLES = """\
examples:
  wakeq publish orders '{"id": 7}'     publish one message
  wakeq status                         see streams, groups and who is awake
  wakeq peek orders                    look at messages without taking them
  wakeq wake orders                    start a consumer now
  wakeq trim --dry-run                 see what could be removed from streams
  wakeq check                          look for what is wrong on this host

'wakeq COMMAND --help' says more of each command.

exit codes: 0 done, 64 wrong usage, 66 no such stream or message, 69 Redis or a consumer
cannot be reached, 77 not permitted, 78 wrong configuration.
"""

Arguments = argparse.Namespace


class Family(Protocol):
    """A module of subcommands."""

    @property
    def add(self) -> Callable[["Subparsers"], None]:
        """What adds them."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UsageError`, like those of the daemons."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        command = self.prog.partition(" ")[2]
        raise UsageError(f"{command}: {message}" if command else message)


ParserT = TypeVar("ParserT", bound=Parser)


class CommandParser(Parser):
    """The parser of a subcommand, which may have options between and before its arguments.

    argparse alone takes an optional argument as missing when an option comes before it.
    """

    _intermixing = False

    def add_subparsers(self, **options: Any) -> Any:
        """Take subcommands, with which argparse cannot mix options."""
        self._intermixing = True
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options first, then arguments (parse_known_intermixed_args calls this twice)."""
        if self._intermixing:
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False


class Subparsers:
    """Takes the subcommands of each family."""

    def __init__(self, action: Any, shared: "CommandParser") -> None:
        self._action = action
        self._shared = shared

    def add(
        self, name: str, summary: str, examples: str, run: Callable[[Any, Arguments], int]
    ) -> Parser:
        """Add a subcommand and return the parser of its arguments."""
        parser = self._add(name, summary, examples)
        parser.set_defaults(run=run)
        return parser

    def add_family(self, name: str, summary: str, examples: str) -> "Subparsers":
        """Add a subcommand that has subcommands of its own, and return what takes those."""
        parser = self._add(name, summary, examples)
        action = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        return Subparsers(action, self._shared)

    def _add(self, name: str, summary: str, examples: str) -> Parser:
        parser: Parser = self._action.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\nexamples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[self._shared],
            allow_abbrev=False,
        )
        return parser


def parse(families: Iterable[Family], words: Sequence[str]) -> Arguments:
    """Return the arguments of a command line; `run` is the subcommand.

    Raises:
        UsageError: it is wrong.
        SystemExit: --help or --version was answered.
    """
    parser = Parser(
        "wakeq",
        description=f"{SUMMARY}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared(Parser, None)],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"wakeq {__version__}")
    # Not given after the subcommand: keep what was given before it.
    action = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=CommandParser)
    subparsers = Subparsers(action, _shared(CommandParser, argparse.SUPPRESS))
    for family in families:
        family.add(subparsers)
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.error("a command is needed")
    return arguments


def _shared(kind: type[ParserT], default: str | None) -> ParserT:
    parser = kind(add_help=False)
    group = parser.add_argument_group("where")
    for setting in (Common.table["redis_url"], *Place.table.values()):
        text = f"{setting.help}{shown_default(setting)} [{setting.variable}]"
        group.add_argument(
            setting.option, metavar=setting.describe, default=default, help=text.replace("%", "%%")
        )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def name(text: str) -> str:
    """Return the name of a stream or the like, for argparse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be UTF-8") from None
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def count(text: str) -> int:
    """Return a number of 0 or more, for argparse."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Return a number of 1 or more, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Return the seconds of a time span, for argparse."""
    try:
        return parse_duration(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None
