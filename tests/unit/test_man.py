"""The manual pages: they can be read, say all that there is, and nothing that there is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from wakeq import __version__, errors
from wakeq.config import Common, Place
from wakeq.sections import TABLES
from wakeq.service import shown_default

ROOT = Path(__file__).parents[2]
MAN = ROOT / "packaging/man"
PAGES = sorted(MAN.glob("*.[1-8]"))
COMMANDS = ["publish", "produce", "status", "peek", "dead list", "dead show", "dead retry",
            "dead purge", "delayed list", "delayed cancel", "delayed now", "errors",
            "room list", "room show", "room send", "room peek", "room listen", "pause",
            "resume", "wake", "trim", "check"]  # fmt: skip
DAEMONS = [
    "wakeq-bridge",
    "wakeq-consumer",
    "wakeq-delay",
    "wakeq-fanout",
    "wakeq-leader",
    "wakeq-node",
    "wakeq-trim",
    "wakeq-wakeup",
]
SETTINGS = {"top": Common.table, **{name: kind.table for name, kind in TABLES.items()}}

# Options of other programs, in the examples.
FOREIGN_OPTIONS = {"--now", "--no-block"}
# What the daemons set, read or log beside the settings.
OTHER_VARIABLES = {
    *("WAKEQ_STREAM", "WAKEQ_GROUP", "WAKEQ_MESSAGE_ID", "WAKEQ_ATTEMPT", "WAKEQ_CONSUMER"),
    *("WAKEQ_FIELD_NAME", "WAKEQ_FIELDS_LEFT_OUT", "WAKEQ_CHANNEL"),
    *("WAKEQ_ERROR", "WAKEQ_TOKEN", "WAKEQ_NODE", "WAKEQ_SEQ", "WAKEQ_TIME"),
}
# An interrupted command, and one whose output is closed.
SHELL_CODES = {130, 141}


def run(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result, standard error within its output."""
    return subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | more, text=True, check=False, timeout=300,
    )  # fmt: skip


@cache
def rendered(page: Path) -> str:
    """Return what a reader sees, each paragraph in one line."""
    text = run("groff", "-man", "-Tutf8", "-P-cbou", "-rLL=9999n", page).stdout
    return text.replace("\u2212", "-").replace("\u2010", "-")


def words(text: str) -> str:
    """Return text with all white space made the same."""
    return " ".join(text.split())


def text_of(name: str) -> str:
    """Return what a reader sees of a page, in one line."""
    return words(rendered(MAN / name))


@cache
def help_of(*command: str) -> str:
    """Return what --help prints, each help line in one line."""
    folder = command[0].removeprefix("wakeq-").replace("wakeq", "cli")
    start = f"import sys; from wakeq.{folder}.main import main; sys.exit(main())"
    result = run(sys.executable, "-c", start, *command[1:], "--help", COLUMNS="9999")
    assert result.returncode == 0
    return result.stdout


def options_of(*command: str) -> dict[str, str]:
    """Return the help line of each option, by its name."""
    if command[0] == "wakeq":
        line = r"^  (?:-h, )?(--\S+)(?: \S+)? {2,}(.+)$"
    else:
        line = r"^  (--[\w-]+).*\n +(.+)$"
    return dict(re.findall(line, help_of(*command), re.MULTILINE))


def sentence(text: str) -> str:
    """Return a help line as it stands in a page."""
    return words(f"{text[:1].upper()}{text[1:]}.")


def id_of(path: Path) -> str:
    """Return the name of a page."""
    return path.name


def test_there_is_a_page_for_each_program_and_for_the_files() -> None:
    daemons = [f"{name}.8" for name in DAEMONS]
    others = ["wakeq-fanout-protocol.7", "wakeq.1", "wakeq.7", "wakeq.toml.5"]
    assert [page.name for page in PAGES] == sorted([*daemons, *others])


def test_the_pages_are_up_to_date() -> None:
    result = run(sys.executable, MAN / "generate.py", "--check")
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_groff_has_nothing_to_say(page: Path) -> None:
    result = run("groff", "-ww", "-man", "-Tutf8", "-z", page)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("width", ["60", "80", "200"])
