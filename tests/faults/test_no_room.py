"""Daemons whose own processes end on a host on which no other one can be started at first."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import NotifySocket
from delay_host import DelayHost
from node_host import NAME, NodeHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

REFUSED = "no process can be started: Too many open files"
# A lease that is not lost because a busy machine has its leader stand still.
LONG = "--lease=10min"
RECORDS = "def handle(message):\n    record(message.body.decode())\n"


@contextmanager
def limited(pid: int, files: int) -> Iterator[None]:
    """Have a process unable to open more than so many files, and so to start another one."""
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    is_open = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in is_open)
    least = next(itertools.islice(free, files, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, limit[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


@contextmanager
def no_room(pid: int) -> Iterator[None]:
    """Have a process unable to open anything; end those that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    with limited(pid, 0):
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        yield


@pytest.fixture
def node_host(short_dir: Path, own_redis: RedisServer) -> Iterator[NodeHost]:
    host = NodeHost(short_dir, own_redis)
    host.vacate()
    yield host
    host.close()


def test_a_node_consumes_again_as_soon_as_there_is_room(node_host: NodeHost) -> None:
    handler = node_host.handler(RECORDS)
    node_host.configure(interval="1h", handler=handler, leader_consumes=True)
    node = node_host.start_node(NAME, LONG)
    node_host.wait_records(1)
    with no_room(node.pid):
        node.wait_log("nothing can be consumed, trying again", 2)
        line = next(line for line in node.lines if "nothing can be consumed" in line)
        assert REFUSED in line
        node_host.publish("kept", stream=NAME)
    wait_until(lambda: "kept" in node_host.records)
    assert node.count("elected") == 1


def test_a_node_makes_messages_again_as_soon_as_there_is_room(node_host: NodeHost) -> None:
    make = node_host.handler("def make():\n    return 'x'\n", function="make")
    node_host.configure(interval=0.05, generate=make)
    node = node_host.start_node(NAME, LONG)
    wait_until(lambda: node_host.redis.xlen(NAME), 60, "the first message is emitted")
    with no_room(node.pid):
        node.wait_log(REFUSED)
        before = node_host.redis.xlen(NAME)
    wait_until(lambda: node_host.redis.xlen(NAME) > before, 60, "messages are made again")
    node.wait_log("messages are made again")
    assert node.count("elected") == 1


def test_messages_are_repaired_again_as_soon_as_there_is_room(
    short_dir: Path, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    host = DelayHost(short_dir, own_redis)
    host.env |= notify_socket.env
    try:
        path = host.code("def repair(message):\n    return {'body': 'repaired'}\n")
        daemon = host.start("--repair", path)
        notify_socket.wait_for("READY=1")
        notify_socket.wait_for("STATUS=")  # what says so is loaded
        with no_room(daemon.process.pid):
            daemon.wait_log(f"messages cannot be repaired: {REFUSED}")
            host.fail(7)
            host.ring()
        retry = keys.retry("orders", "g")
        wait_until(lambda: host.entries(retry), 60, "the message is repaired")
        assert host.entries(retry)[0][b"body"] == b"repaired"
    finally:
        host.close()


def test_another_repair_is_taken_up_as_soon_as_there_is_room(
    short_dir: Path, own_redis: RedisServer, notify_socket: NotifySocket
) -> None:
    host = DelayHost(short_dir, own_redis)
    host.env |= notify_socket.env
    names = iter(range(1, 1000))

    def repaired_by() -> bytes:
        number = next(names)
        host.fail(number)
        host.ring()
        retry = keys.retry("orders", "g")
        wait_until(lambda: len(host.entries(retry)) == number, 60, "the message is repaired")
        return host.entries(retry)[-1][b"by"]

    try:
        for by in ("first", "second"):
            host.code(f"def repair(message):\n    return {{'by': '{by}'}}\n", f"{by}.py")
        host.configure(f'[delay]\nrepair = "{host.app_dir}/first.py:repair"\n')
        daemon = host.start()
        notify_socket.wait_for("READY=1")
        notify_socket.wait_for("STATUS=")  # what says so is loaded
        host.configure(f'[delay]\nrepair = "{host.app_dir}/second.py:repair"\n')
        with limited(daemon.process.pid, 1):  # its configuration
            os.kill(daemon.process.pid, signal.SIGHUP)
            daemon.wait_log(f"the repair before goes on, this one cannot be used: {REFUSED}")
            assert [repaired_by(), repaired_by()] == [b"first", b"first"]
        wait_until(lambda: repaired_by() == b"second", 60, "the other one is taken up")
    finally:
        host.close()
