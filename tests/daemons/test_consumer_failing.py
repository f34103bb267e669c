"""wakeq-consumer and messages that fail: when they are tried again, by whom, and how they end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import HOST, ConsumerHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

RETRY = keys.retry("orders", "orders")
BAD = "def handle(message):\n    record(message.id, message.attempt)\n    raise ValueError('no')\n"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def now_ms(host: ConsumerHost) -> int:
    seconds, microseconds = host.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def run_to_the_end(host: ConsumerHost, attempts: int) -> None:
    """Deliver again whatever fails, so many times in all."""
    for attempt in range(1, attempts + 1):
        host.wait_failed(attempt)
        if attempt < attempts:
            assert host.deliver() == 1


# -- waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def", "batch", "program"])
def test_a_message_that_fails_waits_for_a_random_part_of_the_backoff(
    host: ConsumerHost, kind: str
) -> None:
    settings: dict[str, Any] = {"backoff": {"base": "20s", "factor": 1, "cap": "20s"}}
    if kind == "program":
        settings["exec_"] = [host.program("exit 1")]
    else:
        head = "import wakeq\n@wakeq.batch(7)\ndef" if kind == "batch" else kind
        settings["handler"] = host.handler(f"{head} handle(message): raise ValueError('no')\n")
    host.configure(**settings)
    ids = host.publish(*range(40))
    before = now_ms(host)
    host.start()
    host.wait_failed(40)
    host.wait_done()
    delayed = host.delayed()
    assert {message.id.encode() for message in delayed} == set(ids)
    assert {message.fields[b"wakeq.attempt"] for message in delayed} == {b"2"}
    waits = [m.due_ms - int(m.fields[b"wakeq.failed_at"]) for m in delayed]
    assert all(0 <= wait <= 20_000 for wait in waits)
    # Full jitter: of forty there are some in each half, but for one time in 2**39.
    assert min(waits) < 10_000 < max(waits)
    if kind != "batch":
        assert len(set(waits)) > 20
    assert all(before <= int(m.fields[b"wakeq.failed_at"]) <= now_ms(host) for m in delayed)


def test_the_wait_grows_with_each_attempt_up_to_the_cap(host: ConsumerHost) -> None:
    backoff = {"base": "1s", "factor": 100, "cap": "1000s"}
    host.configure(handler=host.handler(BAD), backoff=backoff)
    host.publish(*range(20))
    host.start()
    longest = []
    for attempt in range(1, 4):
        host.wait_failed(20 * attempt)
        delayed = host.delayed()
        assert len(delayed) == 20
        longest.append(max(m.due_ms - int(m.fields[b"wakeq.failed_at"]) for m in delayed))
        host.deliver()
    assert longest[0] <= 1000 < longest[1] <= 100_000 < longest[2] <= 1_000_000


def test_a_handler_may_say_how_long_to_wait_and_change_fields(host: ConsumerHost) -> None:
    code = """
import wakeq
def handle(message):
    record(message.attempt, message.text(), message.fields.get(b"step"), message.key)
    if message.attempt == 1:
        raise wakeq.Retry("later", delay=3600, fields={"step": 2, "new": b"\\xff"})
