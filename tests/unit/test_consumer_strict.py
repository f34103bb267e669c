"""The gate and the line of strict order: what was turned back comes again in its old order."""

from __future__ import annotations

from typing import Any

import pytest

from wakeq.consumer.gate import Gate
from wakeq.consumer.hand import Hand, Member
from wakeq.consumer.handler import Handler
from wakeq.consumer.line import StrictLine
from wakeq.errors import Held
from wakeq.message import Message


class FakeLanes:
    """A lane that the test moves by hand."""

    def __init__(self) -> None:
        self.queue: list[Message] = []

    def put(self, messages: list[Message]) -> None:
        self.queue += messages

    def take_back(self) -> list[Message]:
        back, self.queue = self.queue, []
        return back


class FakeChannel:
    def flush(self) -> None:
        """Send nothing."""


class Strict:
    """A gate, a line, a lane and what is in hand."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.gate.until = Gate.clock() + 60
        self.hand = Hand()
        self.lanes = FakeLanes()
        member = Member("s", "g", "c", is_fenced=True)
        self.line = StrictLine(member, self.hand, self.lanes, 3, self.gate)  # type: ignore[arg-type]
        self.is_paused = False
        self.line.is_paused = lambda: self.is_paused

    def read(self, *numbers: int) -> list[Message]:
        messages = [Message("s", 0, b"%d-0" % number, []) for number in numbers]
        self.line.put(self.hand.take(messages))
        return messages

    def move(self) -> list[int]:
        """Let the line go on; return what the lane has then."""
        self.line.move(FakeChannel())  # type: ignore[arg-type]
        return [int(message.entry_id[:-2]) for message in self.lanes.queue]


@pytest.fixture
def strict() -> Strict:
    return Strict()


def call(gate: Gate, result: Any = None) -> None:
    def handle(_message: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    gate.guard(Handler(handle, False, 0)).call(None)


def test_nothing_is_begun_without_a_lease(strict: Strict) -> None:
    call(strict.gate)
    strict.gate.until = 0.0
    with pytest.raises(Held):
        call(strict.gate)


def test_a_lease_that_is_renewed_does_not_let_the_next_one_pass_what_was_turned_back(
    strict: Strict,
) -> None:
    until, strict.gate.until = strict.gate.until, 0.0
    with pytest.raises(Held):
        call(strict.gate)
    strict.gate.until = until
    with pytest.raises(Held):
        call(strict.gate)


def test_a_failure_closes_the_gate(strict: Strict) -> None:
    with pytest.raises(ValueError, match="x"):
        call(strict.gate, ValueError("x"))
    with pytest.raises(Held):
        call(strict.gate)


def test_a_result_that_is_none_is_a_failure_too(strict: Strict) -> None:
    with pytest.raises(TypeError):
        call(strict.gate, iter(()))
    with pytest.raises(Held):
        call(strict.gate)


def test_what_was_turned_back_comes_before_what_the_lane_had_not_begun(strict: Strict) -> None:
    strict.read(1, 2, 3, 4)
    first, second = (strict.lanes.queue.pop(0) for _ in range(2))
    strict.line.hold([first], 0.0)
    assert strict.move() == []  # the second is on its way back
    strict.line.hold([second], 0.0)
    assert strict.move() == [1, 2, 3, 4]
    assert not strict.gate.is_held


def test_new_messages_come_behind_what_is_held(strict: Strict) -> None:
    strict.read(1, 2)
    strict.line.hold([strict.lanes.queue.pop(0)], 60.0)
    strict.read(3, 4)
    assert strict.move() == []
    strict.line._due_at = 0.0
    assert strict.move() == [1, 2, 3, 4]


def test_what_is_taken_back_and_given_again_keeps_its_place(strict: Strict) -> None:
    """After a pause of the process, while the lane was turning one back."""
    strict.read(1, 2, 3, 4)
    first, second = (strict.lanes.queue.pop(0) for _ in range(2))
    strict.line.hold([first], 60.0)
    back = strict.line.take_back()
    strict.line.hold([second], 0.0)
    strict.line.put(back)
    strict.read(5)
    strict.line._due_at = 0.0
    assert strict.move() == [1, 2, 3, 4, 5]


def test_nothing_goes_on_while_paused_or_without_a_lease_and_the_loop_does_not_spin(
    strict: Strict,
) -> None:
    strict.read(1)
    strict.line.hold([strict.lanes.queue.pop(0)], 0.0)
    strict.is_paused = True
    assert strict.move() == []
    assert strict.line.next_at == float("inf")
    strict.is_paused = False
    until, strict.gate.until = strict.gate.until, 0.0
    assert strict.move() == []
    strict.gate.until = until
    assert strict.move() == [1]
