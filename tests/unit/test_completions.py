"""The completions: up to date, accepted by their shells, and right when a key is pressed."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPLETIONS = ROOT / "packaging/completions"
PROGRAMS = [
    "wakeq",
    "wakeq-bridge",
    "wakeq-consumer",
    "wakeq-delay",
    "wakeq-fanout",
    "wakeq-leader",
    "wakeq-node",
    "wakeq-trim",
    "wakeq-wakeup",
]
BASH = [COMPLETIONS / "bash" / name for name in PROGRAMS]
ZSH = [COMPLETIONS / "zsh" / f"_{name}" for name in PROGRAMS]
FISH = [COMPLETIONS / "fish" / f"{name}.fish" for name in PROGRAMS]

TAB, LINE_START, ALL_MATCHES = "\t", "\x01", "\x1b*"


def run(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result, standard error within its output."""
    return subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | more, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def consumers(short_dir: Path) -> dict[str, str]:
    """An environment with the consumers orders and mail, and a socket of orders:2."""
    for name in ("etc/consumers/orders.toml", "etc/consumers/mail.toml", "etc/consumers/_old.toml",
                 "run/consumer/orders.sock", "run/consumer/orders:2.sock"):  # fmt: skip
        path = short_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {"WAKEQ_CONFIG_DIR": f"{short_dir}/etc", "WAKEQ_RUNTIME_DIR": f"{short_dir}/run"}


