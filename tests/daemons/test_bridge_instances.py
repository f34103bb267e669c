"""wakeq-bridge: several instances of one bridge, and who takes the messages."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_host import CHANNEL, HOST, STREAM, BridgeHost, bridge_host, stopped, workers_of
from conftest import NotifySocket
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.scripts import Script
from wakeup_host import Daemon

LEASE = keys.bridge_lease(CHANNEL, "clicks")
LINE = keys.bridge_line(CHANNEL, "clicks", 0, "")


@pytest.fixture
def host(tmp_path: Path, redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, redis) as found:
        found.configure(lease="6s")  # longer than a busy machine has a bridge stand still
        yield found


def two(host: BridgeHost) -> tuple[Daemon, Daemon]:
    """Start one instance that takes the messages, and one that stands by."""
    first = host.start()
    host.wait_begun()
    second = host.start("clicks:2")
    wait_until(lambda: host.redis.zcard(keys.bridge_instances(CHANNEL, "clicks")) == 2)
    assert host.holder() == f"{HOST}/clicks"
    return first, second


class Flow:
    """Publishes numbered messages without a pause, until it is ended."""

    def __init__(self, host: BridgeHost) -> None:
        self._client = host.server.client()
        self._ends = False
        self.unheard: list[int] = []  # published while nobody was subscribed
        self.count = 0
        self._thread = threading.Thread(target=self._run, name="flow")
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            if not self._client.publish(CHANNEL, f'{{"number":"{self.count}"}}'):
                self.unheard.append(self.count)
            self.count += 1

    def wait(self, more: int) -> None:
        """Wait until so many more were published."""
        target = self.count + more
        wait_until(lambda: self.count >= target, message="messages are published")

    def end(self) -> None:
        """End, and wait for the end."""
        self._ends = True
        self._thread.join()


@pytest.fixture
def flow(host: BridgeHost) -> Iterator[list[Flow]]:
    """A list for a flow, which is ended after the test."""
    flows: list[Flow] = []
    yield flows
    for each in flows:
        each.end()


def test_each_message_is_processed_once(host: BridgeHost) -> None:
    two(host)
    host.burst(5000)
    host.wait_entries(5000)
    assert host.numbers() == list(range(5000))
    assert {entry[b"consumer_id"] for entry in host.entries()} == {f"{HOST}/clicks/1".encode()}


def test_who_stands_by_says_so_and_is_ready(host: BridgeHost, notify_socket: NotifySocket) -> None:
    host.start()
    host.wait_begun()
    host.launch("clicks:2", **notify_socket.env)
    notify_socket.wait_for("READY=1")
    wait_until(
        lambda: f"STATUS=channel {CHANNEL}, standing by, {HOST}/clicks takes the messages,"
        " 0 handled, 0/s" in notify_socket.messages, 60, f"{notify_socket.messages}",
    )  # fmt: skip


def test_hands_over_at_a_stop_without_losing_or_doubling_a_message(
    host: BridgeHost, flow: list[Flow]
) -> None:
    daemons = {"clicks": host.start(), "clicks:2": host.start("clicks:2")}
    host.wait_begun()
    flow.append(Flow(host))
    for _ in range(4):
        flow[0].wait(500)
        name = wait_until(host.holder).partition("/")[2]
        assert daemons[name].stop() == 0
        other = "clicks:2" if name == "clicks" else "clicks"
        wait_until(lambda other=other: host.holder() == f"{HOST}/{other}")
        flow[0].wait(500)
        daemons[name] = host.start(name)
    flow[0].end()
    host.wait_entries(flow[0].count)
    assert host.numbers() == list(range(flow[0].count))
    assert flow[0].unheard == []


def test_takes_over_soon_after_a_crash(host: BridgeHost) -> None:
    host.configure(lease="5min")
    first, second = two(host)
    first.kill()
    # Redis knows that nobody listens: the lease need not run out.
    wait_until(lambda: host.holder() == f"{HOST}/clicks:2", 60, f"{second.lines}")
    host.publish("hello")
    host.wait_entries(1)


def test_takes_over_when_the_lease_is_over_and_the_old_one_publishes_what_is_its_own(
    host: BridgeHost, flow: list[Flow]
) -> None:
    host.configure(lease="2s")
    first, _ = two(host)
    flow.append(Flow(host))
    flow[0].wait(500)
    first.process.send_signal(signal.SIGSTOP)
    # What is published now comes to the first one alone, until the second one takes over.
    wait_until(lambda: host.holder() == f"{HOST}/clicks:2")
    flow[0].wait(500)
    first.process.send_signal(signal.SIGCONT)
    flow[0].wait(500)
    flow[0].end()
    host.wait_entries(flow[0].count)
    wait_until(lambda: len(host.numbers()) >= flow[0].count)
    assert host.numbers() == list(range(flow[0].count))
    by = Counter(entry[b"consumer_id"].decode() for entry in host.entries())
    assert set(by) == {f"{HOST}/clicks/1", f"{HOST}/clicks:2/1"}
    # The first one listens no more.
    wait_until(lambda: host.redis.pubsub_numsub(CHANNEL)[0][1] == 1)


def test_takes_a_channel_from_one_that_stops_also_while_much_waits_in_memory(
    host: BridgeHost,
) -> None:
    host.configure(shard_channels="log:0..1", lease="6s")
    first = host.start()
    second = host.start("clicks:2")

    def holders() -> set[str]:
        return {host.holder(channel=name) for name in ("log:0", "log:1")}

    wait_until(lambda: holders() == {f"{HOST}/clicks", f"{HOST}/clicks:2"})
    (mine,) = (n for n in ("log:0", "log:1") if host.holder(channel=n) == f"{HOST}/clicks")
    (theirs,) = {"log:0", "log:1"} - {mine}
    (worker,) = workers_of(first)
    with stopped(worker):
        host.burst(5000, channel=mine)
        assert second.stop() == 0
        # It takes what comes from here on, although what came before is not published yet.
        wait_until(lambda: host.holder(channel=theirs) == f"{HOST}/clicks")
        host.burst(100, first=5000, channel=theirs)
    host.wait_entries(5100)
    assert host.numbers() == list(range(5100))


def test_bridges_of_one_name_in_two_databases_take_each_message_both(host: BridgeHost) -> None:
    first = host.start()
    host.wait_begun()
    client = host.server.client(db=1)
    second = host.launch(WAKEQ_REDIS_URL=f"{host.server.url}?db=1")
    wait_until(lambda: client.hget(LEASE, "begun") == b"1")
    numbers = [b"%d" % number for number in range(50)]
    host.publish(*numbers)
    for of_it in (host.redis, client):
        wait_until(lambda of_it=of_it: of_it.xlen(STREAM) >= 50)
        assert [fields[b"body"] for _, fields in of_it.xrange(STREAM)] == numbers
    assert second.stop() == 0
    host.publish("last")
    host.wait_entries(51)
    assert first.stop() == 0


def test_marks_of_one_that_does_not_hold_the_channel_are_refused(host: BridgeHost) -> None:
    host.start()
    host.wait_begun()
    arguments = ["somebody", "", 1, keys.bridge_marks(CHANNEL, "clicks", 0)]
    assert Script("bridge_begin").call(host.connection(), [LEASE], arguments) == 0
    host.publish("still")
    host.wait_entries(1)


def test_channels_are_spread_over_the_instances(host: BridgeHost) -> None:
    names = [f"log:{number}" for number in range(4)]
    host.configure(shard_channels="log:0..3", lease="6s")
    host.start()
    for name in names:
        host.wait_begun(channel=name)

    def holders() -> Counter[str]:
        return Counter(host.holder(channel=name) for name in names)

    assert holders() == {f"{HOST}/clicks": 4}
    second = host.start("clicks:2")
    wait_until(lambda: holders() == {f"{HOST}/clicks": 2, f"{HOST}/clicks:2": 2})
    for name in names:
        host.publish(name, channel=name)
    assert {entry[b"body"].decode() for entry in host.wait_entries(4)} == set(names)
    assert second.stop() == 0
    wait_until(lambda: holders() == {f"{HOST}/clicks": 4})


def test_spreading_channels_loses_and_doubles_nothing(host: BridgeHost, flow: list[Flow]) -> None:
    host.configure(shard_channels="m:0..1")
    daemons = [host.start("clicks", "--lease=6s")]
    host.wait_begun(channel="m:0")
    host.wait_begun(channel="m:1")
    count, ends = 0, threading.Event()
    client = host.server.client()
    unheard: list[int] = []

    def publish() -> None:
        nonlocal count
        while not ends.is_set():
            if not client.publish(f"m:{count % 2}", f'{{"number":"{count}"}}'):
                unheard.append(count)
            count += 1

    thread = threading.Thread(target=publish, name="flow")
    thread.start()
    try:
        daemons.append(host.start("clicks:2", "--lease=6s"))
        wait_until(
            lambda: {host.holder(channel=f"m:{n}") for n in (0, 1)}
            == {f"{HOST}/clicks", f"{HOST}/clicks:2"}
        )  # fmt: skip
        assert daemons[0].stop() == 0
        wait_until(lambda: {host.holder(channel=f"m:{n}") for n in (0, 1)} == {f"{HOST}/clicks:2"})
    finally:
        ends.set()
        thread.join()
    host.wait_entries(count)
    assert host.numbers() == list(range(count))
    assert unheard == []


def test_a_lost_lease_key_is_made_again(host: BridgeHost) -> None:
    two(host)
    host.redis.delete(LEASE)
    wait_until(host.holder)
    host.publish("hello")
    host.wait_entries(1)
    assert [entry[b"body"] for entry in host.entries()] == [b"hello"]
