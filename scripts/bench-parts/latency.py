"""Publish to handler entry with the consumer awake."""

import statistics
import time

from bench import HANDLERS, Bench, end, wait_for

MESSAGES = 1000


def measure(bench: Bench) -> None:
    """Measure one message at a time, 2 ms apart."""
    bench.redis.flushall()
    process = bench.consumer(f"--handler={HANDLERS}:stamp")
    bench.redis.xadd("load", {"body": repr(time.monotonic())})
    wait_for(lambda: bench.handled() == 1)
    for _ in range(MESSAGES):
        bench.redis.xadd("load", {"body": repr(time.monotonic())})
        time.sleep(0.002)
    wait_for(lambda: bench.handled() == MESSAGES + 1)
    end(process)
    seen = sorted(bench.told()[3][1:])
    bench.row(
        "warm: publish to handler entry",
        f"median {statistics.median(seen):.2f} ms, p99 {seen[int(len(seen) * 0.99)]:.2f} ms",
    )
