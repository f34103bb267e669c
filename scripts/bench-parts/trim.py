"""wakeq-trim on a stream of a million messages, all handled by four groups."""

import subprocess
import time

from bench import BODY, Bench

from wakeq import keys

MESSAGES = 1_000_000


def trim(bench: Bench, *arguments: str) -> tuple[float, list[int]]:
    """Run a program, and return its seconds and how long Redis was at each script, in µs."""
    bench.redis.config_set("slowlog-log-slower-than", 0)
    bench.redis.config_set("slowlog-max-len", 100_000)
    bench.redis.slowlog_reset()
    start = time.monotonic()
    subprocess.run(bench.command(*arguments), check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    log = bench.redis.slowlog_get(100_000)
    bench.redis.config_set("slowlog-log-slower-than", 10_000)
    return seconds, sorted(e["duration"] for e in log if e["command"].startswith(b"EVAL"))


def measure(bench: Bench) -> None:
    """Measure what it takes, and how long others wait for it."""
    for what, size in (("100-byte", len(BODY)), ("1 kB", 1000)):
        bench.fill(MESSAGES, b"x" * size)
        for number in range(4):
            bench.redis.xgroup_create("load", f"group{number}", "$")
        bench.redis.sadd(keys.STREAMS, "load")
        seconds, slices = trim(bench, "wakeq-trim")
        assert bench.redis.xlen("load") == 1000
        bench.row(f"wakeq-trim, {MESSAGES:,} {what} messages", f"{seconds:.2f} s")
        bench.row(
            f"  Redis is at each of its {len(slices):,} slices for",
            f"median {slices[len(slices) // 2] / 1000:.2f} ms, p99"
            f" {slices[len(slices) * 99 // 100] / 1000:.2f} ms, most {slices[-1] / 1000:.1f} ms",
        )