@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_man_shows_it_without_a_warning(page: Path, width: str) -> None:
    result = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=False,
        env=os.environ | {"MANWIDTH": width, "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""}, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout) > 1000


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    found = run("mandoc", "-Tlint", page).stdout.splitlines()
    # Our own limit for a line is 100, and 130 for a help line in one piece.
    assert [line for line in found if "longer than 80 bytes" not in line] == []


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_whatis_finds_it_by_its_name(page: Path) -> None:
    assert run("lexgrog", page).stdout.startswith(f'{page}: "{page.stem} - ')


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_a_page_says_what_it_is_and_of_which_version(page: Path) -> None:
    title = re.search(r'^\.TH (\S+) (\d) \d{4}-\d\d-\d\d "(.+)" "wakeq"$', page.read_text(), re.M)
    assert title is not None
    assert title[1].replace("\\", "").lower() == page.stem
    assert (title[2], title[3]) == (page.suffix[1:], f"wakeq {__version__}")


@pytest.mark.parametrize("name", DAEMONS)
def test_the_page_of_a_daemon_says_what_its_help_says(name: str) -> None:
    text = text_of(f"{name}.8")
    options = options_of(name)
    assert len(options) >= 5
    for option, help_line in options.items():
        assert re.search(rf"{option}(=\S+( \| \S+)?)? {re.escape(sentence(help_line))}", text), (
            option
        )


@pytest.mark.parametrize("command", [[], *map(str.split, COMMANDS)], ids=" ".join)
def test_the_page_of_the_command_says_what_its_help_says(command: list[str]) -> None:
    text = text_of("wakeq.1")
    options = options_of("wakeq", *command)
    assert len(options) >= 5
    for option, help_line in options.items():
        line = {"--help": "show this and exit", "--version": "show the version and exit"}
        expected = sentence(line.get(option, help_line))
        assert re.search(rf"{option}(=\S+)? {re.escape(expected)}", text), option


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_has_all_that_stands_before_the_options(command: str) -> None:
    before, _, _ = help_of("wakeq", *command.split()).partition("\npositional arguments:")
    _, _, description = before.partition("\n\n")
    description = description.partition("\n\noptions:")[0]
    assert words(description.replace("examples:", "")) != ""
    for part in re.split(r"examples:", description):
        assert words(part) in text_of("wakeq.1")
    assert f"wakeq {command} [OPTION]..." in text_of("wakeq.1")


def test_the_commands_are_those_that_there_are() -> None:
    names = list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    assert re.findall(r"^    (\w+)  ", help_of("wakeq"), re.MULTILINE) == names
    for family in {command.split()[0] for command in COMMANDS if " " in command}:
        actions = [command.split()[1] for command in COMMANDS if command.startswith(f"{family} ")]
        assert re.findall(r"^    (\w+)  ", help_of("wakeq", family), re.MULTILINE) == actions


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table in SETTINGS for key in SETTINGS[table]]
)
def test_each_setting_stands_in_the_page_of_the_files(table: str, key: str) -> None:
    setting = SETTINGS[table][key]
    expected = re.escape(sentence(setting.help + shown_default(setting)))
    assert re.search(rf" {key} \([^)]+\) {expected}", text_of("wakeq.toml.5"))


