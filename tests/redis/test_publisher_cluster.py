"""Publishing to a Redis Cluster of three masters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer, wait_until
from wakeq import AsyncPublisher, Publish, Publisher, keys

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SLOTS = 16384


@pytest.fixture
def cluster(redis_server: Callable[..., RedisServer]) -> Iterator[list[int]]:
    """Start three masters that share the slots; the ports."""
    ports = [free_port() for _ in range(3)]
    for port in ports:
        redis_server("--port", str(port), "--cluster-enabled", "yes")
    nodes = [redis_py.Redis(port=port) for port in ports]
    bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
    for i, node in enumerate(nodes):
        # Not CLUSTER ADDSLOTSRANGE: it takes them one by one in every version.
        node.execute_command("CLUSTER ADDSLOTS", *range(bounds[i], bounds[i + 1]))
        node.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
    for port in ports[1:]:
        nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", port)
    wait_until(lambda: all(is_ok(node) for node in nodes), 20)
    for node in nodes:
        node.connection_pool.disconnect()
    yield ports


def free_port() -> int:
    """Return a port that is free, and whose cluster bus port (10000 higher) is too."""
    while True:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = int(bound.getsockname()[1])
        if port < 50000:
            return port


def is_ok(node: Any) -> bool:
    info = node.execute_command("CLUSTER INFO")  # redis-py makes a dict of it
    return bool(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3")


def owner_of(ports: list[int], key: str) -> Any:
    """Return a client for the master that has a key."""
    for port in ports:
        node = redis_py.Redis(port=port)
        try:
            node.exists(key)
            return node
        except redis_py.exceptions.ResponseError:
            node.connection_pool.disconnect()
    raise AssertionError(f"nobody has {key}")


def test_publishes_to_whoever_has_the_stream(cluster: list[int]) -> None:
    with Publisher(f"redis+cluster://127.0.0.1:{cluster[0]}") as publisher:
        for i in range(10):
            first = publisher.publish(f"s{i}", i, dedup="k")
            assert publisher.publish(f"s{i}", i, dedup="k") == first
    for i in range(10):
        node = owner_of(cluster, f"s{i}")
        assert node.xlen(f"s{i}") == 1
        node.connection_pool.disconnect()


def test_publishes_many_and_keeps_the_order_in_each_stream(cluster: list[int]) -> None:
    with Publisher(f"redis+cluster://127.0.0.1:{cluster[0]}") as publisher:
        ids = publisher.publish_many((Publish(f"s{i % 7}", i) for i in range(700)), batch=100)
    assert len(ids) == 700
    assert None not in ids
    for s in range(7):
        node = owner_of(cluster, f"s{s}")
        bodies = [int(fields[b"body"]) for _, fields in node.xrange(f"s{s}")]
        assert bodies == list(range(s, 700, 7))
        node.connection_pool.disconnect()
    registry = owner_of(cluster, keys.STREAMS)
    assert len(registry.smembers(keys.STREAMS)) == 7
    registry.connection_pool.disconnect()


def test_publishes_with_asyncio(cluster: list[int]) -> None:
    async def publish() -> list[str]:
        async with AsyncPublisher(f"redis+cluster://127.0.0.1:{cluster[2]}") as publisher:
            await publisher.publish("a", 1, dedup="k")
            return await publisher.publish_many(Publish(f"s{i % 5}", i) for i in range(50))

    assert len(set(asyncio.run(publish()))) > 1


def test_asks_another_server_when_the_first_is_down(cluster: list[int]) -> None:
    free = free_port()
    url = f"redis+cluster://127.0.0.1:{free},127.0.0.1:{cluster[1]}"
    with Publisher(url) as publisher:
        assert publisher.publish("orders", 1)
    with Publisher(url) as publisher:
        assert None not in publisher.publish_many([Publish(f"s{i}", i) for i in range(9)])

    async def publish() -> str:
        async with AsyncPublisher(url) as publisher:
            return await publisher.publish("orders", 1)

    assert asyncio.run(publish())
