"""wakeq-wakeup and streams that are paused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from redis_servers import Cluster, RedisServer, wait_until
from wakeq import keys
from wakeq_command import Wakeq
from wakeup_host import Daemon, FakeConsumer, WakeupHost

FLAG, RETRY = keys.paused("orders"), keys.retry("orders", "orders")


@pytest.fixture
def host(short_dir: Path, redis: RedisServer, notify_socket: NotifySocket) -> Iterator[WakeupHost]:
    host = WakeupHost(short_dir / "w", redis)
    host.env |= notify_socket.env
    yield host
    host.close()


@pytest.fixture
def wakeq(short_dir: Path, redis: RedisServer) -> Wakeq:
    return Wakeq(short_dir / "c", redis.url)


def scripts(host: WakeupHost) -> int:
    """Return how many scripts were run so far: looks, if nobody else runs any."""
    stats = host.redis.info("commandstats")
    return sum(
        values["calls"]
        for name, values in stats.items()
        if name in ("cmdstat_eval", "cmdstat_evalsha")
    )


def watched(host: WakeupHost) -> int:
    """Return how many XREADs wait."""
    return sum(
        client["name"] == "wakeq-wakeup" and "b" in client["flags"] and client["cmd"] == "xread"
        for client in host.redis.client_list()
    )


def wait_paused(host: WakeupHost, daemon: Daemon, times: int = 1) -> None:
    """Wait until wakeq-wakeup has found a pause, and waits for its end."""
    daemon.wait_log("stream is paused", times)
    wait_until(lambda: watched(host) == 1)


def test_nobody_is_woken_for_a_paused_stream_until_it_is_resumed(
    host: WakeupHost, wakeq: Wakeq, notify_socket: NotifySocket
) -> None:
    orders = [host.consumer(name) for name in ("orders", "orders:2")]
    mail = host.consumer("mail")
    wakeq.configure("orders", 'handler = "m:f"\n')
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    assert wakeq.run("pause", "orders").code == 0
    pipeline = host.redis.pipeline(transaction=False)
    for _ in range(3000):  # enough for both, by scale_lag
        pipeline.xadd("orders", {"a": "b"})
    pipeline.execute()
    wait_paused(host, daemon)
    host.redis.xadd(RETRY, {"a": "b"})
    # What comes after that has been looked at, too.
    host.redis.xadd("mail", {"a": "b"})
    mail.wait_woken()
    assert not any(consumer.woken() for consumer in orders)
    assert wakeq.run("resume", "orders").code == 0
    for consumer in orders:
        consumer.wait_woken()
    daemon.wait_log("stream is resumed")


def test_messages_for_a_paused_stream_cost_nothing(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    orders.join()
    host.redis.set(FLAG, "1")
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    wait_paused(host, daemon)
    before = scripts(host)
    for _ in range(500):
        host.redis.xadd("orders", {"a": "b"})
    assert scripts(host) == before
    assert watched(host) == 1
    assert not orders.woken()


def test_retries_that_become_due_in_a_pause_cost_a_look_a_second(
    host: WakeupHost, wakeq: Wakeq, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    orders.join()
    host.redis.set(FLAG, "1")
    daemon = host.start()
    notify_socket.wait_for("READY=1")
    wait_paused(host, daemon)
    begin, before = host.redis.time(), scripts(host)
    for _ in range(1000):
        host.redis.xadd(RETRY, {"a": "b"})
    looks = scripts(host) - before
    took_s = host.redis.time()[0] - begin[0] + 1
    assert looks <= 2 + 2 * took_s
    assert not orders.woken()
    wakeq.run("resume", "orders")
    orders.wait_woken()


@pytest.mark.parametrize("start", ["0", "$"])
def test_a_consumer_that_never_ran_is_woken_after_a_pause(
    host: WakeupHost, wakeq: Wakeq, start: str
) -> None:
    orders = host.consumer("orders", f'handler = "m:f"\nstart = "{start}"\n')
    host.redis.set(FLAG, "1")
    daemon = host.start()
    wait_paused(host, daemon)
    host.redis.xadd("orders", {"a": "b"})
    assert not orders.woken()
    wakeq.run("resume", "orders")
    orders.wait_woken()
    assert orders.handle() == 1


def test_the_pause_of_one_stream_holds_up_no_other(host: WakeupHost) -> None:
    consumers = [host.consumer(f"q{number}") for number in range(20)]
    paused = consumers[::3]
    for consumer in paused:
        host.redis.set(keys.paused(consumer.stream), "1")
    daemon = host.start()
    daemon.wait_log("stream is paused", len(paused))
    for consumer in consumers:
        host.redis.xadd(consumer.stream, {"a": "b"})
    host.wait_woken([consumer for consumer in consumers if consumer not in paused])
    assert not any(consumer.woken() for consumer in paused)


def test_a_pause_set_and_removed_by_hand_is_found_by_the_re_check(
    host: WakeupHost, notify_socket: NotifySocket
) -> None:
    orders = host.consumer("orders")
    orders.join()
    daemon = host.start("--recheck=1s")
    notify_socket.wait_for("READY=1")
    host.redis.set(FLAG, "1")
    daemon.wait_log("stream is paused")
    host.redis.xadd("orders", {"a": "b"})
    host.redis.delete(FLAG)
    orders.wait_woken()
    daemon.wait_log("stream is resumed")


def leave_paused(orders: FakeConsumer, host: WakeupHost) -> None:
    """Be woken, read, find a pause, and exit with what was read."""
    orders.wait_woken()
    orders.read()
    host.redis.set(FLAG, "1")
    orders.sleep()


def test_a_consumer_that_leaves_for_a_pause_is_not_backed_off(
    host: WakeupHost, wakeq: Wakeq
) -> None:
    orders = host.consumer("orders")
    orders.join()
    host.redis.xgroup_create(RETRY, "orders", "0", mkstream=True)
    daemon = host.start()
    for times in range(1, 4):
        host.redis.xadd("orders", {"a": "b"})
        leave_paused(orders, host)
        wait_paused(host, daemon, times)
        wakeq.run("resume", "orders")
    orders.wait_woken()
    assert daemon.count("backed off") == 0


def test_a_discovered_consumer_is_not_woken_in_a_pause(
    host: WakeupHost, short_dir: Path, notify_socket: NotifySocket
) -> None:
    path = short_dir / "foreign.sock"
    foreign = host.at(path, "foreign", "orders", str(path))
    foreign.join()
    host.redis.sadd(keys.STREAMS, "orders")
    host.redis.set(FLAG, "1")
    daemon = host.start("--discover", "--recheck=1s")
    daemon.wait_log("stream is paused")
    host.redis.xadd("orders", {"a": "b"})
    assert not foreign.woken()
    assert not host.redis.exists(keys.retry("orders", str(path)))
    host.redis.delete(FLAG)
    foreign.socket.settimeout(60)
    lease, _ = foreign.socket.accept()
    lease.close()


def test_a_pause_outlives_wakeq_wakeup(host: WakeupHost, wakeq: Wakeq) -> None:
    orders = host.consumer("orders")
    orders.join()
    wakeq.run("pause", "orders")
    daemon = host.start()
    wait_paused(host, daemon)
    assert daemon.stop() == 0
    host.redis.xadd("orders", {"a": "b"})
    daemon = host.start()
    wait_paused(host, daemon)
    assert not orders.woken()
    wakeq.run("resume", "orders")
    orders.wait_woken()


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    cluster = Cluster(short_dir / "r")
    (short_dir / "r").mkdir()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_works_on_a_cluster(cluster: Cluster, short_dir: Path, tmp_path: Path) -> None:
    owner = cluster.nodes[cluster.owner("orders")]
    client = owner.client()
    host = WakeupHost(short_dir / "w", owner)
    host.env = {"WAKEQ_REDIS_URL": cluster.url(0)}
    wakeq = Wakeq(tmp_path, cluster.url(1))
    try:
        orders = host.consumer("orders")
        orders.join()
        wakeq.run("pause", "orders")
        daemon = host.start()
        daemon.wait_log("stream is paused")
        wait_until(lambda: client.exists(RETRY))
        client.xadd("orders", {"a": "b"})
        assert not orders.woken()
        wakeq.run("resume", "orders")
        orders.wait_woken()
    finally:
        host.close()
