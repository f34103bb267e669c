"""XADD to handler entry through wakeq-wakeup and a real exec."""

import os
import select
import signal
import socket
import statistics
import threading
import time

from bench import HANDLERS, Bench, end, wait_for

STARTS = 25


class Activator:
    """Does what systemd does with a socket unit: starts the consumer at a connection."""

    def __init__(self, bench: Bench) -> None:
        self._path = f"{bench.folder}/run/consumer/load.sock"
        self._argv = bench.command("wakeq-consumer", "load")
        self._environment = bench.environment(LISTEN_FDS="1")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(128)
        self.pid = 0
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._stop], [], [])
            if self._stop in ready:
                return
            self.pid = self._start()
            os.waitpid(self.pid, 0)
            self.pid = 0

    def _start(self) -> int:
        # A shell sets LISTEN_PID, which the consumer must see as its own, and becomes it.
        script = 'export LISTEN_PID=$$; exec "$0" "$@" 3<&0'
        return os.posix_spawn(
            "/bin/sh", ["sh", "-c", script, *self._argv],
            {**self._environment, "ACTIVATED": repr(time.monotonic())},
            file_actions=[(os.POSIX_SPAWN_DUP2, self._listener.fileno(), 0)],
        )  # fmt: skip

    def close(self) -> None:
        """End the consumer and the listening."""
        os.write(self._stopped, b"x")
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
        self._thread.join()
        self._listener.close()
        os.unlink(self._path)


def measure(bench: Bench) -> None:
    """Measure one start after another; the first does not count."""
    bench.redis.flushall()
    with open(f"{bench.folder}/consumers/load.toml", "w", encoding="utf-8") as file:
        file.write(f'handler = "{HANDLERS}:stamp_at_once"\n')
    activator = Activator(bench)
    wakeup = bench.wakeup()
    try:
        for done in range(1, STARTS + 2):
            bench.redis.xadd("load", {"body": repr(time.monotonic())})
            wait_for(lambda done=done: bench.handled() == done)
            os.kill(activator.pid, signal.SIGTERM)
            wait_for(lambda: not activator.pid)
            time.sleep(0.3)  # until wakeq-wakeup has looked and watches again
    finally:
        end(wakeup)
        activator.close()
        os.unlink(f"{bench.folder}/consumers/load.toml")
    with open(f"{bench.folder}/cold", encoding="utf-8") as file:
        marks = [[float(word) * 1000 for word in line.split()] for line in file][1:]
    steps = [statistics.median(m[i + 1] - m[i] for m in marks) for i in range(3)]
    bench.row(
        "cold: XADD to handler entry, through wakeup and exec",
        f"median {statistics.median(m[3] - m[0] for m in marks):.1f} ms",
    )
    bench.row("  of that: wakeup sees the message and connects", f"{steps[0]:.1f} ms")
    bench.row("  of that: exec, interpreter, imports, configuration", f"{steps[1]:.1f} ms")
    bench.row("  of that: connect, join, read, hand to the lane", f"{steps[2]:.1f} ms")
