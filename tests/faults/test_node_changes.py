"""One of three nodes emits, whatever happens to the leader, the network, Redis and its clock.

A record of what was emitted is the stream itself: each emission has its number and the token of
who emitted it. After any number of changes of the leader each number is there once, and none was
emitted by a leader that had been superseded. WAKEQ_TEST_CHANGES=1000 makes it so many changes,
WAKEQ_TEST_SEED other ones.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis as redis_py

from consumer_host import ConsumerProcess
from fault_proxy import FaultProxy
from node_host import NAME, NodeHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

CHANGES = int(os.environ.get("WAKEQ_TEST_CHANGES", "12"))
SEED = int(os.environ.get("WAKEQ_TEST_SEED", "1"))
LEASE = keys.lease(NAME, NAME)
_PATIENCE_S = 60
# To all that Redis remembers, a clock that is set is one that has moved against it.
_SHIFT = """
local by = tonumber(ARGV[1])
redis.call('HINCRBY', KEYS[1], 'until', -by * 1000)
redis.call('HINCRBY', KEYS[2], 'at', -by * 1000000)
"""


class Arena:
    """Three nodes, each behind a network of its own, and what can be done to them."""

    def __init__(self, host: NodeHost, server: RedisServer, rng: random.Random) -> None:
        self.host = host
        self.server = server
        self.rng = rng
        self.nodes: dict[int, ConsumerProcess] = {}
        self.proxies: dict[int, FaultProxy] = {}
        self.done: Counter[str] = Counter()
        for _ in range(3):
            self.join()

    def join(self) -> None:
        """Start one more node."""
        proxy = FaultProxy(self.server.url)
        proxy.__enter__()
        node = self.host.start_node(NAME, "--lease=1s", f"--redis-url={proxy.url}")
        self.nodes[node.pid], self.proxies[node.pid] = node, proxy

    def leave(self, pid: int) -> None:
        """Forget a node that has ended."""
        del self.nodes[pid]
        self.proxies.pop(pid).__exit__(None, None, None)

    @property
    def token(self) -> int:
        """The token that counts now; 0 while Redis does not answer."""
        with suppress(redis_py.RedisError):
            return int(self.host.redis.hget(LEASE, "token") or 0)
        return 0

    def leader(self) -> int:
        """Wait for a leader that emits, and return its process."""

        def found() -> int:
            with suppress(redis_py.RedisError):
                ((_, last),) = self.host.redis.xrevrange(NAME, count=1) or [("", {})]
                pid = self.host.leader_pid(NAME)
                if pid in self.nodes and int(last.get(b"wakeq.token", 0)) == self.token:
                    return pid
            return 0

        return wait_until(found, _PATIENCE_S, f"a leader emits:\n{self.host.output[-3000:]}")

    def reign(self) -> tuple[int, int]:
        """Wait for a leader that emits, and return its process and token."""
        while True:
            token = self.token
            pid = self.leader()
            if self.token == token:
                return pid, token

    def wait_change(self, token: int) -> None:
        """Wait until another one was elected."""
        wait_until(lambda: self.token > token + 1 and self.leader(), _PATIENCE_S, "another leader")

    def wait_all(self) -> None:
        """Wait until all that do not lead are candidates that hear."""
        channel = keys.vacancy(NAME, NAME)
        wait_until(
            lambda: dict(self.host.redis.pubsub_numsub(channel))[channel.encode()] == 2,
            _PATIENCE_S,
            "two candidates",
        )

    # -- what can be done ----------------------------------------------------------------------

    def stop(self, pid: int, token: int) -> None:
        """Stop the leader, and start another node."""
        self.nodes[pid].terminate()
        self.wait_change(token)
        assert self.nodes[pid].wait_exit() == 0
        self.leave(pid)
        self.join()

    def kill(self, pid: int, token: int) -> None:
        """Kill the leader, and start another node."""
        self.nodes[pid].kill()
        self.leave(pid)
        self.wait_change(token)
        self.join()

    def pause(self, pid: int, token: int) -> None:
        """Pause the leader for longer than it leads."""
        self.nodes[pid].send(signal.SIGSTOP)
        self.wait_change(token)
        self.nodes[pid].send(signal.SIGCONT)

    def cut_off(self, pid: int, token: int) -> None:
        """Have nothing reach the leader or come from it for longer than it leads."""
        self.proxies[pid].half_open()
        self.wait_change(token)
        self.proxies[pid].heal()

    def cut(self, pid: int, token: int) -> None:
        """Cut its connections, in the middle of a request or reply; then stop it."""
        flow = self.rng.choice((self.proxies[pid].requests, self.proxies[pid].replies))
        flow.cut_after(self.rng.randrange(1, 400))
        self.host.wait_more(2, _PATIENCE_S)
        self.stop(*self.reign())

    def slow(self, pid: int, token: int) -> None:
        """Pause the leader while its requests are under way, for longer than it leads."""
        self.proxies[pid].requests.delay_s = 0.05
        self.host.wait_more(2, _PATIENCE_S)
        self.pause(*self.reign())
        self.proxies[pid].requests.delay_s = 0.0

    def set_clock(self, pid: int, token: int) -> None:
        """Set the clock of Redis by up to an hour, and have somebody else lead."""
        self.host.redis.eval(
            _SHIFT, 2, LEASE, keys.emission(NAME, NAME), self.rng.randrange(-3600, 3600)
        )
        self.host.wait_more(2, _PATIENCE_S)
        self.rng.choice((self.stop, self.kill))(*self.reign())

    def restart_redis(self, pid: int, token: int) -> None:
        """Kill Redis and start it again, with all that it had; then stop the leader."""
        self.server.kill()
        self.server.start()
        self.host.redis = self.server.client()
        self.stop(*self.reign())

    def change(self) -> None:
        """Do one of these."""
        quick = [self.stop] * 6
        others: list[Callable[[int, int], None]] = [
            self.kill, self.pause, self.cut_off, self.cut, self.slow, self.set_clock,
            self.restart_redis,
        ]  # fmt: skip
        action = self.rng.choice([*quick, *others])
        self.done[action.__name__] += 1
        pid, token = self.reign()
        try:
            action(pid, token)
        except AssertionError as error:
            raise AssertionError(f"{action.__name__} of {pid}, {self.done}: {error}") from error

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.__exit__(None, None, None)


@pytest.fixture
def arena(short_dir: Path) -> Iterator[Arena]:
    directory = short_dir / "r"
    directory.mkdir()
    # What it has said is done outlives it.
    server = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    host = NodeHost(short_dir, server)
    host.configure(interval=0.02)
    host.vacate()
    arena = Arena(host, server, random.Random(SEED))
    try:
        yield arena
    finally:
        host.close()
        arena.close()
        server.stop()


def test_each_emission_happens_once_and_none_after_the_next_leader_began(arena: Arena) -> None:
    first = arena.leader()
    assert first
    for _ in range(CHANGES):
        arena.change()
    arena.leader()
    arena.wait_all()
    for pid in list(arena.nodes):
        arena.nodes[pid].terminate()
    for pid in list(arena.nodes):
        assert arena.nodes[pid].wait_exit() == 0
    emitted = arena.host.check_emitted()
    assert len({one.token for one in emitted}) > CHANGES
    seq = int(arena.host.redis.hget(keys.emission(NAME, NAME), "seq"))
    assert seq == emitted[-1].seq
    print(
        f"{len(emitted)} emissions of {len({one.token for one in emitted})} leaders, {arena.done}"
    )
