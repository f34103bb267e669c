"""What wakeq-consumer takes of the machine: memory with a large backlog, nothing at rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer_host import ConsumerProcess
from faults_host import FaultHost, processor_ticks, resident_bytes
from redis_servers import RedisServer, wait_until

MB = 1024 * 1024
BACKLOG = 1_000_000
REST_SECONDS = 12


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[FaultHost]:
    host = FaultHost(short_dir, own_redis)
    yield host
    host.close()


def quiet(host: FaultHost) -> ConsumerProcess:
    """Start a consumer, and return when it has handled a message, logged, and waits again."""
    process = host.start("orders", WAKEQ_LOG_LEVEL="debug")
    host.fill(1)
    wait_until(lambda: process.count("consumer started"))
    wait_until(host.settled)
    return process


def most_memory(host: FaultHost, process: ConsumerProcess, count: int) -> int:
    """Return the most memory that the consumer takes until it has handled so many messages."""
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, resident_bytes(process))
        return host.counter() >= count

    wait_until(done, 120, f"{count} messages are handled")
    return most


def counting(host: FaultHost) -> str:
    """Return a handler that leaves no trace: a million lines would be read here."""
    return host.handler("def handle(message): pass\n", file="counting.py")


def test_a_backlog_of_a_million_messages_takes_no_memory(host: FaultHost) -> None:
    host.configure(handler=counting(host))
    process = quiet(host)
    idle = resident_bytes(process)
    assert idle <= 45 * MB
    # Some thousand at a time, because a script holds everybody up.
    for _ in range(BACKLOG // 5000):
        host.redis.eval(
            "for i = 1, 5000 do redis.call('XADD', KEYS[1], '*', 'body', ARGV[1]) end",
            *(1, "orders", "x" * 100),
        )
    assert most_memory(host, process, BACKLOG + 1) - idle <= 20 * MB
    assert process.stop() == 0


def test_a_consumer_that_starts_before_a_backlog_takes_no_memory_for_it(host: FaultHost) -> None:
    host.use("sluggish", concurrency=1)
    host.fill(50_000)
    process = host.start()
    host.wait_handled(10)
    idle_bound = 45 * MB
    assert resident_bytes(process) <= idle_bound
    assert host.pending() <= 1000
    process.kill()


def test_large_messages_are_bounded_by_prefetch(host: FaultHost) -> None:
    host.configure(
        handler=host.handler(
            "import time\n"
            "def handle(message):\n"
            "    time.sleep(0.005)\n"
            "    record(len(message.body))\n",
            file="large.py",
        ),
        prefetch=4,
    )
    process = quiet(host)
    idle = resident_bytes(process)
    for _ in range(20):
        host.fill(10, b"x" * MB)
    # Four messages in hand, and the reply that they come in, which is parsed when it is whole.
    assert most_memory(host, process, 201) - idle <= 4 * 4 * MB
    assert host.records.count(str(MB)) == 200
    assert process.stop() == 0


def test_a_consumer_at_rest_asks_redis_and_the_processor_for_next_to_nothing(
    host: FaultHost,
) -> None:
    host.use()
    process = quiet(host)
    before, ticks = commands(host), processor_ticks(process)
    wait_until(lambda: seconds(host) - before[1] >= REST_SECONDS, REST_SECONDS + 60)
    spent, after = processor_ticks(process) - ticks, commands(host)
    rest = after[1] - before[1]
    assert after[0] - before[0] <= rest
    assert spent <= 5 * rest / REST_SECONDS
    assert process.count("info") == 0


def commands(host: FaultHost) -> tuple[int, int]:
    """Return how many commands Redis was given that matter, and the seconds that it is up."""
    stats = host.redis.info("commandstats")
    own = ("cmdstat_info", "cmdstat_client|list")
    calls = sum(values["calls"] for name, values in stats.items() if name not in own)
    return calls, seconds(host)


def seconds(host: FaultHost) -> int:
    """Return how long Redis has been up."""
    return int(host.redis.info("server")["uptime_in_seconds"])
