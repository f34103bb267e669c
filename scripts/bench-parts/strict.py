"""Strict order: how long a take-over of 100,000 pending messages takes, and what order costs."""

import statistics
import time

from bench import HANDLERS, Bench, end, wait_for
from throughput import drain

MESSAGES = 200_000
PENDING = 100_000
ROUNDS = 3


def take_over(bench: Bench) -> tuple[float, float]:
    """Return the seconds from the stop of the owner until it has left, and to the first message.

    The owner holds the group with nothing in hand; what is taken over is pending for another one.
    """
    bench.fill(0)
    bench.redis.xgroup_create("load", "load", "0", mkstream=True)
    handler = f"--handler={HANDLERS}:noop"
    strict = ("--order=strict", handler)
    owner = bench.consumer(*strict)
    wait_for(lambda: bench.redis.hget("wakeq:{load}:owner:load", "process"))
    standby = bench.consumer(*strict, name="load:2")
    wait_for(lambda: bench.redis.hget("wakeq:{load}:owner:load", "standby"))
    bench.redis.set("wakeq:{load}:paused", "1")
    wait_for(lambda: bench.redis.exists("wakeq:{load}:paused"))
    bench.add(PENDING)
    for _ in range(PENDING // 10_000):
        bench.redis.xreadgroup("load", "gone", {"load": ">"}, count=10_000)
    bench.redis.delete("wakeq:{load}:paused")
    start = time.monotonic()
    end(owner)
    left = time.monotonic() - start
    wait_for(lambda: bench.handled() == PENDING)
    end(standby)
    _, first, _, _ = bench.told()
    return left, first - start


def measure(bench: Bench) -> None:
    """Measure take-over and throughput."""
    spans = [take_over(bench) for _ in range(ROUNDS)]
    bench.row(
        f"stop of the owner to the next one's first message, {PENDING:,} pending",
        f"{statistics.median(first for _, first in spans):.2f} s, most"
        f" {max(first for _, first in spans):.2f} s; it had left after"
        f" {statistics.median(left for left, _ in spans):.2f} s",
    )
    free, strict = [], []
    for _ in range(ROUNDS):
        bench.fill(MESSAGES)
        free.append(drain(bench, "noop", MESSAGES))
        bench.fill(MESSAGES)
        strict.append(drain(bench, "noop", MESSAGES, "--order=strict"))
    ratio = statistics.median(s / f for s, f in zip(strict, free, strict=True))
    bench.row(
        "one consumer in strict order, no-op handler",
        f"{statistics.median(strict):,.0f}/s, {ratio:.2f} of order = none",
    )
