"""Brings the manual pages up to date: generate.py [--check].

The pages are written by hand, in man(7). What the programs know better stands in blocks, which
are made here from the parsers and the tables of settings:

    .\\" BEGIN options wakeq-consumer
    .\\" END

A block is `options PROGRAM`, `command SUBCOMMAND` of wakeq (`command FAMILY ACTION`), or
`setting TABLE KEY`, where the table is `top` for the top level of wakeq.toml.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import commands

from wakeq import __version__
from wakeq.config import Common
from wakeq.sections import TABLES
from wakeq.settings import Setting

HERE = Path(__file__).parent
_BLOCK = re.compile(r'^\.\\" BEGIN (.+)\n(?:.*\n)*?\.\\" END\n', re.MULTILINE)
_TITLE = re.compile(r'^(\.TH \S+ \S+ \S+) "wakeq .*?"', re.MULTILINE)
_SPECIAL = str.maketrans(
    {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
)
# What --help calls a kind of value: in a file, and as the value of an option.
_KINDS = {
    "text": ("text", "TEXT"),
    "list of text": ("list of text", "COMMAND"),
    "true | false": ("true or false", ""),
    "names": ("list of names", "NAMES"),
    "NAME:0..N": ("text", "NAME:0..N"),
    "CHANNEL": ("text", "CHANNEL"),
    "PATTERN": ("text", "PATTERN"),
    "KEY": ("text", "KEY"),
    "TIMES": ("text", "TIMES"),
    "DIR": ("path", "DIR"),
    "FILE": ("path", "FILE"),
    "URL": ("text", "URL"),
    "time span": ("time span", "SPAN"),
    "base=1s,factor=2,cap=10min": ("table", "base=1s,factor=2,cap=10min"),
}


def pages() -> list[Path]:
    """Return the manual pages, by section and name."""
    return sorted(HERE.glob("*.[1-8]"), key=lambda path: (path.suffix, path.name))


def updated(text: str) -> str:
    """Return a page with its blocks and its version as they should be."""
    text = _TITLE.sub(rf'\1 "wakeq {__version__}"', text)
    return _BLOCK.sub(lambda match: _block(match[1]), text)


def blocks(text: str) -> list[str]:
    """Return what the blocks of a page are about."""
    return _BLOCK.findall(text)


def wanted() -> list[str]:
    """Return what there must be blocks about, each in one page."""
    programs = commands.programs()
    tables = {"top": Common, **TABLES}
    return [
        *(f"options {program.name}" for program in programs),
        *(f"command {command.name}" for command in programs[0].all_commands),
        *(f"setting {table} {key}" for table in tables for key in tables[table].table),
    ]


def _block(about: str) -> str:
    kind, *names = about.split()
    made = {"options": _options, "command": _subcommand, "setting": _setting}[kind](*names)
    return f'.\\" BEGIN {about}\n{made}.\\" END\n'


def _program(name: str) -> commands.Command:
    return next(program for program in commands.programs() if program.name == name)


def _options(name: str) -> str:
    return "".join(_option(option) for option in _program(name).options)


def _option(option: commands.Option) -> str:
    kind = _KINDS[option.metavar][1] if option.metavar in _KINDS else option.metavar
    value = f"=\\fI{_plain(kind.replace(' | ', '|'))}\\fR" if kind else ""
    return f".TP\n\\fB{option.name.translate(_SPECIAL)}\\fR{value}\n{_sentence(option.help)}"


def _subcommand(*words: str) -> str:
    name = " ".join(words)
    wakeq = _program("wakeq")
    command = next(command for command in wakeq.all_commands if command.name == name)
    shared = {option.name for option in wakeq.options}
    synopsis = [f"\\fBwakeq {name}\\fR", "[\\fIOPTION\\fR]..."]
    synopsis += [_form(argument) for argument in command.arguments]
    text = f".SS {' '.join(synopsis)}\n{_plain(command.summary)}\n"
    for argument in command.arguments:
        if argument.help:
            text += f".TP\n\\fI{argument.name}\\fR\n{_sentence(argument.help)}"
    text += "".join(_option(option) for option in command.options if option.name not in shared)
    examples, _, remarks = command.examples.partition("\n\n")
    text += f".PP\nExamples:\n.PP\n.RS 4\n.EX\n{_plain(_unindented(examples))}\n.EE\n.RE\n"
    if remarks:
        text += f".PP\n{_plain(remarks)}\n"
    return text


def _form(argument: commands.Argument) -> str:
    return argument.form.replace(argument.name, f"\\fI{argument.name}\\fR")


def _setting(table: str, key: str) -> str:
    setting = Common.table[key] if table == "top" else TABLES[table].table[key]
    kind = _kind(setting)
    return f".TP\n\\fB{key}\\fR ({_plain(kind)})\n{_sentence(commands.setting_help(setting))}"


def _kind(setting: Setting) -> str:
    if setting.describe in _KINDS:
        return _KINDS[setting.describe][0]
    if ".." in setting.describe:
        return f"number, {setting.describe.replace('..', ' to ')}"
    return " or ".join(f'"{word}"' for word in setting.describe.split(" | "))


def _sentence(text: str) -> str:
    """Return a help line as a sentence."""
    return f"{_plain(text[:1].upper() + text[1:])}.\n" if text else ""


def _plain(text: str) -> str:
    """Return text with nothing in it that roff would take for its own."""
    lines = text.translate(_SPECIAL).split("\n")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


def _unindented(text: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in text.split("\n"))


def main() -> int:
    """Write the pages anew; with --check, only say which are not up to date."""
    stale = [page for page in pages() if updated(page.read_text()) != page.read_text()]
    for page in stale:
        if sys.argv[1:] == ["--check"]:
            print(f"{page.name} is not up to date: run scripts/build-man")
        else:
            page.write_text(updated(page.read_text()))
    return 1 if stale and sys.argv[1:] == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main())
