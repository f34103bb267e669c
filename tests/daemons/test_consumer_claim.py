"""Consumers of one group: who has which name, and who takes over whose messages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import HOST, ConsumerHost
from redis_servers import RedisServer, wait_until

RECORD = "def handle(message): record(message.text())\n"
SLEEP = "import time\ndef handle(message): record(message.text()); time.sleep({})\n"


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


def owners(host: ConsumerHost) -> dict[bytes, bytes]:
    """Return who has each pending message."""
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 1000)
    return {each["message_id"]: each["consumer"] for each in pending}


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
    host.configure(handler=host.handler(SLEEP.format(30)), concurrency=2)
    host.publish(*range(6))
    first = host.start()
    host.wait_records(2)
    host.wait_pending(4)
    first.kill()
    assert host.alive(), "its name has not run out"
    host.configure(handler=host.handler(RECORD))
    began = time.monotonic()
    host.start()
    host.wait_done(15)
    assert time.monotonic() - began < 15
    assert sorted(host.records[2:]) == [str(n) for n in range(6)]


def test_a_name_of_an_earlier_boot_is_free(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    host.redis.set(f"wakeq:{{orders}}:alive:orders:{HOST}/orders", "another-boot/1/1/1")
    host.publish("a")
    host.start()
    host.wait_done()


def test_a_name_in_another_namespace_of_this_boot_is_taken(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    host.redis.set(f"wakeq:{{orders}}:alive:orders:{HOST}/orders", f"{boot}/1/1/1")
    assert host.start().wait_exit() == 75


def test_gives_its_name_up_when_it_stops_and_keeps_it_until_then(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD))
    consumer = host.start()
    wait_until(host.alive)
    key = f"wakeq:{{orders}}:alive:orders:{HOST}/orders"
    assert 20_000 < host.redis.pttl(key) <= 30_000
    assert str(consumer.pid).encode() in (host.alive() or b"").split(b"/")
    consumer.stop()
    assert host.alive() is None


# -- claiming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["elsewhere/orders", b"\xff\xfe", "orders consumer"])
def test_takes_over_from_a_consumer_that_is_gone_after_claim_after(
    host: ConsumerHost, gone: str | bytes
) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s")
    leave_with(host, gone, "a", "b")
    left_at = time.monotonic()
    host.publish("c")
    consumer = host.start()
    assert host.wait_records(1) == ["c"]
    assert sorted(host.wait_records(3, 5)) == ["a", "b", "c"]
    assert time.monotonic() - left_at > 1
    host.wait_done()
    consumer.stop()
    assert "claimed messages of a consumer that is gone" in consumer.output


def test_takes_over_more_than_it_can_have_in_hand(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), claim_after="1s", prefetch=10)
    leave_with(host, "elsewhere/orders", *map(str, range(500)))
    host.start()
    host.wait_done(15)
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
    code = f"""
import time, asyncio
{kind} handle(message):
    record(message.text())
    {"await asyncio.sleep(2.5)" if kind == "async def" else "time.sleep(2.5)"}
"""
    host.configure(handler=host.handler(code), claim_after="1s")
    host.publish("a")
    host.start()
    host.wait_records(1)
    host.start("orders:2")
    wait_until(lambda: host.alive("orders:2"))
    # Its alive key alone would do; nor may the message seem to have been left.
    host.redis.delete(f"wakeq:{{orders}}:alive:orders:{HOST}/orders")
    while pending := host.redis.xpending_range("orders", "orders", "-", "+", 9):
        assert pending[0]["consumer"] == f"{HOST}/orders".encode()
        assert pending[0]["time_since_delivered"] < 1000
        time.sleep(0.02)  # often enough to see the longest
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
    code = """
import time
def handle(message):
    record(_os.environ["ME"], message.text())
    time.sleep(0.3 if _os.environ["ME"] == "first" else 0)
"""
    host.configure(handler=host.handler(code), prefetch=8)
    host.publish(*range(6))
    first = host.start(ME="first")
    host.wait_records(1)
    wait_until(lambda: len(owners(host)) >= 2)
    host.start("orders:2", ME="second")
    wait_until(lambda: len([line for line in host.records if "second" in line]) >= 1)
    first.terminate()
    terminated = time.monotonic()
    assert first.wait_exit() == 0
    left = time.monotonic()
    host.wait_done()
    assert time.monotonic() - left < 10
    assert time.monotonic() - terminated < 15
    assert sorted(line.split()[1] for line in host.records) == [str(n) for n in range(6)]
    assert "handed_back=" in first.output
    retry = "wakeq:{orders}:retry:orders"
    wait_until(lambda: host.redis.xlen(retry) == 0)  # the bell is not left behind
    assert host.stats()["handled"] == "6"


def test_what_is_handed_back_has_not_been_delivered_once_more(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(SLEEP.format(0.2)))
    host.publish("a", "b")
    consumer = host.start()
    host.wait_records(1)
    host.wait_pending(2)
    assert consumer.stop() == 0
    (pending,) = host.redis.xpending_range("orders", "orders", "-", "+", 9)
    assert pending["times_delivered"] == 1
    assert pending["time_since_delivered"] > 10**9


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
        assert consumer.stop(5) == 0
    host.configure(handler=host.handler(RECORD), concurrency=100)
    host.start()
    host.wait_done()
    assert {int(line) for line in host.records} == set(range(300))
    assert host.stats()["handled"] == "300"