"""
    host.configure(handler=host.handler(code))
    entry_id = host.redis.xadd("orders", {"body": "x", "step": 1, "wakeq.key": "k"})
    consumer = host.start()
    host.wait_failed(1)
    (message,) = host.delayed()
    assert message.due_ms - int(message.fields[b"wakeq.failed_at"]) == 3_600_000
    assert message.fields[b"wakeq.error"] == b"Retry: later"
    assert (message.fields[b"step"], message.fields[b"new"]) == (b"2", b"\xff")
    assert host.deliver() == 1
    assert host.wait_records(2) == ["1 x b'1' b'k'", "2 x b'2' b'k'"]
    wait_until(lambda: host.stats().get("handled") == "1")
    assert host.redis.xlen(RETRY) == 0
    assert host.redis.xrange("orders")[0][1][b"step"] == b"1", "the stream is the user's"
    assert consumer.stop() == 0
    assert "retry_in=3600.000s" in consumer.output
    assert "Traceback" not in consumer.output
    assert consumer.count(entry_id.decode()) == 1


def test_a_retry_with_no_delay_is_due_at_once(host: ConsumerHost) -> None:
    code = "import wakeq\ndef handle(m): raise wakeq.Retry(delay=0)\n"
    host.configure(handler=host.handler(code))
    host.publish("x")
    host.start()
    host.wait_failed(1)
    (message,) = host.delayed()
    assert message.due_ms == int(message.fields[b"wakeq.failed_at"])
    assert message.fields[b"wakeq.error"] == b"Retry"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("delay=-1", "ValueError: delay must be seconds, 0 or more, not -1"),
        ("fields={'wakeq.key': 1}", "ValueError: a field must not begin with 'wakeq.'"),
    ],
)
def test_a_retry_that_is_none_is_a_failure_like_others(
    host: ConsumerHost, wrong: str, said: str
) -> None:
    host.configure(handler=host.handler(f"import wakeq\ndef handle(m): raise wakeq.Retry({wrong})"))
    host.publish("x")
    host.start()
    host.wait_failed(1)
    (message,) = host.delayed()
    assert message.fields[b"wakeq.error"].decode().startswith(said)


def test_a_message_that_takes_too_long_has_failed(host: ConsumerHost) -> None:
    code = "import asyncio\nasync def handle(m): record(m.attempt); await asyncio.sleep(60)\n"
    host.configure(handler=host.handler(code), timeout="50ms", max_attempts=2)
    host.publish("x")
    host.start()
    run_to_the_end(host, 2)
    (letter,) = host.dead()
    assert letter[b"wakeq.error"] == b"TimedOut: took longer than timeout allows"
    assert letter[b"wakeq.attempt"] == b"2"
    assert host.records == ["1", "2"]


# -- one group and the others --------------------------------------------------------------------


def test_a_retry_is_delivered_to_the_group_that_failed_alone(host: ConsumerHost) -> None:
    good = "def handle(m): record('audit', m.attempt)\n"
    bad = (
        "def handle(m):\n    record('orders', m.attempt)\n    if m.attempt < 3: raise ValueError\n"
    )
    host.configure(handler=host.handler(bad))
    host.configure("audit", stream="orders", handler=host.handler(good, file="audit.py"))
    host.publish("x")
    host.start()
    host.start("audit")
    for failed in (1, 2):
        host.wait_failed(failed)
        assert [message.group for message in host.delayed()] == ["orders"]
        assert host.deliver() == 1
    wait_until(lambda: host.stats().get("handled") == "1")
    # It reads on, and would have been given the retry by now.
    host.publish("end")
    wait_until(lambda: host.stats(group="audit").get("handled") == "2")
    assert [line for line in host.records if line.startswith("audit")] == ["audit 1"] * 2
    assert "failed" not in host.stats(group="audit")
    assert host.redis.xlen(keys.retry("orders", "audit")) == 0


def test_two_groups_that_fail_have_a_retry_each(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(BAD), max_attempts=2)
    host.configure("audit", stream="orders", handler=host.handler(BAD), max_attempts=2)
    (entry_id,) = host.publish("x")
    host.start()
    host.start("audit")
    host.wait_failed(1)
    host.wait_failed(1, group="audit")
    first = entry_id.decode()
    assert {m.member for m in host.delayed()} == {f"{first}@orders", f"{first}@audit"}
    assert host.deliver() == 2
    host.wait_failed(2)
    host.wait_failed(2, group="audit")
    for group in ("orders", "audit"):
        (letter,) = host.dead(group=group)
        assert letter[b"wakeq.first_id"] == entry_id


# -- the end -------------------------------------------------------------------------------------


def test_a_message_that_has_failed_max_attempts_times_is_a_dead_letter(host: ConsumerHost) -> None:
    code = """
import json
def check(order): json.loads("{" * int(order))
def handle(message):
    record(message.id, message.attempt, message.text())
    check(message.text())
