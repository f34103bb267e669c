"""wakeq-bridge: bursts to channels with 1 to 8 workers, a message alone, a list over kill -9."""

import os
import signal
import socket
import statistics
import subprocess
import threading
import time
import uuid

from bench import Bench, end, wait_for

from wakeq import keys
from wakeq.wire import pack

CHANNEL, STREAM, IDS = "messages:published", "messages:processed", "consumer:ids"
BURST = 200_000
LONG_BURST = 500_000
ALONE = 500
LIST = 1_000_000
KILLS = 3
ROUNDS = 3
# What is published in one send; the load of one publisher that does not wait for replies.
_STEP = 1000


def start(bench: Bench, workers: int, **source: str) -> "subprocess.Popen[bytes]":
    """Start a bridge, and wait until it takes messages and all its workers live."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in source.items()]
    process = subprocess.Popen(
        bench.command("wakeq-bridge", "load", f"--workers={workers}", *options),
        env=bench.environment(),
    )
    wait_for(lambda: bench.redis.llen(IDS) == workers)
    if "channel" in source:
        lease = keys.bridge_lease(CHANNEL, "load")
        wait_for(lambda: bench.redis.hget(lease, "begun") == b"1")
    return process


def publish(bench: Bench, count: int) -> float:
    """Publish a burst of small JSON messages, and return when that began (monotonic)."""
    bodies = [b'{"message_id":"%b"}' % str(uuid.uuid4()).encode() for _ in range(count)]
    sends = [
        pack([("PUBLISH", CHANNEL, body) for body in bodies[at : at + _STEP]])
        for at in range(0, count, _STEP)
    ]
    with socket.socket(socket.AF_UNIX) as publisher:
        publisher.connect(f"{bench.folder}/redis.sock")

        def send() -> None:
            for each in sends:
                publisher.sendall(each)

        thread = threading.Thread(target=send)
        began = time.monotonic()
        thread.start()
        left = count * len(b":1\r\n")
        while left:
            left -= len(publisher.recv(min(1 << 20, left)))
        thread.join()
    return began


def timed(bench: Bench, count: int) -> float:
    """Return messages per second, from the first PUBLISH until the last is in the stream."""
    bench.redis.delete(STREAM)
    began = publish(bench, count)
    wait_for(lambda: bench.redis.xlen(STREAM) >= count, 120)
    took = time.monotonic() - began
    processed = bench.redis.xlen(STREAM)
    assert processed == count, f"{processed} of {count} processed"
    return count / took


def bursts(bench: Bench) -> None:
    """Measure bursts with more and more workers."""
    for workers in (1, 2, 4, 8):
        bench.redis.flushall()
        process = start(bench, workers, channel=CHANNEL)
        rates = [timed(bench, BURST) for _ in range(ROUNDS)]
        if workers == 4:
            long_rate = timed(bench, LONG_BURST)
        end(process)
        best = f"{statistics.median(rates):,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f})"
        bench.row(f"burst of {BURST:,}, {workers} workers, none lost", best)
        if workers == 4:
            bench.row(f"burst of {LONG_BURST:,}, 4 workers, none lost", f"{long_rate:,.0f}/s")


def alone(bench: Bench) -> None:
    """Measure from PUBLISH to the reply of an XREAD that waits for the entry."""
    bench.redis.flushall()
    process = start(bench, 1, channel=CHANNEL)
    reader = bench.redis.client()
    took = []
    last = b"0"
    for number in range(ALONE):
        seen: list[float] = []

        def wait(after: bytes = last, seen: list[float] = seen) -> None:
            nonlocal last
            ((_, ((last, _),)),) = reader.xread({STREAM: after}, block=10_000)
            seen.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        wait_for(lambda: bench.redis.info("clients")["blocked_clients"] == 1)
        began = time.monotonic()
        bench.redis.publish(CHANNEL, f'{{"number":{number}}}')
        thread.join()
        took.append((seen[0] - began) * 1e6)
    reader.close()
    end(process)
    cuts = statistics.quantiles(took, n=100)
    bench.row("publish to visible in the stream, alone, p50", f"{cuts[49]:,.0f} µs")
    bench.row("publish to visible in the stream, alone, p99", f"{cuts[98]:,.0f} µs")


def moved(bench: Bench) -> None:
    """Measure a list that is moved while the bridge is killed now and then."""
    bench.redis.flushall()
    for first in range(0, LIST, _STEP):
        bodies = [b'{"number":"%d"}' % number for number in range(first, first + _STEP)]
        bench.redis.lpush("jobs", *bodies)
    began = time.monotonic()
    process = start(bench, 2, list="jobs")
    for kill in range(1, KILLS + 1):
        wait_for(lambda kill=kill: bench.redis.xlen(STREAM) > kill * LIST // (KILLS + 1), 120)
        _kill(process)
        process = subprocess.Popen(
            bench.command("wakeq-bridge", "load", "--list=jobs", "--workers=2"),
            env=bench.environment(),
        )
    wait_for(lambda: bench.redis.xlen(STREAM) >= LIST and not bench.redis.llen("jobs"), 120)
    took = time.monotonic() - began
    end(process)
    numbers: set[int] = set()
    last = b"-"
    while entries := bench.redis.xrange(STREAM, last, count=10_000):
        numbers.update(int(fields[b"number"]) for _, fields in entries)
        last = b"(" + entries[-1][0]
    length = bench.redis.xlen(STREAM)
    assert length == len(numbers) == LIST, f"{length} entries, {len(numbers)} numbers"
    rate = f"{LIST / took:,.0f}/s"
    bench.row(f"list of {LIST:,}, 2 workers, {KILLS} times kill -9, exact", rate)
    bench.redis.flushall()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the bridge and its workers, as the service manager would."""
    workers = []
    for task in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{task}/children", encoding="ascii") as file:
            workers += map(int, file.read().split())
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def measure(bench: Bench) -> None:
    """Measure all."""
    bursts(bench)
    alone(bench)
    moved(bench)
