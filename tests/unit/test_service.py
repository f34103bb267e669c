"""What every daemon shares: its command line, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wakeq import __version__
from wakeq.config import Consumer
from wakeq.errors import UsageError
from wakeq.sections import Wakeup
from wakeq.service import Program, parse, shown_default, usage

NAMED = Program("wakeq-consumer", "Handle messages.", Consumer, "NAME")
ALONE = Program("wakeq-wakeup", "Wake consumers.", Wakeup)


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        (["orders"], "orders", {}),
        (["orders", "--concurrency", "5"], "orders", {"concurrency": "5"}),
        (["--concurrency=5", "orders"], "orders", {"concurrency": "5"}),
        (["orders", "--exec", "/bin/true -x"], "orders", {"exec_": "/bin/true -x"}),
        (["orders", "--redis-url", "redis://h"], "orders", {"redis_url": "redis://h"}),
        (["orders", "--stream="], "orders", {"stream": ""}),
        (["orders", "--stream", "--odd"], "orders", {"stream": "--odd"}),
    ],
)
def test_reads_a_command_line(words: list[str], name: str, options: dict[str, str]) -> None:
    assert parse(NAMED, words) == (name, options)


def test_an_option_that_is_on_or_off_needs_no_value() -> None:
    assert parse(ALONE, ["--discover", "--recheck", "5s"])[1] == {
        "discover": "yes", "recheck": "5s"
    }  # fmt: skip
    assert parse(ALONE, ["--discover=no"])[1] == {"discover": "no"}


@pytest.mark.parametrize(
    ("program", "words", "complaint"),
    [
        (NAMED, [], "takes one NAME, not 0"),
        (NAMED, ["a", "b"], "takes one NAME, not 2: a b"),
        (ALONE, ["a"], "takes no argument, not 1: a"),
        (NAMED, ["a", "--concurency=5"], "'--concurency' (did you mean '--concurrency'?)"),
        (NAMED, ["a", "-x"], "unknown option '-x'"),
        (NAMED, ["a", "--stream"], "--stream needs a value"),
        (NAMED, ["a", "--recheck", "5"], "unknown option '--recheck'"),
    ],
)
def test_says_what_is_wrong(program: Program, words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(program, words)
    assert complaint in str(caught.value)


def test_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(NAMED, ["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"wakeq-consumer {__version__}\n"


@pytest.mark.parametrize("program", [NAMED, ALONE])
def test_help_names_every_setting(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(program, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown == usage(program)
    for setting in program.settings:
        assert f"  {setting.option}" in shown
        assert setting.help in shown


def test_shows_defaults_as_they_are_written() -> None:
    assert shown_default(Consumer.table["timeout"]) == " (default: 0s)"
    assert shown_default(Consumer.table["idle_timeout"]) == " (default: 30s)"
    assert shown_default(Consumer.table["handler"]) == ""
    assert shown_default(Wakeup.table["discover"]) == ""


_DAEMON = """\
import os, select, signal, sys
from wakeq import errors
from wakeq.sections import Wakeup
from wakeq.service import DRAIN, NOW, Program, run

def body(service):
    what = os.environ["WHAT"]
    if what == "wait":
        print("waiting", flush=True)
        while service.stop != int(os.environ["UNTIL"]) and not service.reload:
            select.select([service.signal_fd], [], [])
            service.clear_signal()
            print("woke", flush=True)
        print(service.stop, service.reload, flush=True)
        return 3
    if what == "killed":
        print("order 7")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fault":
        raise RuntimeError("broken")
    if what.endswith("Error"):
        raise getattr(errors, what)("it went wrong")
    return int(what) if what else None

run(Program("wakeq-test", "A test.", Wakeup), body)
"""


def start(tmp_path: Path, what: str, *words: str, until: int = 1) -> subprocess.Popen[str]:
    environment = {
        "WHAT": what, "UNTIL": str(until), "WAKEQ_CONFIG_DIR": str(tmp_path), "PATH": "/usr/bin"
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", _DAEMON, *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("", 0), ("5", 5), ("WakeqError", 70), ("UsageError", 64), ("ConfigError", 78),
        ("RefusedError", 77), ("UnavailableError", 69), ("BusyError", 75),
    ],
)  # fmt: skip
def test_ends_with_the_exit_code_that_fits(tmp_path: Path, what: str, code: int) -> None:
    ended_with, err = ended(start(tmp_path, what))
    assert ended_with == code
    assert "Traceback" not in err
    assert ("it went wrong" in err) == what.endswith("Error")


def test_a_fault_of_its_own_is_logged_with_its_traceback(tmp_path: Path) -> None:
    code, err = ended(start(tmp_path, "fault"))
    assert code == 70
    assert "stopped by a fault in wakeq itself" in err
    assert "RuntimeError: broken" in err


def test_what_was_printed_is_out_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "killed")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert out == "order 7\n"


def test_wrong_usage_is_one_line_and_a_hint(tmp_path: Path) -> None:
    code, err = ended(start(tmp_path, "", "--nonsense"))
    assert code == 64
    assert err == "wakeq-test: unknown option '--nonsense'\nTry 'wakeq-test --help'.\n"


def test_a_wrong_configuration_ends_with_78(tmp_path: Path) -> None:
    (tmp_path / "wakeq.toml").write_text("nonsense = 1\n")
    code, err = ended(start(tmp_path, ""))
    assert code == 78
    assert "unknown setting 'nonsense'" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "wait", until=2)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    assert process.stdout.readline() == "woke\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out.endswith("2 False\n")
    assert process.returncode == 3


def test_a_hangup_asks_for_a_reload(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert out.endswith("0 True\n")
    assert process.returncode == 3
