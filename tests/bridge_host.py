"""A host for tests of wakeq-bridge: its folders, transforms, and bridges as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, pack
from wakeup_host import Daemon

HOST = os.uname().nodename
CHANNEL = "messages:published"
STREAM = "messages:processed"
IDS = "consumer:ids"


class BridgeHost:
    """The folder of one host and its bridges; several instances may run.

    Args:
        directory: where bridges/NAME.toml and the code of transforms are.
        server: the Redis; its `url` and `client()` are used.

    Attributes:
        redis: a client of the Redis.
        env: added to the environment of each daemon; the test may change it.
    """

    def __init__(self, directory: Path, server: RedisServer, url: str = "") -> None:
        self.config_dir = directory / "etc"
        self.app_dir = directory / "app"
        (self.config_dir / "bridges").mkdir(parents=True)
        self.app_dir.mkdir()
        self.server = server
        self.redis = server.client()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        # Else what is printed would be seen at once whatever the worker does about it.
        inherited.pop("PYTHONUNBUFFERED", None)
        self.env = inherited | {
            "WAKEQ_REDIS_URL": url or server.url, "NO_COLOR": "1", "COLUMNS": "300",
        }  # fmt: skip
        self._daemons: list[Daemon] = []
        self._connections: list[Connection] = []

    def configure(self, bridge: str = "clicks", **settings: Any) -> None:
        """Write a bridge's file; without a source, it takes the usual channel."""
        if not settings.keys() & {"channel", "pattern", "shard_channels", "list_"}:
            settings["channel"] = CHANNEL
        lines = [f"{key.rstrip('_')} = {json.dumps(value)}\n" for key, value in settings.items()]
        (self.config_dir / "bridges" / f"{bridge}.toml").write_text("".join(lines))

    def code(self, text: str, file: str = "shop.py") -> str:
        """Write a transform's file and return what names its function `transform`."""
        path = self.app_dir / file
        path.write_text(text)
        return f"{path}:transform"

    def program(self, script: str, file: str = "shop") -> str:
        """Write an executable script and return its path."""
        path = self.app_dir / file
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        return str(path)

    def launch(self, name: str = "clicks", *options: str, **env: str) -> Daemon:
        """Start a bridge, and do not wait for it."""
        command = [sys.executable, "-c", "from wakeq.bridge.main import main; main()", name]
        command += ["--config-dir", str(self.config_dir), *options]
        daemon = Daemon(command, self.env | env)
        self._daemons.append(daemon)
        return daemon

    def start(self, name: str = "clicks", *options: str, workers: int = 1, **env: str) -> Daemon:
        """Start a bridge, and wait until all its workers live and it has a source or stands by."""
        daemon = self.launch(name, *options, **env)
        ids = {f"{HOST}/{name}/{number}" for number in range(1, workers + 1)}
        wait_until(lambda: ids <= set(self.ids()), 60, f"{name} runs: {daemon.lines}")
        return daemon

    def wait_begun(self, count: int = 1, bridge: str = "clicks", channel: str = CHANNEL) -> None:
        """Wait until somebody takes the messages of a channel."""
        key = keys.bridge_lease(channel, bridge)
        wait_until(lambda: self.redis.hget(key, "begun") == b"1", 60, "the channel is taken")

    def holder(self, bridge: str = "clicks", channel: str = CHANNEL) -> str:
        """Return the instance that takes the messages of a channel, once it does."""
        found = self.redis.hmget(keys.bridge_lease(channel, bridge), "instance", "begun")
        return (found[0] or b"").decode() if found[1] == b"1" else ""

    def ids(self) -> list[str]:
        """Return the ids that stand in the list."""
        return [found.decode() for found in self.redis.lrange(IDS, 0, -1)]

    def publish(self, *bodies: bytes | str, channel: str = CHANNEL) -> None:
        """Publish messages, each in its turn."""
        for body in bodies:
            assert self.redis.publish(channel, body) >= 1, "nobody listens"

    def burst(self, count: int, first: int = 0, channel: str = CHANNEL) -> None:
        """Publish so many small JSON messages, numbered, as quickly as can be."""
        raw = b"".join(
            pack([("PUBLISH", channel, b'{"number":"%d"}' % number)])
            for number in range(first, first + count)
        )
        self.send(raw, count)

    def send(self, raw: bytes, replies: int) -> None:
        """Send requests as they are, and wait for so many replies that are numbers."""
        with socket.socket(socket.AF_UNIX) as sender:
            sender.settimeout(60)
            sender.connect(str(self.server.socket_path))
            thread = threading.Thread(target=sender.sendall, args=(raw,))
            thread.start()
            got = 0
            while got < replies:
                chunk = sender.recv(1 << 20)
                assert chunk, "the server has closed the connection"
                got += chunk.count(b"\n")
            thread.join()

    def entries(self, stream: str = STREAM) -> list[dict[bytes, bytes]]:
        """Return the fields of all entries of a stream."""
        return [fields for _, fields in self.redis.xrange(stream)]

    def wait_entries(self, count: int, deadline_s: float = 60) -> list[dict[bytes, bytes]]:
        """Wait until the stream has so many entries, and return them."""
        wait_until(
            lambda: self.redis.xlen(STREAM) >= count, deadline_s,
            f"{count} entries: {[daemon.lines[-5:] for daemon in self._daemons]}",
        )  # fmt: skip
        return self.entries()

    def numbers(self) -> list[int]:
        """Return the numbers of all messages of bursts that are in the stream, sorted."""
        return sorted(int(fields[b"number"]) for fields in self.entries())

    def subscriptions(self) -> list[int]:
        """Return the clients of Redis that take messages: they have their marks besides."""
        return [int(c["id"]) for c in self.redis.client_list() if int(c["sub"]) > 1]

    def unread(self) -> int:
        """Return how many bytes Redis has for those; a cut leaves them what they were sent."""
        clients = [c for c in self.redis.client_list() if int(c["sub"]) > 1]
        return sum(int(c["obl"]) + int(c["omem"]) for c in clients)

    def dead(self, bridge: str = "clicks") -> list[dict[bytes, bytes]]:
        """Return the dead letters of a bridge."""
        return self.entries(keys.dead(STREAM, keys.bridge_group(bridge)))

    def stats(self, bridge: str = "clicks") -> dict[str, int]:
        """Return the counters of a bridge."""
        found = self.redis.hgetall(keys.stats(STREAM, keys.bridge_group(bridge)))
        return {name.decode(): int(value) for name, value in found.items()}

    def fill(self, count: int, key: str = "jobs", first: int = 0) -> None:
        """Put so many small JSON messages into a list, numbered."""
        bodies = [b'{"number":"%d"}' % number for number in range(first, first + count)]
        parts = [("LPUSH", key, *bodies[at : at + 1000]) for at in range(0, count, 1000)]
        self.send(pack(parts), len(parts))

    def connection(self) -> Connection:
        """Return a connection of wakeq's own, for scripts."""
        connection = Connection(RedisURL(self.server.url), "test")
        connection.connect()
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        """End everything."""
        for connection in self._connections:
            connection.close()
        for daemon in self._daemons:
            daemon.kill()


@contextmanager
def bridge_host(directory: Path, server: RedisServer, url: str = "") -> Iterator[BridgeHost]:
    """Provide a host, and end its bridges."""
    host = BridgeHost(directory, server, url)
    try:
        yield host
    finally:
        host.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stand still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _stands_still(pid))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that was just about to end
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def workers_of(daemon: Daemon) -> list[int]:
    """Return the processes of a bridge's workers."""
    found = ""
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += (task / "children").read_text()
    return [int(pid) for pid in found.split()]
