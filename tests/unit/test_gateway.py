"""What a gateway does when replies of Redis come in orders that are rare; no server is asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wakeq.errors import RefusedError
from wakeq.fanout.clerk import Clerk
from wakeq.fanout.door import Door
from wakeq.fanout.gateway import Gateway
from wakeq.fanout.link import Link
from wakeq.fanout.peer import Limits, Peer
from wakeq.fanout.rooms import Request
from wakeq.fanout.trouble import Trouble
from wakeq.loop import Timer
from wakeq.redis_url import RedisURL

DAY = 86_400.0  # no ping is due while a test runs
LIMITS = Limits(line=1000, unread=100_000)
NOW = 1_700_000_000_000_000
WHY = [[b"ada", b"taken-over"], 0, 0, 0, 0]  # a reply of room_ping.lua


def look(version: int, *clients: str, logged: int = 0) -> list[Any]:
    """Return a reply of room_look.lua: who the clients are, and nothing to be done."""
    rows = [part for name in clients for part in (name.encode(), b"sync", 0, 0)]
    return [0, version, rows, 0, None, [], logged, 0, [], -1, NOW, 0]


def read(logged: int, version: int) -> list[Any]:
    """Return a reply of room_read.lua: nothing is left."""
    return [logged, NOW, logged, [], version, [], 0]


class Held(Link):
    """A link whose replies the test gives."""

    def __init__(self, loop: Any, log: Any) -> None:
        super().__init__(loop, RedisURL("redis://127.0.0.1:1/0"), Trouble(log))
        self.asked: list[tuple[str, Callable[[Any], None]]] = []

    def ask(self, request: Request, then: Callable[[Any], None]) -> None:
        script = request._script
        self.asked.append((script.name.removeprefix("room_") if script else "else", then))

    @property
    def steps(self) -> list[str]:
        """What waits for a reply."""
        return [step for step, _ in self.asked]

    def answer(self, step: str, reply: Any) -> None:
        """Reply to the first of what was asked so."""
        index = self.steps.index(step)
        self.asked.pop(index)[1](reply)


class Here:
    """A gateway with connections that are none; nothing is sent but what the test looks at."""

    def __init__(self) -> None:
        loop: Any = SimpleNamespace(after=lambda _, then: Timer(0.0, then))
        log: Any = SimpleNamespace(warning=lambda *_, **__: None, info=lambda *_, **__: None)
        self.link = Held(loop, log)
        self.door = Door(loop, [], 10, 1.0)
        self.gateway = Gateway(loop, self.link, self.door, DAY, 0)
        self.clerk = Clerk(log, self.door, self.gateway, self.link, LIMITS)
        self.door.host = self.clerk
        self._sockets: list[socket.socket] = []

    def connect(self) -> Peer:
        self._sockets += (pair := socket.socketpair())
        return Peer(pair[0], "own", LIMITS)

    def say(self, peer: Peer, op: str, **fields: Any) -> None:
        self.clerk.take(peer, json.dumps({"op": op, "room": "r", **fields}).encode())

    def turn(self) -> None:
        self.door.go_on()
        self.gateway.turn()

    def joined(self, version: int) -> None:
        """Have Redis say that somebody is a client, and that the room is registered."""
        self.link.answer("join", [0, version, 0, 0])
        while "else" in self.link.steps:
            self.link.answer("else", 1)

    def settle(self, version: int, *clients: str) -> None:
        """Have Redis tell who the clients are, as long as it is asked."""
        self.turn()
        while step := next((each for each in self.link.steps if each in ("look", "read")), ""):
            is_look = step == "look"
            reply = look(version, *clients) if is_look else read(0, version)
            self.link.answer(step, reply)
            self.turn()

    def member(self, client: str) -> Peer:
        """Connect, and subscribe as the only client."""
        peer = self.connect()
        self.say(peer, "subscribe", client=client)
        self.joined(1)
        self.settle(1, client)
        told(peer)
        return peer

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self.door._epoll.close()


@pytest.fixture
def here() -> Iterator[Here]:
    here = Here()
    yield here
    here.close()


def told(peer: Peer) -> list[str]:
    """Return what a connection was told since: how each request went, and why it was ejected."""
    lines = [json.loads(line) for line in b"".join(peer._out).splitlines()]
    peer._out.clear()
    peer.unsent = 0
    found = [line.get("reason") or line.get("error") or line.get("ok") for line in lines]
    return [str(each) for each in found]


# -- the answer why somebody was ejected comes late ------------------------------------------


@pytest.mark.parametrize("is_same", [True, False], ids=["same-connection", "another"])
@pytest.mark.parametrize("is_late", [True, False], ids=["joined", "joining"])
@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "told"])
def test_why_a_client_was_ejected_is_not_held_against_who_has_come_back(
    here: Here, is_same: bool, is_late: bool, is_refused: bool
) -> None:
    before = here.member("ada")
    here.gateway.office.desk("r").doubt()
    here.settle(2)  # another gateway has it
    assert here.link.steps == ["ping"]
    again = before if is_same else here.connect()
    here.say(again, "subscribe", client="ada")
    if is_late:
        here.joined(3)

    here.link.answer("ping", RefusedError("no") if is_refused else WHY)
    if not is_late:
        here.joined(3)
    here.settle(3, "ada")

    assert told(again) == ["True"]
    assert again.rooms == {"r": "ada"}
    assert "leave" not in here.link.steps
    assert is_same or told(before) == ["taken-over"]


def test_who_is_ejected_again_after_it_has_come_back_hears_it(here: Here) -> None:
    peer = here.member("ada")
    here.gateway.office.desk("r").doubt()
    here.settle(2)
    here.say(peer, "subscribe", client="ada")
    here.link.answer("ping", WHY)
    here.joined(3)
    here.settle(4)

    here.link.answer("ping", [[b"ada", b"timed-out"], 0, 0, 0, 0])

    assert told(peer) == ["True", "timed-out"]
    assert peer.rooms == {}


def test_an_ejection_makes_no_desk_for_a_room_that_was_forgotten(here: Here) -> None:
    peer = here.member("ada")
    here.gateway.office.desk("r").doubt()
    here.settle(2)
    here.gateway.part(peer)
    here.turn()
    here.link.answer("leave", [])
    here.settle(3)
    assert here.gateway.office.desks == {}

    here.link.answer("ping", WHY)
    here.turn()

    assert here.gateway.office.desks == {}


def test_what_waited_for_a_slow_client_is_read_once_that_is_ejected(here: Here) -> None:
    slow = here.member("ada")
    here.say(other := here.connect(), "subscribe", client="bob")
    here.joined(2)
    here.settle(2, "ada", "bob")
    here.door.behind.add(slow)
    here.gateway.office.desk("r").doubt()
    here.turn()
    here.link.answer("look", look(3, "bob", logged=5))
    here.turn()
    assert here.link.steps == ["ping"]  # nothing is read for anybody

    here.link.answer("ping", WHY)
    here.turn()

    assert told(slow) == ["taken-over"]
    assert here.link.steps == ["read"]
    assert other.rooms == {"r": "bob"}


# -- what is left of a connection that has hung up -------------------------------------------


def test_who_has_hung_up_takes_no_room_from_who_has_come_back(here: Here) -> None:
    before, after = here.connect(), here.member("ada")
    before.ended = True

    here.say(before, "subscribe", client="ada")
    here.turn()

    assert told(before) == ["not-subscribed"]
    assert (here.link.steps, told(after), after.rooms) == ([], [], {"r": "ada"})
    assert not before.busy


def test_who_hangs_up_while_it_waits_for_a_leave_is_not_subscribed(here: Here) -> None:
    here.gateway.part(here.member("ada"))
    peer = here.connect()
    here.say(peer, "subscribe", client="ada")
    here.turn()
    assert here.link.steps == ["leave"]
    peer.ended = True

    here.link.answer("leave", [])
    here.settle(2)

    assert told(peer) == ["not-subscribed"]
    assert (peer.rooms, peer.busy, here.link.steps) == ({}, False, [])


def test_what_who_has_hung_up_wanted_sent_is_sent(here: Here) -> None:
    peer = here.connect()
    peer.ended = True
    here.say(peer, "send", data=1)
    assert here.link.steps == ["send"]
