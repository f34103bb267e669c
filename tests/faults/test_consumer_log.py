"""A log that cannot be written never stops the handling of messages, nor changes the exit code."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults_host import FaultHost
from redis_servers import RedisServer, wait_until

FAILING = """
def handle(message):
    record(message.id, 0)
    raise ValueError("said in the log")
"""
# How a shell starts it with a log that cannot be written.
BROKEN = {
    "stderr closed": 'exec "$@" 2>&-',
    "all three closed": 'exec "$@" <&- >&- 2>&-',
    "disk full": 'exec "$@" 2>/dev/full',
    "disk full for stdout too": 'exec "$@" >/dev/full 2>&1',
    "reader gone": 'exec "$@" 2> >(exec 0<&-; exec true); sleep 0.2',
}


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[FaultHost]:
    host = FaultHost(short_dir, redis)
    yield host
    host.close()


def start(host: FaultHost, script: str, *options: str, **env: str) -> subprocess.Popen[bytes]:
    command = ["bash", "-c", script, "bash", *host.command("orders", *options)]
    return subprocess.Popen(command, env=os.environ | host.env | env)


@pytest.mark.parametrize("fault", BROKEN)
def test_handles_and_sleeps_without_a_log(host: FaultHost, fault: str) -> None:
    host.configure(handler=host.handler(FAILING, file="failing.py"))
    host.fill(20)
    # It must not sleep before it is given the last message.
    process = start(host, BROKEN[fault], "--idle-timeout", "5s")
    try:
        host.wait_handled(20)
        # Failed messages are logged at once by now, and handling goes on.
        wait_until(lambda: host.counter("failed") == 20)
        host.fill(1)
        host.wait_handled(21)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_handles_and_sleeps_when_the_journal_is_gone(host: FaultHost, short_dir: Path) -> None:
    host.configure(handler=host.handler(FAILING, file="failing.py"))
    host.fill(20)
    ours, theirs = socket.socketpair()
    stat = os.fstat(theirs.fileno())
    env = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
    process = subprocess.Popen(
        host.command("orders", "--idle-timeout", "2.5s"),
        env=os.environ | host.env | env,
        stderr=theirs,
    )
    ours.close()  # as a journald that was stopped
    theirs.close()
    try:
        host.wait_handled(20)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
