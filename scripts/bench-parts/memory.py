"""A consumer at rest, with a long backlog and with large messages."""

import time

from bench import HANDLERS, Bench, cpu_seconds, end, megabytes, wait_for


def peak(bench: Bench, enough: int, *options: str) -> float:
    """Return the most memory, in MB, of a consumer that handled so much of the backlog."""
    process = bench.consumer(f"--handler={HANDLERS}:noop", *options)
    wait_for(lambda: bench.handled() >= enough, 120)
    most = megabytes(process.pid, "VmHWM")
    end(process)
    return most


def measure(bench: Bench) -> None:
    """Measure how much more than at rest it becomes."""
    bench.redis.flushall()
    process = bench.consumer(f"--handler={HANDLERS}:stamp")
    bench.redis.xadd("load", {"body": b"0"})
    wait_for(lambda: bench.handled() == 1)
    time.sleep(3)  # until it is at rest, its logging loaded
    before, cpu = bench.commands(), cpu_seconds(process.pid)
    time.sleep(10)
    rate = (bench.commands() - before - 1) / 10
    cpu = (cpu_seconds(process.pid) - cpu) / 10
    idle = megabytes(process.pid, "VmRSS")
    end(process)
    bench.row("consumer at rest: memory", f"{idle:.0f} MB RSS")
    bench.row("  Redis commands and CPU", f"{rate:.1f}/s, {cpu:.1%}")
    bench.fill(1_000_000)
    more = peak(bench, 900_000) - idle
    bench.row("  with a backlog of 1,000,000 messages", f"{more:+.0f} MB")
    bench.fill(200, b"x" * 1_000_000)
    more = peak(bench, 200, "--prefetch=4") - idle
    bench.row("  with messages of 1 MB, prefetch = 4", f"{more:+.0f} MB")
