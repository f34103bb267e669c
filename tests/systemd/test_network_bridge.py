"""wakeq-bridge on several hosts: each message once, and another host takes over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import Fleet, fleet_on
from network import Host, Network

from redis_servers import wait_until
from wakeq import keys

SERVICE = "wakeq-bridge@clicks.service"
CHANNEL, STREAM = "messages:published", "messages:processed"
SETTINGS = f'channel = "{CHANNEL}"\nlease = "6s"\n'


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """Two hosts with the bridge."""
    with fleet_on(network, web1="bookworm", web2="trixie") as fleet:
        for host in fleet.hosts.values():
            host.write("/etc/wakeq/bridges/clicks.toml", SETTINGS)
            host.systemctl("enable", "--quiet", "--now", SERVICE)
        yield fleet


def holder(fleet: Fleet) -> Host | None:
    """Return the host that takes the messages."""
    key = keys.bridge_lease(CHANNEL, "clicks")
    instance, begun = fleet.redis.hmget(key, "instance", "begun")
    return fleet.hosts[instance.partition("/")[0]] if begun == "1" and instance else None


def wait_for_another(fleet: Fleet, before: Host) -> Host:
    """Wait until another host takes the messages, and return it."""

    def another() -> Host | None:
        now = holder(fleet)
        return None if now is before else now

    return wait_until(another, 120, "another host takes over")


def test_another_host_takes_over_and_each_message_is_published_once(fleet: Fleet) -> None:
    count = 0

    def publish(times: int) -> None:
        nonlocal count
        for _ in range(times):
            assert fleet.redis.publish(CHANNEL, str(count)) >= 1
            count += 1

    def wait_until_all_is_in_the_stream() -> None:
        """What is on its way to a host is lost with its network and its power."""
        wait_until(lambda: fleet.redis.xlen(STREAM) >= count, message="all is published")

    first = wait_until(lambda: holder(fleet), message="a host takes the messages")
    publish(100)
    first.systemctl("stop", SERVICE)
    second = wait_for_another(fleet, first)
    publish(100)
    first.systemctl("start", SERVICE)
    publish(100)
    wait_until_all_is_in_the_stream()
    second.cut()
    assert wait_for_another(fleet, second) is first
    publish(100)
    second.heal()
    wait_until(lambda: "standing by" in second.status_text(SERVICE), message="it stands by")
    publish(100)
    wait_until_all_is_in_the_stream()
    first.kill_all()
    assert wait_for_another(fleet, first) is second
    publish(100)
    wait_until_all_is_in_the_stream()
    bodies = [int(fields["body"]) for _, fields in fleet.redis.xrange(STREAM)]
    assert bodies == list(range(count))
