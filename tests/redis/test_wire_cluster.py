"""The wire connection with Redis Cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redis_servers import Cluster, free_port, wait_until
from wakeq.errors import ConfigError, RefusedError, UnavailableError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, Lost, ServerError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three masters; slots may be moved between them."""
    yield from started(replicas=False)


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    """Three masters with a replica each, of this test alone."""
    yield from started(replicas=True)


def started(replicas: bool) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="c") as directory:
        nodes = Cluster(Path(directory), replicas)
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.stop()


@contextmanager
def connected(url: str, key: str) -> Iterator[Connection]:
    connection = Connection(RedisURL(url), "wakeq-test", key)
    try:
        connection.connect()
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("key", ["a", "b", "c", "wakeq:{a}:retry:g"])
def test_finds_the_owner_of_the_key_whoever_is_asked(
    cluster: Cluster, asked: int, key: str
) -> None:
    with connected(cluster.url(asked), key) as connection:
        assert connection.call("XLEN", key) == 0


def test_stays_with_whoever_it_asked_without_a_key(cluster: Cluster) -> None:
    with connected(cluster.url(1), "") as connection:
        assert int(connection.call("CONFIG", "GET", "port")[1]) == cluster.ports[1]


def test_asks_the_next_server_when_one_is_down(cluster: Cluster) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster.ports[0]}"
    with connected(url, "a") as connection:
        assert connection.call("XLEN", "a") == 0


def test_follows_a_slot_that_was_moved_when_it_connects_again(cluster: Cluster) -> None:
    key = "moved"
    with connected(cluster.url(0), key) as connection:
        entry_id = connection.call("XADD", key, "*", "a", "b")
        for _ in range(3):
            cluster.move(key, (cluster.owner(key) + 1) % 3)
            with pytest.raises(ServerError) as caught:
                connection.call("XLEN", key)
            assert caught.value.code == "MOVED"
            connection.connect()
            assert connection.call("XRANGE", key, "-", "+") == [[entry_id, [b"a", b"b"]]]


def test_waits_for_a_slot_that_is_being_moved_if_the_key_is_not_there(cluster: Cluster) -> None:
    key = "moving"
    origin = cluster.owner(key)
    cluster.begin_move(key, (origin + 1) % 3)
    connection = Connection(RedisURL(cluster.url(0)), "wakeq-test", key)
    with pytest.raises(UnavailableError, match="cannot answer now: ASK"):
        connection.connect()
    cluster.move(key, (origin + 1) % 3)
    connection.connect()
    assert connection.call("XLEN", key) == 0
    connection.close()


def test_says_that_the_owner_of_the_key_cannot_be_found_without_a_right(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.client().execute_command("ACL", "SETUSER", "poor", "on", ">geheim", "~*", "+xlen")
    url = cluster.url().replace("://", "://poor:geheim@")
    with pytest.raises(RefusedError, match="'exists'") as caught, connected(url, "a"):
        pass
    assert "geheim" not in str(caught.value)


def test_says_that_a_node_has_one_database(cluster: Cluster) -> None:
    url = f"redis://127.0.0.1:{cluster.ports[0]}/1"
    with pytest.raises(ConfigError, match=r"has no database 1$"), connected(url, "a"):
        pass


def test_follows_a_failover_when_it_connects_again(replicated: Cluster) -> None:
    key = "a"
    with connected(replicated.url(), key) as connection:
        connection.call("XADD", key, "*", "a", "b")
        owner = replicated.owner(key)
        wait_until(lambda: connection.call("WAIT", 1, 1000) == 1)
        replicated.nodes[owner].kill()
        with pytest.raises(Lost):
            connection.call("PING")
        replicated.nodes[owner + 3].ask("CLUSTER FAILOVER", "TAKEOVER")

        def connects() -> bool:
            try:
                connection.connect()
                return connection.call("XLEN", key) == 1
            except (UnavailableError, ServerError):
                return False

        wait_until(connects, message="the replica has taken over")
        port = int(connection.call("CONFIG", "GET", "port")[1])
        assert port == replicated.ports[owner + 3]


def test_does_not_stay_with_a_replica(replicated: Cluster) -> None:
    owner = replicated.owner("a")
    with connected(replicated.url(owner + 3), "a") as connection:
        assert int(connection.call("CONFIG", "GET", "port")[1]) == replicated.ports[owner]
