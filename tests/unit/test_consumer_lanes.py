"""Lanes: handlers in threads and tasks, what comes of them, and what can be taken back."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redis_servers import wait_until
from wakeq.consumer.handler import Handler
from wakeq.consumer.lanes import AsyncLanes, Lanes, make_lanes, outcome
from wakeq.consumer.limiter import Limiter
from wakeq.errors import TimedOut
from wakeq.message import Message, Publish

# By which the threads of lanes, which else never end, are ended here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception in thread lane-:pytest.PytestUnhandledThreadExceptionWarning"
)


def message(body: object = "x", key: bytes = b"") -> Message:
    items = [b"body", str(body).encode()] + ([b"wakeq.key", key] if key else [])
    return Message("orders", 0, b"1-0", items)


@pytest.fixture
def start() -> Iterator[Callable[..., Lanes]]:
    """Start lanes; at the end their threads are ended."""
    started: list[Lanes] = []

    def start_lanes(
        call: Callable[[Any], Any],
        concurrency: int = 1,
        keyed: bool = False,
        is_async: bool = False,
        batch: int = 0,
    ) -> Lanes:
        lanes = make_lanes(Handler(call, is_async, batch), concurrency, keyed)
        lanes.start()
        started.append(lanes)
        return lanes

    yield start_lanes
    for lanes in started:
        lanes.close()
        if not isinstance(lanes, AsyncLanes):
            end_threads(lanes)


def end_threads(lanes: Lanes) -> None:
    class Last:
        def __setattr__(self, name: str, value: object) -> None:
            raise SystemExit

    lanes.take_back()
    for queue in lanes._queues:
        for _ in range(lanes.concurrency):
            queue.put(Last())


def results(lanes: Lanes, count: int) -> list[Any]:
    """Wait for so many outcomes, with the bell as the loop does."""
    deadline = time.monotonic() + 60
    while len(lanes.done) < count and time.monotonic() < deadline:
        select.select([lanes.bell], [], [], 0.01)
        lanes.hear()
    assert len(lanes.done) == count
    return list(lanes.done)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_message_that_gives_nothing_is_just_done(
    start: Callable[..., Lanes], is_async: bool
) -> None:
    async def coroutine(_message: Message) -> None:
        pass

    lanes = start(coroutine if is_async else lambda _message: None, is_async=is_async)
    messages = [message(n) for n in range(10)]
    lanes.put(messages)
    assert results(lanes, 10) == messages


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_comes_with_its_message(start: Callable[..., Lanes], is_async: bool) -> None:
    def function(_message: Message) -> None:
        raise KeyError("x")

    async def coroutine(given: Message) -> None:
        function(given)

    lanes = start(coroutine if is_async else function, is_async=is_async)
    given = message()
    lanes.put([given])
    (((messages, error),)) = results(lanes, 1)
    assert messages == [given]
    assert isinstance(error, KeyError)


def test_the_bell_rings_for_the_last_one(start: Callable[..., Lanes]) -> None:
    lanes = start(lambda _message: None)
    lanes.put([message()])
    assert select.select([lanes.bell], [], [], 60)[0]
    lanes.hear()
    lanes.hear()  # nothing to hear is no error
    assert not select.select([lanes.bell], [], [], 0)[0]


def test_takes_back_what_no_lane_has_begun(start: Callable[..., Lanes]) -> None:
    go = threading.Event()
    lanes = start(lambda _message: go.wait(300))
    messages = [message(n) for n in range(5)]
    lanes.put(messages)
    wait_until(lambda: lanes.current[0])
    assert lanes.take_back() == messages[1:]
    go.set()
    assert results(lanes, 1) == [([messages[0]], [])]
    wait_until(lambda: not lanes.current[0])


@pytest.mark.parametrize("is_async", [False, True])
def test_messages_with_one_key_go_to_one_lane_in_order(
    start: Callable[..., Lanes], is_async: bool
) -> None:
    seen: dict[bytes, list[str]] = {}

    async def coroutine(given: Message) -> None:
        await asyncio.sleep(0)
        seen.setdefault(given.key, []).append(given.text())

    def function(given: Message) -> None:
        seen.setdefault(given.key, []).append(given.text())

    lanes = start(coroutine if is_async else function, 4, keyed=True, is_async=is_async)
    lanes.put([message(n, b"key%d" % (n % 10)) for n in range(200)])
    results(lanes, 200)
    assert len(seen) == 10
    for key, bodies in seen.items():
        assert bodies == [str(n) for n in range(200) if b"key%d" % (n % 10) == key]


def test_a_batch_takes_what_there_is_up_to_its_most(start: Callable[..., Lanes]) -> None:
    sizes: list[int] = []
    go = threading.Event()

    def handle(messages: list[Message]) -> None:
        sizes.append(len(messages))
        go.wait(300)

    lanes = start(handle, batch=4)
    lanes.put([message()])
    wait_until(lambda: sizes)
    lanes.put([message(n) for n in range(9)])
    go.set()
    results(lanes, 4)
    assert sizes == [1, 4, 4, 1]


def test_tells_which_lanes_are_at_it_for_too_long(start: Callable[..., Lanes]) -> None:
    go = threading.Event()
    lanes = start(lambda given: go.wait(300) if given.text() == "slow" else None, 2)
    slow = message("slow")
    lanes.put([slow, message("quick")])
    results(lanes, 1)
    # What is done is said a moment before the lane is free.
    wait_until(lambda: [messages for _, messages in lanes.overdue(time.monotonic())] == [[slow]])
    assert lanes.overdue(slow.started) == []
    go.set()
    results(lanes, 2)
    wait_until(lambda: not lanes.overdue(time.monotonic()))


def test_a_coroutine_is_interrupted_alone(start: Callable[..., Lanes]) -> None:
    async def handle(given: Message) -> None:
        await asyncio.sleep(300 if given.text() == "slow" else 0)

    lanes = start(handle, 2, is_async=True)
    slow = message("slow")
    lanes.put([slow, message("quick")])
    results(lanes, 1)
    wait_until(lambda: len(lanes.overdue(time.monotonic())) == 1)
    ((number, messages),) = lanes.overdue(time.monotonic())
    lanes.interrupt(number, messages)
    lanes.interrupt(number, messages)  # twice, and it may be over by then
    (ended, error) = results(lanes, 2)[1]
    assert ended == [slow]
    assert isinstance(error, TimedOut)
    lanes.put([message("quick"), message("quick")])
    results(lanes, 4)


def test_a_coroutine_that_is_cancelled_by_itself_has_failed_and_the_lane_goes_on(
    start: Callable[..., Lanes],
) -> None:
    async def handle(given: Message) -> None:
        if given.text() == "bad":
            raise asyncio.CancelledError

    lanes = start(handle, is_async=True)
    lanes.put([message("bad"), message("good")])
    (_, error), good = results(lanes, 2)
    assert isinstance(error, asyncio.CancelledError)
    assert good.text() == "good"


def test_coroutines_that_never_wait_leave_room_for_other_tasks(start: Callable[..., Lanes]) -> None:
    ticks: list[int] = []
    begun = False

    async def handle(_message: Message) -> None:
        nonlocal begun
        time.sleep(0.0001)
        if not begun:
            begun = True

            async def tick() -> None:
                while True:
                    ticks.append(1)
                    await asyncio.sleep(0.001)

            handle.task = asyncio.create_task(tick())  # type: ignore[attr-defined]

    lanes = start(handle, is_async=True)
    lanes.put([message(n) for n in range(500)])
    results(lanes, 500)
    assert len(ticks) > 3


# -- what comes of a message --------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, [], (), True, 7, "text", {"a": 1}, [1, 2], object()])
def test_a_result_that_is_no_publish_is_of_no_matter(result: object) -> None:
    messages = [message()]
    assert outcome(messages, result) == (messages, [])


def test_what_is_to_be_published_is_a_publish_or_several() -> None:
    one, two = Publish("a", "x"), Publish("b", "y")
    messages = [message()]
    assert outcome(messages, one) == (messages, [one])
    assert outcome(messages, [one, two]) == (messages, [one, two])
    assert outcome(messages, (two,)) == (messages, [two])


@pytest.mark.parametrize("result", [[Publish("a", "x"), None], (1, Publish("a", "x")), iter([])])
def test_a_result_of_which_something_would_be_lost_is_a_failure(result: object) -> None:
    assert isinstance(outcome([message()], result)[1], TypeError)  # type: ignore[index]


def test_a_promise_is_a_failure() -> None:
    async def later() -> None:
        pass

    promise = later()
    assert isinstance(outcome([message()], promise)[1], TypeError)  # type: ignore[index]
    promise.close()


# -- the limit -----------------------------------------------------------------------------------


class FakeLanes:
    """Lanes that are overdue as told."""

    def __init__(self, interruptible: bool) -> None:
        self.interruptible = interruptible
        self.late: list[tuple[int, list[Message]]] = []
        self.interrupted: list[int] = []

    def overdue(self, before: float) -> list[tuple[int, list[Message]]]:
        return [(n, messages) for n, messages in self.late if messages[0].started < before]

    def interrupt(self, number: int, messages: list[Message]) -> None:
        self.interrupted.append(number)


def limiter(lanes: FakeLanes) -> tuple[Limiter, list[Message]]:
    stuck: list[Message] = []
    some = Limiter(lanes, 1.0)  # type: ignore[arg-type]
    some.on_timeout = lambda messages, error: None
    some.on_stuck = stuck.extend
    return some, stuck


def test_looks_at_nothing_without_a_limit() -> None:
    assert Limiter(FakeLanes(True), 0.0).next_at == float("inf")  # type: ignore[arg-type]


def test_what_can_be_interrupted_is_and_is_stuck_only_when_that_does_not_help() -> None:
    lanes = FakeLanes(True)
    some, stuck = limiter(lanes)
    slow = message()
    slow.started = now = time.monotonic()
    lanes.late = [(3, [slow])]
    some.tick(now + 0.9)
    assert lanes.interrupted == []
    some.tick(now + 2)
    assert lanes.interrupted == [3]
    assert stuck == []
    some.tick(now + 7)
    assert stuck == [slow]


def test_what_was_overdue_for_long_when_that_was_seen_may_be_ended_by_an_interrupt() -> None:
    lanes = FakeLanes(True)
    some, stuck = limiter(lanes)
    first, second = message(), message()
    first.started = now = time.monotonic()
    lanes.late = [(3, [first])]
    some.tick(now + 60)  # this process was paused
    assert (lanes.interrupted, stuck) == ([3], [])
    second.started = now + 61
    lanes.late = [(3, [second])]
    some.tick(now + 67)
    assert (lanes.interrupted, stuck) == ([3, 3], [])
    some.tick(now + 73)
    assert stuck == [second]


def test_what_cannot_be_interrupted_is_stuck_at_once() -> None:
    lanes = FakeLanes(False)
    some, stuck = limiter(lanes)
    slow = message()
    slow.started = now = time.monotonic()
    lanes.late = [(0, [slow])]
    some.tick(now + 1.5)
    assert stuck == [slow]
    assert lanes.interrupted == []
