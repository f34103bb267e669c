"""The publishing API, blocking and for asyncio, against a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fakeredis
import pytest

from redis_servers import RedisServer
from wakeq import AsyncPublisher, Publish, Publisher, keys
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.publisher import UnconfirmedError

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Awaited:
    """An AsyncPublisher that is used like a Publisher, each call in a loop of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _run(self, method: str, *arguments: object, **options: object) -> object:
        async def call() -> object:
            async with AsyncPublisher(self.url) as publisher:
                return await getattr(publisher, method)(*arguments, **options)

        return asyncio.run(call())

    def publish(self, *arguments: object, **options: object) -> object:
        return self._run("publish", *arguments, **options)

    def publish_many(self, *arguments: object, **options: object) -> object:
        return self._run("publish_many", *arguments, **options)

    def close(self) -> None:
        """Nothing is left open."""


@pytest.fixture(params=[Publisher, Awaited])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Publisher]]:
    """Make a publisher, of either kind."""
    made: list[Publisher] = []

    def publisher(url: str) -> Publisher:
        made.append(request.param(url))
        return made[-1]

    yield publisher
    for one in made:
        one.close()


@pytest.fixture
def publisher(make: Callable[[str], Publisher], redis: RedisServer) -> Publisher:
    return make(redis.url)


def entries(redis: RedisServer, stream: str = "orders") -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.client().xrange(stream)]


def test_publishes_and_returns_the_id(publisher: Publisher, redis: RedisServer) -> None:
    message_id = publisher.publish("orders", {"id": 7}, fields={"n": 1}, key="north")
    ((entry_id, fields),) = redis.client().xrange("orders")
    assert message_id == entry_id.decode()
    assert fields == {b"body": b'{"id":7}', b"n": b"1", b"wakeq.key": b"north"}


