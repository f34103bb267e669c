"""Parts of a taker that need no server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wakeq.consumer.handler import Handler
from wakeq.consumer.lanes import make_lanes
from wakeq.errors import Held, Reject, TimedOut
from wakeq.node.takers_errors import entry, read, told
from wakeq.node.takers_hand import Hand, Line, Pace
from wakeq.node.takers_keeper import Keeper, clock


def test_begins_nothing_when_messages_may_be_somebody_elses() -> None:
    keeper = Keeper("jobs")
    begun: list[Any] = []

    async def handle(message: Any) -> None:
        begun.append(message)

    guarded = keeper.guard(Handler(begun.append))
    guarded_async = keeper.guard(Handler(handle, is_async=True))
    with pytest.raises(Held):
        guarded.call("a")
    with pytest.raises(Held):
        asyncio.run(guarded_async.call("a"))
    assert not begun
    keeper.until = clock() + 60
    guarded.call("a")
    asyncio.run(guarded_async.call("b"))
    assert begun == ["a", "b"]


def test_a_slow_handler_has_no_more_in_hand_than_workers() -> None:
    pace = Pace(10)
    assert pace.room(0) == 10
    assert pace.room(9) == 1
    pace.learn_rate(clock() + 10, 100)
    assert pace.room(10) == 0


def test_a_fast_handler_has_long_runs_in_hand() -> None:
    pace = Pace(1)
    pace.learn_rate(clock() + 1, 100_000)
    assert pace.room(0) == 1000
    assert pace.room(600) == 0, "it asks for many at once"
    assert pace.room(500) == 500


def test_large_messages_are_few_in_hand() -> None:
    pace = Pace(100)
    pace.learn_size(2, 8 * 1024 * 1024)
    assert pace.room(0) == 2
    assert pace.room(1) == 1
    pace.learn_size(1, 80 * 1024 * 1024)
    assert pace.room(0) == 1, "one there must be"


class Channel:
    """Keeps what is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []

    def ask(self, command: Any, on_reply: Any) -> None:
        self.asked.append((command, on_reply))

    def flush(self) -> None:
        pass


def test_suspects_are_begun_alone_and_redis_is_told_before() -> None:
    hand, channel = Hand("jobs"), Channel()
    lanes = make_lanes(Handler(print), 2, keyed=False)
    line = Line(hand, lanes, 3)
    plain, once = hand.take(1, b"a"), hand.take(2, b"b", 1)
    line.put([plain, once])
    assert lanes.take_back() == [plain, once], "once is no suspicion yet"
    suspect, behind = hand.take(3, b"c", 2), hand.take(4, b"d")
    line.put([suspect, behind])
    line.move(channel, "taken")  # type: ignore[arg-type]
    assert not channel.asked, "others are being handled"
    for message in (plain, once):
        hand.finish(message)
    line.move(channel, "taken")  # type: ignore[arg-type]
    assert [command for command, _ in channel.asked] == [("HSET", "taken", "alone", 3)]
    assert lanes.take_back() == []
    channel.asked[0][1](1)
    assert lanes.take_back() == [suspect]
    line.move(channel, "taken")  # type: ignore[arg-type]
    assert lanes.take_back() == []
    hand.finish(suspect)
    line.move(channel, "taken")  # type: ignore[arg-type]
    assert lanes.take_back() == [behind]


def test_a_suspect_that_its_lane_has_turned_back_is_begun_again() -> None:
    hand, channel = Hand("jobs"), Channel()
    lanes = make_lanes(Handler(print), 2, keyed=False)
    line = Line(hand, lanes, 3)
    suspect = hand.take(1, b"a", 2)
    for _ in range(2):
        line.put([suspect])
        line.move(channel, "taken")  # type: ignore[arg-type]
        channel.asked.pop()[1](1)
        assert lanes.take_back() == [suspect]


def test_what_was_alone_when_too_many_died_is_not_begun() -> None:
    hand = Hand("jobs")
    lanes = make_lanes(Handler(print), 2, keyed=False)
    line = Line(hand, lanes, 3)
    crashed: list[Any] = []
    line.on_crashed = lambda messages, error: crashed.extend((messages[0].place, str(error)))
    often, blamed = hand.take(1, b"a", 7), hand.take(2, b"b", 3)
    line.put([often, blamed], {2: 1})
    assert crashed == [2, "ended the process that handled it, and was in hand of 3 that ended"]
    assert line.take_back() == [often]


@pytest.mark.parametrize("message", [b"", b"text", "ä€😀".encode(), b"\xff\x00", b'{"a":1}'])
def test_an_entry_of_the_error_list_keeps_every_message(message: bytes) -> None:
    raw = entry(message, "why", 1_700_000_000.25, "host/jobs", 2)
    assert b"\n" not in raw
    assert read(raw) == (raw, message, "why", "2023-11-14T22:13:20.250Z", "host/jobs", 2)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b'm:"x" e:"Error code 5"', b"\xff", b"[]", b"1", b"{}", b'{"message":1,"error":2}'),
        *(b'{"message":{},"error":""}', b'{"message":{"base64":"?"},"error":""}', b"[" * 100_000),
    ],
)
def test_what_somebody_else_put_into_the_error_list_is_shown_as_it_is(raw: bytes) -> None:
    assert read(raw) == (raw, raw, "", "", "", 0)


def test_an_error_is_told_in_one_line() -> None:
    assert told(ValueError("a\nb")) == "ValueError: a b"
    assert told(ValueError()) == "ValueError"
    assert told(Reject("never")) == "Reject: never"
    assert told(TimedOut()) == "took longer than timeout allows"
    assert len(told(ValueError("x" * 5000))) == 1000
