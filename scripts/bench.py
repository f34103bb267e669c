"""Measures wakeq against a bare redis-py loop, in one run, on a server of its own.

    scripts/bench                      everything, about four minutes
    scripts/bench throughput cold ...  some of: throughput, latency, cold, sleepers, memory

Figures of a shared or small machine move by a quarter from run to run; ratios move less,
because what is compared is measured in turns. Loads are bounded and end by themselves.
"""

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import redis

MESSAGES = 200_000
ROUNDS = 3
BODY = b"x" * 100
BIN = os.path.dirname(sys.executable)

HANDLERS = """
import atexit, os, time
imported = time.monotonic()
seen = []
count = first = last = 0

def noop(message):
    global count, first, last
    count += 1
    if count == 1:
        first = time.monotonic()
    elif count == TOTAL:
        last = time.monotonic()

async def async_noop(message):
    noop(message)

def stamp(message):
    seen.append((time.monotonic() - float(message.body)) * 1000)

def stamp_at_once(message):
    now = time.monotonic()
    with open(OUT + "/cold", "a") as file:
        file.write(f"{message.text()} {os.environ['ACTIVATED']} {imported} {now}\\n")

@atexit.register
def tell():
    with open(OUT + "/told", "w") as file:
        file.write(repr((count, first, last, seen)))
"""


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

    def write(self, name: str, total: int = 0) -> str:
        """Write the handlers' file and return its path."""
        path = f"{self.folder}/{name}.py"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"TOTAL, OUT = {total}, {self.folder!r}\n{HANDLERS}")
        return path

    def consumer(self, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a consumer of the stream `load`."""
        return subprocess.Popen(
            [f"{BIN}/wakeq-consumer", "load", f"--config-dir={self.folder}",
             f"--redis-url={self.url}", "--log-level=warning", *options],
            env={**os.environ, **environment},
        )  # fmt: skip

    def told(self) -> tuple[int, float, float, list[float]]:
        """Return what the handlers' file wrote at its end."""
        with open(f"{self.folder}/told", encoding="utf-8") as file:
            told: tuple[int, float, float, list[float]] = eval(file.read())  # our own repr
        return told

    def handled(self) -> int:
        """Return how many messages were acknowledged, by the counter."""
        return int(self.redis.hget("wakeq:{load}:stats:load", "handled") or 0)

    def fill(self, count: int, body: bytes = BODY) -> None:
        """Have a backlog of so many messages, and nothing else."""
        self.redis.flushall()
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


def field(pid: int, name: str) -> int:
    """Return a field of /proc/PID/status in kB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process in clock ticks."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        parts = file.read().rpartition(")")[2].split()
    return int(parts[11]) + int(parts[12])


def bare_loop(bench: Bench) -> float:
    """Return messages per second of XREADGROUP COUNT 500 + XACK over redis-py."""
    bench.redis.xgroup_create("load", "bare", id="0")
    count = 0
    start = time.monotonic()
    while reply := bench.redis.xreadgroup("bare", "c", {"load": ">"}, count=500):
        ids = [entry_id for entry_id, _ in reply[0][1]]
        bench.redis.xack("load", "bare", *ids)
        count += len(ids)
    return count / (time.monotonic() - start)


def drain(bench: Bench, handler: str, total: int, *options: str) -> float:
    """Return messages per second of a consumer that works off a backlog."""
    path = bench.write("drain", total)
    process = bench.consumer(f"--handler={path}:{handler}", *options)
    wait_for(lambda: bench.handled() == total, 120)
    end(process)
    count, first, last, _ = bench.told()
    assert count == total, f"{count} of {total} handled"
    return total / (last - first)


def throughput(bench: Bench) -> None:
    """Compare no-op consumers with the bare loop, in turns."""
    bare, sync, coroutine = [], [], []
    for _ in range(ROUNDS):
        bench.fill(MESSAGES)
        bare.append(bare_loop(bench))
        sync.append(drain(bench, "noop", MESSAGES))
        bench.fill(MESSAGES)
        coroutine.append(drain(bench, "async_noop", MESSAGES))
    bench.row("bare redis-py loop", f"{statistics.median(bare):,.0f}/s")
    for name, rates in (("sync", sync), ("async", coroutine)):
        ratio = statistics.median(r / b for r, b in zip(rates, bare, strict=True))
        bench.row(
            f"wakeq-consumer, {name} no-op handler",
            f"{statistics.median(rates):,.0f}/s, {ratio:.2f} of the bare loop",
        )
    count = 1000
    for lanes in (1, 2):
        bench.fill(count)
        start = time.monotonic()
        process = bench.consumer("--exec=/bin/true", f"--concurrency={lanes}")
        wait_for(lambda: bench.handled() == count)
        rate = count / (time.monotonic() - start)
        end(process)
        bench.row(f"a program (/bin/true) per message, {lanes} at once", f"{rate:,.0f}/s")
    start = time.monotonic()
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    bench.row("bare fork and exec of /bin/true", f"{count / (time.monotonic() - start):,.0f}/s")


def latency(bench: Bench) -> None:
    """Measure publish to handler entry with the consumer awake."""
    bench.redis.flushall()
    process = bench.consumer(f"--handler={bench.write('warm')}:stamp")
    bench.redis.xadd("load", {"body": repr(time.monotonic())})
    wait_for(lambda: bench.handled() == 1)
    for _ in range(1000):
        bench.redis.xadd("load", {"body": repr(time.monotonic())})
        time.sleep(0.002)
    wait_for(lambda: bench.handled() == 1001)
    end(process)
    seen = sorted(bench.told()[3][1:])
    bench.row(
        "warm: publish to handler entry",
        f"median {statistics.median(seen):.2f} ms, p99 {seen[int(len(seen) * 0.99)]:.2f} ms",
    )


class Activator:
    """Does what systemd does with a socket unit: starts the consumer at a connection."""

    def __init__(self, bench: Bench, *options: str) -> None:
        self._path = f"{bench.folder}/run/consumer/load.sock"
        self._argv = [f"{BIN}/wakeq-consumer", "load", f"--config-dir={bench.folder}",
                      f"--redis-url={bench.url}", "--log-level=warning", *options]  # fmt: skip
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
        environment = {**os.environ, "LISTEN_FDS": "1", "ACTIVATED": repr(time.monotonic())}
        return os.posix_spawn(
            "/bin/sh", ["sh", "-c", script, *self._argv], environment,
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


def start_wakeup(bench: Bench, sleepers: int) -> "subprocess.Popen[bytes]":
    """Start wakeq-wakeup, and wait until it watches its consumers."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(f"{bench.folder}/notify.sock")
    notify.settimeout(30)
    process = subprocess.Popen(
        [f"{BIN}/wakeq-wakeup", f"--config-dir={bench.folder}", f"--redis-url={bench.url}",
         f"--runtime-dir={bench.folder}/run", "--log-level=warning"],
        env={**os.environ, "NOTIFY_SOCKET": f"{bench.folder}/notify.sock"},
    )  # fmt: skip
    while b"READY=1" not in notify.recv(4096):
        pass
    notify.close()
    os.unlink(f"{bench.folder}/notify.sock")
    return process


def cold(bench: Bench) -> None:
    """Measure XADD to handler entry through wakeq-wakeup and a real exec."""
    bench.redis.flushall()
    handler = f"{bench.write('sleeper')}:stamp_at_once"
    with open(f"{bench.folder}/consumers/load.toml", "w", encoding="utf-8") as file:
        file.write(f'handler = "{handler}"\n')
    activator = Activator(bench)
    wakeup = start_wakeup(bench, 1)
    try:
        for done in range(1, 26):
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


def commands(bench: Bench) -> int:
    """Return how many commands the server has carried out."""
    return int(bench.redis.info("stats")["total_commands_processed"])


def requests(bench: Bench) -> int:
    """Return how many requests wakeq-wakeup has sent, without what its scripts call inside."""
    stats = bench.redis.info("commandstats")
    sent = ("eval", "evalsha", "xread", "sadd", "ping", "client|unblock")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in sent)