def test_registers_a_stream_once(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        publisher.publish("orders", "x")
        assert redis.client().smembers(keys.STREAMS) == {b"orders"}
        redis.client().delete(keys.STREAMS)
        publisher.publish("orders", "x")
        publisher.publish_many([Publish("orders", "x"), Publish("other", "x")])
    assert redis.client().smembers(keys.STREAMS) == {b"other"}


def test_publishes_once_for_a_deduplication_key(publisher: Publisher, redis: RedisServer) -> None:
    first = publisher.publish("orders", 1, dedup="k", dedup_window=60)
    assert publisher.publish("orders", 2, dedup="k") == first
    assert publisher.publish("orders", 3, dedup="other") != first
    assert publisher.publish("returns", 4, dedup="k")
    assert len(entries(redis, "returns")) == 1
    assert [fields[b"body"] for fields in entries(redis)] == [b"1", b"3"]
    assert 50_000 < redis.client().pttl(keys.dedup("orders", "k")) <= 60_000


def test_publishes_again_after_the_window(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        first = publisher.publish("orders", 1, dedup="k")
        redis.client().delete(keys.dedup("orders", "k"))  # as when it expires
        assert publisher.publish("orders", 2, dedup="k") != first


def test_sends_the_script_again_when_the_server_forgot_it(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        first = publisher.publish("orders", 1, dedup="a")
        redis.client().script_flush()
        assert publisher.publish("orders", 1, dedup="a") == first
        redis.client().script_flush()
        publisher.publish("orders", 2, dedup="b")
    assert len(entries(redis)) == 2


def test_only_one_of_many_publishers_publishes(redis: RedisServer) -> None:
    ids: list[str] = []
    with Publisher(redis.url) as publisher:
        threads = [
            threading.Thread(target=lambda: ids.append(publisher.publish("orders", 1, dedup="k")))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ids) == 20
    assert len(set(ids)) == 1


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_publishes_many_in_order(publisher: Publisher, redis: RedisServer, batch: int) -> None:
    ids = publisher.publish_many((Publish("orders", i) for i in range(100)), batch)
    found = redis.client().xrange("orders")
    assert ids == [entry_id.decode() for entry_id, _ in found]
    assert [int(fields[b"body"]) for _, fields in found] == list(range(100))


def test_publishes_many_to_several_streams(publisher: Publisher, redis: RedisServer) -> None:
    ids = publisher.publish_many(Publish(f"s{i % 3}", i) for i in range(30))
    assert len(ids) == 30
    assert [int(fields[b"body"]) for fields in entries(redis, "s1")] == list(range(1, 30, 3))
    assert redis.client().smembers(keys.STREAMS) == {b"s0", b"s1", b"s2"}


def test_publishes_no_messages(publisher: Publisher) -> None:
    assert publisher.publish_many([]) == []


def test_sends_large_messages_before_the_batch_is_full(
    publisher: Publisher, redis: RedisServer
) -> None:
    ids = publisher.publish_many(Publish("orders", b"x" * 3_000_000) for _ in range(5))
    assert len(set(ids)) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "kind"),
    [
        (("orders",), {}, ValueError),
        (("", "x"), {}, ValueError),
        (("orders", "x"), {"fields": {"wakeq.attempt": 1}}, ValueError),
        (("orders", object()), {}, TypeError),
        (("orders", "x"), {"dedup": "k", "dedup_window": 0}, ValueError),
        (("orders", "x"), {"dedup": "k", "dedup_window": 1e17}, ValueError),
        (("orders", "x"), {"dedup": "k", "dedup_window": float("inf")}, ValueError),
        (("orders", "x"), {"dedup": "k", "dedup_window": float("nan"), "delay": 1}, ValueError),
    ],
)
def test_refuses_what_is_no_message(
    publisher: Publisher,
    arguments: tuple[object, ...],
    options: dict[str, object],
    kind: type[Exception],
    redis: RedisServer,
) -> None:
    with pytest.raises(kind):
        publisher.publish(*arguments, **options)  # type: ignore[arg-type]
    assert redis.client().keys() == []


@pytest.mark.parametrize("dedup", [None, "k"])
def test_says_that_a_key_is_no_stream(
    publisher: Publisher, redis: RedisServer, dedup: str | None
) -> None:
    redis.client().set("orders", "text")
    with pytest.raises(ConfigError, match=r"stream orders: .*other than a stream"):
        publisher.publish("orders", "x", dedup=dedup)


def test_publishes_the_others_when_one_is_refused(publisher: Publisher, redis: RedisServer) -> None:
    redis.client().set("text", "text")
    messages = [Publish("orders", 1), Publish("text", 2), Publish("orders", 3)]
    with pytest.raises(ConfigError, match=r"stream text: .*; 2 messages were published"):
        publisher.publish_many(messages)
    assert len(entries(redis)) == 2


def test_publishes_without_the_right_to_register(own_redis: RedisServer) -> None:
    rights = ("on", ">pw", "~orders", "+xadd", "+client|setname")
    own_redis.client().execute_command("ACL", "SETUSER", "poor", *rights)
    with Publisher(own_redis.url.replace("//", "//poor:pw@")) as publisher:
        assert publisher.publish("orders", 1)
        assert len(publisher.publish_many([Publish("orders", 2)])) == 1
        with pytest.raises(RefusedError, match="does not permit"):
            publisher.publish("other", 1)


def test_does_not_retry_without_a_deduplication_key(
    make: Callable[[str], Publisher], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = count_exchanges(monkeypatch)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        make(f"unix://{short_dir}/none").publish("orders", 1)
    assert len(tries) == 1


def test_gives_up_after_a_few_tries_with_a_deduplication_key(
    make: Callable[[str], Publisher], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = count_exchanges(monkeypatch)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        make(f"unix://{short_dir}/none").publish("orders", 1, dedup="k")
    assert len(tries) == 6


def count_exchanges(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record what is sent, and take the waiting out of the retries."""
    tries: list[object] = []
    for kind in (Publisher, AsyncPublisher):
        pipeline = kind._pipeline
        monkeypatch.setattr(
            kind, "_pipeline", lambda self, e, send=pipeline: tries.append(e) or send(self, e)
        )
    monkeypatch.setattr("wakeq.backoff.Backoff.next", no_wait)
    return tries


def no_wait(backoff: object) -> float:
    backoff.tries += 1  # type: ignore[attr-defined]
    return 0.0


class LostReply:
    """Has a publisher lose the replies to what it sends, `times` times."""

    def __init__(self, publisher: Publisher, times: int) -> None:
        self._send = publisher._send
        self.times = times
        publisher._send = self  # type: ignore[assignment,method-assign]

    def __call__(self, exchange: object) -> object:
        outcome = self._send(exchange)  # type: ignore[arg-type]
        if self.times:
            self.times -= 1
            return UnavailableError("the reply was lost")
        return outcome


def test_a_lost_reply_publishes_once_with_a_deduplication_key(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        LostReply(publisher, times=2)
        message_id = publisher.publish("orders", 1, dedup="k")
    ((entry_id, _),) = redis.client().xrange("orders")
    assert message_id == entry_id.decode()


def test_a_lost_reply_is_an_error_without_a_deduplication_key(redis: RedisServer) -> None:
    with Publisher(redis.url) as publisher:
        LostReply(publisher, times=1)
        with pytest.raises(UnavailableError, match="the reply was lost"):
            publisher.publish("orders", 1)
    assert len(entries(redis)) == 1


def test_says_what_is_known_after_a_lost_connection(redis: RedisServer) -> None:
    def messages() -> Iterator[Publish]:
        for i in range(35):
            if i == 20:  # two batches are confirmed
                replies.times = 1
            yield Publish("orders", i)

    with Publisher(redis.url) as publisher, pytest.raises(UnconfirmedError) as caught:
        replies = LostReply(publisher, times=0)
        publisher.publish_many(messages(), batch=10)
    error = caught.value
    assert error.confirmed == 20
    assert error.ids[20:] == [None] * 10
    assert error.exit_code == 69
    assert "20 messages were published, of another 10 it is not known" in str(error)


def test_publishes_again_after_the_server_was_restarted(own_redis: RedisServer) -> None:
    with Publisher(own_redis.url) as publisher:
        publisher.publish("orders", 1)
        own_redis.restart()
        assert publisher.publish("orders", 2)
        own_redis.stop()
        with pytest.raises(UnavailableError):
            publisher.publish("orders", 3)
        own_redis.start()
        assert publisher.publish("orders", 4)
    assert [fields[b"body"] for fields in entries(own_redis)] == [b"4"]


def test_waits_for_a_server_that_comes_back(own_redis: RedisServer) -> None:
    own_redis.stop()
    starter = threading.Timer(0.3, own_redis.start)
    starter.start()
    with Publisher(own_redis.url) as publisher:
        try:
            # Its waits are drawn by lot, so it may have to be asked twice.
            message_id = publisher.publish("orders", 1, dedup="k")
        except UnavailableError:
            starter.join()
            message_id = publisher.publish("orders", 1, dedup="k")
    starter.join()
    assert [entry_id.decode() for entry_id, _ in own_redis.client().xrange("orders")] == [
        message_id
    ]


def test_takes_the_url_from_the_environment(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAKEQ_REDIS_URL", redis.url)
    with Publisher() as publisher:
        assert publisher.publish("orders", 1)


def test_takes_the_url_from_the_file(
    redis: RedisServer, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_dir / "wakeq.toml").write_text(f'redis_url = "{redis.url}"\n')
    monkeypatch.setenv("WAKEQ_CONFIG_DIR", str(short_dir))
    monkeypatch.delenv("WAKEQ_REDIS_URL", raising=False)
    with Publisher() as publisher:
        assert publisher.publish("orders", 1)


def test_uses_a_client_that_it_is_given(redis: RedisServer) -> None:
    client = redis.client(decode_responses=True)
    with Publisher(client=client) as publisher:
        message_id = publisher.publish("orders", 1, dedup="k")
        assert publisher.publish_many([Publish("orders", 2)]) != [message_id]
    assert client.xlen("orders") == 2  # it was not closed, and still works


def test_publishes_through_fakeredis() -> None:
    client = fakeredis.FakeRedis()
    publisher = Publisher(client=client)
    first = publisher.publish("orders", {"id": 7}, dedup="k")
    assert publisher.publish("orders", {"id": 7}, dedup="k") == first
    assert client.xlen("orders") == 1
    client.close()


def test_refuses_a_client_and_a_url(redis: RedisServer) -> None:
    with pytest.raises(TypeError, match="not both"):
        Publisher(redis.url, client=redis.client())


def test_refuses_a_cluster_client() -> None:
    class RedisCluster:
        """Stands for redis-py's, which repeats commands."""

    with pytest.raises(TypeError, match="must not be a RedisCluster"):
        Publisher(client=RedisCluster())


def test_an_async_publisher_publishes_concurrently(redis: RedisServer) -> None:
    async def publish() -> list[str]:
        async with AsyncPublisher(redis.url) as publisher:
            return await asyncio.gather(*(publisher.publish("orders", i) for i in range(100)))

    ids = asyncio.run(publish())
    assert len(set(ids)) == 100


def test_every_error_is_one_of_ours(publisher: Publisher, redis: RedisServer) -> None:
    redis.client().set("orders", "text")
    with pytest.raises(WakeqError):
        publisher.publish_many([Publish("orders", 1)])
