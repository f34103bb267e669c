"""XADD to handler entry in booted Debian systems: wakeq-wakeup, socket unit, sandboxed service.

Needs root and what `scripts/setup --test` installs, so it is measured only by its name. The
systems are those of tests/systemd; what is installed in them is the package built from this tree.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from bench import Bench

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests/systemd"))

from booted_machine import reason_not_to_boot
from booted_root import SUITES, base_root
from wakeq_machine import WAKEUP, WakeqMachine, service

from redis_servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 4
STARTS = 8
# The clock of the system in the container is that of this one.
HANDLER = """
import time

imported = time.monotonic()

def handle(message):
    print("handled", message.text(), imported, time.monotonic(), flush=True)
"""


def measure(bench: Bench) -> None:
    """Measure each Debian release by itself, with the sandbox and without, in turns."""
    if reason := reason_not_to_boot():
        raise SystemExit(f"bench: booted: {reason}")
    with tempfile.TemporaryDirectory(prefix="p") as folder:
        subprocess.run([ROOT / "scripts/build-deb", folder], check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.deb")
        for suite in SUITES:
            machine = WakeqMachine(suite, base_root(suite))
            try:
                machine.start()
                machine.prepare()
                machine.install(package)
                _measure(bench, machine)
            finally:
                machine.end()


def _measure(bench: Bench, machine: WakeqMachine) -> None:
    machine.start_redis()
    machine.configure("load", HANDLER)
    machine.enable("load")
    marks: dict[bool, list[list[float]]] = {True: [], False: []}
    with machine.redis() as client:
        client.config_set("appendonly", "no")  # as Debian has it; the tests have not
        _wake(machine, client)  # the first does not count: nothing has been loaded yet
        for _, sandboxed in itertools.product(range(ROUNDS), (True, False)):
            _set_sandbox(machine, sandboxed)
            marks[sandboxed] += [_wake(machine, client) for _ in range(STARTS)]
    whole = sorted(mark[3] - mark[0] for mark in marks[True])
    without = sorted(mark[3] - mark[0] for mark in marks[False])
    bench.row(
        f"{machine.suite}: XADD to handler entry, {len(whole)} starts",
        f"median {statistics.median(whole):.1f} ms, p90 {whole[len(whole) * 9 // 10]:.1f} ms,"
        f" least {whole[0]:.1f} ms",
    )
    for number, step in enumerate((
        "wakeup sees the message, systemd begins",
        "sandbox, exec, interpreter, imports",
        "connect, join, read, hand to the lane",
    )):  # fmt: skip
        median = statistics.median(mark[number + 1] - mark[number] for mark in marks[True])
        bench.row(f"  of that: {step}", f"{median:.1f} ms")
    bench.row(
        "  the same without the sandbox",
        f"median {statistics.median(without):.1f} ms, least {without[0]:.1f} ms",
    )


def _wake(machine: WakeqMachine, client: redis.Redis) -> list[float]:
    """Return the times in ms of one life: published, begun by systemd, imported, called."""
    wait_until(lambda: "1 asleep" in machine.status_text(WAKEUP), 30)
    time.sleep(0.2)  # until the machine is at rest
    client.ping()  # its connection may be new
    published = time.monotonic()
    client.xadd("load", {"body": repr(published)})
    time.sleep(0.5)  # looking for it would take CPU time from it
    wait_until(lambda: _life(machine, published), 30)
    begun = int(machine.show(service("load"), "InactiveExitTimestampMonotonic")) / 1e6
    imported, called = _life(machine, published)
    machine.wait_for_state(service("load"), "inactive")
    return [moment * 1000 for moment in (published, begun, imported, called)]


def _life(machine: WakeqMachine, published: float) -> list[float]:
    """Return when the handler was imported and called for the message, if it was."""
    for line in machine.handled("load"):
        body, *moments = map(float, line.split())
        if body == published:
            return moments
    return []


def _set_sandbox(machine: WakeqMachine, on: bool) -> None:
    # A file of that name in /etc stands for the package's; this one is empty.
    mask = "/etc/systemd/system/wakeq-.service.d/10-sandbox.conf"
    if on:
        machine.run("rm", "--force", mask)
    else:
        machine.write(mask, "")
    machine.systemctl("daemon-reload")
