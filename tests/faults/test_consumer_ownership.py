"""Messages in hand that somebody else deletes or takes: what a consumer still does with them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import HOST, ConsumerProcess
from faults_host import GROUP, STREAM, FaultHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

NAME = f"{HOST}/orders"
ALIVE = keys.alive(STREAM, GROUP, NAME)
# A lifetime of half a minute makes slow tests; with another one nothing else changes.
SHORT_LIVED = """
from wakeq.consumer import consumer, keeper
keeper.LIFETIME_SECONDS = consumer.LIFETIME_SECONDS = 2.0
consumer._BLOCK_SECONDS = 0.5
from wakeq.consumer.main import main
main()
"""


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[FaultHost]:
    host = FaultHost(short_dir, own_redis)
    yield host
    host.close()


def claim_all(host: FaultHost, thief: str = "thief") -> list[str]:
    """Take all that is pending from whomever, and return the ids."""
    _, entries, _ = host.redis.xautoclaim(STREAM, GROUP, thief, 0, count=1000, justid=False)
    return [entry_id.decode() for entry_id, _ in entries]


def pending_of(host: FaultHost, consumer: str) -> set[str]:
    """Return the ids that are pending for one consumer."""
    entries = host.redis.xpending_range(STREAM, GROUP, "-", "+", 1000, consumername=consumer)
    return {entry["message_id"].decode() for entry in entries}


def holding(host: FaultHost, count: int = 10) -> ConsumerProcess:
    """Start a consumer that has begun a message, and has others in hand."""
    host.use("gated", concurrency=1, prefetch=count)
    host.fill(count)
    process = host.start()
    wait_until(lambda: host.begun() and host.pending() >= 2)
    return process


def test_pending_entries_that_are_deleted_are_handled_or_forgotten(host: FaultHost) -> None:
    process = holding(host)
    host.redis.xdel(STREAM, *host.published)
    host.open_gate()
    wait_until(host.settled)
    assert process.stop() == 0
    # Those in hand were handled; what was not read yet is no more.
    assert host.handled() == set(host.begun())
    assert "message failed" not in process.output


def test_entries_that_were_deleted_while_their_consumer_was_dead_are_forgotten(
    host: FaultHost,
) -> None:
    process = holding(host)
    process.kill()
    pending = host.pending()
    host.redis.xtrim(STREAM, maxlen=0, approximate=False)
    host.open_gate()
    host.published.clear()
    host.fill(5)
    process = host.start()
    host.check(duplicates=0, counted=False)
    assert pending
    assert len(host.handled()) == 5
    assert host.counter() == 5
    assert process.stop() == 0


def test_deleted_entries_of_a_consumer_that_is_gone_are_forgotten(host: FaultHost) -> None:
    holding(host).kill()
    host.redis.xdel(STREAM, *host.published)
    host.redis.delete(ALIVE)
    host.use("fast", claim_after=1)
    host.published.clear()
    host.fill(5)
    host.start("orders:2")
    host.check(duplicates=0, counted=False)
    assert len(host.handled()) == 5


def test_a_message_that_another_consumer_takes_is_left_to_it(host: FaultHost) -> None:
    host.use("gated", concurrency=1, claim_after=1)
    host.fill(2)
    process = host.start()
    wait_until(lambda: host.begun() and host.pending() == 2)
    host.redis.set(keys.alive(STREAM, GROUP, "thief"), "x")  # or they are claimed back from it
    taken = claim_all(host)
    assert taken == host.published
    # It looks after its messages three times in each claim_after.
    process.wait_log("lost messages to another consumer")
    host.open_gate()
    host.published += host.fill(1)
    wait_until(lambda: host.published[-1] in host.handled())
    wait_until(lambda: pending_of(host, NAME) == set())
    assert pending_of(host, "thief") == set(taken)
    assert host.begun() == [taken[0], host.published[-1]]
    assert host.counter() == 1


def test_a_message_taken_and_handled_elsewhere_is_published_once(host: FaultHost) -> None:
    host.use("gated_publishing")
    host.fill(1)
    host.start()
    wait_until(host.begun)
    claim_all(host)
    host.redis.xack(STREAM, GROUP, *host.published)
    host.open_gate()
    wait_until(lambda: host.handled() == set(host.published))
    host.fill(1)
    wait_until(lambda: host.redis.xlen("out"))
    host.check(duplicates=0, counted=False)
    ((_, fields),) = host.redis.xrange("out")
    assert fields[b"body"].decode() == host.published[1]


def test_a_process_that_was_stopped_leaves_alone_what_was_taken_unseen(host: FaultHost) -> None:
    """Redis delivers to a process that is stopped; when it goes on, that may be another's."""
    host.use("fast")
    host.fill(1)
    process = host.run([host.interpreter, "-c", SHORT_LIVED, "orders"])
    while True:
        host.check(duplicates=0)
        wait_until(lambda: any("b" in client["flags"] for client in host.redis.client_list()))
        process.send(signal.SIGSTOP)
        host.fill(1)
        if host.pending() == 1:
            break
        process.send(signal.SIGCONT)  # it had waited for long enough, and was not given it
    wait_until(lambda: host.alive() is None)
    taken = claim_all(host)
    process.send(signal.SIGCONT)
    later = host.fill(1)
    wait_until(lambda: later[0] in host.handled())
    wait_until(lambda: pending_of(host, NAME) == set())
    assert pending_of(host, "thief") == set(taken)
    assert not set(taken) & host.handled()


def test_what_was_taken_from_a_stopped_process_is_not_tried_again_when_it_fails_there(
    host: FaultHost,
) -> None:
    host.use("gated_failing", concurrency=1, prefetch=1)
    taken = host.fill(1)
    process = host.run([host.interpreter, "-c", SHORT_LIVED, "orders"])
    wait_until(host.begun)
    process.send(signal.SIGSTOP)
    wait_until(lambda: host.alive() is None)
    assert claim_all(host) == taken
    host.open_gate()
    process.send(signal.SIGCONT)
    later = host.fill(1)
    wait_until(lambda: host.redis.zcard(keys.delayed(STREAM)))
    assert [message.id for message in host.delayed(STREAM)] == later
    assert pending_of(host, "thief") == set(taken)