def sleepers(bench: Bench, count: int = 1000, seconds: float = 65.0) -> None:
    """Measure wakeq-wakeup at rest with many sleeping consumers."""
    bench.redis.flushall()
    sockets = []
    for number in range(count):
        with open(f"{bench.folder}/consumers/s{number}.toml", "w", encoding="utf-8") as file:
            file.write('exec = ["/bin/true"]\n')
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{bench.folder}/run/consumer/s{number}.sock")
        listener.listen(1)
        sockets.append(listener)
    wakeup = start_wakeup(bench, count)
    try:
        before, all_before, ticks = requests(bench), commands(bench), cpu_ticks(wakeup.pid)
        time.sleep(seconds)
        all_after, after = commands(bench), requests(bench)
        ticks = cpu_ticks(wakeup.pid) - ticks
        memory = field(wakeup.pid, "RssAnon") / 1024
        whole = field(wakeup.pid, "VmRSS") / 1024
    finally:
        end(wakeup)
        for listener in sockets:
            listener.close()
        shutil.rmtree(f"{bench.folder}/run/consumer")
        os.makedirs(f"{bench.folder}/run/consumer")
    per_minute = 60 / count / seconds
    inside = (all_after - all_before - (after - before)) * per_minute
    bench.row(
        f"wakeq-wakeup, {count:,} sleepers: memory", f"{memory:.0f} MB own, {whole:.0f} MB RSS"
    )
    bench.row(
        "  requests to Redis per sleeper and minute, at rest",
        f"{(after - before) * per_minute:.3f} (which run {inside:.1f} commands in scripts)",
    )
    bench.row("  CPU at rest", f"{ticks / os.sysconf('SC_CLK_TCK') / seconds:.2%}")


