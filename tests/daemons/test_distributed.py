"""Consumers and wakeq-wakeup with Redis Cluster and Sentinel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis as redis_py

from consumer_host import ConsumerHost
from redis_servers import Cluster, Sentinels, wait_until
from wakeup_host import WakeupHost

HANDLER = "def handle(message):\n    record(message.text())\n"


@pytest.fixture
def sentinels(short_dir: Path) -> Iterator[Sentinels]:
    (short_dir / "s").mkdir()
    group = Sentinels(short_dir / "s")
    try:
        group.start()
        yield group
    finally:
        group.stop()


def server(url: str, client: redis_py.Redis) -> SimpleNamespace:
    """Stand for a RedisServer, to a host that needs only its URL and a client."""
    return SimpleNamespace(url=url, client=lambda: client)


def owner(cluster: Cluster, key: str) -> redis_py.Redis:
    return cluster.nodes[cluster.owner(key)].client()


def test_a_consumer_follows_its_stream_to_another_node_of_the_cluster(
    cluster: Cluster, short_dir: Path
) -> None:
    host = ConsumerHost(short_dir, server(cluster.url(), owner(cluster, "orders")))
    try:
        host.configure(handler=host.handler(HANDLER))
        host.publish(*range(100))
        consumer = host.start()
        host.wait_records(100)

        cluster.move("orders", (cluster.owner("orders") + 1) % 3)
        host.redis = owner(cluster, "orders")
        host.publish(*range(100, 200))

        host.wait_records(200)
        host.wait_done()
        assert consumer.stop() == 0
        assert sorted(map(int, host.records)) == list(range(200))
    finally:
        host.close()


def test_publishing_to_another_slot_fails_and_keeps_the_message(
    cluster: Cluster, short_dir: Path
) -> None:
    host = ConsumerHost(short_dir, server(cluster.url(), owner(cluster, "orders")))
    try:
        code = "from wakeq import Publish\ndef handle(message):\n    return Publish(to, b'x')\n"
        host.configure(handler=host.handler("to = 'elsewhere'\n" + code))
        host.publish("a")
        consumer = host.start()
        consumer.wait_log("message failed")
        assert "slot" in consumer.output
        host.wait_pending(0)
        assert len(host.delayed()) == 1
        assert consumer.stop() == 0
    finally:
        host.close()


def test_a_consumer_goes_on_with_the_next_master(sentinels: Sentinels, short_dir: Path) -> None:
    master = sentinels.master
    host = ConsumerHost(short_dir, server(sentinels.url, master.client()))
    try:
        host.configure(handler=host.handler(HANDLER))
        host.publish(*range(100))
        consumer = host.start()
        host.wait_records(100)
        # What follows counts on the replicas having what was acknowledged: WAIT looks for what its
        # own connection has written, and so for all before it.
        host.redis.set("last", 1)
        assert host.redis.wait(2, 20_000) == 2

        port = sentinels.master_port
        master.kill()
        sentinels.await_failover(port)
        host.redis = sentinels.master.client()
        host.publish(*range(100, 200))

        host.wait_records(200)
        host.wait_done()
        wait_until(lambda: consumer.count("found Redis again") == 1)
        assert consumer.stop() == 0
        assert consumer.count("lost Redis") == 1
        assert set(map(int, host.records)) == set(range(200))
    finally:
        host.close()


def test_wakes_consumers_on_every_node_of_the_cluster(cluster: Cluster, short_dir: Path) -> None:
    names = [f"s{number}" for number in range(12)]
    host = WakeupHost(short_dir, server(cluster.url(), owner(cluster, "s0")))
    try:
        consumers = []
        for name in names:
            host.redis = owner(cluster, name)
            consumers.append(host.consumer(name))
        assert len({cluster.owner(name) for name in names}) == 3
        daemon = host.start()
        for name in names:
            owner(cluster, name).xadd(name, {"body": "1"})
        host.wait_woken(consumers)
        assert daemon.stop() == 0
    finally:
        host.close()
