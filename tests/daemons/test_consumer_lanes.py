"""wakeq-consumer as a process: how much it has in hand, in which order, and for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import ConsumerHost
from redis_servers import RedisServer, wait_until

NAP = {"def": "import time\nnap = time.sleep\n", "async def": "import asyncio\n"}
WAIT = {"def": "nap({})", "async def": "await asyncio.sleep({})"}
KINDS = ("def", "async def")


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


@pytest.mark.parametrize("kind", KINDS)
def test_handles_as_many_at_once_as_it_may(host: ConsumerHost, kind: str) -> None:
    code = f"""{NAP[kind]}
running = []
{kind} handle(message):
    running.append(message)
    while len(running) < 6: {WAIT[kind].format(0.01)}
    record(len(running))
"""
    host.configure(handler=host.handler(code), concurrency=6)
    host.publish(*range(6))
    host.start()
    host.wait_done()
    assert host.records == ["6"] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_order_of_each_key_in_many_lanes(host: ConsumerHost, kind: str) -> None:
    code = f"""{NAP[kind]}
import random
{kind} handle(message):
    {WAIT[kind].format("random.random() / 200")}
    record(message.key.decode(), message.text())
"""
    host.configure(handler=host.handler(code), concurrency=8, order="key")
    pipeline = host.redis.pipeline()
    for number in range(1000):
        pipeline.xadd("orders", {"wakeq.key": f"key{number % 23}", "body": number})
    pipeline.execute()
    host.start()
    host.wait_done()
    seen = defaultdict(list)
    for line in host.records:
        key, number = line.split()
        seen[key].append(int(number))
    assert len(seen) == 23
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert sum(map(len, seen.values())) == 1000
    # It was in different lanes that they were handled: over all keys the order is another.
    assert [int(line.split()[1]) for line in host.records] != list(range(1000))


def test_messages_without_a_key_use_all_lanes(host: ConsumerHost) -> None:
    code = """
import threading
barrier = threading.Barrier(4)
def handle(message):
    barrier.wait()
    record(message.text())
"""
    host.configure(handler=host.handler(code), concurrency=4, order="key")
    host.publish(*range(4))
    host.start()
    host.wait_done()
    assert sorted(host.records) == list("0123")


# -- in hand ----------------------------------------------------------------------------------


# Does "fast" at once, "slow" in 2 ms; at another word it stops until there is a file of that name.
STOPS = """
import os, time
def handle(message):
    word = message.text()
    if word == "slow": time.sleep(0.002)
    elif word != "fast":
        record(word)
        while not os.path.exists(os.path.join({directory!r}, word)): time.sleep(0.01)
"""


def use_stops(host: ConsumerHost, **settings: Any) -> None:
    """Have messages handled as their words say."""
    code = STOPS.format(directory=str(host.directory))
    host.configure(handler=host.handler(code), **settings)


def in_hand(host: ConsumerHost, number: int, word: str, count: int, lanes: int = 1) -> list[int]:
    """Return what was in hand, from time to time, until so many were done and all lanes stop.

    Args:
        host: its consumer has `use_stops`.
        number: how often this was called before.
        word: what to publish.
        count: how often; a thousand more are there to be read when the lanes stop.
        lanes: how many there are.
    """
    seen = []

    def have_stopped() -> bool:
        seen.append(host.pending())
        return len(host.records) >= lanes * (number + 1)

    host.publish(*[word] * count, *[f"stop{number}"] * lanes, *[word] * 1000)
    wait_until(have_stopped)
    seen.append(host.pending())
    (host.directory / f"stop{number}").touch()
    return seen


def test_never_has_more_in_hand_than_prefetch_allows(host: ConsumerHost) -> None:
    use_stops(host, concurrency=3, prefetch=20)
    host.start()
    seen = []
    # At times it has fewer: a busy machine makes it believe that messages take long.
    for number in range(20):
        seen += in_hand(host, number, "fast", 1000, lanes=3)
        if max(seen) >= 30:
            break
    # Those in hand, and those that are done, whose acknowledgement is under way.
    assert 30 <= max(seen) <= 2 * 60


def test_has_few_in_hand_when_each_takes_long(host: ConsumerHost) -> None:
    use_stops(host, concurrency=2)
    host.publish(*range(100))
    host.start()
    for number in range(0, 20, 2):
        host.wait_pending(4)
        host.wait_records(number + 2)
        # When half of them are done it reads as many again, and no more.
        (host.directory / str(number)).touch()
        host.wait_pending(3)
        (host.directory / str(number + 1)).touch()


def test_has_many_in_hand_when_they_are_handled_fast_and_few_again_when_not(
    host: ConsumerHost,
) -> None:
    use_stops(host)
    host.start()
    most = number = 0
    while most < 256 and number < 10:
        most = max(in_hand(host, number, "fast", 5000))
        number += 1
    assert 256 <= most <= 2 * 1000
    # Half as many each time that they last too long; 512 last for more than a second.
    few = most
    while few > 128 and number < 20:
        *_, few = in_hand(host, number, "slow", 1500)
        number += 1
    assert few <= 128


def test_large_messages_count_by_their_bytes(host: ConsumerHost) -> None:
    code = """
import time
def handle(message):
    record(len(message.body))
    if len(host) > 40: time.sleep(1)
    host.append(1)
