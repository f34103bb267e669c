"""A host for tests of wakeq-node: its folders, its handlers, nodes as processes, what they emit."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from consumer_host import ConsumerHost, ConsumerProcess, toml
from redis_servers import RedisServer, wait_until
from wakeq import keys

NAME = "clock"


class Emitted(NamedTuple):
    """A message in the stream."""

    ms: int  # when, by the clock of Redis
    seq: int
    token: int
    body: bytes


class NodeHost(ConsumerHost):
    """The folders of a host, and its nodes; all have the name `clock` unless said otherwise."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        super().__init__(directory, server)
        (self.config_dir / "nodes").mkdir()

    def configure(self, name: str = NAME, **settings: Any) -> None:
        """Write a node's file; `exec_` is written `exec`."""
        lines = [f"{key.rstrip('_')} = {toml(value)}\n" for key, value in settings.items()]
        (self.config_dir / "nodes" / f"{name}.toml").write_text("".join(lines))

    def command(self, name: str = NAME, *options: str) -> list[str]:
        """Return the command that starts a node."""
        return [sys.executable, "-c", "from wakeq.node.main import main; main()", name, *options]

    def start_node(self, name: str = NAME, *options: str, **env: str) -> ConsumerProcess:
        """Start a node with a short lease, unless options say otherwise."""
        given = {option.partition("=")[0] for option in options}
        short = [] if "--lease" in given else ["--lease=2s"]
        return self.start(name, *short, *options, **env)

    def vacate(self, source: str = NAME, name: str = NAME) -> None:
        """Have Redis know that the last leader has left, so that the next one need not wait."""
        self.redis.hset(keys.lease(name, source), mapping={"holder": "", "token": "1"})

    def leader_pid(self, source: str = NAME, name: str = NAME) -> int:
        """Return the process that leads, by Redis; 0 if it has resigned or nobody is known."""
        who = (self.redis.hget(keys.lease(name, source), "who") or b"").decode()
        return int(who.rpartition("/")[2]) if "/" in who else 0

    def wait_leader(self, *nodes: ConsumerProcess, deadline_s: float = 60) -> ConsumerProcess:
        """Return the one of some nodes that leads, as soon as one does."""
        pids = {node.pid: node for node in nodes}
        pid = wait_until(
            lambda: (pid := self.leader_pid()) in pids and pid, deadline_s, f"one of {set(pids)}"
        )
        return pids[int(pid)]

    def emitted(self, stream: str = NAME) -> list[Emitted]:
        """Return what was emitted into a stream, in its order."""
        return [
            Emitted(
                int(entry_id.partition(b"-")[0]),
                int(fields[b"wakeq.seq"]),
                int(fields[b"wakeq.token"]),
                fields[b"body"],
            )
            for entry_id, fields in self.redis.xrange(stream)
            if b"wakeq.seq" in fields
        ]

    def wait_emitted(self, count: int, deadline_s: float = 60) -> list[Emitted]:
        """Wait until so many were emitted, and return them."""
        wait_until(
            lambda: self.redis.xlen(NAME) >= count, deadline_s, f"{count} emitted:\n{self.output}"
        )
        return self.emitted()

    def wait_more(self, count: int = 2, deadline_s: float = 60) -> list[Emitted]:
        """Wait until some more were emitted."""
        return self.wait_emitted(self.redis.xlen(NAME) + count, deadline_s)

    def check_emitted(self, stream: str = NAME) -> list[Emitted]:
        """Fail unless each emission happened once and no leader emitted after the next one."""
        emitted = self.emitted(stream)
        assert [one.seq for one in emitted] == list(range(1, len(emitted) + 1))
        for before, after in pairwise(emitted):
            assert before.token <= after.token, (before, after)
        return emitted
