"""Consumers of one group: who has which name, and who takes over whose messages."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import HOST, ConsumerHost
from redis_servers import RedisServer, wait_until

ALIVE = f"wakeq:{{orders}}:alive:orders:{HOST}/orders"
RECORD = "def handle(message): record(message.text())\n"
SLEEP = "import time\ndef handle(message): record(message.text()); time.sleep(3600)\n"
GATED = """
import os, time
def handle(message):
    record(os.environ.get("ME", "-"), message.text())
    while os.environ.get("ME") != "second" and not os.path.exists({go!r}): time.sleep(0.01)
"""
# A consumer that does not look for what others left until it is told to.
NO_FIRST_LOOK = """
from wakeq.consumer import claimer
claimer._FIRST_LOOK_SECONDS = 3600.0
from wakeq.consumer.main import main
main()
"""


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def leave_with(host: ConsumerHost, consumer: str | bytes, *bodies: str) -> list[bytes]:
    """Have a consumer read messages and never be heard of again."""
    if not host.redis.exists("orders"):
        host.redis.xgroup_create("orders", "orders", "0", mkstream=True)
    ids = host.publish(*bodies)
    host.redis.xreadgroup("orders", consumer, {"orders": ">"}, count=len(ids))  # type: ignore[arg-type]
    return ids


def use_gate(host: ConsumerHost, **settings: Any) -> Path:
    """Have a handler wait for a file, except in the process that is ME=second; return the file."""
    go = host.directory / "go"
    host.configure(handler=host.handler(GATED.format(go=str(go))), **settings)
    return go


def is_handed_back(host: ConsumerHost) -> bool:
    """Tell whether something is pending that may be claimed at once."""
    return bool(host.redis.xpending_range("orders", "orders", "-", "+", 9, idle=10**9))


def owners(host: ConsumerHost) -> dict[bytes, bytes]:
    """Return who has each pending message."""
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 1000)
    return {each["message_id"]: each["consumer"] for each in pending}


def deliveries(host: ConsumerHost) -> list[int]:
    """Return how often each pending message counts as delivered, oldest first."""
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 1000)
    return [each["times_delivered"] for each in pending]


# -- names ---------------------------------------------------------------------------------------


def test_a_second_process_of_the_same_name_is_refused(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    first = host.start()
    wait_until(host.alive)
    second = host.start()
    assert second.wait_exit() == 75
    assert (
        f"consumer {HOST}/orders of group orders runs already, as process {first.pid}:"
        " stop it first, or start another instance (NAME:2)" in second.output
    )
    assert len(second.lines) == 1
    host.publish("a")
    host.wait_done()
    assert first.stop() == 0


def test_a_successor_of_a_killed_consumer_starts_at_once_with_its_messages(
    host: ConsumerHost,
) -> None:
    host.configure(handler=host.handler(SLEEP), concurrency=2)
    host.publish(*range(6))
    first = host.start()
    host.wait_records(2)
    host.wait_pending(4)
    first.kill()
    assert host.redis.persist(ALIVE), "its name has not run out, and never does"
    host.configure(handler=host.handler(RECORD))
    host.start()
    host.wait_done()
    assert sorted(host.records[2:]) == [str(n) for n in range(6)]


def test_a_name_of_an_earlier_boot_is_free(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    host.redis.set(ALIVE, "another-boot/1/1/1")
    host.publish("a")
    host.start()
    host.wait_done()


def test_a_name_in_another_namespace_of_this_boot_is_taken(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    host.redis.set(ALIVE, f"{boot}/1/1/1")
    assert host.start().wait_exit() == 75


def test_gives_its_name_up_when_it_stops_and_keeps_it_until_then(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    consumer = host.start()
    wait_until(host.alive)
    assert 10_000 < host.redis.pttl(ALIVE) <= 30_000
    assert str(consumer.pid).encode() in (host.alive() or b"").split(b"/")
    consumer.stop()
    assert host.alive() is None


# -- claiming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["elsewhere/orders", b"\xff\xfe", "orders consumer"])
def test_takes_over_from_a_consumer_that_is_gone_after_claim_after(
    host: ConsumerHost, gone: str | bytes
) -> None:
    code = "import time\ndef handle(m): record(m.text(), time.time_ns() // 1_000_000)\n"
    host.configure(handler=host.handler(code), claim_after="1s")
    seconds, microseconds = host.redis.time()
    leave_with(host, gone, "a", "b")
    host.publish("c")
    consumer = host.start()
    begun_ms = {text: int(ms) for text, ms in map(str.split, host.wait_records(3))}
    assert begun_ms.keys() == {"a", "b", "c"}
    left_ms = seconds * 1000 + microseconds // 1000
    assert min(begun_ms["a"], begun_ms["b"]) - left_ms >= 1000
    host.wait_done()
    consumer.stop()
    assert "claimed messages of a consumer that is gone" in consumer.output


def test_takes_over_more_than_it_can_have_in_hand(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s", prefetch=10)
    leave_with(host, "elsewhere/orders", *map(str, range(500)))
    host.start()
    host.wait_done()
    assert sorted(host.records, key=int) == [str(n) for n in range(500)]


def test_takes_nothing_from_a_consumer_that_lives(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s")
    host.redis.set("wakeq:{orders}:alive:orders:elsewhere/orders", "x")
    ids = leave_with(host, "elsewhere/orders", "a")
    gone = leave_with(host, "gone/orders", "b")
    # Idle for long, and no matter.
    host.redis.xclaim("orders", "orders", "elsewhere/orders", 0, ids, idle=10**7, justid=True)
    host.redis.xclaim("orders", "orders", "gone/orders", 0, gone, idle=10**7, justid=True)
    host.start()
    assert host.wait_records(1) == ["b"]
    wait_until(lambda: len(owners(host)) == 1)
    # Several looks later it is the same.
    calls = host.redis.info("commandstats")["cmdstat_xinfo|consumers"]["calls"]
    wait_until(
        lambda: host.redis.info("commandstats")["cmdstat_xinfo|consumers"]["calls"] >= calls + 6
    )
    assert owners(host) == {ids[0]: b"elsewhere/orders"}
    assert host.records == ["b"]
    # Until it is gone.
    host.redis.delete("wakeq:{orders}:alive:orders:elsewhere/orders")
    host.wait_done()


def test_takes_over_retries_too(host: ConsumerHost) -> None:
    retry = "wakeq:{orders}:retry:orders"
    host.configure(handler=host.handler(RECORD), claim_after="1s")
    host.redis.xgroup_create(retry, "orders", "0", mkstream=True)
    host.redis.xadd(retry, {"body": "again"})
    host.redis.xreadgroup("orders", "elsewhere", {retry: ">"})
    host.start()
    assert host.wait_records(1) == ["again"]
    wait_until(lambda: host.redis.xlen(retry) == 0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_message_that_takes_long_is_not_taken_away(host: ConsumerHost, kind: str) -> None:
    go = host.directory / "go"
    code = f"""
