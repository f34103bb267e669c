"""wakeq pause and wakeq resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from conftest import NotifySocket
from consumer_host import ConsumerHost
from redis_servers import Cluster, RedisServer, wait_until
from wakeq import keys
from wakeq_command import Wakeq

FLAG = keys.paused("orders")


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    wakeq = Wakeq(short_dir, redis.url)
    wakeq.env |= {"TZ": "UTC", "SUDO_USER": "ada"}
    return wakeq


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    client = redis.client()
    for stream in ("orders", keys.retry("orders", "orders")):
        client.xgroup_create(stream, "orders", "0", mkstream=True)
    return client


def bells(client: redis_py.Redis, group: str = "orders") -> list[bytes]:
    entries = client.xrange(keys.retry("orders", group))
    return [fields[b"wakeq.handed_back"] for _, fields in entries]


def test_pauses_and_says_since_when_by_whom_and_why(wakeq: Wakeq, client: redis_py.Redis) -> None:
    before_ms = int(time.time() * 1000)
    result = wakeq.run("pause", "orders", "--reason", "new \u201crelease\u201d")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("orders is paused since 20")
    assert f" by ada@{os.uname().nodename}: new \u201crelease\u201d" in result.out
    value = json.loads(client.get(FLAG))
    assert before_ms - 1000 <= value["since"] <= time.time() * 1000 + 1000
    assert (value["by"], value["reason"]) == (
        f"ada@{os.uname().nodename}",
        "new \u201crelease\u201d",
    )
    assert result.out.removeprefix("orders is ").rstrip() in wakeq.run("status").out


def test_a_second_pause_leaves_the_first_as_it_was(wakeq: Wakeq, client: redis_py.Redis) -> None:
    wakeq.run("pause", "orders", "--reason", "first")
    value = client.get(FLAG)
    result = wakeq.run("pause", "orders", "--reason", "second")
    assert result.code == 0
    assert result.out.startswith("orders was already paused since ")
    assert result.out.endswith(": first\n")
    assert client.get(FLAG) == value


def test_resumes_and_rings_for_every_group_of_wakeq(wakeq: Wakeq, client: redis_py.Redis) -> None:
    client.xgroup_create("orders", "mail", "$")
    client.xgroup_create(keys.retry("orders", "mail"), "mail", "0", mkstream=True)
    client.xgroup_create("orders", "foreign", "0")
    wakeq.run("pause", "orders", "--reason", "why")
    result = wakeq.run("resume", "orders")
    assert result.code == 0
    assert result.out.startswith("orders is resumed; it was paused since ")
    assert result.out.endswith(": why\n")
    assert not client.exists(FLAG)
    assert bells(client) == bells(client, "mail") == [b"resume"]
    # Nobody would ever delete that bell.
    assert not client.exists(keys.retry("orders", "foreign"))


def test_resumes_what_is_not_paused(wakeq: Wakeq, client: redis_py.Redis) -> None:
    result = wakeq.run("resume", "orders")
    assert (result.code, result.out) == (0, "orders was not paused\n")


def test_speaks_to_programs(wakeq: Wakeq, client: redis_py.Redis) -> None:
    (paused,) = wakeq.run("pause", "orders", "--json").json()
    assert paused.pop("since") > 1_600_000_000_000
    told = {"stream": "orders", "by": f"ada@{os.uname().nodename}", "reason": ""}
    assert paused == told | {"paused": True}
    (again,) = wakeq.run("pause", "orders", "--json").json()
    assert again.pop("since")
    assert again == told | {"paused": False}
    for resumed in (True, False):
        (found,) = wakeq.run("resume", "orders", "--json").json()
        assert found == {"stream": "orders", "resumed": resumed, "groups_rung": 1}


@pytest.mark.parametrize("value", ["1", "", "\u2028by hand", "[1]"])
def test_takes_a_flag_that_was_set_by_hand(
    wakeq: Wakeq, client: redis_py.Redis, value: str
) -> None:
    client.set(FLAG, value)
    assert wakeq.run("pause", "orders").out.startswith("orders was already paused")
    assert wakeq.run("resume", "orders").out.startswith("orders is resumed; it was paused")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_knows_which_streams_there_are(wakeq: Wakeq, client: redis_py.Redis, action: str) -> None:
    client.sadd(keys.STREAMS, "registered")
    wakeq.configure("configured", 'handler = "m:f"\n')
    for stream in ("registered", "configured"):
        assert wakeq.run(action, stream).code == 0
    client.set("text", "x")
    for stream, complaint in (
        ("registred", "there is no stream 'registred' (did you mean 'registered'?)"),
        ("text", "text is a string, not a stream"),
    ):
        result = wakeq.run(action, stream)
        assert (result.code, result.out, result.err) == (66, "", f"wakeq: {complaint}\n")
    assert not client.exists(keys.paused("registred"))


def test_resumes_when_redis_is_full(own_redis: RedisServer, short_dir: Path) -> None:
    client = own_redis.client()
    for stream in ("orders", keys.retry("orders", "orders")):
        client.xgroup_create(stream, "orders", "0", mkstream=True)
    wakeq = Wakeq(short_dir, own_redis.url)
    wakeq.run("pause", "orders")
    client.config_set("maxmemory", 1)
    (found,) = wakeq.run("resume", "orders", "--json").json()
    assert found == {"stream": "orders", "resumed": True, "groups_rung": 1}
    assert (client.exists(FLAG), bells(client)) == (0, [b"resume"])


def test_a_group_that_cannot_be_rung_for_stops_no_other(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    client.xgroup_create("orders", "a", "0")
    client.set(keys.retry("orders", "a"), "no stream")
    wakeq.run("pause", "orders")
    assert wakeq.run("resume", "orders", "--json").json()[0]["groups_rung"] == 1
    assert bells(client) == [b"resume"]


# -- consumers -------------------------------------------------------------------------------


@pytest.fixture
def host(redis: RedisServer, short_dir: Path) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir / "h", redis)
    host.configure(handler=host.handler("def handle(message): record(message.text())"))
    yield host
    host.close()


def unblocked(client: redis_py.Redis) -> int:
    """Return how many reads were ended."""
    stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get("cmdstat_client|unblock", {"calls": 0})["calls"])


def reading(client: redis_py.Redis) -> list[str]:
    """Return the names of the consumers that are blocked in a read."""
    return [c["name"] for c in client.client_list() if "b" in c["flags"] and c["name"]]


def test_a_consumer_that_waits_stops_and_goes_on(
    wakeq: Wakeq, host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start(**notify_socket.env)
    host.publish(1)
    host.wait_records(1)
    wait_until(lambda: reading(host.redis))
    host.redis.config_resetstat()
    wakeq.run("pause", "orders")
    assert unblocked(host.redis) >= 1
    notify_socket.wait_for("STATUS=paused: 0 in hand, 1 handled")
    host.publish(2, 3)
    assert wakeq.run("status", "--json").json()[0]["streams"][0]["groups"][0]["unread"] == 2
    assert host.records == ["1"]
    wakeq.run("resume", "orders")
    assert host.wait_records(3) == ["1", "2", "3"]
    host.wait_done()
    wait_until(lambda: not host.redis.xlen(keys.retry("orders", "orders")), message="no bell")
    assert consumer.running


@pytest.mark.parametrize("group", ["bill ing@home", "auftr\u00e4ge"])
def test_ends_reads_of_groups_with_odd_names(
    wakeq: Wakeq, host: ConsumerHost, redis: RedisServer, group: str
) -> None:
    host.configure(handler=host.handler("def handle(m): pass"), group=group)
    host.start()
    wait_until(lambda: reading(host.redis))
    other = redis.client(client_name="wakeq-consumer/other@x")
    other.ping()
    host.redis.config_resetstat()
    wakeq.run("pause", "orders")
    assert unblocked(host.redis) >= 1


def test_says_that_consumers_notice_later_if_it_may_not_end_their_reads(
    own_redis: RedisServer, short_dir: Path
) -> None:
    client = own_redis.client()
    client.xadd("orders", {"body": 1})
    client.execute_command(
        "ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-client|list", "-client|unblock"
    )
    wakeq = Wakeq(short_dir, own_redis.url.replace("unix://", "unix://poor:pw@"))
    result = wakeq.run("pause", "orders")
    assert (result.code, client.exists(FLAG)) == (0, 1)
    assert "consumers notice within 5 seconds" in result.err


# -- Redis Cluster ---------------------------------------------------------------------------


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    cluster = Cluster(short_dir)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_works_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    wakeq = Wakeq(tmp_path, cluster.url(0))
    for stream in ("orders", "mail", "bills", "{a}b", "c{a}"):
        client = cluster.nodes[cluster.owner(stream)].client()
        for key in (stream, keys.retry(stream, "g")):
            client.xgroup_create(key, "g", "0", mkstream=True)
        result = wakeq.run("pause", stream)
        assert (result.code, result.err) == (0, ""), result
        assert client.exists(keys.paused(stream))
        (found,) = wakeq.run("resume", stream, "--json").json()
        assert found == {"stream": stream, "resumed": True, "groups_rung": 1}
        assert not client.exists(keys.paused(stream))
    assert wakeq.run("pause", "nothing").code == 66
