"""Messages whose handler ends the whole process: they are found out, their neighbours are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import HOST, ConsumerHost
from fault_proxy import FaultProxy
from redis_servers import RedisServer, wait_until
from wakeq import keys

CRASHES = keys.crashes("orders", "orders")
# How the process ends; the first three are a handler's, the last one is anybody's.
ENDS = {
    "exits": "os._exit(1)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "os.abort()",
}
HANDLER = """
import asyncio, os, signal, time, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{kind} handle(message):
    record(message.text(), "begun")
    if message.text().startswith("bad"): {end}
    {nap}
    record(message.text(), "done")
"""


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def use(host: ConsumerHost, kind: str = "def", end: str = "exits", **settings: Any) -> None:
    nap = "await asyncio.sleep(0.001)" if kind == "async def" else "time.sleep(0.001)"
    code = HANDLER.format(kind=kind, end=ENDS[end], nap=nap)
    host.configure(handler=host.handler(code), **settings)


def ended(host: ConsumerHost) -> Counter[str]:
    """Return how often each message was handled to its end."""
    return Counter(line.split()[0] for line in host.records if line.endswith("done"))


def run_until_it_lives(host: ConsumerHost, deaths: int, dead: int = 1) -> int:
    """Start the consumer again and again until so many are dead; how often it died."""
    for died in range(deaths + 1):
        consumer = host.start()

        def is_over(consumer: Any = consumer) -> bool:
            return not consumer.running or len(host.dead()) == dead

        wait_until(is_over, message=f"it dies, or something is dead: {host.output}")
        if consumer.running:
            return died
        assert consumer.wait_exit() != 0
    raise AssertionError(f"it died {deaths + 1} times: {host.output}")


@pytest.mark.parametrize("end", ENDS)
def test_a_message_that_ends_the_process_is_a_dead_letter_and_its_neighbours_are_not(
    host: ConsumerHost, end: str
) -> None:
    use(host, end=end)
    ids = host.publish(*range(25), "bad", *range(26, 51))
    assert run_until_it_lives(host, 5) == 5, "twice with others, three times alone"
    host.wait_done()
    (letter,) = host.dead()
    assert letter[b"body"] == b"bad"
    assert letter[b"wakeq.first_id"] == ids[25]
    assert letter[b"wakeq.error"] == b"Crashed: ended the process that handled it 3 times"
    assert letter[b"wakeq.consumer"] == f"{HOST}/orders".encode()
    assert b"wakeq.traceback" not in letter
    assert set(ended(host)) == {str(n) for n in range(51) if n != 25}
    assert host.delayed() == []
    wait_until(lambda: not host.redis.exists(CRASHES))
    assert host.stats()["failed"] == host.stats()["dead"] == "1"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("def", {"concurrency": 4}),
        ("def", {"concurrency": 4, "order": "key"}),
        ("async def", {"concurrency": 20}),
        ("def", {"prefetch": 1}),
    ],
)
def test_it_is_found_out_however_many_are_handled_at_once(
    host: ConsumerHost, kind: str, settings: dict[str, Any]
) -> None:
    use(host, kind, **settings)
    pipeline = host.redis.pipeline()
    for n in range(51):
        body = "bad" if n == 25 else n
        pipeline.xadd("orders", {"body": body, "wakeq.key": f"k{n % 5}"})
    pipeline.execute()
    run_until_it_lives(host, 8)
    host.wait_done()
    assert [letter[b"body"] for letter in host.dead()] == [b"bad"]
    assert set(ended(host)) == {str(n) for n in range(51) if n != 25}
    wait_until(lambda: not host.redis.exists(CRASHES))


def test_several_are_found_out_one_after_the_other(host: ConsumerHost) -> None:
    use(host, max_crashes=1)
    host.publish("a", "bad1", "b", "bad2", "c", "bad3", "d")
    # Twice with others and once alone, each of them, if no two were in hand together.
    run_until_it_lives(host, 9, dead=3)
    host.wait_done()
    assert [letter[b"body"] for letter in host.dead()] == [b"bad1", b"bad2", b"bad3"]
    assert {letter[b"wakeq.error"] for letter in host.dead()} == {
        b"Crashed: ended the process that handled it once"
    }
    assert set(ended(host)) == set("abcd")
    wait_until(lambda: not host.redis.exists(CRASHES))


def test_crashes_are_counted_apart_from_failures(host: ConsumerHost) -> None:
    code = """
import os
def handle(message):
    record(message.attempt)
    if message.attempt < 3: raise ValueError
    os._exit(1)
