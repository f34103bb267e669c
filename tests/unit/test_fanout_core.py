"""What a client of rooms remembers of who has joined, whatever else is under way; no server."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from wakeq.errors import RoomError
from wakeq.fanout import core as core_module
from wakeq.fanout.core import Core

ROOMS = ("r1", "r2")
Steps = Generator[Any, Any, Any]


@pytest.fixture
def core() -> Core:
    """Remembers that `a` has joined two rooms."""
    core = Core(SimpleNamespace(cluster=False), 30.0, 0, remembers=True)
    for room in ROOMS:
        subscribe(core, room)
    return core


def subscribe(core: Core, room: str) -> None:
    steps = core.subscribe(room, "a", "w", "sync", "keep", index=False)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send([0, 1, 0, 0])  # it has joined
        steps.send(1)  # the room is registered, if it was not yet


def pinged(core: Core) -> int:
    """Return in how many rooms a ping without a room is heard, 0: it knows of none."""
    try:
        asked = next(core.ping("a", None))
    except RoomError:
        return 0
    return len(asked) if isinstance(asked, list) else 1


def ping(core: Core) -> Steps:
    return core.ping("a", "r1")


def ping_all(core: Core) -> Steps:
    return core.ping("a", None)


def ack(core: Core) -> Steps:
    return core.ack("r1", ["b", "a"], "1-1")


def unsubscribe(core: Core) -> Steps:
    return core.unsubscribe("r1", "a")


OUT = [[b"a", b"timed-out"]]
ASKED: list[tuple[Callable[[Core], Steps], Any]] = [
    (ping, OUT), (ping_all, [OUT, [[]]]), (ack, OUT), (unsubscribe, [b"a", b"not-subscribed"]),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "reply"), ASKED)
def test_who_was_not_there_is_forgotten(
    core: Core, ask: Callable[[Core], Steps], reply: Any
) -> None:
    steps = ask(core)
    next(steps)
    with pytest.raises(RoomError):
        steps.send(reply)
    assert pinged(core) == 1


@pytest.mark.parametrize(("ask", "reply"), ASKED)
def test_who_joins_anew_meanwhile_is_not_forgotten(
    core: Core, ask: Callable[[Core], Steps], reply: Any
) -> None:
    steps = ask(core)
    next(steps)
    subscribe(core, "r1")
    with pytest.raises(RoomError):
        steps.send(reply)
    assert pinged(core) == 2


@pytest.mark.parametrize("ask", [ping, ack, unsubscribe])
def test_who_joins_for_the_first_time_meanwhile_is_not_forgotten(
    ask: Callable[[Core], Steps],
) -> None:
    core = Core(SimpleNamespace(cluster=False), 30.0, 0, remembers=True)
    steps = ask(core)
    next(steps)
    subscribe(core, "r1")
    with pytest.raises(RoomError):
        steps.send([b"a", b"not-subscribed"] if ask is unsubscribe else OUT)
    assert pinged(core) == 1


@pytest.mark.parametrize("do", [pinged, lambda core: subscribe(core, "r1")], ids=["ping", "join"])
def test_a_ping_of_another_thread_at_any_moment_knows_all_rooms(
    core: Core, do: Callable[[Core], Any]
) -> None:
    others: list[threading.Thread] = []
    found: list[int] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != core_module.__file__:
            return None
        if event == "line":
            others.append(threading.Thread(target=lambda: found.append(pinged(core))))
            others[-1].start()
            others[-1].join(0.02)  # it may have to wait until this thread goes on
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do(core)
    finally:
        sys.settrace(before)
    for other in others:
        other.join()
    assert others
    assert found == [2] * len(others)
