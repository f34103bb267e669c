"""wakeq-wakeup at rest with many sleeping consumers."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator

from bench import Bench, cpu_seconds, end, megabytes

SLEEPERS = 1000
# A little more than the time between two safety re-checks.
SECONDS = 65.0


def requests(bench: Bench) -> int:
    """Return how many requests wakeq-wakeup has sent, without what its scripts call inside."""
    stats = bench.redis.info("commandstats")
    sent = ("eval", "evalsha", "xread", "sadd", "ping", "client|unblock")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in sent)


@contextlib.contextmanager
def sleeping(bench: Bench) -> Iterator[None]:
    """Have consumers whose sockets nobody answers."""
    sockets = []
    for number in range(SLEEPERS):
        with open(f"{bench.folder}/consumers/s{number}.toml", "w", encoding="utf-8") as file:
            file.write('exec = ["/bin/true"]\n')
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{bench.folder}/run/consumer/s{number}.sock")
        listener.listen(1)
        sockets.append(listener)
    try:
        yield
    finally:
        for listener in sockets:
            listener.close()
        for folder in ("run/consumer", "consumers"):
            shutil.rmtree(f"{bench.folder}/{folder}")
            os.makedirs(f"{bench.folder}/{folder}")


def measure(bench: Bench) -> None:
    """Measure its memory, what it asks of Redis, and its CPU time."""
    bench.redis.flushall()
    with sleeping(bench):
        wakeup = bench.wakeup()
        try:
            before, all_before, cpu = requests(bench), bench.commands(), cpu_seconds(wakeup.pid)
            time.sleep(SECONDS)
            all_after, after = bench.commands(), requests(bench)
            cpu = cpu_seconds(wakeup.pid) - cpu
            own, whole = megabytes(wakeup.pid, "RssAnon"), megabytes(wakeup.pid, "VmRSS")
        finally:
            end(wakeup)
    per_minute = 60 / SLEEPERS / SECONDS
    inside = (all_after - all_before - (after - before)) * per_minute
    bench.row(
        f"wakeq-wakeup, {SLEEPERS:,} sleepers: memory", f"{own:.0f} MB own, {whole:.0f} MB RSS"
    )
    bench.row(
        "  requests to Redis per sleeper and minute, at rest",
        f"{(after - before) * per_minute:.3f} (which run {inside:.1f} commands in scripts)",
    )
    bench.row("  CPU at rest", f"{cpu / SECONDS:.2%}")
