"""wakeq-delay on several hosts: each message is delivered once, whichever of them is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
from fleet import Fleet, fleet_on
from network import Network

from redis_servers import wait_until
from wakeq import Publisher, keys

SERVICE = "wakeq-delay.service"
# Every third message fails once.
HANDLER = """
def handle(message):
    record(message.text(), message.attempt)
    if message.attempt == 1 and int(message.text()) % 3 == 0:
        raise ValueError("not yet")
"""
SETTINGS = 'backoff = { base = "2s", factor = 1, cap = "2s" }\n'
MESSAGES = 900
# For as long one after another is due.
SECONDS = 9


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """Two hosts with wakeq-delay, and one with a consumer."""
    with fleet_on(network, web1="bookworm", web2="trixie", web3="bookworm") as fleet:
        for name in ("web1", "web2"):
            fleet.hosts[name].systemctl("enable", "--quiet", "--now", SERVICE)
        fleet.configure("orders", HANDLER, SETTINGS, fleet.hosts["web3"])
        yield fleet


def delay_all(fleet: Fleet) -> None:
    """Publish all messages, to be delivered one after another."""
    with Publisher(fleet.hub.url) as publisher:
        for number in range(MESSAGES):
            publisher.publish("orders", str(number), delay=1 + number * SECONDS / MESSAGES)


def test_delayed_and_failed_messages_come_once_while_hosts_come_and_go(fleet: Fleet) -> None:
    web1, web2 = fleet.hosts["web1"], fleet.hosts["web2"]
    more = count(100, 100)
    delay_all(fleet)

    fleet.wait_recorded(next(more))
    web1.cut()
    fleet.wait_recorded(next(more))
    fleet.wait_recorded(next(more))
    web1.heal()
    fleet.wait_recorded(next(more))
    web2.kill_all()
    fleet.wait_recorded(next(more))
    fleet.wait_recorded(next(more))
    web2.start()
    web1.deafen()

    attempts = Counter({(str(number), "1"): 1 for number in range(MESSAGES)})
    attempts.update({(str(number), "2"): 1 for number in range(0, MESSAGES, 3)})
    wait_until(lambda: len(fleet.record()) >= attempts.total(), 120, "all were delivered")
    fleet.wait_until_drained("orders")
    assert Counter((words[2], words[3]) for words in fleet.record()) == attempts
    assert fleet.redis.zcard(keys.delayed("orders")) == 0
