"""A host for tests of wakeq-wakeup: its folders, its consumers' sockets, the daemon itself."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

import redis as redis_py

from leaks import join
from redis_servers import RedisServer, wait_until

HOST = os.uname().nodename


class FakeConsumer:
    """The socket of a consumer, which the test handles as systemd and the consumer would."""

    def __init__(self, host: WakeupHost, name: str, path: Path, stream: str, group: str) -> None:
        self.name = f"{HOST}/{name}"
        self.path = path
        self.stream = stream
        self.group = group
        self._redis = host.redis
        self._lease: socket.socket | None = None
        self.socket = socket.socket(socket.AF_UNIX)
        self.listen()

    def listen(self) -> None:
        """Start the socket unit, anew if it is running."""
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX)
        self.path.unlink(missing_ok=True)
        self.socket.bind(str(self.path))
        self.socket.listen(8)

    def stop(self) -> None:
        """Stop the socket unit: its file stays, nobody listens."""
        self.socket.close()
        self.sleep()

    def wait_woken(self, deadline_s: float = 60) -> FakeConsumer:
        """Wait for a wake, accept it and answer, as a consumer that has started."""
        self.socket.settimeout(deadline_s)
        try:
            lease, _ = self.socket.accept()
        except TimeoutError:
            raise AssertionError(f"{self.name} was not woken within {deadline_s:g} s") from None
        lease.settimeout(deadline_s)
        assert lease.recv(100) == b"status\n"
        lease.sendall(b'{"state":"reading"}\n')
        self.sleep()  # a lease of a wakeq-wakeup that is gone
        self._lease = lease
        return self

    def woken(self) -> bool:
        """Tell whether a wake waits to be accepted."""
        self.socket.settimeout(0)
        try:
            lease, _ = self.socket.accept()
        except BlockingIOError:
            return False
        lease.close()
        return True

    def join(self) -> None:
        """Make the group, as a consumer does at its start."""
        try:
            self._redis.xgroup_create(self.stream, self.group, "0", mkstream=True)
        except redis_py.ResponseError as error:
            assert "BUSYGROUP" in str(error)

    def read(self, consumer: str = "", count: int = 1000) -> list[bytes]:
        """Read what is unread, and leave it pending for the consumer (or another one)."""
        self.join()
        name = consumer or self.name
        reply = self._redis.xreadgroup(self.group, name, {self.stream: ">"}, count=count)
        return [entry_id for _, entries in reply for entry_id, _ in entries]

    def handle(self, count: int = 1000) -> int:
        """Read what is unread and acknowledge it."""
        ids = self.read(count=count)
        if ids:
            self._redis.xack(self.stream, self.group, *ids)
        return len(ids)

    def sleep(self) -> None:
        """Exit: the lease ends."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def lease_ended(self) -> bool:
        """Tell whether wakeq-wakeup has closed its end."""
        assert self._lease is not None
        self._lease.settimeout(0)
        try:
            return self._lease.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:  # it was killed before it had read what we answered
            return True


class Daemon:
    """A running wakeq-wakeup and what it logs."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def wait_log(self, text: str, times: int = 1, deadline_s: float = 60) -> None:
        """Wait until a text was logged so many times."""
        try:
            wait_until(lambda: self.count(text) >= times, deadline_s, repr(text))
        except AssertionError as error:
            error.add_note(f"it said {self.lines}, and has ended with {self.process.poll()}")
            raise

    def count(self, text: str) -> int:
        """Return how many lines of the log have a text."""
        return sum(text in line for line in self.lines)

    def wait_exit(self, deadline_s: float = 60) -> int:
        """Wait for the exit code."""
        code = self.process.wait(deadline_s)
        join(self._thread)
        return code

    def stop(self) -> int:
        """Stop it as systemd would, and return the exit code."""
        self.process.terminate()
        return self.wait_exit()

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.wait_exit()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
        self.process.stderr.close()


class WakeupHost:
    """The folders of one host, its consumers and its wakeq-wakeup."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.config_dir = directory / "etc"
        self.runtime_dir = directory / "run"
        (self.config_dir / "consumers").mkdir(parents=True)
        self.redis = server.client()
        self.env = {"WAKEQ_REDIS_URL": server.url}
        self._consumers: list[FakeConsumer] = []
        self._daemons: list[Daemon] = []

    def configure(self, name: str, text: str = "") -> None:
        """Write a consumer's file."""
        path = self.config_dir / "consumers" / f"{name}.toml"
        path.write_text(text or 'handler = "shop:handle"\n')

    def consumer(self, name: str, text: str = "", stream: str = "") -> FakeConsumer:
        """Make a consumer: its file, unless it is there, and its socket."""
        base = name.partition(":")[0]
        if text or not (self.config_dir / "consumers" / f"{base}.toml").exists():
            self.configure(base, text)
        sockets = self.runtime_dir / "consumer"
        sockets.mkdir(parents=True, exist_ok=True)
        return self.at(sockets / f"{name}.sock", name, stream or base, base)

    def at(self, path: Path, name: str, stream: str, group: str) -> FakeConsumer:
        """Make a socket that is woken for a group of a stream."""
        consumer = FakeConsumer(self, name, path, stream, group)
        self._consumers.append(consumer)
        return consumer

    def start(self, *options: str, **env: str) -> Daemon:
        """Start wakeq-wakeup."""
        command = [sys.executable, "-c", "from wakeq.wakeup.main import main; main()"]
        command += ["--config-dir", str(self.config_dir), "--runtime-dir", str(self.runtime_dir)]
        daemon = Daemon([*command, *options], os.environ | {"NO_COLOR": "1"} | self.env | env)
        self._daemons.append(daemon)
        return daemon

    def wait_woken(self, consumers: list[FakeConsumer], deadline_s: float = 60) -> None:
        """Wait until each of these has been woken, in whatever order, and let it handle."""
        asleep = {consumer.socket.fileno(): consumer for consumer in consumers}
        poll = select.poll()
        for fd in asleep:
            poll.register(fd, select.POLLIN)

        def all_woken() -> bool:
            for fd, _ in poll.poll(0):
                poll.unregister(fd)
                asleep.pop(fd).wait_woken().handle()
            return not asleep

        wait_until(all_woken, deadline_s)

    def close(self) -> None:
        """End everything."""
        for daemon in self._daemons:
            daemon.kill()
        for consumer in self._consumers:
            consumer.stop()