def typed(shell: list[str], setup: str, keys: str, environment: dict[str, str]) -> list[str]:
    """Type keys in an interactive shell, and return the words that then stand on the line.

    A shell reads one key after another, so what comes after a Tab is typed when it is done.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment, TERM="dumb", HISTFILE="", HOME=environment["HOME"])
        os.execvp(shell[0], shell)
    output = b""
    try:
        os.write(terminal, f" {setup}; printf 'UP%s\\n' .\n".encode())
        output = read_until(terminal, rb"UP\.")
        line = f"{keys}{LINE_START} printf '<%s>' "
        os.write(terminal, f"{line}\n exit\n".encode())
        output += read_until(terminal, rb"<wakeq[^>%]*>.*exit")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    printed = output.decode(errors="replace").rsplit("\n<wakeq", 1)[-1]
    return re.findall(r"<([^>]*)>", f"<wakeq{printed}")


def read_until(terminal: int, pattern: bytes) -> bytes:
    """Return what a terminal shows until it matches a pattern, or fail after a while."""
    seen, deadline = b"", time.monotonic() + 60
    while not re.search(pattern, seen.replace(b"\r", b""), re.DOTALL):
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, seen.decode(errors="replace")
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            break  # the shell has ended
    return seen.replace(b"\r", b"")


def test_the_files_are_up_to_date() -> None:
    result = run(sys.executable, COMPLETIONS / "generate.py", "--check")
    assert (result.returncode, result.stdout) == (0, "")


def test_every_file_belongs_to_a_program() -> None:
    found = {path for path in COMPLETIONS.glob("*/*") if path.parent.name != "__pycache__"}
    assert found == {*BASH, *ZSH, *FISH}


@pytest.mark.parametrize("path", BASH, ids=lambda path: path.name)
def test_bash_accepts_each_file(path: Path) -> None:
    assert run("bash", "-n", path).stdout == ""
    result = run("shellcheck", "--shell=bash", path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", ZSH, ids=lambda path: path.name)
def test_zsh_accepts_each_file(path: Path) -> None:
    result = run("zsh", "-n", path)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", FISH, ids=lambda path: path.name)
def test_fish_accepts_each_file(path: Path) -> None:
    result = run("fish", "--no-config", "-n", path)
    assert (result.returncode, result.stdout) == (0, "")


BASH_CASES = {
    f"wakeq pub{TAB}": ["wakeq", "publish"],
    f"wakeq {ALL_MATCHES}": ["wakeq", "check", "dead", "delayed", "errors", "pause", "peek",
                              "produce", "publish", "resume", "room", "status", "trim",
                              "wake"],
    f"wakeq dead {ALL_MATCHES}": ["wakeq", "dead", "list", "purge", "retry", "show"],
    f"wakeq --redis-url dead dead ret{TAB}": ["wakeq", "--redis-url", "dead", "dead", "retry"],
    f"wakeq room {ALL_MATCHES}": ["wakeq", "room", "list", "listen", "peek", "send", "show"],
    f"wakeq delayed {ALL_MATCHES}": ["wakeq", "delayed", "cancel", "list", "now"],
    f"wakeq dead ret{TAB}orders --ra{TAB}5": ["wakeq", "dead", "retry", "orders", "--rate=5"],
    f"wakeq dead --red{TAB}": ["wakeq", "dead", "--redis-url="],
    f"wakeq dead list orders --ra{TAB}": ["wakeq", "dead", "list", "orders", "--ra"],
    f"wakeq --vers{TAB}": ["wakeq", "--version"],
    f"wakeq publish orders --dedup-w{TAB}5min": ["wakeq", "publish", "orders",
                                                 "--dedup-window=5min"],
    f"wakeq publish --vers{TAB}": ["wakeq", "publish", "--vers"],
    f"wakeq peek --la{TAB}": ["wakeq", "peek", "--last"],
    # Not the value of --group: the command is what comes after the options.
    f"wakeq --redis-url wake pe{TAB}": ["wakeq", "--redis-url", "wake", "peek"],
    f"wakeq wake ma{TAB}": ["wakeq", "wake", "mail"],
    f"wakeq wake orders:{TAB}": ["wakeq", "wake", "orders:2"],
    f"wakeq check {ALL_MATCHES}": ["wakeq", "check", "mail", "orders", "orders:2"],
    f"wakeq-consumer --log-level=de{TAB}": ["wakeq-consumer", "--log-level=debug"],
    f"wakeq-consumer --log-level in{TAB}": ["wakeq-consumer", "--log-level", "info"],
    f"wakeq-consumer ma{TAB}": ["wakeq-consumer", "mail"],
    f"wakeq-consumer mail --config-dir /usr/inclu{TAB}": ["wakeq-consumer", "mail",
                                                          "--config-dir", "/usr/include/"],
    f"wakeq-wakeup --disc{TAB}": ["wakeq-wakeup", "--discover"],
    # It takes no name.
    f"wakeq-wakeup ma{TAB}": ["wakeq-wakeup", "ma"],
}  # fmt: skip


@pytest.mark.parametrize("keys", BASH_CASES, ids=lambda keys: repr(keys)[1:-1])
def test_bash_completes(keys: str, short_dir: Path, consumers: dict[str, str]) -> None:
    # As installed: bash-completion finds the file by the name of the program.
    (short_dir / "completions").symlink_to(COMPLETIONS / "bash")
    setup = "bind 'set enable-bracketed-paste off'; . /usr/share/bash-completion/bash_completion"
    environment = consumers | {"BASH_COMPLETION_USER_DIR": str(short_dir), "HOME": str(short_dir)}
    words = typed(["bash", "--norc", "--noprofile", "-i"], setup, keys, environment)
    assert words == BASH_CASES[keys]


ZSH_CASES = {
    f"wakeq pub{TAB}": ["wakeq", "publish"],
    f"wakeq peek --la{TAB}": ["wakeq", "peek", "--last"],
    f"wakeq dead ret{TAB}": ["wakeq", "dead", "retry"],
    f"wakeq dead retry orders --ra{TAB}5": ["wakeq", "dead", "retry", "orders", "--rate=5"],
    f"wakeq wake ma{TAB}": ["wakeq", "wake", "mail"],
    f"wakeq wake orders:{TAB}": ["wakeq", "wake", "orders:2"],
    f"wakeq-consumer --log-level=de{TAB}": ["wakeq-consumer", "--log-level=debug"],
    f"wakeq-consumer --idle-t{TAB}5s ma{TAB}": ["wakeq-consumer", "--idle-timeout=5s", "mail"],
    f"wakeq-wakeup --disc{TAB}": ["wakeq-wakeup", "--discover"],
}


@pytest.mark.parametrize("keys", ZSH_CASES, ids=lambda keys: repr(keys)[1:-1])
def test_zsh_completes(keys: str, short_dir: Path, consumers: dict[str, str]) -> None:
    setup = f"bindkey -e; fpath=({COMPLETIONS}/zsh $fpath); autoload -U compinit; compinit -u -D"
    environment = consumers | {"HOME": str(short_dir)}
    words = typed(["zsh", "-f", "-i"], setup, keys, environment)
    assert words == ZSH_CASES[keys]


FISH_CASES = {
    "wakeq pub": ["publish"],
    "wakeq ": [
        "publish",
        "produce",
        "status",
        "peek",
        "dead",
        "delayed",
        "errors",
        "room",
        "pause",
        "resume",
        "wake",
        "trim",
        "check",
    ],
    "wakeq dead ": ["list", "show", "retry", "purge"],
    "wakeq dead retry --ra": ["--rate"],
    "wakeq dead list --ra": [],
    "wakeq peek --la": ["--last"],
    "wakeq status --la": [],
    "wakeq wake ma": ["mail"],
    "wakeq wake orders": ["orders", "orders:2"],
    "wakeq check ": ["mail", "orders", "orders:2"],
    "wakeq-consumer --log-level de": ["debug"],
    "wakeq-consumer --log-level=de": ["--log-level=debug"],
    "wakeq-wakeup --disc": ["--discover"],
}


@pytest.mark.parametrize("line", FISH_CASES)
def test_fish_completes(line: str, short_dir: Path, consumers: dict[str, str]) -> None:
    sources = "".join(f"source {path}; " for path in FISH)
    homes = {"HOME": str(short_dir), "XDG_CONFIG_HOME": str(short_dir)}
    homes |= {"XDG_DATA_HOME": str(short_dir), "XDG_CACHE_HOME": str(short_dir)}
    result = run("fish", "--no-config", "-c", f"{sources} complete -C '{line}'",
                 **consumers, **homes)  # fmt: skip
    assert result.returncode == 0, result.stdout
    found = [text.partition("\t")[0] for text in result.stdout.splitlines()]
    assert sorted(set(found)) == sorted(FISH_CASES[line])
