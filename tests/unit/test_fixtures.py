"""The shared fixtures: what every other test relies on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py
import sdnotify

from leaks import nothing_left_behind
from redis_servers import RedisServer, wait_until


def test_a_server_answers_at_its_url(redis: RedisServer) -> None:
    client = redis_py.Redis.from_url(redis.url)
    assert client.ping()
    client.close()


@pytest.mark.parametrize("run", [1, 2])
def test_the_shared_server_is_empty_for_each_test(redis: RedisServer, run: int) -> None:
    client = redis.client()
    assert client.dbsize() == 0
    client.set("left", "behind")


def test_an_own_server_can_be_killed_and_started_again(own_redis: RedisServer) -> None:
    own_redis.client().set("a", "b")
    own_redis.kill()
    assert not own_redis.running
    own_redis.start()
    assert own_redis.client().get("a") is None


def test_a_server_with_persistence_keeps_what_it_holds(
    redis_server: Callable[..., RedisServer],
) -> None:
    server = redis_server("--appendonly", "yes")
    server.client().set("a", "b")
    server.restart()
    assert server.client().get("a") == b"b"


def test_a_server_that_cannot_start_says_why(redis_server: Callable[..., RedisServer]) -> None:
    with pytest.raises(AssertionError, match="exited with 1 at its start"):
        redis_server("--no-such-option", "1")


def test_the_notify_socket_collects_what_a_service_says(
    notify_socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(notify_socket.path))
    notifier = sdnotify.SystemdNotifier(debug=True)
    notifier.notify("STATUS=starting\nREADY=1")
    notifier.socket.close()
    assert notify_socket.wait_for("STATUS=") == "STATUS=starting"
    notify_socket.wait_for("READY=1")
    with pytest.raises(AssertionError, match=r"no READY=1 within 0.01 s"):
        notify_socket.wait_for("READY=1", deadline_s=0.01, after=2)


def test_two_test_runs_are_not_given_the_same_port() -> None:
    code = "import redis_servers; print(*(redis_servers.free_port() for _ in range(300))); input()"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) for _ in range(2)
    ]  # fmt: skip
    given = [set(run.stdout.readline().split()) for run in runs if run.stdout is not None]
    for run in runs:
        run.communicate("\n")
    assert [len(ports) for ports in given] == [300, 300]
    assert not given[0] & given[1]


def test_waiting_fails_at_its_deadline_and_says_for_what() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.01 s: the moon"):
        wait_until(lambda: False, deadline_s=0.01, message="the moon")


go = threading.Event()


def leave_a_process() -> None:
    # An orphan: its parent has ended.
    subprocess.run(["sh", "-c", "sleep 60 & exit 0"], check=True)


def leave_a_thread() -> None:
    go.clear()
    threading.Thread(target=go.wait).start()


def leave_a_file() -> None:
    Path(tempfile.gettempdir(), "left").touch()


@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (leave_a_process, "process [0-9]+ (sleep|sh)"),
        (leave_a_thread, "thread Thread-"),
        (leave_a_file, "temporary file left"),
    ],
)
def test_a_test_that_leaves_something_behind_fails(leave: Callable[[], None], what: str) -> None:
    message = f"left behind: {what}"
    with pytest.raises(AssertionError, match=message), nothing_left_behind(deadline_s=0.1):
        leave()
    go.set()
    Path(tempfile.gettempdir(), "left").unlink(missing_ok=True)


def test_a_process_whose_name_ends_within_a_character_is_seen(short_dir: Path) -> None:
    program = short_dir / ("a" * 14 + "ü")  # cut to 15 bytes
    shutil.copy("/usr/bin/sleep", program)
    message = r"left behind: process \d+ aaaaaaaaaaaaaa"
    with pytest.raises(AssertionError, match=message), nothing_left_behind(deadline_s=0.1):
        process = subprocess.Popen([program, "60"])
    process.wait()