def test_the_settings_stand_in_their_sections() -> None:
    text = (MAN / "wakeq.toml.5").read_text()
    sections = {"THE TOP LEVEL OF WAKEQ.TOML": "top", "CONSUMERS": "consumer",
                r"WAKEQ\-WAKEUP": "wakeup", r"WAKEQ\-TRIM": "trim",
                r"WAKEQ\-DELAY": "delay", r"WAKEQ\-LEADER": "leader", "NODES": "node",
                "BRIDGES": "bridge", r"WAKEQ\-FANOUT": "fanout"}  # fmt: skip
    for section in text.split("\n.SH ")[1:]:
        table = sections.get(section.partition("\n")[0], "")
        found = re.findall(r"BEGIN setting (\S+) (\S+)", section)
        assert found == [(table, key) for key in SETTINGS.get(table, {})]


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_no_page_names_an_option_that_there_is_not(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rendered(page)))
    known = set(FOREIGN_OPTIONS)
    for command in (
        *([name] for name in DAEMONS),
        ["wakeq"],
        *(["wakeq", *c.split()] for c in COMMANDS),
    ):
        known |= options_of(*command).keys()
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_no_page_names_a_variable_that_there_is_not(page: Path) -> None:
    tables = [*SETTINGS.values(), Place.table]
    known = {setting.variable for table in tables for setting in table.values()} | OTHER_VARIABLES
    assert set(re.findall(r"WAKEQ_[A-Z_]*[A-Z]", rendered(page))) <= known


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_the_exit_codes_are_those_that_there_are(page: Path) -> None:
    section = re.search(r"^\.SH EXIT CODES\n((?:(?!\.SH).*\n)+)", page.read_text(), re.MULTILINE)
    if section is None:
        assert page.suffix == ".5" or page.stem == "wakeq-fanout-protocol"
        return
    named = {int(code) for code in re.findall(r"^\.TP\n(\d+)", section[1], re.MULTILINE)}
    known = {value for name, value in vars(errors).items() if name.startswith("EX_")}
    # What a program that is run for a message may exit with, not a daemon of ours.
    known -= {errors.EX_DATAERR}
    assert named <= {0} | known | SHELL_CODES
    assert named >= {0, errors.EX_USAGE, errors.EX_UNAVAILABLE, errors.EX_NOPERM, errors.EX_CONFIG}
    if page.name == "wakeq.7":
        assert named == {0} | known


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_a_page_that_is_referred_to_is_there(page: Path) -> None:
    named = re.findall(r"(wakeq[\w.-]*)\((\d)\)", rendered(page).partition("DESCRIPTION")[2])
    found = {f"{name}.{section}" for name, section in named}
    # Each leads to all others, and to no page of ours that there is not.
    assert found | {page.name} == {other.name for other in PAGES}


def test_the_keys_in_redis_are_those_that_there_are() -> None:
    from wakeq import keys

    text = text_of("wakeq.7")
    made = [keys.retry("S", "G"), keys.stats("S", "G"), keys.alive("S", "G", "C")]
    made += [keys.dedup("S", "K"), keys.STREAMS, keys.dead("S", "G"), keys.paused("S")]
    made += [keys.delayed("S"), keys.delayed_data("S"), keys.repairs("S")]
    made += [keys.lease("NAME"), keys.vacancy("NAME")]
    made += [keys.emission("S", "NODE"), keys.node_process("S", "NODE", "HOST/PID")]
    made += [keys.node_processes("S", "NODE")]
    made += [keys.bridge_lease("C", "BRIDGE"), keys.bridge_instances("C", "BRIDGE")]
    lines = [keys.bridge_line("C", "BRIDGE", 0, "PROCESS"), keys.bridge_marks("C", "BRIDGE", 0)]
    made += [line.replace(":db0", ":dbN") for line in lines]
    made += [keys.bridge_batch("S", "BRIDGE", "WORKER")]
    made += [keys.bridge_taken("L", "BRIDGE", "WORKER"), keys.bridge_takers("L", "BRIDGE")]
    made += [keys.enlisted("consumer:ids"), keys.BRIDGES]
    made += [keys.taken("L", "PROCESS"), keys.taking("L", "PROCESS"), keys.takers("L")]
    made += [keys.suspects("L"), keys.errors("L", "NODE")]
    made += [keys.crashes("S", "G"), keys.owner("S", "G"), keys.turn("S", "G")]
    made += [keys.ROOMS, keys.BELL + "W", keys.worker_rooms("W")]
    functions = [name for name, value in vars(keys).items() if callable(value) and name != "prefix"]
    functions.remove("bridge_group")  # the name of a group, no key
    functions.remove("room")  # several keys
    assert len(made) == len(functions) + 4
    for key in (*made, *keys.room("R")):
        assert re.search(rf" {re.escape(key)}[,.]? ", text), key
    for key in (keys.lease("NODE", "S"), keys.vacancy("NODE", "S")):
        assert re.search(rf" {re.escape(key)}[,.]? ", text), key