"""
    host.configure(handler=host.handler(code), max_attempts=3)
    before = now_ms(host)
    fields = {"body": "17", "bin": b"\0\xff", "": "", "wakeq.key": "k", "wakeq.traceparent": "t"}
    entry_id = host.redis.xadd("orders", fields)
    consumer = host.start()
    run_to_the_end(host, 3)
    (letter,) = host.dead()
    trace = letter.pop(b"wakeq.traceback").decode()
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in check" in trace
    assert "JSONDecodeError" in trace
    first, last = int(letter.pop(b"wakeq.first_failed_at")), int(letter.pop(b"wakeq.failed_at"))
    assert before <= first < last <= now_ms(host)
    error = letter.pop(b"wakeq.error").decode()
    assert error.startswith("JSONDecodeError: Expecting property name")
    assert letter == {
        b"body": b"17", b"bin": b"\0\xff", b"": b"", b"wakeq.key": b"k",
        b"wakeq.traceparent": b"t", b"wakeq.attempt": b"3", b"wakeq.first_id": entry_id,
        b"wakeq.consumer": f"{HOST}/orders".encode(), b"wakeq.host": HOST.encode(),
    }  # fmt: skip
    assert host.records == [f"{entry_id.decode()} {n} 17" for n in (1, 2, 3)]
    assert host.delayed() == []
    assert host.redis.xlen(RETRY) == 0
    host.wait_pending(0)
    assert host.stats()["failed"] == "3"
    assert host.stats()["dead"] == "1"
    assert consumer.stop() == 0
    assert consumer.count("message failed") == 2
    assert consumer.count("message is dead") == 1


def test_a_message_may_fail_for_ever(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(BAD), max_attempts=0)
    (first,) = host.publish("x")
    host.start()
    run_to_the_end(host, 15)
    assert host.dead() == []
    assert [message.id for message in host.delayed()] == [first.decode()]
    assert host.records == [f"{first.decode()} {n}" for n in range(1, 16)]


def test_one_attempt_may_be_all(host: ConsumerHost) -> None:
    code = "import wakeq\ndef handle(m): raise wakeq.Retry('later', fields={'body': 'y'})\n"
    host.configure(handler=host.handler(code), max_attempts=1)
    host.publish("x")
    host.start()
    host.wait_failed(1)
    (letter,) = host.dead()
    assert letter[b"wakeq.error"] == b"Retry: later"
    assert letter[b"wakeq.attempt"] == b"1"
    assert b"wakeq.traceback" not in letter


@pytest.mark.parametrize("kind", ["def", "async def", "batch", "program"])
def test_a_message_that_is_rejected_is_dead_at_once(host: ConsumerHost, kind: str) -> None:
    if kind == "program":
        host.configure(exec_=[host.program("exit 65")])
    else:
        head = "@wakeq.batch(9)\ndef" if kind == "batch" else kind
        code = f"import wakeq\n{head} handle(m): raise wakeq.Reject('never')\n"
        host.configure(handler=host.handler(code))
    host.publish("x", "y")
    host.start()
    host.wait_failed(2)
    assert [letter[b"body"] for letter in host.dead()] == [b"x", b"y"]
    assert all(letter[b"wakeq.error"].startswith(b"Reject: ") for letter in host.dead())
    assert host.delayed() == []


def test_what_an_error_says_is_bounded(host: ConsumerHost) -> None:
    code = """
def dig(n):
    if n: dig(n - 1)
    else: raise ValueError("ä\\n\\udcff" * 100_000)