def memory(bench: Bench) -> None:
    """Measure a consumer at rest, with a long backlog and with large messages."""
    path = bench.write("rest")
    bench.redis.flushall()
    process = bench.consumer(f"--handler={path}:stamp")
    bench.redis.xadd("load", {"body": b"0"})
    wait_for(lambda: bench.handled() == 1)
    time.sleep(3)  # until it is at rest, its logging loaded
    before, ticks = commands(bench), cpu_ticks(process.pid)
    time.sleep(10)
    rate = (commands(bench) - before - 1) / 10
    ticks = cpu_ticks(process.pid) - ticks
    idle = field(process.pid, "VmRSS") / 1024
    end(process)
    cpu = ticks / os.sysconf("SC_CLK_TCK") / 10
    bench.row("consumer at rest: memory", f"{idle:.0f} MB RSS")
    bench.row("  Redis commands and CPU", f"{rate:.1f}/s, {cpu:.1%}")
    bench.fill(1_000_000)
    process = bench.consumer(f"--handler={path}:noop")
    wait_for(lambda: bench.handled() > 900_000, 120)
    peak = field(process.pid, "VmHWM") / 1024
    end(process)
    bench.row("  with a backlog of 1,000,000 messages", f"{peak - idle:+.0f} MB")
    bench.fill(200, b"x" * 1_000_000)
    process = bench.consumer(f"--handler={path}:noop", "--prefetch=4")
    wait_for(lambda: bench.handled() == 200)
    peak = field(process.pid, "VmHWM") / 1024
    end(process)
    bench.row("  with messages of 1 MB, prefetch = 4", f"{peak - idle:+.0f} MB")


MEASUREMENTS = {
    "throughput": throughput,
    "latency": latency,
    "cold": cold,
    "sleepers": sleepers,
    "memory": memory,
}


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


def main() -> None:
    """Run the measurements named on the command line, or all."""
    names = [name for name in sys.argv[1:] if name != "--json"] or list(MEASUREMENTS)
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        raise SystemExit(f"bench: no measurement {unknown.pop()!r}; there are {[*MEASUREMENTS]}")
    with bench_in_folder() as bench:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line for line in file if line.startswith("model name")), "?: ?")
        print(
            f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores,"
            f" Linux {platform.release()}, Python {platform.python_version()},"
            f" redis-py {redis.__version__}, Redis {bench.redis.info('server')['redis_version']},"
            f" load {os.getloadavg()[0]:.1f}"
        )
        for name in names:
            print(f"{name}: {MEASUREMENTS[name].__doc__}")
            MEASUREMENTS[name](bench)
    if "--json" in sys.argv:
        print(json.dumps(dict(bench.rows)))


if __name__ == "__main__":
    main()
