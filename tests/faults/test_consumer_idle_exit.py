"""The race at the idle exit: one message, silence, a thousand times; none may be stranded.

Forty consumers behind a listener that does what systemd does, woken by the real wakeq-wakeup.
Each message of a stream comes about when its consumer goes to sleep for lack of messages.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consumer_host import ConsumerHost
from redis_servers import RedisServer

CONSUMERS = 40
ROUNDS = 25
IDLE_SECONDS = 2.5  # the least that is allowed
# A message comes about when its consumer leaves, which it does the later the slower the machine:
# it comes later after one that came before that, and earlier after one that came behind it. What
# lies in between is widened by a pause after the last look, 50 ms.
JITTER_SECONDS = 0.1
STEP_SECONDS = 0.004
# A stranded message would wait for ever: wakeq-wakeup is told not to look again by itself. One that
# others are started before, a few at a time, waits for as long as that takes.
STRANDED_SECONDS = 30.0


class Supervisor:
    """Starts a consumer when somebody connects to its socket, and never accepts; as systemd."""

    def __init__(self, host: ConsumerHost, names: list[str]) -> None:
        self.failures: list[str] = []
        self.busy_at = time.monotonic()  # when a process was last started, or has ended
        self._env = os.environ | host.env | {"LISTEN_FDS": "1", "WAKEQ_LOG_LEVEL": "warning"}
        self._env["WAKEQ_FAILPOINT"] = "before_exit:sleep=0.05"
        self._poll = select.poll()
        self._name_of: dict[int, str] = {}  # by what is polled: a listener, or a running process
        self._running: dict[int, int] = {}  # process by its pidfd
        self._listeners = {name: host.wake_socket(name) for name in names}
        self._command = {name: host.command(name, "--idle-timeout", "2.5s") for name in names}
        for name in names:
            self._listen(name)

    def attend(self, wait_ms: int) -> None:
        """Do what there is to do; wait for it for at most so long."""
        for fd, _ in self._poll.poll(wait_ms):
            self._poll.unregister(fd)
            name = self._name_of.pop(fd)
            self.busy_at = time.monotonic()
            if fd in self._running:
                self._reap(fd, name)
                self._listen(name)
            else:
                self._start(fd, name)

    def stop(self) -> None:
        """Kill what runs."""
        for fd, pid in self._running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(fd)

    def _listen(self, name: str) -> None:
        self._watch(self._listeners[name].fileno(), name)

    def _watch(self, fd: int, name: str) -> None:
        self._name_of[fd] = name
        self._poll.register(fd, select.POLLIN)

    def _start(self, listener: int, name: str) -> None:
        # The process must find its own number in LISTEN_PID.
        command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *self._command[name]]
        passed = [(os.POSIX_SPAWN_DUP2, listener, 3)]
        pid = os.posix_spawn("/bin/sh", command, self._env, file_actions=passed)
        fd = os.pidfd_open(pid)
        self._running[fd] = pid
        self._watch(fd, name)

    def _reap(self, fd: int, name: str) -> None:
        _, status = os.waitpid(self._running.pop(fd), 0)
        os.close(fd)
        if status:
            self.failures.append(f"{name} exited with {os.waitstatus_to_exitcode(status)}")


@contextmanager
def wakeup(host: ConsumerHost) -> Iterator[None]:
    """Run wakeq-wakeup."""
    code = "from wakeq.wakeup.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--recheck", "1h"], env=os.environ | host.env
    )
    try:
        yield
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, own_redis)
    yield host
    host.close()


def test_none_of_a_thousand_messages_around_the_idle_exit_is_stranded(host: ConsumerHost) -> None:
    chance = random.Random(6)
    names = [f"q{number}" for number in range(CONSUMERS)]
    handler = host.handler("import os\ndef handle(m): record(m.stream, m.id, os.getpid())\n")
    for name in names:
        host.configure(name, handler=handler)
    supervisor = Supervisor(host, names)
    due = [(time.monotonic() + chance.uniform(0, IDLE_SECONDS), name) for name in names]
    heapq.heapify(due)
    rounds = dict.fromkeys(names, 0)
    silence, last_pid = IDLE_SECONDS, dict.fromkeys(names, "")
    asked: dict[str, tuple[str, float]] = {}  # the message of a stream that is not handled yet
    seen = 0
    with wakeup(host):
        try:
            while due or asked:
                supervisor.attend(5)
                now = time.monotonic()
                while due and due[0][0] <= now:
                    _, name = heapq.heappop(due)
                    (entry_id,) = host.publish("x", stream=name)
                    asked[name] = (entry_id.decode(), now)
                lines = host.records
                for line in lines[seen:]:
                    name, entry_id, pid = line.split()
                    expected, _ = asked.pop(name, ("", 0.0))
                    assert entry_id == expected, "a message was handled twice"
                    if rounds[name]:
                        silence += STEP_SECONDS if pid == last_pid[name] else -STEP_SECONDS
                    last_pid[name] = pid
                    rounds[name] += 1
                    if rounds[name] < ROUNDS:
                        later = silence + chance.uniform(-JITTER_SECONDS, JITTER_SECONDS)
                        heapq.heappush(due, (now + later, name))
                seen = len(lines)
                waits = max((now - since for _, since in asked.values()), default=0.0)
                rests = min(waits, now - supervisor.busy_at)
                is_stranded = rests > STRANDED_SECONDS or waits > 20 * STRANDED_SECONDS
                assert not is_stranded, f"stranded: some of {asked}, after {rounds}"
            for name in names:  # which the last ones do behind their record
                host.wait_done(stream=name, group=name)
        finally:
            supervisor.stop()

    assert seen == CONSUMERS * ROUNDS
    assert supervisor.failures == []
    # Else the messages did not come about at the exit: too early, or all of them too late.
    handlers = {line.split()[2] for line in host.records}
    assert 0.3 * seen < len(handlers) < 0.98 * seen
