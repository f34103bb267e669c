"""What systemd gives a service and hears from it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from redis_servers import wait_until
from wakeq import systemd
from wakeq.errors import ConfigError


class NotifySocket(Protocol):
    env: dict[str, str]
    messages: list[str]

    def wait_for(self, message: str) -> str: ...


@pytest.fixture
def notifier(
    notify_socket: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[systemd.Notifier]:
    monkeypatch.setenv("NOTIFY_SOCKET", notify_socket.env["NOTIFY_SOCKET"])
    made = systemd.Notifier()
    yield made
    # sdnotify leaves that to the end of the process.
    if made._notifier is not None:
        made._notifier.socket.close()


def test_is_heard_also_when_the_application_has_cleared_its_environment(
    notifier: systemd.Notifier, notify_socket: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")
    notifier.ready()
    assert notify_socket.wait_for("READY=1")
    notifier.alive()
    assert notify_socket.wait_for("WATCHDOG=1")
    notifier.ready()
    wait_until(lambda: notify_socket.messages.count("READY=1") == 2)
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (lambda n: n.ready(), "READY=1"),
        (lambda n: n.stopping(), "STOPPING=1"),
        (lambda n: n.alive(), "WATCHDOG=1"),
        (lambda n: n.extend(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
        (lambda n: n.status("3 in hand\nall well"), "STATUS=3 in hand all well"),
    ],
)
def test_says_how_the_service_is(
    notifier: systemd.Notifier,
    notify_socket: NotifySocket,
    say: Callable[[systemd.Notifier], None],
    heard: str,
) -> None:
    say(notifier)
    notify_socket.wait_for(heard)


def test_a_reload_says_when_it_began(
    notifier: systemd.Notifier, notify_socket: NotifySocket
) -> None:
    before = systemd.monotonic_usec()
    notifier.reloading()
    notify_socket.wait_for("RELOADING=1")
    began = int(notify_socket.wait_for("MONOTONIC_USEC=").partition("=")[2])
    assert before <= began <= systemd.monotonic_usec()


def test_says_the_same_words_once(notifier: systemd.Notifier, notify_socket: NotifySocket) -> None:
    for words in ("one", "one", "two"):
        notifier.status(words)
    notify_socket.wait_for("STATUS=two")
    assert notify_socket.messages == ["STATUS=one", "STATUS=two"]


def test_says_nothing_without_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = systemd.Notifier()
    notifier.ready()
    notifier.status("well")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "often"}, 0.0),
        ({}, 0.0),
    ],
)
def test_knows_its_watchdog(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seconds: float
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert systemd.Notifier().watchdog_seconds == seconds


_CHILD = """\
import os, sys
os.environ["LISTEN_PID"] = sys.argv[1].replace("own", str(os.getpid()))
from wakeq.systemd import listening_sockets
for name, sockets in listening_sockets().items():
    for one in sockets:
        print(name, one.getsockname(), os.get_inheritable(one.fileno()))
"""


def listening(directory: Path, count: int, environment: dict[str, str], pid: str) -> list[str]:
    """Return what a process says of the sockets that it is started with."""
    sockets = []
    for number in range(count):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(f"{directory}/{number}")
    # They are numbered from 3 on, as systemd does; by a shell, because Python may need 3 itself.
    moves = " ".join(f"{3 + i}<&{one.fileno()}" for i, one in enumerate(sockets))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")}
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {moves}', "-", sys.executable, "-c", _CHILD, pid],
        pass_fds=[one.fileno() for one in sockets], env=inherited | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for one in sockets:
        one.close()
    return done.stdout.splitlines()


def test_takes_its_sockets_by_name(short_dir: Path) -> None:
    given = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "wake:monitor"}
    assert listening(short_dir, 2, given, "own") == [
        f"wake {short_dir}/0 False",
        f"monitor {short_dir}/1 False",
    ]


def test_a_socket_without_a_name_is_unknown(short_dir: Path) -> None:
    assert listening(short_dir, 1, {"LISTEN_FDS": "1"}, "own") == [f"unknown {short_dir}/0 False"]


@pytest.mark.parametrize(
    ("environment", "pid"), [({"LISTEN_FDS": "1"}, "1"), ({}, "own"), ({"LISTEN_FDS": "x"}, "own")]
)
def test_takes_no_sockets_that_are_not_its_own(
    short_dir: Path, environment: dict[str, str], pid: str
) -> None:
    assert listening(short_dir, 1, environment, pid) == []


def test_reads_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("ä b\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert systemd.credential("password") == "ä b"
    assert systemd.credential("other") == ""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert systemd.credential("password") == ""


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_says_that_a_credential_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is None:
        (tmp_path / "password").mkdir()
    else:
        (tmp_path / "password").write_bytes(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="credential password: "):
        systemd.credential("password")
