"""Strict order: one owner at a time, take-over in order, and an owner that was paused."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import HOST, ConsumerHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

RECORDING = "def handle(message): record(message.text())\n"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    made = ConsumerHost(short_dir, redis)
    made.env["WAKEQ_BACKOFF"] = "base=10ms,cap=20ms"
    yield made
    made.close()


def strict(host: ConsumerHost, code: str = RECORDING, **settings: object) -> None:
    host.configure(handler=host.handler(code), order="strict", lease="2s", **settings)


def numbers(count: int, start: int = 0) -> list[str]:
    return [str(number) for number in range(start, start + count)]


def owner(host: ConsumerHost) -> dict[str, str]:
    fields = host.redis.hgetall(keys.owner("orders", "orders"))
    return {name.decode(): value.decode() for name, value in fields.items()}


def test_handles_all_in_order(host: ConsumerHost) -> None:
    strict(host)
    host.publish(*numbers(500))
    consumer = host.start()
    wait_until(lambda: len(host.records) == 500)
    host.publish(*numbers(500, 500))
    wait_until(lambda: len(host.records) == 1000)
    assert host.records == numbers(1000)
    assert consumer.stop() == 0
    assert host.pending() == 0
    assert "process" not in owner(host)


def test_a_failed_message_holds_the_line(host: ConsumerHost) -> None:
    code = """
def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "2" and message.attempt < 4: raise ValueError("not yet")
"""
    strict(host, code)
    host.publish(*numbers(6))
    host.start()
    wait_until(lambda: "5 1" in host.records)
    assert host.records == ["0 1", "1 1", "2 1", "2 2", "2 3", "2 4", "3 1", "4 1", "5 1"]


def test_a_dead_letter_gives_the_line_free(host: ConsumerHost) -> None:
    code = """
def handle(message):
    record(message.text(), message.attempt)
    if message.text() == "2": raise ValueError("never")
"""
    strict(host, code, max_attempts=2)
    host.publish(*numbers(4))
    host.start()
    wait_until(lambda: "3 1" in host.records)
    assert host.records == ["0 1", "1 1", "2 1", "2 2", "3 1"]
    wait_until(lambda: host.pending() == 0)
    assert host.redis.xlen(keys.dead("orders", "orders")) == 1


def test_a_standby_takes_over_at_once_when_the_owner_leaves(host: ConsumerHost) -> None:
    strict(host)
    first = host.start()
    host.publish("0")
    wait_until(lambda: host.records == ["0"])
    second = host.start("orders:2")
    second.wait_log("standing by")
    host.publish(*numbers(10, 1))
    wait_until(lambda: len(host.records) == 11)
    assert first.stop() == 0
    second.wait_log("took over")
    host.publish(*numbers(10, 11))
    wait_until(lambda: len(host.records) == 21)
    assert host.records == numbers(21)


def test_a_paused_owner_does_nothing_any_more(host: ConsumerHost) -> None:
    code = """
import time
def handle(message):
    record(message.text())
    time.sleep(0.01)
"""
    strict(host, code)
    host.publish(*numbers(300))
    first = host.start()
    wait_until(lambda: len(host.records) >= 20)
    first.send(signal.SIGSTOP)
    second = host.start("orders:2")
    second.wait_log("took over")
    host.publish(*numbers(50, 300))
    wait_until(lambda: len(host.records) > 60)
    first.send(signal.SIGCONT)
    assert first.wait_exit() == 75
    assert "another owner" in first.output
    wait_until(lambda: host.pending() == 0 and "349" in host.records)
    records = [int(text) for text in host.records]
    # The one message that was in its handler when the owner was paused is handled twice.
    repeated = next(i for i in range(1, len(records)) if records[i] <= records[i - 1])
    assert records[:repeated] == list(range(repeated))
    assert records[repeated:] == list(range(records[repeated], 350))
    assert owner(host)["consumer"] == f"{HOST}/orders:2"


def test_a_standby_stops_at_once_and_costs_nothing_meanwhile(host: ConsumerHost) -> None:
    strict(host)
    host.start()
    host.publish("0")
    host.wait_records(1)
    second = host.start("orders:2")
    second.wait_log("standing by")
    host.publish(*numbers(10, 1))
    host.wait_records(11)
    assert second.stop() == 0
    host.publish("11")
    assert host.wait_records(12) == numbers(12)
