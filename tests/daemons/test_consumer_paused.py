"""wakeq-consumer and a stream that an operator has paused, and the registry of streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from consumer_host import HOST, ConsumerHost
from redis_servers import Cluster, RedisServer, wait_until
from wakeq import keys

PAUSED = keys.paused("orders")
RECORD = "def handle(message): record(message.text())\n"
SLOW = "import time\ndef handle(message): time.sleep(0.01); record(message.text())\n"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def pause(host: ConsumerHost) -> None:
    """Pause as `wakeq pause` does: set the flag, end the reads that wait."""
    host.redis.set(PAUSED, "now")
    for client in host.redis.client_list():
        if client["name"].startswith("wakeq-consumer/"):
            host.redis.client_unblock(client["id"])


def is_reading(host: ConsumerHost) -> bool:
    """Tell whether a consumer waits in Redis for messages."""
    clients = host.redis.client_list()
    return any(each["cmd"] == "xreadgroup" and "b" in each["flags"] for each in clients)


def looks(host: ConsumerHost) -> int:
    """Return how often somebody has looked whether the stream is paused."""
    return int(host.redis.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"])


def wait_looks(host: ConsumerHost, count: int = 2) -> None:
    """Wait until a consumer has looked at the flag again, and has done what follows."""
    before = looks(host)
    wait_until(lambda: looks(host) >= before + count)


def test_a_consumer_that_is_idle_handles_nothing_more(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.configure(handler=host.handler(RECORD))
    consumer = host.start(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    host.publish("before")
    host.wait_records(1)
    wait_until(lambda: is_reading(host))
    pause(host)
    notify_socket.wait_for("STATUS=paused: 0 in hand, 1 handled")
    wait_until(lambda: not is_reading(host))
    host.publish("after")
    wait_looks(host, 3)
    assert host.records == ["before"]
    assert host.pending() == 0
    host.redis.delete(PAUSED)
    assert host.wait_records(2) == ["before", "after"]
    assert consumer.stop() == 0


def test_a_consumer_that_is_busy_finishes_what_it_has_in_hand(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.configure(handler=host.handler(SLOW), prefetch=10)
    host.publish(*range(5000))
    consumer = host.start(**notify_socket.env)
    host.wait_records(20)
    host.redis.set(PAUSED, "now")
    begun = len(host.records)
    wait_until(lambda: any("STATUS=paused: 0 in hand" in m for m in notify_socket.messages))
    host.wait_pending(0)
    handled = len(host.records)
    # What was in hand, and what came with the read that was under way.
    assert handled - begun <= 2 * 10
    wait_looks(host)
    assert len(host.records) == handled
    assert host.stats()["handled"] == str(handled)
    host.redis.delete(PAUSED)
    host.wait_records(handled + 20)
    assert consumer.stop() == 0


def test_a_consumer_that_starts_handles_nothing_not_even_what_it_had(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.configure(handler=host.handler(RECORD))
    host.publish("own", "new")
    host.redis.xgroup_create("orders", "orders", "0")
    host.redis.xreadgroup("orders", f"{HOST}/orders", {"orders": ">"}, count=1)
    host.redis.set(PAUSED, "now")
    consumer = host.start(**notify_socket.env)
    notify_socket.wait_for("STATUS=paused: 0 in hand, 0 handled")
    wait_looks(host, 3)
    assert host.records == []
    assert host.pending() == 1
    host.redis.delete(PAUSED)
    assert host.wait_records(2) == ["own", "new"]
    host.wait_done()
    assert consumer.stop() == 0


def test_a_consumer_that_starts_paused_is_ready_and_says_so(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.configure(handler=host.handler(RECORD))
    host.redis.set(PAUSED, "now")
    host.start(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    notify_socket.wait_for("STATUS=paused: 0 in hand, 0 handled")


def test_nothing_is_claimed_from_others_meanwhile(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s")
    host.publish("theirs")
    host.redis.xgroup_create("orders", "orders", "0")
    host.redis.xreadgroup("orders", "gone", {"orders": ">"})
    host.redis.set(PAUSED, "now")
    host.start(**notify_socket.env)
    notify_socket.wait_for("STATUS=paused: 0 in hand, 0 handled")
    # A look at the pause each second; claiming looks twice as often, for what is as old as that.
    wait_looks(host, 4)
    (entry,) = host.redis.xpending_range("orders", "orders", "-", "+", 9)
    assert entry["consumer"] == b"gone"
    assert host.records == []
    host.redis.delete(PAUSED)
    assert host.wait_records(1) == ["theirs"]
    host.wait_done()


def test_retries_wait_too(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    host.start()
    wait_until(lambda: is_reading(host))
    pause(host)
    wait_looks(host)
    wait_until(lambda: not is_reading(host))
    host.redis.xadd(keys.retry("orders", "orders"), {"body": "again"})
    wait_looks(host)
    assert host.records == []
    host.redis.delete(PAUSED)
    host.wait_records(1)


def test_goes_to_sleep_while_paused_and_strands_nothing(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), idle_timeout="2.5s")
    host.publish("own", "new")
    host.redis.xgroup_create("orders", "orders", "0")
    host.redis.xreadgroup("orders", f"{HOST}/orders", {"orders": ">"}, count=1)
    host.redis.set(PAUSED, "now")
    listener = host.wake_socket()
    host.connect()
    consumer = host.start(wake=listener)
    assert consumer.wait_exit() == 0
    assert host.records == []
    assert host.alive() is None
    host.redis.delete(PAUSED)
    host.connect()
    host.start(wake=listener)
    host.wait_done()
    assert host.records == ["own", "new"]


def test_stops_at_once_while_paused(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    host.redis.set(PAUSED, "now")
    consumer = host.start()
    wait_until(host.alive)
    assert consumer.stop() == 0


# -- the registry ------------------------------------------------------------------------------


def test_the_stream_is_in_the_registry(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    host.start()
    wait_until(lambda: host.redis.smembers(keys.STREAMS) == {b"orders"})


@pytest.mark.parametrize("missing", ["-sadd", "-client|unblock", "-publish"])
def test_works_without_rights_that_it_can_do_without(
    short_dir: Path, own_redis: RedisServer, missing: str
) -> None:
    host = ConsumerHost(short_dir, own_redis)
    try:
        rights = ("on", ">pw", "~*", "&*", "+@all", missing)
        host.redis.execute_command("ACL", "SETUSER", "poor", *rights)
        host.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://poor:pw@")
        code = RECORD + "    if message.text() == 'bad': raise ValueError\n"
        host.configure(handler=host.handler(code.replace("): ", "):\n    ", 1)))
        consumer = host.start()
        host.publish("a", "bad")
        host.wait_failed(1)
        host.wait_done()
        assert len(host.delayed()) == 1
        assert consumer.stop() == 0
        assert host.redis.exists(keys.STREAMS) == (missing != "-sadd")
        assert "NOPERM" not in consumer.output
    finally:
        host.close()


def test_the_stream_is_in_the_registry_of_a_cluster(short_dir: Path) -> None:
    cluster = Cluster(short_dir)
    host = None
    try:
        cluster.start()
        registry = cluster.nodes[cluster.owner(keys.STREAMS)]
        client = registry.client()
        # One stream in each node's part, so that the registry is elsewhere for two of them.
        names = {}
        for n in range(100):
            names.setdefault(cluster.owner(f"s{n}"), f"s{n}")
        assert len(names) == 3
        (short_dir / "host").mkdir()
        host = ConsumerHost(short_dir / "host", registry)
        host.env["WAKEQ_REDIS_URL"] = cluster.url()
        for name in names.values():
            host.configure(name, handler=host.handler(RECORD))
            host.start(name)
        streams = {name.encode() for name in names.values()}
        wait_until(lambda: client.smembers(keys.STREAMS) == streams)
        for index, name in names.items():
            cluster.nodes[index].client().xadd(name, {"body": name})
        assert set(host.wait_records(3)) == set(names.values())
    finally:
        if host is not None:
            host.close()
        cluster.stop()
