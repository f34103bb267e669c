"""Nodes on a list: no-op handlers, and bare loops that lose messages and that do not, in turns."""

import statistics
import subprocess
import sys
import time

from bench import BODY, HANDLERS, Bench, end, wait_for

from wakeq import keys

MESSAGES = 200_000
BARE = 20_000
ROUNDS = 3
REST_SECONDS = 30.0
STATS = keys.stats("load", "load")


def fill(bench: Bench, count: int) -> None:
    """Have so many messages in the list, and nothing else."""
    bench.redis.flushall()
    for start in range(0, count, 5000):
        bench.redis.lpush("load", *[BODY] * min(5000, count - start))


def brpop_loop(bench: Bench) -> float:
    """Return messages per second of BRPOP, which loses what it has when it dies."""
    fill(bench, BARE)
    start = time.monotonic()
    while bench.redis.brpop("load", 0.01):
        pass
    return BARE / (time.monotonic() - start)


def lmove_loop(bench: Bench) -> float:
    """Return messages per second of BLMOVE and LREM, which loses nothing."""
    fill(bench, BARE)
    start = time.monotonic()
    while body := bench.redis.blmove("load", "mine", 0.01, "RIGHT", "LEFT"):
        bench.redis.lrem("mine", -1, body)
    return BARE / (time.monotonic() - start)


def taker(bench: Bench, workers: int, handler: str = "noop") -> "subprocess.Popen[bytes]":
    """Start the process of a node that takes from the list."""
    options = [f"--handler={HANDLERS}:{handler}", "--list=load", f"--workers={workers}"]
    command = bench.command("", "load", *options)
    command[0:1] = [sys.executable, "-m", "wakeq.node.takers"]
    return subprocess.Popen(command, env=bench.environment())


def drain(bench: Bench, workers: int) -> float:
    """Return messages per second of a process that works off a list."""
    fill(bench, MESSAGES)
    process = taker(bench, workers)
    wait_for(lambda: bench.redis.hget(STATS, "handled"))
    start, first = time.monotonic(), int(bench.redis.hget(STATS, "handled"))
    wait_for(lambda: int(bench.redis.hget(STATS, "handled")) == MESSAGES, 120)
    rate = (MESSAGES - first) / (time.monotonic() - start)
    end(process)
    return rate


def measure(bench: Bench) -> None:
    """Measure how many messages a second, and what rest costs."""
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        rates.setdefault("bare BRPOP, which loses messages", []).append(brpop_loop(bench))
        rates.setdefault("bare BLMOVE and LREM", []).append(lmove_loop(bench))
        for workers in (1, 100):
            name = f"a node on a list, no-op handler, workers = {workers}"
            rates.setdefault(name, []).append(drain(bench, workers))
    for name, found in rates.items():
        bench.row(name, f"{statistics.median(found):,.0f}/s")
    fill(bench, 0)
    process = taker(bench, 100, "stamp")
    wait_for(lambda: bench.redis.exists(keys.takers("load")))
    for _ in range(200):
        wait_for(lambda: int(bench.redis.info("clients")["blocked_clients"]) == 1)
        bench.redis.lpush("load", str(time.monotonic()))
        wait_for(lambda: bench.redis.llen("load") == 0)
    time.sleep(11)  # a wait in vain has ended
    before, began = carried_out(bench), time.monotonic()
    time.sleep(REST_SECONDS)
    spent = (carried_out(bench) - before) / (time.monotonic() - began)
    end(process)
    _, _, _, latencies = bench.told()
    p50, p99 = statistics.median(latencies), sorted(latencies)[int(len(latencies) * 0.99)]
    bench.row("LPUSH to the handler, at rest, p50 / p99", f"{p50:.2f} / {p99:.2f} ms")
    bench.row("commands of a process at rest, those in scripts too", f"{spent:.2f}/s")


def carried_out(bench: Bench) -> int:
    """Return how many commands there were so far, those in scripts too, without INFO itself."""
    commands = bench.redis.info("commandstats")
    return sum(each["calls"] for name, each in commands.items() if name != "cmdstat_info")
