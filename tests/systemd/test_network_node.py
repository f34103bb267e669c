"""wakeq-node on several hosts: whoever leads, each emission comes once, and is handled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import RECORD, Fleet, fleet_on
from network import SHARED, Host, Network

from redis_servers import wait_until
from wakeq import keys

NAME = "clock"
SERVICE = f"wakeq-node@{NAME}.service"
HANDLER = "def handle(message):\n    record(message.text())\n"
SETTINGS = 'handler = "/srv/clock.py:handle"\ninterval = "50ms"\nlease = "5s"\n'
SANDBOX = f"[Service]\nReadWritePaths={SHARED}\n"


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """Three hosts with the node."""
    with fleet_on(network, web1="bookworm", web2="trixie", web3="bookworm") as fleet:
        # The last leader has left, so that the next one need not wait.
        fleet.redis.hset(keys.lease(NAME, NAME), mapping={"holder": "", "token": "1"})
        for host in fleet.hosts.values():
            host.write("/srv/clock.py", RECORD + HANDLER)
            host.write(f"/etc/wakeq/nodes/{NAME}.toml", SETTINGS)
            host.drop_in(SERVICE, SANDBOX)
            host.systemctl("enable", "--quiet", "--now", SERVICE)
        yield fleet


def emissions(fleet: Fleet) -> list[tuple[int, int, str]]:
    """Return token, number and body of each message that was emitted, in order."""
    found = [fields for _, fields in fleet.redis.xrange(NAME)]
    return [(int(each["wakeq.token"]), int(each["wakeq.seq"]), each["body"]) for each in found]


def leader(fleet: Fleet) -> Host:
    """Return the host that leads, as soon as it has emitted something."""

    def emits() -> str | None:
        token, who = fleet.redis.hmget(keys.lease(NAME, NAME), "token", "who")
        found = emissions(fleet)
        return who if found and found[-1][0] == int(token) else None

    who = wait_until(emits, message="the leader emits")
    return fleet.hosts[who.partition("/")[0]]


def wait_for_another(fleet: Fleet, before: Host) -> None:
    """Wait until another host leads, and the third one handles what it emits."""
    wait_until(lambda: leader(fleet) is not before, 120, "another host leads")
    last = emissions(fleet)[-1][2]
    wait_until(lambda: recorded(fleet, last), message="it is handled")


def recorded(fleet: Fleet, *bodies: str) -> bool:
    """Tell whether all these messages were handled."""
    return set(bodies) <= {" ".join(line[2:]) for line in fleet.record()}


def wait_for_follower(fleet: Fleet, host: Host) -> None:
    """Wait until a host follows the one that leads."""
    wait_until(
        lambda: f"follower, {leader(fleet).name}/" in host.status_text(SERVICE),
        message=f"{host.name} follows",
    )


def test_each_emission_comes_once_and_is_handled_once_while_leaders_are_lost(
    fleet: Fleet,
) -> None:
    for how in ("cut", "deafen", "kill_all"):
        lost = leader(fleet)
        getattr(lost, how)()
        wait_for_another(fleet, lost)
        if how == "kill_all":
            lost.start()
        else:
            lost.heal()
        wait_for_follower(fleet, lost)
    bodies = [body for _, _, body in emissions(fleet)]
    wait_until(lambda: recorded(fleet, *bodies), 120, "all is handled")
    for host in fleet.hosts.values():
        host.systemctl("stop", SERVICE)

    emitted = emissions(fleet)
    assert [number for _, number, _ in emitted] == list(range(1, len(emitted) + 1))
    tokens = [token for token, _, _ in emitted]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) >= 4
    # Who was lost had nothing in hand: leaders do not consume.
    handled = [" ".join(line[2:]) for line in fleet.record()]
    assert len(handled) == len(set(handled))
    assert set(bodies) <= set(handled) <= {body for _, _, body in emitted}
