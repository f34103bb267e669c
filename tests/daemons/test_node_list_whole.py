"""Nodes on a list, whole: one is elected and pushes, the others take, whatever happens to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import ConsumerProcess
from list_host import HANDLERS, LIST, ListHost
from node_host import NodeHost
from redis_servers import RedisServer, wait_until


class Nodes(ListHost):
    """Nodes that run whole."""

    def command(self, name: str = LIST, *options: str) -> list[str]:
        """Return the command that starts a node."""
        return NodeHost.command(self, name, *options)

    def use(self, function: str = "fast", code: str = HANDLERS, **settings: Any) -> None:
        """Write the node's file, for a leader that pushes often."""
        super().use(function, code, **{"interval": "50ms", "lease": "2s"} | settings)

    def begin(self, count: int) -> list[ConsumerProcess]:
        """Start so many nodes on this host."""
        self.vacate(LIST, LIST)
        return [self.start(LIST if n == 1 else f"{LIST}:{n}") for n in range(1, count + 1)]

    def leader(self, *nodes: ConsumerProcess) -> ConsumerProcess:
        """Wait until one of some nodes leads, and return it."""
        pids = {node.pid: node for node in nodes}
        pid = wait_until(
            lambda: (p := self.leader_pid(LIST, LIST)) in pids and p, 60, f"{self.output[-3000:]}"
        )
        return pids[pid]


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[Nodes]:
    host = Nodes(short_dir, redis)
    yield host
    host.close()


def test_one_pushes_and_the_others_handle_it_once(host: Nodes) -> None:
    code = "import os\ndef handle(m): record(m.text().replace(' ', '_'), os.getppid())"
    host.use("handle", code, lease="10min")
    nodes = host.begin(3)
    leader = host.leader(*nodes)
    own = Path(f"/proc/{leader.pid}/task/{leader.pid}/children")
    wait_until(lambda: not own.read_text(), 60, "the leader handles no more")
    before = len(host.records)
    host.wait_records(before + 60)
    assert max(Counter(host.handled()).values()) == 1
    handlers = {int(line.split()[1]) for line in host.records[before:]}
    assert handlers <= {node.pid for node in nodes} - {leader.pid}
    assert [node.stop() for node in nodes] == [0, 0, 0]


def test_fails_over_with_an_empty_list(host: Nodes) -> None:
    # The others wait for a message, and nobody is there who would push one.
    host.use()
    nodes = host.begin(3)
    for _ in range(2):
        leader = host.leader(*nodes)
        nodes.remove(leader)
        host.wait_records(len(host.records) + 5)
        leader.kill()
        host.leader(*nodes)
    assert not nodes[1:]
    waiting = len(host.waiting())
    wait_until(lambda: len(host.waiting()) > waiting, 60, "the last one pushes, alone")


def test_a_handler_that_hangs_keeps_nobody_from_leading(host: Nodes) -> None:
    host.use("gated", drain_timeout="60s")
    nodes = host.begin(2)
    leader = host.leader(*nodes)
    wait_until(host.begun)
    nodes.remove(leader)
    (follower,) = nodes
    leader.kill()
    assert host.leader(follower) is follower
    waiting = len(host.waiting())
    wait_until(lambda: len(host.waiting()) > waiting, 60, "it pushes")
    assert not host.handled()
    host.open_gate()
    assert follower.stop() == 0


def test_what_a_killed_node_had_is_handled_by_the_next(host: Nodes) -> None:
    host.use("gated", interval="1h", workers=2, leader_consumes=True)
    (node,) = host.begin(1)
    host.push("a", "b", "c")
    wait_until(lambda: len(host.begun()) >= 2)
    node.kill()
    host.open_gate()
    host.start(LIST)
    wait_until(lambda: {"a", "b", "c"} <= set(host.handled()), 60, host.output[-3000:])