def handle(message): dig(300)
"""
    host.configure(handler=host.handler(code), max_attempts=1)
    host.publish("x")
    consumer = host.start()
    host.wait_failed(1)
    (letter,) = host.dead()
    assert letter[b"wakeq.error"].startswith("ValueError: ä \\udcff".encode())
    assert b"\n" not in letter[b"wakeq.error"]
    assert len(letter[b"wakeq.error"]) < 10_000
    assert 1000 < len(letter[b"wakeq.traceback"]) < 100_000
    host.publish("y")
    host.wait_failed(2)
    assert consumer.stop() == 0


def test_a_dead_letter_says_the_last_error_alone(host: ConsumerHost) -> None:
    code = "def handle(m): raise ValueError(f'try {m.attempt}')\n"
    host.configure(handler=host.handler(code), max_attempts=2)
    host.publish("x")
    host.start()
    run_to_the_end(host, 2)
    every = "return redis.call('XRANGE', KEYS[1], '-', '+')"
    ((_, items),) = host.redis.eval(every, 1, keys.dead("orders", "orders"))
    assert items.count(b"wakeq.error") == 1
    assert items[items.index(b"wakeq.error") + 1] == b"ValueError: try 2"


# -- size ------------------------------------------------------------------------------------------


def test_messages_of_any_size_and_shape_fail_and_come_back_as_they_were(
    host: ConsumerHost,
) -> None:
    code = """
import hashlib, wakeq
def handle(message):
    items = b"".join(k + b"=" + v + b";" for k, v in sorted(message.fields.items()))
    record(message.id, message.attempt, hashlib.sha1(items).hexdigest(), len(message.fields))
    # Not due by itself while the large ones, one at a time, are delivered.
    if message.attempt < 3: raise wakeq.Retry(delay=3600)
"""
    host.configure(handler=host.handler(code))
    host.redis.xadd("orders", {f"f{n}": str(n) for n in range(10_000)})
    host.redis.xadd("orders", {"body": b"x" * 5_000_000})
    host.redis.xadd("orders", {b"\0\xff": bytes(range(256)), "": ""})
    host.redis.xadd("orders", {f"wakeq.own{n}": "x" for n in range(9000)} | {"body": "last"})
    host.start()
    for attempt in (1, 2):
        host.wait_failed(4 * attempt)
        assert host.deliver() == 4
    wait_until(lambda: host.stats().get("handled") == "4")
    seen: dict[str, set[str]] = {}
    for line in host.records:
        entry_id, _, *rest = line.split()
        seen.setdefault(entry_id, set()).add(" ".join(rest))
    assert len(seen) == 4
    assert all(len(what) == 1 for what in seen.values())
    assert len(host.records) == 12


def test_many_that_fail_are_all_delayed_once(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(BAD), concurrency=4)
    ids = host.publish(*range(2000))
    consumer = host.start()
    host.wait_failed(2000)
    host.wait_done()
    assert sorted(m.id for m in host.delayed()) == sorted(i.decode() for i in ids)
    assert host.stats()["failed"] == "2000"
    assert "handled" not in host.stats()
    assert consumer.stop() == 0


# -- in the end of the process ---------------------------------------------------------------------


def test_what_failed_is_moved_before_a_stop_ends(host: ConsumerHost) -> None:
    code = "import time\ndef handle(m): record(1); time.sleep(0.3); raise ValueError\n"
    host.configure(handler=host.handler(code))
    host.publish("x")
    consumer = host.start()
    host.wait_records(1)
    assert consumer.stop() == 0
    assert host.pending() == 0
    assert len(host.delayed()) == 1
    assert "handed_back" not in consumer.output


def test_what_failed_is_moved_before_it_goes_to_sleep(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(BAD), idle_timeout="2.5s")
    host.publish("x")
    listener: socket.socket = host.wake_socket()
    lease = host.connect()
    consumer = host.start(wake=listener)
    assert consumer.wait_exit() == 0
    assert len(host.delayed()) == 1
    assert host.pending() == 0
    lease.close()


@pytest.mark.parametrize("name", ["delayed", "dead"])
def test_says_which_key_is_somebody_elses_and_loses_nothing(host: ConsumerHost, name: str) -> None:
    key = keys.delayed("orders") if name == "delayed" else keys.dead("orders", "orders")
    host.redis.set(key, "text")
    host.configure(handler=host.handler(BAD), max_attempts=1 if name == "dead" else 10)
    host.publish("x")
    consumer = host.start()
    assert consumer.wait_exit() == 78
    assert key in consumer.output
    assert "something that is not wakeq's: delete or rename it" in consumer.output
    assert host.pending() == 1
    host.redis.delete(key)
    host.start()
    host.wait_failed(1)
    host.wait_pending(0)
