"""The line: what waits for the lanes, and whose starts are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wakeq.consumer.hand import STREAM, Hand, Member
from wakeq.consumer.line import Line
from wakeq.errors import Crashed
from wakeq.message import Message

CRASHES = "wakeq:{orders}:crashes:g"


class FakeLanes:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[Message] = []

    def put(self, messages: list[Message]) -> None:
        self.given += messages

    def take_back(self) -> list[Message]:
        return []


class FakeChannel:
    """Collects what is asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._waiting: list[Callable[[object], None]] = []

    def ask(self, command: Any, on_reply: Callable[[object], None], patience: float = 0) -> None:
        self.asked.append(tuple(command))
        self._waiting.append(on_reply)

    def flush(self) -> None:
        pass

    def answer(self, reply: object) -> None:
        self._waiting.pop(0)(reply)


class Setup:
    """A line with its surroundings; `line.move(channel)` is a turn of the loop."""

    def __init__(self, max_crashes: int = 3) -> None:
        self.hand, self.lanes, self.channel = Hand(), FakeLanes(), FakeChannel()
        member = Member("orders", "g", "c")
        self.line = Line(member, self.hand, self.lanes, max_crashes)  # type: ignore[arg-type]
        self.crashed: list[tuple[list[Message], BaseException]] = []
        self.line.on_crashed = lambda messages, error: self.crashed.append((messages, error))

    def put(self, *deliveries: int) -> list[Message]:
        messages = []
        for number, count in enumerate(deliveries, 1):
            messages.append(Message("orders", STREAM, b"%d-0" % number, [b"body", b"x"]))
            messages[-1].deliveries = count
        self.hand.take(messages)
        self.line.put(messages)
        return messages

    def move(self) -> None:
        self.line.move(self.channel)  # type: ignore[arg-type]


@pytest.fixture
def some() -> Setup:
    return Setup()


def test_messages_go_to_the_lanes_at_once_when_none_is_suspect(some: Setup) -> None:
    messages = some.put(1, 2, 1)
    assert some.lanes.given == messages
    assert some.line.is_empty
    assert some.channel.asked == []


def test_a_suspect_is_begun_when_redis_knows_and_the_lanes_are_empty(some: Setup) -> None:
    first, suspect, last = some.put(1, 3, 1)
    some.move()
    assert some.lanes.given == [first]
    assert some.channel.asked == []
    some.hand.finish([first])
    some.move()
    assert some.channel.asked == [("HGET", CRASHES, b"0:2-0")]
    some.channel.answer(b"1")
    assert some.channel.asked[1:] == [("HSET", CRASHES, b"0:2-0", 2)]
    assert suspect not in some.lanes.given
    some.channel.answer(0)
    some.move()
    assert some.lanes.given == [first, suspect]
    some.hand.finish([suspect])
    some.move()
    assert some.channel.asked[2:] == [("HDEL", CRASHES, b"0:2-0")]
    assert some.lanes.given == [first, suspect, last]
    assert some.line.is_empty


def test_a_message_that_was_begun_too_often_is_not_begun_again(some: Setup) -> None:
    (suspect,) = some.put(3)
    some.move()
    some.channel.answer(b"3")
    ((messages, error),) = some.crashed
    assert messages == [suspect]
    assert isinstance(error, Crashed)
    assert some.lanes.given == []
    some.hand.finish([suspect])
    some.move()
    assert some.channel.asked[1:] == [("HDEL", CRASHES, b"0:1-0")]


def test_a_lost_reply_does_not_count_twice(some: Setup) -> None:
    (suspect,) = some.put(3)
    some.move()
    some.channel.answer(b"1")
    some.line.restart()
    some.channel = FakeChannel()
    some.move()
    assert some.channel.asked == [("HSET", CRASHES, b"0:1-0", 2)]
    some.channel.answer(0)
    assert some.lanes.given == [suspect]


@pytest.mark.parametrize("how", ["taken back", "another consumer's"])
def test_what_is_known_of_one_suspect_is_not_believed_of_the_next(some: Setup, how: str) -> None:
    first, second = some.put(3, 3)
    some.move()
    some.channel.answer(b"2")
    some.line.restart()
    some.channel = FakeChannel()
    some.hand.finish([first])
    if how == "taken back":
        assert some.line.take_back() == [first, second]
        some.line.put([second])
    some.move()
    assert some.channel.asked == [("HGET", CRASHES, b"0:2-0")]


def test_a_suspect_that_was_taken_back_is_not_begun(some: Setup) -> None:
    (suspect,) = some.put(3)
    some.move()
    assert some.line.take_back() == [suspect]
    some.channel.answer(None)
    assert some.lanes.given == []
    assert some.line.is_empty
    assert some.channel.asked == [("HGET", CRASHES, b"0:1-0")], "it does not count as begun"
    some.line.put([suspect])
    some.move()
    some.channel.answer(None)
    assert some.line.take_back() == [suspect]
    some.channel.answer(0)
    assert some.lanes.given == []
    assert some.line.is_empty
