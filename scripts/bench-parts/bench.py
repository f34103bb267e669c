"""What each target measures on: a server and a configuration of its own, consumers, the table."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import redis

BODY = b"x" * 100
BIN = os.path.dirname(sys.executable)
HANDLERS = f"{os.path.dirname(os.path.abspath(__file__))}/handlers.py"


class Bench:
    """A server and a configuration directory of its own, in a temporary folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", "",
             "--dir", folder],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.redis = redis.Redis(unix_socket_path=f"{folder}/redis.sock", socket_timeout=60)
        os.makedirs(f"{folder}/consumers")
        os.makedirs(f"{folder}/run/consumer")
        self.rows: list[tuple[str, str]] = []
        wait_for(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.redis.ping())
        return False

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return what runs one of our programs on this server and this configuration."""
        return [f"{BIN}/{program}", *arguments, f"--config-dir={self.folder}",
                f"--redis-url={self.url}", "--log-level=warning"]  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a program; handlers.py tells what it saw in the folder."""
        return {**os.environ, "OUT": self.folder, **more}

    def consumer(
        self, *options: str, name: str = "load", **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Start a consumer of the stream `load`."""
        return subprocess.Popen(
            self.command("wakeq-consumer", name, *options), env=self.environment(**environment)
        )

    def wakeup(self) -> "subprocess.Popen[bytes]":
        """Start wakeq-wakeup, and wait until it watches its consumers."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"{self.folder}/notify.sock")
        notify.settimeout(30)
        process = subprocess.Popen(
            self.command("wakeq-wakeup", f"--runtime-dir={self.folder}/run"),
            env=self.environment(NOTIFY_SOCKET=f"{self.folder}/notify.sock"),
        )
        while b"READY=1" not in notify.recv(4096):
            pass
        notify.close()
        os.unlink(f"{self.folder}/notify.sock")
        return process

    def told(self) -> tuple[int, float, float, list[float]]:
        """Return what handlers.py wrote at its end: count, first and last time, latencies."""
        with open(f"{self.folder}/told", encoding="utf-8") as file:
            told: tuple[int, float, float, list[float]] = eval(file.read())  # our own repr
        return told

    def handled(self) -> int:
        """Return how many messages were acknowledged, by the counter."""
        return int(self.redis.hget("wakeq:{load}:stats:load", "handled") or 0)

    def commands(self) -> int:
        """Return how many commands the server has carried out."""
        return int(self.redis.info("stats")["total_commands_processed"])

    def fill(self, count: int, body: bytes = BODY) -> None:
        """Have a backlog of so many messages, and nothing else."""
        self.redis.flushall()
        self.add(count, body)

    def add(self, count: int, body: bytes = BODY) -> None:
        """Add so many messages."""
        step = max(1, min(5000, 20_000_000 // len(body)))
        for start in range(0, count, step):
            pipe = self.redis.pipeline(transaction=False)
            for _ in range(min(step, count - start)):
                pipe.xadd("load", {"body": body})
            pipe.execute()

    def row(self, what: str, figure: str) -> None:
        """Add a line to the table."""
        self.rows.append((what, figure))
        print(f"  {what:<58} {figure}", flush=True)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds, not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("bench: gave up waiting: something is wrong, no figures")
        time.sleep(0.005)  # between two looks; what is timed is timed by the handlers


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and wait for it."""
    process.terminate()
    process.wait(timeout=30)


def megabytes(pid: int, name: str) -> float:
    """Return a field of /proc/PID/status, such as VmRSS, in MB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":")) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        parts = file.read().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def bench_in_folder() -> Iterator[Bench]:
    """Provide a bench, and leave nothing of it behind."""
    with tempfile.TemporaryDirectory(prefix="wakeq-bench-") as folder:
        bench = Bench(folder)
        try:
            yield bench
        finally:
            bench.redis.close()
            bench.server.terminate()
            bench.server.wait()
