"""Publishing to a Redis Cluster of three masters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_servers import Cluster, free_port
from wakeq import AsyncPublisher, Publish, Publisher, keys

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    """Three masters that share the slots."""
    found = Cluster(short_dir)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def owner_of(cluster: Cluster, key: str) -> Any:
    """Return a client for the master that has a key."""
    return cluster.nodes[cluster.owner(key)].client()


def test_publishes_to_whoever_has_the_stream(cluster: Cluster) -> None:
    with Publisher(cluster.url(0)) as publisher:
        for i in range(10):
            first = publisher.publish(f"s{i}", i, dedup="k")
            assert publisher.publish(f"s{i}", i, dedup="k") == first
    for i in range(10):
        node = owner_of(cluster, f"s{i}")
        assert node.xlen(f"s{i}") == 1


def test_publishes_many_and_keeps_the_order_in_each_stream(cluster: Cluster) -> None:
    with Publisher(cluster.url(0)) as publisher:
        ids = publisher.publish_many((Publish(f"s{i % 7}", i) for i in range(700)), batch=100)
    assert len(ids) == 700
    assert None not in ids
    for s in range(7):
        node = owner_of(cluster, f"s{s}")
        bodies = [int(fields[b"body"]) for _, fields in node.xrange(f"s{s}")]
        assert bodies == list(range(s, 700, 7))
    registry = owner_of(cluster, keys.STREAMS)
    assert len(registry.smembers(keys.STREAMS)) == 7


def test_publishes_with_asyncio(cluster: Cluster) -> None:
    async def publish() -> list[str]:
        async with AsyncPublisher(cluster.url(2)) as publisher:
            await publisher.publish("a", 1, dedup="k")
            return await publisher.publish_many(Publish(f"s{i % 5}", i) for i in range(50))

    assert len(set(asyncio.run(publish()))) > 1


def test_asks_another_server_when_the_first_is_down(cluster: Cluster) -> None:
    free = free_port()
    url = f"redis+cluster://127.0.0.1:{free},127.0.0.1:{cluster.ports[1]}"
    with Publisher(url) as publisher:
        assert publisher.publish("orders", 1)
    with Publisher(url) as publisher:
        assert None not in publisher.publish_many([Publish(f"s{i}", i) for i in range(9)])

    async def publish() -> str:
        async with AsyncPublisher(url) as publisher:
            return await publisher.publish("orders", 1)

    assert asyncio.run(publish())
