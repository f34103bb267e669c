"""Streams on a Cluster that the user may not touch: there, nobody is even told where they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conftest import NotifySocket
from delay_host import DelayHost
from redis_servers import Cluster, wait_until
from wakeq import keys
from wakeup_host import WakeupHost


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    """Has a user `clerk` who may touch streams whose names begin with `orders`."""
    allow(cluster, "on", ">pw", "+@all", "&*", f"~{keys.OWN}*", "~orders*")
    return cluster


def allow(cluster: Cluster, *rules: str) -> None:
    """Change what `clerk` may do."""
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "clerk", *rules)


def names_of(cluster: Cluster, index: int, kind: str, count: int) -> list[str]:
    """Return so many names of a kind, of streams on one node."""
    names = (f"{kind}{number}" for number in range(10_000))
    found = (name for name in names if cluster.owner(name) == index)
    return [next(found) for _ in range(count)]


def url_of(cluster: Cluster) -> str:
    return cluster.url().replace("://", "://clerk:pw@", 1)


def test_wakeq_delay_delivers_all_others(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    orders, bills = (
        [name for index in range(3) for name in names_of(cluster, index, kind, 3)]
        for kind in ("orders", "bills")
    )
    host = DelayHost(short_dir, cluster.nodes[cluster.owner(keys.STREAMS)], cluster.url())
    host.env |= notify_socket.env | {"WAKEQ_REDIS_URL": url_of(cluster)}
    clients = [node.client() for node in cluster.nodes]

    def wait_delivered(streams: list[str], count: int) -> None:
        for stream in streams:
            there = clients[cluster.owner(stream)]
            wait_until(lambda there=there, stream=stream: there.xlen(stream) == count)

    def publish(*streams: str) -> None:
        for stream in streams:
            host.publish(stream, at=datetime.now(UTC) - timedelta(days=1))

    try:
        publish(*bills, *orders)
        daemon = host.start("--recheck", "1s")
        notify_socket.wait_for("READY=1")
        wait_delivered(orders, 1)
        daemon.wait_log("a stream cannot be looked at", len(bills))
        # Who rings with such a name, in no registry, holds nothing up either.
        for client in clients:
            client.publish(keys.DOORBELL, "secret")
        publish(*orders)
        wait_delivered(orders, 2)
        assert daemon.count("a stream cannot be looked at") == len(bills)
        assert daemon.count("Redis was lost") == 0
        allow(cluster, "~bills*")
        wait_delivered(bills, 1)
    finally:
        host.close()


def test_wakeq_wakeup_wakes_all_others(
    short_dir: Path, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    host = WakeupHost(short_dir, cluster.nodes[0])
    host.env |= notify_socket.env | {"WAKEQ_REDIS_URL": url_of(cluster)}
    try:
        orders = [host.consumer(name) for name in names_of(cluster, 0, "orders", 3)]
        bills = [host.consumer(name) for name in names_of(cluster, 0, "bills", 3)]
        daemon = host.start("--recheck=1s")
        notify_socket.wait_for("READY=1")
        daemon.wait_log("stream cannot be watched", times=3)
        for consumer in (*orders, *bills):
            host.redis.xadd(consumer.stream, {"a": "b"})
        host.wait_woken(orders)
        allow(cluster, "~bills*")
        host.wait_woken(bills)
        assert daemon.count("Redis was lost") == 0
    finally:
        host.close()
