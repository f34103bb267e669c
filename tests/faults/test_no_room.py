"""Daemons whose own processes end on a host on which no other one can be started at first."""

from __future__ import annotations

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
def no_room(pid: int) -> Iterator[None]:
    """Have a process unable to open anything, and so to start another one; end those it has."""
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, limit[1]))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


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
        with no_room(daemon.process.pid):
            daemon.wait_log(f"messages cannot be repaired: {REFUSED}")
            host.fail(7)
            host.ring()
        retry = keys.retry("orders", "g")
        wait_until(lambda: host.entries(retry), 60, "the message is repaired")
        assert host.entries(retry)[0][b"body"] == b"repaired"
    finally:
        host.close()
