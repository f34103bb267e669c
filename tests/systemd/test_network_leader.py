"""wakeq-leader on several hosts: what is bound to its target runs on one of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import Fleet, fleet_on
from network import SHARED, Host, Network

from redis_servers import wait_until
from wakeq import keys

SERVICE, TARGET = "wakeq-leader@nightly.service", "wakeq-leader@nightly.target"
BOUND = f"[Unit]\nBindsTo={TARGET}\nAfter={TARGET}\n"
INSTALL = f"[Install]\nWantedBy={TARGET}\n"
# Goes on until it is killed.
JOB = f"""{BOUND}
[Service]
ExecStart=/bin/sh -c 'trap "" TERM; while :; do echo %H job >>{SHARED}/record; sleep 0.05; done'
TimeoutStopSec=2s
{INSTALL}"""
TIMER = f"{BOUND}\n[Timer]\nOnCalendar=*:*:0/3\nAccuracySec=10ms\n{INSTALL}"
REPORT = f"""{BOUND}
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo %H report >>{SHARED}/record'
TimeoutStopSec=2s
"""
# The job was killed.
STOPPED = ("inactive", "failed")
UNITS = {"job.service": JOB, "report.timer": TIMER, "report.service": REPORT}


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """Three hosts with the same units."""
    with fleet_on(network, web1="bookworm", web2="trixie", web3="bookworm") as fleet:
        yield fleet


def begin(fleet: Fleet, lease: str) -> Host:
    """Have one of the hosts lead, and return it."""
    # The last leader has left, so that the next one need not wait.
    fleet.redis.hset(keys.lease("nightly"), mapping={"holder": "", "token": "1"})
    for host in fleet.hosts.values():
        for name, text in UNITS.items():
            host.write(f"/etc/systemd/system/{name}", text)
        with host.path("/etc/wakeq/wakeq.toml").open("a") as file:
            # More than it takes, so that systemd need not be quick about it.
            file.write(f'[leader]\nlease = "{lease}"\nstop_timeout = "6s"\n')
        host.systemctl("daemon-reload")
        host.systemctl("enable", "--quiet", "report.timer", "job.service")
        host.systemctl("enable", "--quiet", "--now", "--no-block", SERVICE)
    first = next_leader(fleet)
    for host in fleet.hosts.values():
        if host is not first:
            wait_for_candidate(host, first)
    return first


def leads(host: Host) -> bool:
    """Tell whether what is bound to the target runs on a host."""
    units = (SERVICE, TARGET, "job.service", "report.timer")
    return [host.state(unit) for unit in units] == ["active"] * 4


def next_leader(fleet: Fleet, before: Host | None = None) -> Host:
    """Wait until another host leads, and return it."""
    others = [host for host in fleet.hosts.values() if host is not before]

    def found() -> Host | None:
        return next((host for host in others if host.leader and leads(host)), None)

    host = wait_until(found, 120, "another host leads")
    lines = len(fleet.record())
    wait_until(lambda: [host.name, "report"] in fleet.record()[lines:], message="a report is made")
    return host


def wait_for_candidate(host: Host, leader: Host) -> None:
    """Wait until a host stands by for another one that leads."""
    wait_until(
        lambda: f"candidate, {leader.name}/" in host.status_text(SERVICE),
        message=f"{host.name} is a candidate",
    )
    assert host.state(SERVICE) == "activating"
    for unit in ("job.service", "report.timer", TARGET):
        assert host.state(unit) in STOPPED


def usec(host: Host, unit: str, name: str) -> int:
    """Return when a unit changed its state, by the clock that the hosts have in common, in us."""
    return int(host.show(unit, f"{name}TimestampMonotonic"))


def check_turns(fleet: Fleet, *leaders: Host) -> None:
    """Fail unless what is bound ran on these hosts, on one after the other."""
    hosts = [words[0] for words in fleet.record()]
    turns = [name for before, name in zip(["", *hosts], hosts, strict=False) if name != before]
    assert turns == [host.name for host in leaders]


def test_a_leader_without_its_network_or_power_ends_before_another_one_leads(
    fleet: Fleet,
) -> None:
    leaders = [begin(fleet, "12s")]
    for how in ("cut", "deafen"):
        lost = leaders[-1]
        getattr(lost, how)()
        leaders.append(next_leader(fleet, before=lost))
        for unit in ("job.service", "report.timer", TARGET):
            assert lost.state(unit) in STOPPED
            ended = usec(lost, unit, "InactiveEnter")
            assert 0 < ended < usec(leaders[-1], TARGET, "ActiveEnter")
        lost.heal()
        wait_for_candidate(lost, leaders[-1])

    lost = leaders[-1]
    lost.kill_all()
    leaders.append(next_leader(fleet, before=lost))
    lost.start()
    wait_for_candidate(lost, leaders[-1])
    check_turns(fleet, *leaders)


def test_a_host_that_is_shut_down_hands_over_at_once(fleet: Fleet) -> None:
    first = begin(fleet, "10min")
    first.power_off()
    second = next_leader(fleet, before=first)
    second.systemctl("stop", SERVICE)
    third = next_leader(fleet, before=second)
    check_turns(fleet, first, second, third)
