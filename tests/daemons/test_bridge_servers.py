"""wakeq-bridge on Redis Cluster, behind Sentinels, and over TLS."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from bridge_host import CHANNEL, HOST, STREAM, BridgeHost, bridge_host
from conftest import NotifySocket
from redis_servers import Certificates, Cluster, RedisServer, Sentinels, free_port, wait_until
from wakeq import keys
from wakeq_command import Wakeq


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="c") as directory:
        # No node is to be taken for dead because the machine is busy.
        nodes = Cluster(Path(directory), timeout_ms=15_000)
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.stop()


def ask(cluster: Cluster, key: str, *command: Any) -> Any:
    """Return the reply of the node that has a key."""
    return cluster.nodes[cluster.owner(key)].client().execute_command(*command)


@pytest.fixture
def host(tmp_path: Path, cluster: Cluster) -> Iterator[BridgeHost]:
    for node in cluster.nodes:
        node.client().flushall()
    with bridge_host(tmp_path, cluster.nodes[0], cluster.url()) as found:
        yield found


def test_takes_a_channel_of_a_cluster_wherever_it_is_published(
    host: BridgeHost, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    host.configure()
    host.launch(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    for node in cluster.nodes:
        node.client().publish(CHANNEL, "hello")
    wait_until(lambda: ask(cluster, STREAM, "XLEN", STREAM) == 3)
    assert ask(cluster, "consumer:ids", "LRANGE", "consumer:ids", 0, -1) == [
        f"{HOST}/clicks/1".encode()
    ]


def test_publishing_to_a_channel_of_a_cluster_makes_no_claim_about_other_nodes(
    cluster: Cluster, short_dir: Path
) -> None:
    index = cluster.owner("news")
    wakeq = Wakeq(short_dir, cluster.url())
    with cluster.nodes[(index + 1) % 3].client().pubsub() as listener:
        listener.subscribe("news")
        assert wait_until(listener.get_message)["type"] == "subscribe"
        result = wakeq.run("publish", "--channel", "news", "hello")
        assert (result.code, result.lines) == (0, ["received by 0 at this node"])
        assert wait_until(listener.get_message)["data"] == b"hello"


def test_takes_each_shards_channel_from_the_node_that_has_it(
    host: BridgeHost, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    host.configure(shard_channels="log:0..5", workers=2)
    host.launch(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    names = [f"log:{number}" for number in range(6)]
    assert len({cluster.owner(name) for name in names}) > 1
    for name in names:
        assert ask(cluster, name, "SPUBLISH", name, "sharded") == 1
        # Anywhere: the nodes tell one another.
        cluster.nodes[0].client().publish(name, "plain")
    wait_until(lambda: ask(cluster, STREAM, "XLEN", STREAM) == 12)


def test_a_second_instance_takes_over_shards_on_a_cluster(
    host: BridgeHost, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    host.configure(shard_channels="log:0..3", lease="6s")
    first = host.launch(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    host.launch("clicks:2")

    def holders() -> list[bytes]:
        leases = [keys.bridge_lease(f"log:{number}", "clicks") for number in range(4)]
        found = [ask(cluster, key, "HMGET", key, "instance", "begun") for key in leases]
        return sorted(instance for instance, begun in found if begun == b"1")

    ours, theirs = f"{HOST}/clicks".encode(), f"{HOST}/clicks:2".encode()
    wait_until(lambda: holders() == [ours, ours, theirs, theirs])
    assert first.stop() == 0
    wait_until(lambda: holders() == [theirs] * 4)
    for number in range(4):
        assert ask(cluster, f"log:{number}", "SPUBLISH", f"log:{number}", "x") == 1
    wait_until(lambda: ask(cluster, STREAM, "XLEN", STREAM) == 4)


def test_moves_a_list_to_a_stream_of_the_same_slot(
    host: BridgeHost, cluster: Cluster, notify_socket: NotifySocket
) -> None:
    host.configure(list_="{jobs}:in", stream="{jobs}:out")
    host.launch(**notify_socket.env)
    notify_socket.wait_for("READY=1")
    ask(cluster, "{jobs}:in", "LPUSH", "{jobs}:in", "one", "two")
    wait_until(lambda: ask(cluster, "{jobs}:out", "XLEN", "{jobs}:out") == 2)


def test_a_list_and_a_stream_of_different_slots_are_a_wrong_configuration(
    host: BridgeHost,
) -> None:
    host.configure(list_="jobs")
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert "list and stream must be in one slot of the Cluster" in daemon.lines[-1]


def test_goes_on_with_the_new_master(tmp_path: Path, notify_socket: NotifySocket) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        sentinels = Sentinels(Path(directory))
        try:
            sentinels.start()
            with bridge_host(tmp_path, sentinels.master, sentinels.url) as host:
                host.configure(lease="1s")
                daemon = host.launch(**notify_socket.env)
                notify_socket.wait_for("READY=1")
                old = sentinels.master_port
                sentinels.master.kill()
                sentinels.await_failover(old)

                def is_taken() -> bool:
                    # On a busy machine the Sentinels may choose yet another one.
                    with suppress(redis.ConnectionError):
                        sentinels.master.ask("PUBLISH", CHANNEL, "again")
                        return bool(sentinels.master.ask("XLEN", STREAM))
                    return False

                wait_until(is_taken, 60)
                daemon.wait_log("a subscription was cut, messages may be lost")
                daemon.wait_log("Redis is back")
                assert daemon.stop() == 0
        finally:
            sentinels.stop()


def test_reads_and_publishes_over_tls(
    tmp_path: Path, redis_server: Callable[..., RedisServer]
) -> None:
    certificates = Certificates(tmp_path)
    certificates.make()
    port = free_port()
    server = redis_server(*certificates.options(port))
    (tmp_path / "host").mkdir()
    url = f"rediss://127.0.0.1:{port}?ca={certificates.ca}"
    with bridge_host(tmp_path / "host", server, url) as host:
        host.configure(workers=2)
        daemon = host.start(workers=2)
        host.wait_begun()
        host.burst(30_000)
        host.publish(b"x" * 2_000_000)
        host.wait_entries(30_001, 60)
        assert daemon.stop() == 0
        numbers = [int(entry[b"number"]) for entry in host.entries() if b"number" in entry]
        assert sorted(numbers) == list(range(30_000))