import os, time, asyncio
{kind} handle(message):
    record(message.text())
    while not os.path.exists({str(go)!r}):
        {"await asyncio.sleep(0.01)" if kind == "async def" else "time.sleep(0.01)"}
"""
    host.configure(handler=host.handler(code), claim_after="1s")
    host.publish("a")
    host.start()
    host.wait_records(1)
    host.start("orders:2")
    wait_until(lambda: host.alive("orders:2"))
    # Its alive key alone would do; nor may the message seem to have been left: the time of its
    # delivery moves on, sooner than it could be claimed.
    delivered_ms: list[int] = []

    def moves_on() -> bool:
        (group,) = host.redis.xinfo_stream("orders", full=True)["groups"]
        ((_, consumer, ms, _),) = group["pending"]
        assert consumer == f"{HOST}/orders".encode()
        if ms not in delivered_ms:
            delivered_ms.append(ms)
        return sum(b - a < 1000 for a, b in itertools.pairwise(delivered_ms)) >= 3

    wait_until(moves_on)
    go.touch()
    host.wait_done()
    assert host.records == ["a"]
    assert host.stats()["handled"] == "1"


def test_forgets_a_consumer_that_is_gone_for_good_once_it_has_nothing(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s")
    leave_with(host, "elsewhere/orders", "a")
    host.start()
    host.wait_done()
    # Not before a day has passed: it may be a host that sleeps.
    names = {each["name"] for each in host.redis.xinfo_consumers("orders", "orders")}
    assert b"elsewhere/orders" in names


# -- handing back ----------------------------------------------------------------------------------


def test_what_is_handed_back_is_taken_by_another_at_once(host: ConsumerHost) -> None:
    # Long, so that nothing but the bell can have it claimed.
    go = use_gate(host, prefetch=8, claim_after="1h")
    host.publish(*range(6))
    first = host.start(ME="first")
    host.wait_records(1)
    host.wait_pending(2)
    host.start("orders:2", ME="second")
    wait_until(lambda: any("second" in line for line in host.records))
    first.terminate()
    wait_until(lambda: is_handed_back(host))
    go.touch()
    assert first.wait_exit() == 0
    host.wait_done()
    assert sorted(line.split()[1] for line in host.records) == [str(n) for n in range(6)]
    assert "handed_back=" in first.output
    retry = "wakeq:{orders}:retry:orders"
    wait_until(lambda: host.redis.xlen(retry) == 0)  # the bell is not left behind
    assert host.stats()["handled"] == "6"


def test_what_is_handed_back_counts_as_never_delivered_however_often_that_happens(
    host: ConsumerHost,
) -> None:
    """Or it would be a suspect after two stops, and be handled alone."""
    go = use_gate(host, prefetch=8)
    ids = leave_with(host, "elsewhere/orders", "a", "b", "c", "d")
    host.redis.xclaim("orders", "orders", "elsewhere/orders", 0, ids, idle=2**31 - 1, justid=True)  # type: ignore[arg-type]
    for number, name in enumerate(("orders", "orders:2", "orders"), 1):
        consumer = host.start(name)
        host.wait_records(number)
        own = f"{HOST}/{name}".encode()
        wait_until(lambda own=own: set(owners(host).values()) == {own})  # type: ignore[misc]
        consumer.terminate()
        wait_until(lambda: is_handed_back(host))
        go.touch()
        assert consumer.wait_exit() == 0
        go.unlink()
        # What was delivered elsewhere was given up there, who knows how.
        assert deliveries(host) == [1] * (4 - number)
    assert is_handed_back(host)


def test_what_a_lost_link_delivers_again_counts_as_never_delivered_when_it_is_handed_back(
    host: ConsumerHost,
) -> None:
    go = use_gate(host, order="key", concurrency=2)
    for body in ("a", "b"):
        host.redis.xadd("orders", {"body": body, "wakeq.key": "k"})
    consumer = host.start()
    host.wait_records(1)
    host.wait_pending(2)
    for count in (2, 3):
        host.redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda count=count: min(deliveries(host)) >= count)  # type: ignore[misc]
    consumer.terminate()
    wait_until(lambda: is_handed_back(host))
    go.touch()
    assert consumer.wait_exit() == 0
    assert deliveries(host) == [0]


def test_what_was_cut_short_keeps_its_count_of_deliveries(host: ConsumerHost) -> None:
    use_gate(host, drain_timeout="100ms")
    host.publish("a", "b")
    for count in (1, 2):
        consumer = host.start()
        host.wait_records(count)
        wait_until(lambda count=count: deliveries(host) == [count, 1])  # type: ignore[misc]
        assert consumer.stop() == 0
        assert deliveries(host) == [count, 0]


def test_who_drains_passes_on_a_ring_that_it_hears_too_late(host: ConsumerHost) -> None:
    # Nothing but the ring can have it claimed, and it comes with the first read.
    host.configure(handler=host.handler(RECORD), claim_after="1h")
    ids = leave_with(host, "elsewhere/orders", "x")
    host.redis.xclaim("orders", "orders", "elsewhere/orders", 0, ids, idle=2**31 - 1, justid=True)  # type: ignore[arg-type]
    retry = "wakeq:{orders}:retry:orders"
    host.redis.xgroup_create(retry, "orders", "0", mkstream=True)
    rung = host.redis.xadd(retry, {"wakeq.handed_back": "elsewhere/orders"})
    command = [host.interpreter, "-c", NO_FIRST_LOOK, "orders"]
    first = host.run(command, WAKEQ_FAILPOINT="after_read:stop@1")
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    first.terminate()
    first.send(signal.SIGCONT)
    assert first.wait_exit() == 0
    assert owners(host) == {ids[0]: b"elsewhere/orders"}
    ((passed_on, fields),) = host.redis.xrange(retry)
    assert passed_on != rung
    assert fields == {b"wakeq.handed_back": f"{HOST}/orders".encode()}


def test_nothing_is_handed_back_twice_and_nothing_hangs_when_handlers_end_at_the_last_moment(
    host: ConsumerHost,
) -> None:
    code = """
import time, random
def handle(message):
    record(message.text())
    time.sleep(0.25 + random.random() / 10)
"""
    host.configure(handler=host.handler(code), concurrency=100, drain_timeout="300ms")
    for number in range(3):
        host.publish(*range(number * 100, number * 100 + 100))
        before = len(host.records)
        consumer = host.start()
        wait_until(lambda before=before: len(host.records) > before)  # type: ignore[misc]
        assert consumer.stop() == 0
    host.configure(handler=host.handler(RECORD), concurrency=100)
    host.start()
    host.wait_done()
    assert {int(line) for line in host.records} == set(range(300))
    assert host.stats()["handled"] == "300"
