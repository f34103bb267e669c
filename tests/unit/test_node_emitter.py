"""The emitter step by step: what it says to Redis after each answer, and after none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wakeq.errors import UnavailableError
from wakeq.node import emitter as module
from wakeq.node.emitter import Emitter
from wakeq.node.timetable import MICRO
from wakeq.sections import Node
from wakeq.wire import ServerError

TOKEN = b"7"
NOW = 1_000_000 * MICRO


class Stage:
    """All that an emitter speaks to, and the time."""

    def __init__(self, **settings: Any) -> None:
        node = Node()
        node.stream = "s"
        for key, value in settings.items():
            setattr(node, key, value)
        self.leads = True
        self.token = TOKEN
        self.checked = 0
        self.url = "redis"
        self.asked: list[tuple[list[Any], Callable[[Any], None]]] = []
        self.timers: list[Any] = []
        self.made: list[tuple[int, int]] = []
        self.troubles: list[str] = []
        self.bodies: list[list[bytes]] | None = [[b"body", b"x"]]
        self.takes: list[Callable[[Any], None]] = []
        self.is_making = False
        self.emitter = Emitter(self, self, self, node, "n", self)  # type: ignore[arg-type]
        self.emitter.on_trouble = lambda error: self.troubles.append(str(error))
        self.emitter.on_well = self.troubles.clear

    # what is the elector's
    @property
    def fence(self) -> tuple[list[str], list[bytes]]:
        return ["lease"], [self.token]

    def check(self) -> None:
        self.checked += 1

    # what is the link's
    def run(self, _script: Any, _names: Any, arguments: list[Any], then: Any) -> None:
        self.asked.append((arguments, then))

    # what is the loop's
    def after(self, seconds: float, callback: Callable[[], None]) -> Any:
        timer = Timer(seconds, callback)
        self.timers.append(timer)
        return timer

    # what is the source's
    def make(self, seq: int, at: int, _now: int, take: Callable[[Any], None]) -> None:
        self.made.append((seq, at))
        if self.bodies is None:
            self.is_making = True
            self.takes.append(take)
        else:
            take(self.bodies)

    def cancel(self) -> None:
        self.is_making = False

    # what a test does
    def say(self, seq: int, at: int | None, how: str = "", now: int = NOW) -> None:
        """Answer the last request."""
        text = b"" if at is None else b"%d" % at
        self.asked[-1][1]([seq, text, b"%d" % now, how.encode()])

    def tick(self) -> float:
        """Let the timer go off that is set; return for how long it was."""
        (timer,) = [timer for timer in self.timers if timer.callback is not None]
        callback, timer.callback = timer.callback, None
        callback()
        return float(timer.seconds)

    @property
    def request(self) -> list[Any]:
        return self.asked[-1][0]


class Timer:
    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.seconds = seconds
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def sent(seq: int, at: int) -> list[Any]:
    items = [b"body", b"x", b"wakeq.seq", b"%d" % seq, b"wakeq.token", TOKEN]
    return [seq, at, "stream", 6, *items, TOKEN]


def test_it_looks_first_and_then_emits_with_the_next_number(clock: list[float]) -> None:
    stage = Stage(interval=1.0)
    stage.emitter.begin()
    assert stage.request == [0, 0, "stream", TOKEN]
    stage.say(41, NOW - 3 * MICRO)
    assert stage.request == sent(42, NOW)
    stage.say(42, NOW, "done")
    assert stage.emitter.messages == 1
    assert len(stage.asked) == 2
    clock[0] += 1.001
    assert stage.tick() == pytest.approx(1.0, abs=0.01)
    assert stage.request == sent(43, NOW + MICRO)


def test_what_was_not_answered_is_said_again_and_counted_once() -> None:
    stage = Stage()
    stage.emitter.begin()
    stage.say(0, None)
    first = stage.request
    stage.emitter.lost(UnavailableError("cut"))
    assert stage.troubles == ["cut"]
    stage.tick()
    assert stage.request == first
    stage.say(1, NOW, "before")
    assert (stage.emitter.messages, stage.troubles) == (1, [])


def test_what_could_not_be_done_is_said_again() -> None:
    stage = Stage()
    stage.emitter.begin()
    stage.say(0, None)
    first = stage.request
    stage.asked[-1][1](ServerError("OOM command not allowed"))
    stage.tick()
    assert stage.request == first


def test_who_is_fenced_has_the_election_asked() -> None:
    stage = Stage()
    stage.emitter.begin()
    stage.say(0, None)
    stage.asked[-1][1](ServerError("FENCED nobody"))
    assert stage.checked == 1
    count = len(stage.asked)
    stage.emitter.end()
    assert [timer for timer in stage.timers if timer.callback] == []
    assert len(stage.asked) == count


def test_who_does_not_lead_any_more_says_nothing(clock: list[float]) -> None:
    stage = Stage(interval=1.0)
    stage.emitter.begin()
    stage.say(1, NOW)
    count = len(stage.asked)
    stage.leads = False
    clock[0] += 2
    stage.tick()
    assert len(stage.asked) == count


def test_an_answer_to_an_earlier_term_counts_no_more() -> None:
    stage = Stage()
    stage.emitter.begin()
    stage.say(0, None)
    late = stage.asked[-1][1]
    stage.emitter.end()
    stage.emitter.begin()
    late([1, b"%d" % NOW, b"%d" % NOW, b"done"])
    assert stage.emitter.messages == 0
    assert stage.request == [0, 0, "stream", TOKEN]


def test_messages_for_an_earlier_term_are_thrown_away() -> None:
    stage = Stage()
    stage.bodies = None
    stage.emitter.begin()
    stage.say(0, None)
    stage.emitter.end()
    count = len(stage.asked)
    stage.takes[0]([[b"body", b"stale"]])
    assert len(stage.asked) == count


def test_a_connection_that_is_lost_while_messages_are_made_costs_nothing() -> None:
    stage = Stage()
    stage.bodies = None
    stage.emitter.begin()
    stage.say(0, None)
    count = len(stage.asked)
    stage.emitter.lost(UnavailableError("cut"))
    assert (len(stage.asked), stage.troubles) == (count, [])
    stage.takes[0]([[b"body", b"x"]])
    assert stage.request == sent(1, NOW)


def test_what_is_early_is_said_again_at_its_time(clock: list[float]) -> None:
    stage = Stage(interval=1.0)
    stage.emitter.begin()
    stage.say(1, NOW)
    clock[0] += 1.001
    stage.tick()
    request = stage.request
    stage.say(1, NOW, "early", NOW + MICRO - 5000)
    assert stage.tick() == pytest.approx(0.005, abs=0.001)
    assert stage.request == request


def test_a_clock_of_redis_that_is_set_back_does_not_stop_it(clock: list[float]) -> None:
    stage = Stage(interval=1.0)
    stage.emitter.begin()
    stage.say(1, NOW)
    clock[0] += 1.001
    stage.tick()
    back = NOW - 3600 * MICRO
    stage.say(1, NOW, "early", back)
    clock[0] += 1.001
    assert stage.tick() == pytest.approx(1.0, abs=0.01)
    assert stage.request == sent(2, back + MICRO)


def test_a_clock_that_was_set_back_costs_one_interval_however_often_it_looks(
    clock: list[float],
) -> None:
    stage = Stage(interval=70.0)
    stage.emitter.begin()
    ahead = NOW + 3600 * MICRO
    stage.say(5, ahead)
    for seconds in (30, 60):
        assert stage.tick() == 30
        clock[0] = 100.0 + seconds
        assert stage.request == [0, 0, "stream", TOKEN]
        stage.say(5, ahead, now=NOW + seconds * MICRO)
    clock[0] += 10.001
    assert stage.tick() == pytest.approx(10.0, abs=0.01)
    assert stage.request == sent(6, NOW + 70 * MICRO)


def test_nothing_due_for_long_is_looked_at_again(clock: list[float]) -> None:
    stage = Stage(calendar="*-*-* 00:00:00 UTC")
    stage.emitter.begin()
    stage.say(0, None)
    assert stage.made == []
    clock[0] += 30
    assert stage.tick() == 30.0
    assert stage.request == [0, 0, "stream", TOKEN]


def test_when_nothing_was_said_its_time_passes() -> None:
    stage = Stage()
    stage.bodies = []
    stage.emitter.begin()
    stage.say(0, None)
    assert stage.request == [1, NOW, "stream", TOKEN]
    stage.say(1, NOW, "done")
    assert stage.emitter.messages == 0


def test_a_list_is_given_the_text_alone() -> None:
    stage = Stage(list_="l")
    stage.bodies = [[b"text"]]
    stage.emitter.begin()
    stage.say(0, None)
    assert stage.request == [1, NOW, "list", 1, b"text", TOKEN]
