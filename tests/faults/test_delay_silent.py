"""wakeq-delay when a server of a Cluster stands still: it accepts connections and says nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from conftest import NotifySocket
from delay_host import DelayHost
from redis_servers import Cluster, wait_until
from wakeq import keys


def streams_of(cluster: Cluster, index: int, count: int) -> list[str]:
    """Return so many streams of a node, each of another slot."""
    names = (f"s{i}" for i in range(10_000))
    found = (name for name in names if cluster.owner(name) == index)
    return [next(found) for _ in range(count)]


def test_a_node_of_a_cluster_that_is_silent_holds_up_no_other(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    registry = cluster.owner(keys.STREAMS)
    silent, other = [index for index in range(3) if index != registry]
    seen, new = streams_of(cluster, other, 2)
    held_up = streams_of(cluster, silent, 12)
    host = DelayHost(short_dir, cluster.nodes[registry], cluster.url())
    host.env |= notify_socket.env
    there = cluster.nodes[other].client()
    # The doorbell that it hears may be that of the silent one: so it looks at all of them often.
    host.configure('[delay]\nrecheck = "1s"\n')
    try:
        host.redis.sadd(keys.STREAMS, seen, *held_up)
        daemon = host.start()
        notify_socket.wait_for("READY=1")
        os.kill(cluster.nodes[silent].pid, signal.SIGSTOP)
        daemon.wait_log("Redis was lost")
        for stream in (seen, new):
            host.redis.sadd(keys.STREAMS, stream)
            there.hset(keys.delayed_data(stream), "1-0", packed(host))
            there.zadd(keys.delayed(stream), {"1-0": 1})
            wait_until(lambda stream=stream: there.xlen(stream) == 1)
        os.kill(cluster.nodes[silent].pid, signal.SIGCONT)
        daemon.wait_log("Redis is back")
    finally:
        host.close()


def packed(host: DelayHost) -> bytes:
    """Return a delayed message as it is stored."""
    raw = host.redis.eval("return cmsgpack.pack({'', '1-0', 'body', 'x'})", 0)
    assert isinstance(raw, bytes)
    return raw