host = []
"""
    host.configure(handler=host.handler(code))
    for _ in range(8):
        host.publish(*[b"x" * 1_000_000] * 10)
    host.start()
    host.wait_records(43)
    # 8 MB are enough: 8 messages, and what is acknowledged with the next read.
    assert host.pending() <= 17


# A loop that goes on when something happens, and not because time passes.
PATIENT = """
from wakeq.consumer import consumer, reporter
consumer.LIFETIME_SECONDS = consumer._BLOCK_SECONDS = reporter._TICK_SECONDS = 3600.0
from wakeq.consumer.main import main
main()
"""


def test_a_slow_message_does_not_hold_up_the_acknowledgement_of_others(
    host: ConsumerHost,
) -> None:
    code = """
import time
def handle(message):
    kind = message.text()
    if kind == "slow":
        record("slow")
        while not path.exists(): time.sleep(0.01)
        path.unlink()
    elif kind == "quick":
        time.sleep(0.0005)
import pathlib
path = pathlib.Path(GO)
""".replace("GO", repr(str(host.directory / "go")))
    host.configure(handler=host.handler(code), claim_after="1h")
    host.run([host.interpreter, "-c", PATIENT, "orders"])
    wait_until(host.alive)
    for number in range(1, 11):
        host.publish("fast", "quick", "quick", "slow")
        host.wait_records(number)
        host.wait_pending(1)
        (host.directory / "go").touch()
        host.wait_done()


# -- time-outs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["", "@wakeq.batch(1)\n"])
def test_cancels_a_coroutine_that_takes_too_long_and_goes_on(
    host: ConsumerHost, batch: str
) -> None:
    code = f"""
import asyncio, wakeq
{batch}async def handle(message):
    message = message if isinstance(message, wakeq.Message) else message[0]
    try:
        if message.text() == "slow": await asyncio.sleep(30)
        record(message.text())
    except asyncio.CancelledError:
        record("cancelled")
        raise
"""
    host.configure(handler=host.handler(code), timeout="100ms")
    (slow,) = host.publish("slow")
    host.publish("a", "b")
    consumer = host.start()
    consumer.wait_log("TimedOut: took longer than timeout allows")
    assert host.wait_records(3) == ["cancelled", "a", "b"]
    wait_until(lambda: host.stats().get("handled") == "2")
    host.wait_failed(1)
    host.wait_done()
    assert [message.id for message in host.delayed()] == [slow.decode()]
    assert consumer.stop() == 0
    assert consumer.count("Traceback") == 0


def test_a_coroutine_may_use_time_outs_of_its_own(host: ConsumerHost) -> None:
    code = """
import asyncio
async def handle(message):
    try:
        async with asyncio.timeout(0): await asyncio.sleep(30)
    except TimeoutError:
        record("own")
    if message.text() == "slow": await asyncio.sleep(30)
"""
    host.configure(handler=host.handler(code), timeout="1s")
    host.publish("slow", "quick", "slow", "quick")
    consumer = host.start()
    consumer.wait_log("took longer than timeout allows", times=2)
    host.wait_records(4)
    wait_until(lambda: host.stats().get("handled") == "2")


def test_is_replaced_when_a_coroutine_does_not_end(host: ConsumerHost) -> None:
    code = """
import asyncio, time
async def handle(message):
    record("begun")
    if message.text() == "stuck": time.sleep(60)
"""
    host.configure(handler=host.handler(code), timeout="100ms", drain_timeout="1s")
    (stuck,) = host.publish("stuck")
    host.publish("a")
    consumer = host.start()
    assert consumer.wait_exit() == 75
    assert consumer.count("took longer than timeout allows") == 1
    assert "a handler does not end and cannot be ended" in consumer.output
    assert stuck.decode() in consumer.output


def test_is_replaced_when_a_function_takes_too_long(host: ConsumerHost) -> None:
    code = """
import time
def handle(message):
    record(message.text())
    if message.text() == "stuck": time.sleep(60)
    else: time.sleep(0.15)
"""
    host.configure(handler=host.handler(code), timeout="500ms", concurrency=2, prefetch=5)
    (stuck,) = host.publish("stuck")
    host.publish(*range(8))
    consumer = host.start()
    assert consumer.wait_exit() == 75
    lines = [line for line in consumer.lines if "message failed" in line]
    assert stuck.decode() in "".join(lines)
    assert all("TimedOut: took longer than timeout allows" in line for line in lines)
    assert "left, because a handler does not end and cannot be ended" in consumer.output
    # What the other lane was at may have become overdue as well, on a busy machine.
    failed = {message.id for message in host.delayed()}
    assert stuck.decode() in failed
    assert len(lines) == int(host.stats()["failed"]) == len(failed) <= 2
    # Each of the others was either handled and acknowledged, or is there for the next one.
    handled = int(host.stats().get("handled", 0))
    assert handled == len(host.records) - len(failed)
    assert host.alive() is None
    host.configure(handler=host.handler("def handle(m): record(m.text(), m.id)\n"))
    assert host.deliver() == len(failed)
    before = len(host.records)
    host.start()
    wait_until(lambda: host.stats()["handled"] == "9")
    again = dict(line.split()[::-1] for line in host.records[before:])
    assert len(again) == len(host.records) - before == 9 - handled
    assert failed <= again.keys()
    assert {*host.records[:before], *again.values()} == {"stuck", *map(str, range(8))}


def test_all_messages_of_a_batch_that_takes_too_long_have_failed(host: ConsumerHost) -> None:
    code = """
import time, wakeq
@wakeq.batch(10)
def handle(messages): record(len(messages)); time.sleep(60)
"""
    host.configure(handler=host.handler(code), timeout="200ms")
    host.publish("a", "b")
    consumer = host.start()
    assert consumer.wait_exit() == 75
    assert consumer.count("message failed") == int(host.records[0])
    assert host.stats()["failed"] == host.records[0]
    assert len(host.delayed()) == int(host.records[0])
    assert len(host.delayed()) + host.pending() <= 2
