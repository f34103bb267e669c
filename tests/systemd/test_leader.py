"""wakeq-leader in a booted system: what is bound to its target runs while it leads, only then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from wakeq_machine import WakeqMachine

from redis_servers import wait_until

ROOT = Path(__file__).parents[2]
SERVICE, TARGET = "wakeq-leader@night.service", "wakeq-leader@night.target"
LEASE = "wakeq:lease:night"
BOUND = f"BindsTo={TARGET}\nAfter={TARGET}\n"
INSTALL = f"[Install]\nWantedBy={TARGET}\n"
# Appends that it begins, and then the time, again and again.
JOB = f"""[Unit]
{BOUND}
[Service]
ExecStart=/bin/sh -c 'echo begins >>/run/job; while date +%%s.%%N >>/run/job; do sleep 0.05; done'
TimeoutStopSec=2s
{INSTALL}"""
TIMER = (
    f"[Unit]\n{BOUND}\n[Timer]\nOnActiveSec=0\nOnUnitActiveSec=200ms\nAccuracySec=1ms\n{INSTALL}"
)
TICK = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo tick >>/run/ticks'\n"
UNITS = (SERVICE, TARGET, "job.service", "tick.timer")
# What takes longer than its TimeoutStopSec= is killed.
STOPPED = {"inactive", "failed"}
# What another host's leader would have in Redis.
OTHER = {"holder": "elsewhere", "who": "web2/7", "token": "9" * 15, "beat": "0", "lease": "10000"}


@pytest.fixture
def host(machine: WakeqMachine) -> Iterator[WakeqMachine]:
    """A system with a service and a timer that are bound to the target."""
    machine.write("/etc/systemd/system/job.service", JOB)
    machine.write("/etc/systemd/system/tick.timer", TIMER)
    machine.write("/etc/systemd/system/tick.service", TICK)
    machine.write("/etc/wakeq/wakeq.toml", '[leader]\nlease = "8s"\n')
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--quiet", "job.service", "tick.timer")
    yield machine


def resigned(machine: WakeqMachine, name: str = "night") -> None:
    """Have Redis know that the last leader has left, so that the next one need not wait."""
    with machine.redis() as client:
        client.hset(f"wakeq:lease:{name}", mapping={"holder": "", "token": "1"})


def occupy(machine: WakeqMachine, lease_ms: int = 600_000) -> None:
    """Have another host lead for long."""
    with machine.redis() as client:
        until = (client.time()[0] * 1000) + lease_ms
        client.hset(LEASE, mapping={**OTHER, "until": until, "lease": lease_ms})


def start(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", "--now", "--no-block", SERVICE)


def states(machine: WakeqMachine) -> list[str]:
    return [machine.state(unit) for unit in UNITS]


def wait_until_leading(machine: WakeqMachine) -> None:
    wait_until(lambda: states(machine) == ["active"] * 4, 120, "it leads, and all runs")


def all_is_stopped(machine: WakeqMachine) -> bool:
    """Tell whether nothing runs that is bound to the target, and not the target either."""
    return set(states(machine)[1:]) <= STOPPED


def runs(machine: WakeqMachine) -> list[list[float]]:
    """Return for each life of the job when it did something, by the clock of the host."""
    file = machine.path("/run/job")
    text = file.read_text() if file.exists() else ""
    lives = text[: text.rfind("\n") + 1].split("begins\n")[1:]
    return [[float(line) for line in life.splitlines()] for life in lives]


def test_what_is_bound_runs_while_it_leads_and_only_then(host: WakeqMachine) -> None:
    occupy(host)
    start(host)
    wait_until(lambda: host.status_text(SERVICE) == "candidate, web2/7 leads")
    assert states(host) == ["activating", "inactive", "inactive", "inactive"]

    with host.redis() as client:
        client.hset(LEASE, "holder", "")
        client.publish("wakeq:vacancy:night", "x")
    wait_until_leading(host)
    wait_until(lambda: host.path("/run/ticks").exists(), message="the timer starts its service")

    occupy(host)  # as after a fail-over that has lost who leads here
    with host.redis() as client:
        client.hset(LEASE, "token", 9 * 10**15)
    wait_until(lambda: all_is_stopped(host), message="all was stopped")
    host.wait_for_state(SERVICE, "activating")  # it is a candidate again

    with host.redis() as client:
        client.hset(LEASE, "holder", "")
    host.systemctl("restart", "--no-block", SERVICE)
    wait_until_leading(host)


def test_a_stop_ends_what_is_bound_before_the_lease_is_handed_over(host: WakeqMachine) -> None:
    resigned(host)
    start(host)
    wait_until_leading(host)

    host.systemctl("stop", SERVICE)

    assert host.state(SERVICE) == "inactive"
    assert all_is_stopped(host)
    with host.redis() as client:
        assert client.hget(LEASE, "holder") == ""
    log = host.log("--output=cat")
    assert log.index("Stopped job.service") < log.index(f"Stopping {SERVICE}")


def test_a_frozen_leader_is_ended_with_all_that_is_bound_before_its_lease_is_over(
    host: WakeqMachine,
) -> None:
    # Much longer than it takes systemd, so that it need not be quick about it.
    host.write("/etc/wakeq/wakeq.toml", '[leader]\nlease = "20s"\n')
    resigned(host)
    start(host)
    wait_until_leading(host)
    wait_until(lambda: any(runs(host)), message="the job runs")
    pid = host.show(SERVICE, "MainPID")

    host.run("kill", "-STOP", pid)
    with host.redis() as client:
        until = int(client.hget(LEASE, "until")) / 1000
    wait_until(lambda: host.state(SERVICE) != "active", message="systemd has ended it")

    wait_until(lambda: host.state("job.service") in STOPPED, message="the job was stopped")
    assert "watchdog" in host.log("--output=cat", "-u", SERVICE).lower()
    # The host and its Redis have one clock.
    assert runs(host)[0][-1] < until


def test_a_candidate_holds_up_neither_the_boot_nor_the_target(host: WakeqMachine) -> None:
    occupy(host)
    start(host)
    host.systemctl("enable", "--quiet", "wakeq.target")
    host.systemctl("start", "wakeq.target")
    assert host.state("wakeq.target") == "active"
    assert host.state("multi-user.target") == "active"
    assert host.state(SERVICE) == "activating"
    host.systemctl("stop", "wakeq.target")
    host.wait_for_state(SERVICE, "inactive")


def test_a_host_boots_as_a_candidate(host: WakeqMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    occupy(host)
    start(host)
    # It stays "starting" for as long as it is a candidate, as wakeq-leader(8) says.
    booted = ("systemctl", "is-active", "multi-user.target")
    monkeypatch.setattr(host, "_has_booted", lambda: host.call(*booted).returncode == 0)
    host.reboot()
    wait_until(lambda: host.status_text(SERVICE) == "candidate, web2/7 leads")
    assert host.call("systemctl", "is-system-running").stdout.strip() == "starting"
    assert states(host)[1:] == ["inactive"] * 3


def test_the_example_of_the_manual_works(machine: WakeqMachine) -> None:
    page = (ROOT / "packaging/man/wakeq-leader.8").read_text().replace("\\-", "-")
    examples = re.findall(r"(?s)^\.EX$(.*?)^\.EE$", page, re.MULTILINE)
    example = next(text for text in examples if "[Timer]" in text)
    for name, text in re.findall(r"(?s)^# (/etc/\S+)\n(.*?)(?=^# /etc|\Z)", example, re.MULTILINE):
        machine.write(name, text.replace("*-*-* 03:00", "*-*-* *:*:*"))
    machine.write("/usr/local/bin/report", "#!/bin/sh\necho made >>/run/reports\n")
    machine.path("/usr/local/bin/report").chmod(0o755)
    machine.systemctl("daemon-reload")
    resigned(machine, "nightly")
    machine.systemctl("enable", "--quiet", "report.timer")
    machine.systemctl("enable", "--quiet", "--now", "--no-block", "wakeq-leader@nightly")
    wait_until(lambda: machine.path("/run/reports").exists(), message="a report was made")
    machine.systemctl("stop", "wakeq-leader@nightly")
    assert machine.state("report.timer") == "inactive"
    made = machine.path("/run/reports").read_text()
    machine.systemctl("start", "wakeq-leader@nightly")
    wait_until(lambda: machine.path("/run/reports").read_text() != made, message="more are made")


def test_an_upgrade_restarts_a_candidate_and_does_not_wait_for_it(host: WakeqMachine) -> None:
    occupy(host)
    start(host)
    wait_until(lambda: host.status_text(SERVICE) == "candidate, web2/7 leads")
    before = host.show(SERVICE, "MainPID")
    host.run("dpkg", "--install", "/root/new.deb")
    wait_until(
        lambda: host.show(SERVICE, "MainPID") not in (before, "0"), message="it was restarted"
    )
    assert host.state(SERVICE) == "activating"


def test_killed_it_leads_again_after_the_lease_and_so_does_what_is_bound(
    host: WakeqMachine,
) -> None:
    resigned(host)
    start(host)
    wait_until_leading(host)

    host.kill(SERVICE)
    with host.redis() as client:
        until = int(client.hget(LEASE, "until")) / 1000

    # It is stopped, else it could not begin again.
    again = wait_until(lambda: any(runs(host)[1:]) and runs(host)[1], message="it begins again")
    # The host and its Redis have one clock.
    assert again[0] >= until
    wait_until_leading(host)


def test_a_lease_that_is_too_short_for_the_watchdog_is_said_once(host: WakeqMachine) -> None:
    host.write("/etc/wakeq/wakeq.toml", '[leader]\nlease = "6s"\n')
    assert host.call("systemctl", "start", SERVICE).returncode != 0
    assert host.show(SERVICE, "ExecMainStatus") == "78"
    log = host.log("--output=cat", "SYSLOG_IDENTIFIER=wakeq-leader")
    assert "lease must be at least 6.4s, not 6s" in log
    assert "WatchdogSec= (3s)" in log
