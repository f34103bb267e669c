"""Real redis-server processes for tests, each on a unix socket in a folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import redis

T = TypeVar("T")

SERVER = os.environ.get("WAKEQ_TEST_REDIS_SERVER", "redis-server")


def wait_until(predicate: Callable[[], T], deadline_s: float = 10, message: str = "") -> T:
    """Return the first true value of `predicate`, or fail after `deadline_s` seconds."""
    deadline = time.monotonic() + deadline_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.005)
    return value


class RedisServer:
    """One redis-server without persistence; `options` are added to its command line.

    It listens on a unix socket alone, unless `options` say `--port`. What it holds outlives
    `restart()` only if `options` turn persistence on.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket_path = directory / "redis.sock"
        self.log_path = directory / "redis.log"
        self.url = f"unix://{self.socket_path}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def pid(self) -> int:
        """The process id; fails if the server is not running."""
        assert self._process is not None, "redis-server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; nothing if it is running."""
        if self.running:
            return
        # One that was killed leaves it behind; it would be mistaken for the new one.
        self.socket_path.unlink(missing_ok=True)
        command = [SERVER, "--port", "0", "--unixsocket", str(self.socket_path)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.directory)]
        command += ["--logfile", str(self.log_path), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_until(self._answers, message=f"{SERVER} answers")
        except AssertionError:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server as an admin would; nothing if it is not running."""
        self.close_clients()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the server without warning; nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.close_clients()

    def restart(self) -> None:
        """Stop the server and start it again at the same address."""
        self.stop()
        self.start()

    def client(self, **options: Any) -> redis.Redis:
        """Return a redis-py client that gives bytes; the server closes it when it stops."""
        settings: dict[str, Any] = {"unix_socket_path": str(self.socket_path)}
        settings |= {"socket_timeout": 30, "decode_responses": False} | options
        client = redis.Redis(**settings)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close the connections of all clients that `client()` returned."""
        for client in self._clients:
            client.connection_pool.disconnect()
        self._clients.clear()

    def _answers(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            log = self.log_path.read_text() if self.log_path.exists() else ""
            raise AssertionError(f"{SERVER} exited with {code} at its start: {log[-2000:]}")
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                # An error is not an answer while it is loading; with a password it is one.
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False
