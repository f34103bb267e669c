"""Strict order over several hosts: one handles at a time, whatever becomes of it or its network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import Fleet, fleet_on
from network import SHARED, Host, Network
from wakeq_machine import service, socket

from redis_servers import wait_until

NAME = "orders"
HANDLER = f"""
def handle(message):
    record(message.text())
    with open("{SHARED}/pause") as file:
        time.sleep(float(file.read()))
"""
SETTINGS = 'order = "strict"\nlease = "8s"\n'
# Less than what anybody but who stands by could take over after, by a re-check.
TAKES_OVER_S = 45


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """Two hosts."""
    with fleet_on(network, web1="bookworm", web2="trixie") as fleet:
        yield fleet


def pause(fleet: Fleet, seconds: float) -> None:
    """Have each message take so long from now on."""
    file = fleet.shared / "pause.new"
    file.write_text(str(seconds))
    file.rename(fleet.shared / "pause")


def begin(fleet: Fleet, pause_s: float = 0.002, settings: str = SETTINGS) -> None:
    """Have one host handle messages, and the other one stand by."""
    pause(fleet, pause_s)
    fleet.configure(NAME, HANDLER, settings)
    fleet.wait_for_standby(NAME)


def owner(fleet: Fleet) -> Host:
    """Return the host that handles messages, as soon as one does."""
    return wait_until(lambda: fleet.owner(NAME), TAKES_OVER_S, "somebody owns the group")


def other(fleet: Fleet, host: Host) -> Host:
    """Return the other host."""
    (other,) = (each for each in fleet.hosts.values() if each is not host)
    return other


def check_order(fleet: Fleet) -> None:
    """Fail unless all was handled, in order, by one process after the other."""
    numbers = [int(words[2]) for words in fleet.record()]
    count = fleet.redis.xlen(NAME)
    assert list(dict.fromkeys(numbers)) == list(range(count)), "begun for the first time in order"
    lives = [words[1] for words in fleet.record()]
    turns = [life for before, life in zip(["", *lives], lives, strict=False) if life != before]
    again = [life for index, life in enumerate(turns) if life in turns[:index]]
    assert not again[:3], "nobody begins anything after its successor"
    for life in turns:
        own = [number for number, each in zip(numbers, lives, strict=True) if each == life]
        assert own == sorted(set(own)), f"{life} goes up"


def repeated(fleet: Fleet) -> set[int]:
    """Return the numbers that were handled more than once."""
    numbers = [int(words[2]) for words in fleet.record()]
    return {number for number in numbers if numbers.count(number) > 1}


def test_order_is_kept_when_the_host_that_is_at_it_loses_its_power(fleet: Fleet) -> None:
    begin(fleet)
    unacknowledged: set[int] = set()
    for _ in range(3):
        fleet.publish(NAME, 700)
        killed = owner(fleet)
        next_one = other(fleet, killed)
        fleet.wait_recorded(fleet.redis.xlen(NAME) - 600)
        lines = len(fleet.record())

        killed.cut()
        # At once, before the next one has taken it over and acknowledged it.
        unacknowledged |= fleet.pending(NAME)
        killed.kill_all()
        fleet.publish(NAME, 300)

        fleet.wait_recorded_by(next_one, lines, TAKES_OVER_S)
        killed.start()
        fleet.wait_for_standby(NAME)
    fleet.wait_until_drained(NAME)
    check_order(fleet)
    assert repeated(fleet) <= unacknowledged


def test_order_is_kept_when_the_host_that_is_at_it_loses_its_network(fleet: Fleet) -> None:
    begin(fleet, pause_s=0)
    for how in ("cut", "deafen", "cut"):
        # Much in hand, and slow at it: there is enough to do when the lease is over.
        fleet.publish(NAME, 1000)
        fleet.wait_until_drained(NAME)
        pause(fleet, 0.1)
        fleet.publish(NAME, 1000)
        in_hand = wait_until(lambda: fleet.pending(NAME), message="it has much in hand")
        # How much, the machine decides by how busy it is: for two leases in any case.
        pause(fleet, max(0.1, 16 / len(in_hand)))
        lost = owner(fleet)
        lines = len(fleet.record())

        getattr(lost, how)()
        fleet.wait_recorded_by(other(fleet, lost), lines, TAKES_OVER_S)
        pause(fleet, 0)
        lost.heal()

        # It finds out that it is not the owner any more, and waits for its turn.
        fleet.wait_for_standby(NAME)
    fleet.wait_until_drained(NAME)
    check_order(fleet)


def test_a_host_that_stops_hands_over_at_once(fleet: Fleet) -> None:
    begin(fleet, settings=SETTINGS.replace("8s", "10min"))
    for _ in range(2):
        stopped = owner(fleet)
        fleet.publish(NAME, 500)
        fleet.wait_recorded(fleet.redis.xlen(NAME) - 400)
        lines = len(fleet.record())

        stopped.systemctl("stop", socket(NAME), service(NAME))
        fleet.publish(NAME, 100)

        # Nobody waits for a lease of ten minutes.
        fleet.wait_recorded_by(other(fleet, stopped), lines)
        stopped.systemctl("start", socket(NAME))
        fleet.wait_for_standby(NAME)
    fleet.wait_until_drained(NAME)
    check_order(fleet)
    assert not repeated(fleet)
