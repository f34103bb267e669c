"""Publishing with a delay or for a time, blocking and for asyncio, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from redis_servers import Cluster, RedisServer
from wakeq import AsyncPublisher, Publisher, keys
from wakeq.errors import RefusedError, UnavailableError, WakeqError

DATA, DELAYED = keys.delayed_data("orders"), keys.delayed("orders")
Publish = Callable[..., str]

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["blocking", "asyncio"])
def publish(request: pytest.FixtureRequest) -> Iterator[Publish]:
    """Publish one message to a URL, in either way."""

    def blocking(url: str, *arguments: Any, **options: Any) -> str:
        with Publisher(url) as publisher:
            return publisher.publish(*arguments, **options)

    async def awaited(url: str, *arguments: Any, **options: Any) -> str:
        async with AsyncPublisher(url) as publisher:
            return await publisher.publish(*arguments, **options)

    def in_a_loop(url: str, *arguments: Any, **options: Any) -> str:
        return asyncio.run(awaited(url, *arguments, **options))

    yield blocking if request.param == "blocking" else in_a_loop


def due(redis: RedisServer, message_id: str) -> float:
    """Return when a message is due, in seconds."""
    score = redis.client().zscore(DELAYED, message_id)
    assert score is not None
    return float(score) / 1000


def test_a_delay_counts_from_now_by_the_clock_of_redis(
    publish: Publish, redis: RedisServer
) -> None:
    message_id = publish(redis.url, "orders", "x", delay=2.5)
    assert due(redis, message_id) * 1000 == int(message_id.split("-")[0]) + 2500
    assert redis.client().exists("orders") == 0


def test_registers_the_stream_before_the_message(publish: Publish, redis: RedisServer) -> None:
    publish(redis.url, "orders", "x", delay=2.5)
    assert redis.client().smembers(keys.STREAMS) == {b"orders"}


@pytest.mark.parametrize(
    "at",
    [
        4_000_000_000.25,
        datetime.fromtimestamp(4_000_000_000.25, UTC),
        datetime.fromtimestamp(4_000_000_000.25, timezone(timedelta(hours=5))),
    ],
    ids=["seconds", "UTC", "elsewhere"],
)
def test_publishes_for_a_time(publish: Publish, redis: RedisServer, at: Any) -> None:
    assert due(redis, publish(redis.url, "orders", "x", at=at)) == 4_000_000_000.25


def test_no_delay_is_no_delay(publish: Publish, redis: RedisServer) -> None:
    message_id = publish(redis.url, "orders", "x", delay=0)
    assert redis.client().xrange("orders")[0][0] == message_id.encode()
    assert redis.client().exists(DATA) == 0


def test_with_a_deduplication_key_it_is_taken_once(publish: Publish, redis: RedisServer) -> None:
    first = publish(redis.url, "orders", "x", delay=60, dedup="k", dedup_window=1)
    assert publish(redis.url, "orders", "y", delay=60, dedup="k") == first
    assert publish(redis.url, "orders", "y", dedup="k") == first
    client = redis.client()
    assert client.hlen(DATA) == 1
    assert client.exists("orders") == 0
    assert client.pttl(keys.dedup("orders", "k")) > 60_000


def test_a_server_that_has_forgotten_the_script_is_sent_it_again(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        publisher.publish("orders", "a", delay=60)
        redis.client().script_flush()
        publisher.publish("orders", "b", delay=60)
    assert redis.client().hlen(DATA) == 2


def test_a_registry_that_was_lost_is_made_good_by_the_next(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        publisher.publish("orders", "a", delay=60)
        redis.client().delete(keys.STREAMS)
        publisher.publish("orders", "b", delay=60)
    assert redis.client().smembers(keys.STREAMS) == {b"orders"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": 1, "at": 5}, "give delay or at, not both"),
        ({"delay": -1}, "delay must be seconds, 0 or more, not -1"),
        ({"delay": float("nan")}, "delay must be seconds"),
        ({"delay": 1e12}, "delay must be seconds"),
        ({"at": -1}, "at must be a datetime, or seconds since 1970"),
        ({"at": 1_795_370_400_000}, "at must be a datetime, or seconds since 1970"),
        ({"at": float("inf")}, "at must be a datetime, or seconds since 1970"),
        ({"at": datetime(2030, 1, 1)}, "at must have a time zone"),
        ({"delay": 1, "fields": dict.fromkeys(map(str, range(3900)), 1)}, "at most 3900 fields"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_and_publishes_nothing(
    publish: Publish, redis: RedisServer, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        publish(redis.url, "orders", "x", **options)
    assert redis.client().keys() == []


def test_without_the_registry_it_is_not_scheduled(publish: Publish, redis: RedisServer) -> None:
    # Else a ring that is lost would leave it there for ever.
    redis.client().set(keys.STREAMS, "a string")
    with pytest.raises(WakeqError, match=r"stream orders: .*WRONGTYPE"):
        publish(redis.url, "orders", "x", delay=60)
    assert redis.client().exists(DATA) == 0


def test_who_may_not_register_is_told_so(publish: Publish, own_redis: RedisServer) -> None:
    own_redis.ask("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-sadd")
    with pytest.raises(RefusedError, match=r"stream orders: .*does not permit"):
        publish(own_redis.url.replace("unix://", "unix://poor:pw@"), "orders", "x", delay=60)
    assert own_redis.client().keys() == []


def test_a_stream_that_is_none_is_refused(publish: Publish, redis: RedisServer) -> None:
    redis.client().set("orders", "a string")
    with pytest.raises(WakeqError, match="orders is a string, not a stream"):
        publish(redis.url, "orders", "x", delay=60)


def test_a_server_that_is_away_is_told_of(publish: Publish, own_redis: RedisServer) -> None:
    own_redis.stop()
    with pytest.raises(UnavailableError):
        publish(own_redis.url, "orders", "x", delay=60)


def test_on_a_cluster(publish: Publish, short_dir: Path) -> None:
    cluster = Cluster(short_dir)
    cluster.start()
    try:
        streams = [f"s{i}" for i in range(6)]
        for stream in streams:
            message_id = publish(cluster.url(), stream, "x", delay=60, dedup="k")
            owner = cluster.nodes[cluster.owner(stream)]
            assert owner.ask("HEXISTS", keys.delayed_data(stream), message_id)
        registry = cluster.nodes[cluster.owner(keys.STREAMS)]
        assert registry.ask("SMEMBERS", keys.STREAMS) == {stream.encode() for stream in streams}
    finally:
        cluster.stop()