"""
    host.configure(handler=host.handler(code), max_attempts=4, max_crashes=2)
    host.publish("x")
    consumer = host.start()
    for attempt in (1, 2):
        host.wait_failed(attempt)
        assert consumer.running
        assert host.deliver() == 1
    assert consumer.wait_exit() == 1
    for _ in range(3):
        assert host.start().wait_exit() == 1
    host.start()
    wait_until(host.dead)
    (letter,) = host.dead()
    assert letter[b"wakeq.error"] == b"Crashed: ended the process that handled it 2 times"
    assert letter[b"wakeq.attempt"] == b"3"
    assert host.records == ["1", "2", "3", "3", "3", "3"]
    assert host.redis.xlen(keys.retry("orders", "orders")) == 0


def test_innocent_messages_survive_any_number_of_kills_from_outside(host: ConsumerHost) -> None:
    use(host)
    for start in range(0, 2000, 200):
        host.publish(*range(start, start + 200))
        before = len(host.records)
        consumer = host.start()
        host.wait_records(before + 20)
        consumer.kill()
    host.start()
    host.wait_done()
    assert host.dead() == []
    assert host.delayed() == []
    assert set(ended(host)) == {str(n) for n in range(2000)}
    wait_until(lambda: not host.redis.exists(CRASHES))


def test_consumers_that_claim_from_one_another_find_it_out(host: ConsumerHost) -> None:
    use(host, claim_after="1s")
    host.publish(*range(10), "bad", *range(11, 21))
    died = []
    for name in ["orders", *(f"orders:{n}" for n in range(2, 12))]:
        consumer = host.start(name)

        def is_over(consumer: Any = consumer) -> bool:
            return not consumer.running or bool(host.dead())

        wait_until(is_over)
        if consumer.running:
            break
        # As if its host were gone, and its name had run out.
        host.redis.delete(keys.alive("orders", "orders", f"{HOST}/{name}"))
        died.append(name)
    assert len(died) == 5
    host.wait_done()
    assert [letter[b"body"] for letter in host.dead()] == [b"bad"]
    assert set(ended(host)) == {str(n) for n in range(21) if n != 10}
    wait_until(lambda: not host.redis.exists(CRASHES))


def suspect(host: ConsumerHost, count: int) -> None:
    """Publish messages that five processes have had, under the name of the consumer."""
    ids = host.publish(*range(count))
    name = f"{HOST}/orders"
    host.redis.xgroup_create("orders", "orders", "0")
    host.redis.xreadgroup("orders", name, {"orders": ">"})
    host.redis.xclaim("orders", "orders", name, 0, ids, retrycount=5, justid=True)  # type: ignore[arg-type]


def test_suspects_are_handled_alone_and_those_behind_them_wait(host: ConsumerHost) -> None:
    code = """
import threading, time
running = 0
are_together = False
lock = threading.Lock()
def handle(message):
    global running, are_together
    with lock: running += 1
    most = running
    for _ in range(5):
        time.sleep(0.002)
        most = max(most, running)
    are_together = are_together or most > 1
    while message.text() == "new0" and not are_together: time.sleep(0.002)
    record(message.text(), most)
    with lock: running -= 1
"""
    host.configure(handler=host.handler(code), concurrency=8)
    suspect(host, 10)
    host.publish(*(f"new{n}" for n in range(40)))
    host.start()
    host.wait_done()
    alone = [line.split() for line in host.records[:10]]
    assert alone == [[str(n), "1"] for n in range(10)]
    assert len(host.records) == 50
    wait_until(lambda: not host.redis.exists(CRASHES))


def test_a_suspect_that_fails_or_is_stopped_is_not_blamed_for_a_crash(host: ConsumerHost) -> None:
    code = "import time\ndef handle(m):\n    record(m.text())\n    if m.text() == '0': 1 / 0\n" \
           "    time.sleep(60)\n"  # fmt: skip
    host.configure(handler=host.handler(code), drain_timeout="100ms")
    suspect(host, 3)
    consumer = host.start()
    host.wait_records(2)
    assert host.redis.hlen(CRASHES) == 1
    consumer.stop()
    assert host.records == ["0", "1"]
    assert [m.fields[b"wakeq.error"] for m in host.delayed()] == [
        b"ZeroDivisionError: division by zero"
    ]
    assert not host.redis.exists(CRASHES)
    assert host.pending() == 2


@pytest.mark.parametrize("direction", ["requests", "replies"])
def test_redis_lost_at_any_byte_while_suspects_are_begun_blames_nobody(
    short_dir: Path, own_redis: RedisServer, direction: str
) -> None:
    with FaultProxy(own_redis.url) as proxy:
        host = ConsumerHost(short_dir, own_redis)
        host.env["WAKEQ_REDIS_URL"] = proxy.url
        try:
            use(host, max_crashes=1)
            suspect(host, 120)
            flow = getattr(proxy, direction)
            consumer = host.start()
            for count in range(1, 40):
                flow.cut_after(37 * count)
                before = len(ended(host))
                wait_until(lambda b=before: len(ended(host)) > b + 1 or len(ended(host)) == 120)  # type: ignore[misc]
            proxy.heal()
            host.wait_done()
            assert consumer.running
        finally:
            host.close()
        assert host.dead() == []
        assert ended(host) == {str(n): 1 for n in range(120)}
