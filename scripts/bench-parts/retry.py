"""What moving a failed message costs Redis, beside a plain acknowledgement."""

import statistics
import time

from bench import BODY, Bench

from wakeq import keys
from wakeq.message import Message, carry, pack_failed
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection

MESSAGES = 20_000
TRIPS = 2000
ROUNDS = 7
STREAM = GROUP = "load"


def prepare(bench: Bench, name: str, count: int) -> list[list[bytes | str | int]]:
    """Have messages pending, and return the command for each."""
    bench.fill(count)
    bench.redis.xgroup_create(STREAM, GROUP, "0")
    reply = bench.redis.xreadgroup(GROUP, "c", {STREAM: ">"}, count=count)
    names: list[str] = [STREAM, keys.stats(STREAM, GROUP)]
    if name == "fail":
        names += [keys.delayed(STREAM), keys.delayed_data(STREAM)]
    sha = bench.redis.script_load(Script(name).text)
    head = ["EVALSHA", sha, len(names), *names]
    return [[*head, *arguments(name, entry)] for _, entries in reply for entry, _ in entries]


def cost(bench: Bench, name: str) -> float:
    """Return µs of the server's processor for each message, a script for each, in pipelines."""
    pipe = bench.redis.pipeline(transaction=False)
    for command in prepare(bench, name, MESSAGES):
        pipe.execute_command(*command)
    before = processor_seconds(bench)
    assert len(pipe.execute()) == MESSAGES
    took = processor_seconds(bench) - before
    assert bench.redis.xpending(STREAM, GROUP)["pending"] == 0
    return took / MESSAGES * 1e6


def round_trip(bench: Bench, name: str) -> float:
    """Return how many µs a consumer waits for the answer, at the median."""
    took = []
    connection = Connection(RedisURL(bench.url), "bench")
    connection.connect()
    for command in prepare(bench, name, TRIPS):
        began = time.perf_counter()
        connection.call(*command)
        took.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(took) * 1e6


def processor_seconds(bench: Bench) -> float:
    """Return how much time of the processor the server has had."""
    cpu = bench.redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def arguments(name: str, entry_id: bytes) -> list[bytes | str | int]:
    """Return what a consumer passes for one message."""
    if name == "acknowledge":
        return [GROUP, entry_id, 0, entry_id]
    message = Message(STREAM, 0, entry_id, [b"body", BODY])
    own = [(b"wakeq.attempt", b"2"), (b"wakeq.first_id", entry_id), (b"wakeq.error", b"ValueError")]
    items = carry(message, own)
    # Backoff: due at different times, most not before all others.
    delay_ms = 1000 + hash(entry_id) % 10_000
    first = entry_id.decode()
    head = [GROUP, "", entry_id, STREAM, keys.DOORBELL, delay_ms]
    return [*head, entry_id, f"{first}@{GROUP}", delay_ms, *pack_failed(GROUP, first, items)]


def measure(bench: Bench) -> None:
    """Measure both in turns; of the processor's time the least counts, others only add to it."""
    plain, failed, plain_trip, failed_trip = [], [], [], []
    for _ in range(ROUNDS):
        plain.append(cost(bench, "acknowledge"))
        failed.append(cost(bench, "fail"))
        plain_trip.append(round_trip(bench, "acknowledge"))
        failed_trip.append(round_trip(bench, "fail"))
    trip, other = statistics.median(plain_trip), statistics.median(failed_trip)
    bench.row("a consumer waits for an acknowledgement", f"{trip:.0f} µs")
    bench.row(
        "for the move of a failed message to the delayed ones",
        f"{other:.0f} µs, {other / trip:.2f} times as long",
    )
    bench.row("of that, processor of Redis for an acknowledgement", f"{min(plain):.1f} µs")
    ratio = min(failed) / min(plain)
    bench.row("for a failed message", f"{min(failed):.1f} µs, {ratio:.2f} times as much")
