"""wakeq-wakeup at rest with many sleeping consumers."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator

from bench import Bench, cpu_seconds, end, megabytes

from wakeq import keys

SLEEPERS = 1000
# A little more than the time between two safety re-checks.
SECONDS = 65.0


@contextlib.contextmanager
def sleeping(bench: Bench) -> Iterator[None]:
    """Have consumers whose sockets nobody answers, whose groups have handled a message."""
    pipe = bench.redis.pipeline(transaction=False)
    sockets = []
    for number in range(SLEEPERS):
        name = f"s{number}"
        pipe.xadd(name, {"body": "x"})
        for stream in (name, keys.retry(name, name)):
            pipe.xgroup_create(stream, name, "$", mkstream=True)
        with open(f"{bench.folder}/consumers/{name}.toml", "w", encoding="utf-8") as file:
            file.write('exec = ["/bin/true"]\n')
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{bench.folder}/run/consumer/{name}.sock")
        listener.listen(1)
        sockets.append(listener)
    pipe.execute()
    try:
        yield
    finally:
        for listener in sockets:
            listener.close()
        for folder in ("run/consumer", "consumers"):
            shutil.rmtree(f"{bench.folder}/{folder}")
            os.makedirs(f"{bench.folder}/{folder}")


def observe(bench: Bench) -> tuple[int, int]:
    """Return how many requests the server gets meanwhile, and how many commands scripts call."""
    requests = inside = 0
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as commands:
        connection.connect(f"{bench.folder}/redis.sock")
        connection.sendall(b"MONITOR\r\n")
        commands.readline()  # OK
        time.sleep(SECONDS)
        bench.redis.echo("the end")
        while b"the end" not in (line := commands.readline()):
            if b" lua] " in line:
                inside += 1
            else:
                requests += 1
    return requests, inside


def measure(bench: Bench) -> None:
    """Measure its memory, what it asks of Redis, and its CPU time."""
    bench.redis.flushall()
    with sleeping(bench):
        wakeup = bench.wakeup()
        try:
            cpu = cpu_seconds(wakeup.pid)
            requests, inside = observe(bench)
            cpu = cpu_seconds(wakeup.pid) - cpu
            own, whole = megabytes(wakeup.pid, "RssAnon"), megabytes(wakeup.pid, "VmRSS")
        finally:
            end(wakeup)
    per_minute = 60 / SLEEPERS / SECONDS
    bench.row(
        f"wakeq-wakeup, {SLEEPERS:,} sleepers: memory", f"{own:.0f} MB own, {whole:.0f} MB RSS"
    )
    bench.row(
        "  requests to Redis per sleeper and minute, at rest",
        f"{requests * per_minute:.3f} (whose scripts call {inside * per_minute:.1f} commands)",
    )
    bench.row("  CPU at rest", f"{cpu / SECONDS:.2%}")
