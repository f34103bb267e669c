"""What may stand on the command lines of wakeq's programs, as the programs themselves say it.

Read from the parsers and the tables of settings, for the manual pages and the completions.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple, NoReturn
from unittest import mock

from wakeq.bridge.main import PROGRAM as BRIDGE
from wakeq.cli import main as cli
from wakeq.cli import parser as cli_parser
from wakeq.consumer.main import PROGRAM as CONSUMER
from wakeq.delay.main import PROGRAM as DELAY
from wakeq.fanout.main import PROGRAM as FANOUT
from wakeq.leader.main import PROGRAM as LEADER
from wakeq.node.main import PROGRAM as NODE
from wakeq.service import Program, shown_default
from wakeq.settings import Setting
from wakeq.trim.main import PROGRAM as TRIM
from wakeq.wakeup.main import PROGRAM as WAKEUP

_HELP_FORM = "\n\nexamples:\n"


class Option(NamedTuple):
    """One option: `--name` without a value if `metavar` is empty."""

    name: str
    metavar: str
    help: str


class Argument(NamedTuple):
    """What stands on a command line without a name; `form` is `NAME`, `[BODY]`, `[NAME]...`."""

    name: str
    form: str
    help: str


class Command(NamedTuple):
    """A program or a subcommand, `peek` or `dead list`."""

    name: str
    summary: str
    examples: str  # with the text that follows them, if there is any
    arguments: list[Argument]
    options: list[Option]
    commands: list[Command]

    @property
    def all_commands(self) -> list[Command]:
        """Return the subcommands that can be run, however deep."""
        found = []
        for command in self.commands:
            found += command.all_commands or [command]
        return found


def programs() -> list[Command]:
    """Return everything that can be called."""
    daemons = (BRIDGE, CONSUMER, DELAY, FANOUT, LEADER, NODE, TRIM, WAKEUP)
    return [_command(_parser()), *map(_daemon, daemons)]


def setting_help(setting: Setting) -> str:
    """Return the line that --help has for a setting."""
    return setting.help + shown_default(setting)


def _daemon(program: Program) -> Command:
    options = [
        Option(s.option, "" if s.default is False else s.describe, setting_help(s))
        for s in program.settings
    ]
    options.append(Option("--help", "", "show this and exit"))
    options.append(Option("--version", "", "show the version and exit"))
    arguments = [Argument(program.argument, program.argument, "")] if program.argument else []
    return Command(program.name, program.summary, "", arguments, options, [])


class _Taken(Exception):
    """Carries the parser out of the function that makes it."""


def _parser() -> argparse.ArgumentParser:
    def take(parser: object, *_: object) -> NoReturn:
        raise _Taken(parser)

    with mock.patch.object(cli_parser.Parser, "parse_args", take):
        try:
            cli_parser.parse(cli.FAMILIES, [])
        except _Taken as taken:
            parser: argparse.ArgumentParser = taken.args[0]
            return parser
    raise AssertionError("the parser did not begin to parse")


def _command(parser: argparse.ArgumentParser) -> Command:
    arguments, options, commands = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands = [_command(sub) for sub in action.choices.values()]
        elif action.option_strings:
            options.append(_option(action))
        else:
            arguments.append(_argument(action))
    description = parser.description or ""
    summary, separator, examples = description.partition(_HELP_FORM)
    assert separator, parser.prog
    name = parser.prog.partition(" ")[2] or parser.prog
    return Command(name, summary, examples.rstrip("\n"), arguments, options, commands)


def _option(action: argparse.Action) -> Option:
    metavar = "" if action.nargs == 0 else str(action.metavar)
    if isinstance(action, argparse._HelpAction):
        return Option("--help", "", "show this and exit")
    if isinstance(action, argparse._VersionAction):
        return Option("--version", "", "show the version and exit")
    return Option(action.option_strings[-1], metavar, _help(action))


def _argument(action: Any) -> Argument:
    forms = {None: "{}", "?": "[{}]", "*": "[{}]...", "+": "{}..."}
    return Argument(action.metavar, forms[action.nargs].format(action.metavar), _help(action))


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")
