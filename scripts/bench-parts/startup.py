"""wakeq-consumer from exec to its first read, and bare Python, in turns."""

import os
import re
import signal
import socket
import statistics
import sys
import time

from bench import Bench

STARTS = 60


def bare() -> float:
    """Return how many ms Python takes to start, do nothing and end."""
    start = time.time()
    os.waitpid(os.posix_spawn(sys.executable, ["python3", "-c", "pass"], os.environ), 0)
    return (time.time() - start) * 1000


def to_first_read(bench: Bench) -> tuple[float, float, float]:
    """Return how many ms from exec until the server saw the first command, and the first read;
    and how many ms of CPU time that took, on which other processes have little influence."""
    command, environment = bench.command("wakeq-consumer", "load"), bench.environment()
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as commands:
        connection.connect(f"{bench.folder}/redis.sock")
        connection.settimeout(30)  # instead of waiting for a consumer that failed
        connection.sendall(b"MONITOR\r\n")
        commands.readline()  # OK
        start = time.time()  # the clock of what MONITOR says, too
        pid = os.posix_spawn(command[0], command, environment)
        seen = []
        for line in commands:
            seen.append(float(line[1:].split()[0]))
            # Not one inside a script, [0 lua], of which there is none.
            if re.match(rb'\+[0-9.]+ \[0 unix:[^]]*\] "XREADGROUP"', line, re.I):
                break
    # A successor of one that was killed first makes sure that it is dead.
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        cpu_ns = int(file.read().split()[0])
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    return (seen[0] - start) * 1000, (seen[-1] - start) * 1000, cpu_ns / 1e6


def measure(bench: Bench) -> None:
    """Measure it with a handler that imports nothing, and the settings in their files."""
    bench.redis.flushall()
    with open(f"{bench.folder}/nothing.py", "w", encoding="utf-8") as file:
        file.write("def handle(message):\n    pass\n")
    with open(f"{bench.folder}/consumers/load.toml", "w", encoding="utf-8") as file:
        file.write(f'handler = "{bench.folder}/nothing.py:handle"\n')
    times = [(bare(), *to_first_read(bench)) for _ in range(STARTS + 1)][1:]
    os.unlink(f"{bench.folder}/consumers/load.toml")
    python, connected, read, cpu = map(statistics.median, zip(*times, strict=True))
    ratio = statistics.median(row[2] / row[0] for row in times)
    bench.row("bare: python3 -c pass", f"{python:.1f} ms")
    bench.row(
        "start: exec of wakeq-consumer to its first read",
        f"median {read:.1f} ms, {ratio:.2f} of bare, quickest {min(r[2] for r in times):.1f} ms",
    )
    bench.row("  of that: interpreter, imports, configuration", f"{connected:.1f} ms")
    bench.row("  CPU time", f"{cpu:.1f} ms")
