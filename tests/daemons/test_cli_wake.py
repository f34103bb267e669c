"""wakeq wake, with a consumer's side of the wake socket in the test."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from wakeq_command import Wakeq

ANSWER = (
    b'{"name": "orders", "state": "awake", "in_hand": 3, "handled": 1200, "failed": 1,'
    b' "rate": 41.7, "pid": 4711}\n'
)


@pytest.fixture
def wakeq(short_dir: Path) -> Wakeq:
    # No Redis is needed to wake somebody.
    return Wakeq(short_dir, f"unix://{short_dir}/none")


class Sleeper:
    """Accepts one connection and does with it what it is told."""

    def __init__(self, path: Path, behave: Callable[[socket.socket], None]) -> None:
        self.asked = b""
        self._behave = behave
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while not self.asked.endswith(b"\n"):
                chunk = connection.recv(100)
                if not chunk:
                    return  # it has given up before it asked
                self.asked += chunk
            self._behave(connection)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture
def sleeper(wakeq: Wakeq) -> Iterator[Callable[..., Sleeper]]:
    sleepers: list[Sleeper] = []

    def make(behave: Callable[[socket.socket], None], name: str = "orders") -> Sleeper:
        sleepers.append(Sleeper(wakeq.socket_path(name), behave))
        return sleepers[-1]

    yield make
    for one in sleepers:
        one.close()


def test_asks_for_the_status_and_prints_it(wakeq: Wakeq, sleeper: Callable[..., Sleeper]) -> None:
    consumer = sleeper(lambda connection: connection.sendall(ANSWER))
    result = wakeq.run("wake", "orders")
    assert consumer.asked == b"status\n"
    assert result.code == 0
    assert result.lines == ["orders: awake, 3 in hand, 1,200 handled, 1 failed, 42/s, pid 4711"]


def test_prints_the_answer_as_json(wakeq: Wakeq, sleeper: Callable[..., Sleeper]) -> None:
    # In two pieces, as a network may give it.
    sleeper(lambda connection: [connection.sendall(part) for part in (ANSWER[:9], ANSWER[9:])])
    (answer,) = wakeq.run("wake", "orders", "--json").json()
    assert answer["pid"] == 4711


def test_wakes_an_instance(wakeq: Wakeq, sleeper: Callable[..., Sleeper]) -> None:
    sleeper(lambda connection: connection.sendall(ANSWER), "orders:2")
    assert wakeq.run("wake", "orders:2").code == 0


def test_waits_until_the_consumer_sleeps(wakeq: Wakeq, sleeper: Callable[..., Sleeper]) -> None:
    slept, may_sleep = threading.Event(), threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.sendall(ANSWER)
        may_sleep.wait(60)
        slept.set()

    sleeper(behave)
    process = wakeq.start("wake", "orders", "--wait", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"orders: awake")
    assert process.poll() is None
    may_sleep.set()
    assert process.wait(60) == 0
    process.stdout.close()
    assert slept.is_set()


def test_says_that_there_is_no_socket(wakeq: Wakeq) -> None:
    result = wakeq.run("wake", "orders")
    assert result.code == 69
    assert f"there is no socket {wakeq.socket_path('orders')}" in result.err
    assert "systemctl enable --now wakeq-consumer@orders.socket" in result.err


def test_says_that_nobody_listens(wakeq: Wakeq) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(wakeq.socket_path("orders")))
        result = wakeq.run("wake", "orders")
    assert result.code == 69
    assert "nobody listens" in result.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_says_that_it_may_not_connect(wakeq: Wakeq, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(wakeq.socket_path("orders")))
        listener.listen()
        wakeq.socket_path("orders").chmod(0o600)
        for folder in (Path(os.environ["TMPDIR"]), short_dir):
            folder.chmod(0o755)
        code = (
            "import os, sys; from wakeq.cli.main import main;"
            "os.setresuid(65534, 65534, 65534); sys.exit(main(['wake', 'orders']))"
        )
        done = subprocess.run(
            [__import__("sys").executable, "-c", code], env=wakeq.env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 77, done.stderr
    assert "this user may not connect" in done.stderr


def test_says_that_the_consumer_left_without_an_answer(
    wakeq: Wakeq, sleeper: Callable[..., Sleeper]
) -> None:
    sleeper(lambda connection: None)
    result = wakeq.run("wake", "orders")
    assert result.code == 69
    assert "left without an answer" in result.err
    assert "journalctl -u wakeq-consumer@orders.service" in result.err


def test_says_that_the_consumer_does_not_answer(
    wakeq: Wakeq, sleeper: Callable[..., Sleeper]
) -> None:
    sleeper(lambda connection: connection.recv(1))
    result = wakeq.run("wake", "orders", "--timeout", "200ms")
    assert result.code == 69
    assert "did not answer within 0.2 s" in result.err


@pytest.mark.parametrize("answer", [b"hello\n", b"[1]\n", b"\xff\n", b"x" * 100_000])
def test_says_that_an_answer_is_none(
    wakeq: Wakeq, sleeper: Callable[..., Sleeper], answer: bytes
) -> None:
    def behave(connection: socket.socket) -> None:
        with suppress(OSError):  # it may have had enough
            connection.sendall(answer)

    sleeper(behave)
    result = wakeq.run("wake", "orders")
    assert result.code == 69
    assert "gave an answer that is none" in result.err


@pytest.mark.parametrize("name", ["../etc", "", "a b", "orders:x", ".hidden"])
def test_refuses_what_is_no_name(wakeq: Wakeq, name: str) -> None:
    result = wakeq.run("wake", name)
    assert result.code == 64


def test_says_that_the_path_is_too_long(wakeq: Wakeq) -> None:
    result = wakeq.run("wake", "a" * 120)
    assert result.code == 78
    assert "too long" in result.err
