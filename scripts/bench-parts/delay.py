"""wakeq-delay: how late messages are at 1,000 due a second, and how fast a million overdue go."""

import statistics
import subprocess

from bench import BODY, Bench, cpu_seconds, end, wait_for

from wakeq import keys

RATE = 1000
SECONDS = 10
OVERDUE = 1_000_000
# Redis is not blocked for longer than a second by one of these.
_STEP = 50_000
_FILL = """
for i = 1, tonumber(ARGV[2]) do
  local id = ARGV[1] .. '-' .. (1000000 + i)
  local due = tonumber(ARGV[3]) + (i - 1) * tonumber(ARGV[4])
  local items = {'', id, 'wakeq.first_id', id, 'due', string.format('%.0f', due), 'body', ARGV[5]}
  redis.call('HSET', KEYS[2], id, cmsgpack.pack(items))
  redis.call('ZADD', KEYS[1], due, id)
end
"""


def start(bench: Bench) -> "subprocess.Popen[bytes]":
    """Start a wakeq-delay, and wait until it listens."""
    process = subprocess.Popen(bench.command("wakeq-delay"), env=bench.environment())
    wait_for(lambda: bench.redis.pubsub_numsub(keys.DOORBELL)[0][1] == 1)
    return process


def fill(bench: Bench, serial: int, count: int, first_ms: float, step_ms: float) -> None:
    """Have so many messages due, one every so many ms from a time on."""
    names = (keys.delayed("load"), keys.delayed_data("load"))
    bench.redis.eval(_FILL, 2, *names, serial, count, first_ms, step_ms, BODY)


def lateness(bench: Bench) -> None:
    """Measure by the clock of Redis: the id that a message is delivered with, and its due time."""
    bench.redis.flushall()
    process = start(bench)
    seconds, microseconds = bench.redis.time()
    first_ms = (seconds + 2) * 1000 + microseconds // 1000
    count = RATE * SECONDS
    fill(bench, 1, count, first_ms, 1000 / RATE)
    bench.redis.sadd(keys.STREAMS, "load")
    bench.redis.publish(keys.DOORBELL, "load")
    wait_for(lambda: bench.redis.xlen("load"))
    before = cpu_seconds(process.pid)
    wait_for(lambda: bench.redis.xlen("load") == count, SECONDS + 30)
    used = cpu_seconds(process.pid) - before
    end(process)
    late = [
        int(entry.partition(b"-")[0]) - int(fields[b"due"])
        for entry, fields in bench.redis.xrange("load")
    ]
    assert min(late) >= 0, f"delivered {-min(late)} ms early"
    cuts = statistics.quantiles(late, n=100)
    bench.row(f"late, at {RATE:,} due a second, p50", f"{cuts[49]:.0f} ms")
    bench.row(f"late, at {RATE:,} due a second, p99", f"{cuts[98]:.0f} ms, at most {max(late)} ms")
    bench.row("CPU of wakeq-delay meanwhile", f"{used / SECONDS:.0%}")


def backlog(bench: Bench) -> None:
    """Measure from its start to the last message that is moved."""
    bench.redis.flushall()
    for serial in range(1, OVERDUE // _STEP + 1):
        fill(bench, serial, _STEP, 1, 0)
    bench.redis.sadd(keys.STREAMS, "load")
    process = start(bench)
    wait_for(lambda: bench.redis.zcard(keys.delayed("load")) == 0, 180)
    end(process)
    (first, _), (last, _) = (
        bench.redis.xrange("load", count=1)[0],
        bench.redis.xrevrange("load", count=1)[0],
    )
    took_ms = int(last.partition(b"-")[0]) - int(first.partition(b"-")[0])
    assert bench.redis.xlen("load") == OVERDUE
    bench.row(f"moved, {OVERDUE:,} overdue", f"{OVERDUE / took_ms * 1000:,.0f}/s")
    bench.redis.flushall()


def measure(bench: Bench) -> None:
    """Measure both."""
    lateness(bench)
    backlog(bench)
