"""A host for tests of wakeq-delay: its folders, delayed messages, and daemons as processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from redis_servers import RedisServer
from wakeq import Publisher, keys
from wakeup_host import Daemon

# Packs its arguments from the third on, as fail.lua does, and puts them under an id.
_PUT = "redis.call('HSET', KEYS[2], ARGV[1], cmsgpack.pack({unpack(ARGV, 3)}))" \
       " redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])"  # fmt: skip


class DelayHost:
    """The folder of one host and its wakeq-delay; several may run.

    Args:
        directory: where wakeq.toml and a repair's code are.
        server: the Redis; its `url` and `client()` are used.

    Attributes:
        redis: a client of the Redis.
        env: added to the environment of each daemon; the test may change it.
    """

    def __init__(self, directory: Path, server: RedisServer, url: str = "") -> None:
        self.config_dir = directory / "etc"
        self.app_dir = directory / "app"
        self.config_dir.mkdir()
        self.app_dir.mkdir()
        self.redis = server.client()
        self.url = url or server.url
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        # Else what is printed would be seen at once whatever the repair's process does about it.
        inherited.pop("PYTHONUNBUFFERED", None)
        self.env = inherited | {"WAKEQ_REDIS_URL": self.url, "NO_COLOR": "1", "COLUMNS": "300"}
        self._daemons: list[Daemon] = []

    def configure(self, text: str) -> None:
        """Write wakeq.toml."""
        (self.config_dir / "wakeq.toml").write_text(text)

    def code(self, text: str, file: str = "fix.py") -> str:
        """Write a repair's file and return what names its function `repair`."""
        path = self.app_dir / file
        path.write_text(text)
        return f"{path}:repair"

    def program(self, script: str, file: str = "fix") -> str:
        """Write an executable script and return its path."""
        path = self.app_dir / file
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        return str(path)

    def start(self, *options: str, **env: str) -> Daemon:
        """Start wakeq-delay."""
        command = [sys.executable, "-c", "from wakeq.delay.main import main; main()"]
        command += ["--config-dir", str(self.config_dir)]
        daemon = Daemon([*command, *options], self.env | env)
        self._daemons.append(daemon)
        return daemon

    def publish(self, stream: str = "orders", body: object = "x", **options: Any) -> str:
        """Publish one message and return its id."""
        with Publisher(self.url) as publisher:
            return publisher.publish(stream, body, **options)

    def put(self, member: str, due: float, *packed: Any, stream: str = "orders") -> None:
        """Put a message as packed among the delayed ones: group, first id, field, value …"""
        names = (keys.delayed(stream), keys.delayed_data(stream))
        self.redis.eval(_PUT, 2, *names, member, due, *packed)

    def fail(self, number: int, body: str = "x", stream: str = "orders", due: float = 0) -> str:
        """Have a message of the group `g` as if its handler had failed, and return its id."""
        first = f"{number}-0"
        items = ("wakeq.failed_at", "5", "wakeq.first_failed_at", "4", "wakeq.attempt", "3")
        items += ("wakeq.first_id", first, "wakeq.error", "ValueError: no", "body", body)
        self.redis.sadd(keys.STREAMS, stream)
        self.put(f"{first}@g", due, "g", first, *items, stream=stream)
        return first

    def ring(self, stream: str = "orders") -> None:
        """Ring the doorbell."""
        self.redis.publish(keys.DOORBELL, stream)

    def entries(self, key: str = "orders") -> list[dict[bytes, bytes]]:
        """Return the fields of all entries of a stream."""
        return [fields for _, fields in self.redis.xrange(key)]

    def left(self, stream: str = "orders") -> int:
        """Return how many messages are delayed."""
        names = (keys.delayed(stream), keys.repairs(stream))
        return max(self.redis.hlen(keys.delayed_data(stream)), sum(map(self.redis.zcard, names)))

    def close(self) -> None:
        """End everything."""
        for daemon in self._daemons:
            daemon.kill()
