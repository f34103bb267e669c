"""No-op consumers and the bare loop, in turns; programs, and bare fork and exec."""

import os
import statistics
import time

from bench import HANDLERS, Bench, end, wait_for

MESSAGES = 200_000
ROUNDS = 3
PROGRAMS = 1000


def bare_loop(bench: Bench) -> float:
    """Return messages per second of XREADGROUP COUNT 500 + XACK over redis-py."""
    bench.redis.xgroup_create("load", "bare", id="0")
    count = 0
    start = time.monotonic()
    while reply := bench.redis.xreadgroup("bare", "c", {"load": ">"}, count=500):
        ids = [entry_id for entry_id, _ in reply[0][1]]
        bench.redis.xack("load", "bare", *ids)
        count += len(ids)
    return count / (time.monotonic() - start)


def drain(bench: Bench, handler: str, total: int, *options: str) -> float:
    """Return messages per second of a consumer that works off a backlog."""
    process = bench.consumer(f"--handler={HANDLERS}:{handler}", *options, TOTAL=str(total))
    wait_for(lambda: bench.handled() == total, 120)
    end(process)
    count, first, last, _ = bench.told()
    assert count == total, f"{count} of {total} handled"
    return total / (last - first)


def programs(bench: Bench, lanes: int) -> float:
    """Return messages per second of a consumer that runs a program for each."""
    bench.fill(PROGRAMS)
    start = time.monotonic()
    process = bench.consumer("--exec=/bin/true", f"--concurrency={lanes}")
    wait_for(lambda: bench.handled() == PROGRAMS)
    rate = PROGRAMS / (time.monotonic() - start)
    end(process)
    return rate


def measure(bench: Bench) -> None:
    """Measure how many messages a second."""
    bare, sync, coroutine = [], [], []
    for _ in range(ROUNDS):
        bench.fill(MESSAGES)
        bare.append(bare_loop(bench))
        sync.append(drain(bench, "noop", MESSAGES))
        bench.fill(MESSAGES)
        coroutine.append(drain(bench, "async_noop", MESSAGES))
    bench.row("bare redis-py loop", f"{statistics.median(bare):,.0f}/s")
    for name, rates in (("sync", sync), ("async", coroutine)):
        ratio = statistics.median(r / b for r, b in zip(rates, bare, strict=True))
        bench.row(
            f"wakeq-consumer, {name} no-op handler",
            f"{statistics.median(rates):,.0f}/s, {ratio:.2f} of the bare loop",
        )
    for lanes in (1, 2):
        rate = programs(bench, lanes)
        bench.row(f"a program (/bin/true) per message, {lanes} at once", f"{rate:,.0f}/s")
    start = time.monotonic()
    for _ in range(PROGRAMS):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    rate = PROGRAMS / (time.monotonic() - start)
    bench.row("bare fork and exec of /bin/true", f"{rate:,.0f}/s")
