"""wakeq-consumer that was stopped for a while: it asks what is still its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import HOST, ConsumerHost, ConsumerProcess
from redis_servers import RedisServer, wait_until
from wakeq.consumer import process

# A lifetime of half a minute makes slow tests; with another one nothing else changes.
START = """
from wakeq.consumer import consumer, keeper
keeper.LIFETIME_SECONDS = consumer.LIFETIME_SECONDS = 2.0
consumer._BLOCK_SECONDS = 0.2
from wakeq.consumer.main import main
main()
"""
CODE = """
import os, time
def handle(message):
    record(message.text())
    while not os.path.exists({go!r}): time.sleep(0.01)
"""


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def start(host: ConsumerHost) -> ConsumerProcess:
    code = CODE.format(go=str(host.directory / "go"))
    host.configure(handler=host.handler(code), prefetch=8, claim_after=1)
    host.publish(*range(8))
    return host.run([host.interpreter, "-c", START, "orders"])


def pause(host: ConsumerHost, consumer: ConsumerProcess) -> None:
    """Stop a consumer that has messages in hand until its name has run out."""
    host.wait_records(1)
    host.wait_pending(2)
    consumer.send(signal.SIGSTOP)
    wait_until(lambda: host.alive() is None)


def go_on(host: ConsumerHost, consumer: ConsumerProcess) -> None:
    """Let a consumer go on; its lane only once the loop has asked for its name."""
    consumer.send(signal.SIGCONT)
    wait_until(host.alive)
    (host.directory / "go").touch()


def test_goes_on_after_a_pause_with_what_is_still_its_own(host: ConsumerHost) -> None:
    consumer = start(host)
    pause(host, consumer)
    go_on(host, consumer)
    host.wait_done()
    assert host.records == [str(n) for n in range(8)]
    assert consumer.stop() == 0


def test_goes_on_after_a_pause_in_which_it_lost_its_connections(host: ConsumerHost) -> None:
    consumer = start(host)
    pause(host, consumer)
    mine = host.redis.client_id()
    for client in host.redis.client_list():
        if int(client["id"]) != mine:
            host.redis.client_kill_filter(_id=client["id"])
    go_on(host, consumer)
    host.wait_done()
    # What was handled and not yet acknowledged may come twice, nothing is left out.
    assert sorted(set(host.records)) == [str(n) for n in range(8)]
    assert consumer.stop() == 0


def test_gives_up_after_a_pause_what_another_consumer_has_now(host: ConsumerHost) -> None:
    consumer = start(host)
    pause(host, consumer)
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 99)
    ids = [each["message_id"] for each in pending]
    begun = host.records
    host.redis.xclaim("orders", "orders", "another", 0, ids)
    host.redis.set("wakeq:{orders}:alive:orders:another", "x")
    consumer.send(signal.SIGCONT)
    consumer.wait_log("lost messages to another consumer")
    (host.directory / "go").touch()
    host.publish("next")
    wait_until(lambda: "next" in host.records)
    assert consumer.stop() == 0
    theirs = {host.redis.xrange("orders", i, i)[0][1][b"body"].decode() for i in ids}
    assert not theirs & set(host.records[len(begun) :])


def test_leaves_after_a_pause_in_which_another_process_took_its_name(host: ConsumerHost) -> None:
    consumer = start(host)
    pause(host, consumer)
    host.redis.set(f"wakeq:{{orders}}:alive:orders:{HOST}/orders", process.describe_self())
    consumer.send(signal.SIGCONT)
    assert consumer.wait_exit() == 75
    assert f"runs already, as process {os.getpid()}" in consumer.output
