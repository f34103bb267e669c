"""Receiving the messages of rooms, blocking and for asyncio, against a real server."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import tracemalloc  # noqa: F401  (else pytest may do so in the middle of a garbage collection)
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redis_servers import Cluster, RedisServer, Sentinels, wait_until
from wakeq import (
    AsyncFanoutWorker,
    FanoutClient,
    FanoutTerms,
    FanoutWorker,
    Reject,
    Retry,
    RoomError,
    RoomMessage,
    keys,
)
from wakeq.errors import ConfigError, RefusedError, UnavailableError
from wakeq.fanout.core import Core
from wakeq.fanout.rooms import Rooms
from wakeq.fanout.tally import WorkerMetrics
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Awaited:
    """An AsyncFanoutWorker that is used like a FanoutWorker: its loop runs in a thread."""

    def __init__(self, on_message: Callable[[RoomMessage], object], *arguments: Any,
                 concurrency: int = 1, **options: Any) -> None:  # fmt: skip
        def awaited(handler: Callable[..., object]) -> Callable[..., Any]:
            async def handle(*given: Any) -> object:
                return await asyncio.to_thread(handler, *given)

            return handle

        for name in ("on_timeout", "on_ejected"):
            if name in options:
                options[name] = awaited(options[name])
        self._loop = asyncio.new_event_loop()
        self._worker = AsyncFanoutWorker(awaited(on_message), *arguments, **options)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def name(self) -> str:
        return self._worker.name

    def __enter__(self) -> Awaited:
        try:
            self._run(self._worker.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._run(self._worker.__aexit__(*error))
        finally:
            self._end()

    def _end(self) -> None:
        async def shut() -> None:
            await asyncio.get_running_loop().shutdown_default_executor()

        self._run(shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._worker.stop)

    def subscribe(self, *arguments: Any, **options: Any) -> None:
        self._run(self._worker.subscribe(*arguments, **options))

    def unsubscribe(self, *arguments: Any) -> None:
        self._run(self._worker.unsubscribe(*arguments))

    def wait(self) -> None:
        self._run(self._worker.wait())

    def metrics(self) -> WorkerMetrics:
        return self._worker.metrics()

    def _leave_index(self, room: str) -> None:
        self._run(self._worker._leave_index(room))


@pytest.fixture
def pings_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers ping five times a second; their clients are not timed out for another 30 s."""
    monkeypatch.setattr("wakeq.fanout.office._PINGS", 150)


@pytest.fixture(params=[FanoutWorker, Awaited], ids=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    """The class of a worker."""
    return request.param


@pytest.fixture
def rooms(redis: RedisServer) -> Iterator[FanoutClient]:
    with FanoutClient(redis.url) as client:
        yield client


class Seen:
    """Remembers what a handler was given."""

    def __init__(self) -> None:
        self.messages: list[RoomMessage] = []

    def __call__(self, message: RoomMessage) -> None:
        self.messages.append(message)

    def of(self, client: str, room: str | None = None) -> list[str]:
        """Return what a client has seen, as text."""
        return [m.text() for m in list(self.messages)
                if m.client == client and room in (None, m.room)]  # fmt: skip

    def last_is(self, message_id: str) -> bool:
        """Tell whether this is the last one that has been seen."""
        return bool(self.messages) and self.messages[-1].id == message_id

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.messages) >= count, message=f"{count} messages")


def test_each_client_gets_each_message_once_and_in_order(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        for client in "abc":
            worker.subscribe("r", client)
        for number in range(50):
            rooms.send("r", str(number), producer="p")
        seen.wait(150)
        wait_until(lambda: worker.metrics().acknowledged == 150)
        for client in "abc":
            assert seen.of(client) == [str(number) for number in range(50)]
        # In lock-step: nobody begins a message before all have had the one before.
        order = [message.text() for message in seen.messages]
        assert order == sorted(order, key=int)
        assert {message.producer for message in seen.messages} == {"p"}
        metrics = worker.metrics()
        assert (metrics.received, metrics.acknowledged, metrics.invalid) == (150, 150, 0)
        assert 0 <= metrics.min_latency <= metrics.avg_latency <= metrics.max_latency
    assert rooms.room_state("r").clients == {}


def test_five_identical_messages_are_five(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        worker.subscribe("r", "a")
        for _ in range(5):
            rooms.send("r", "same")
        seen.wait(5)
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 5)
    assert seen.of("a") == ["same"] * 5


def test_who_has_left_gets_nothing(kind: Any, rooms: FanoutClient, redis: RedisServer) -> None:
    seen = Seen()
    ejected: list[Any] = []
    with kind(seen, redis.url, on_ejected=lambda *what: ejected.append(what)) as worker:
        worker.subscribe("r", "a")
        worker.subscribe("r", "b")
        rooms.send("r", "1")
        seen.wait(2)
        worker.unsubscribe("r", "a")
        rooms.send("r", "2")
        seen.wait(3)
        with pytest.raises(RoomError):
            worker.unsubscribe("r", "a")
    assert (seen.of("a"), seen.of("b"), ejected) == (["1"], ["1", "2"], [])


def test_rooms_are_apart(kind: Any, rooms: FanoutClient, redis: RedisServer) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        worker.subscribe("room1", "client1")
        worker.subscribe("room2", "client1")
        worker.subscribe("room2", "client2")
        rooms.send("room1", "1")
        rooms.send("room2", "2")
        seen.wait(3)
    assert (seen.of("client1", "room1"), seen.of("client1", "room2")) == (["1"], ["2"])
    assert seen.of("client2") == ["2"]


def test_ten_clients_join_and_leave_ten_rooms(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    with kind(Seen(), redis.url) as worker:
        for room in range(10):
            for client in range(10):
                worker.subscribe(f"r{room}", f"c{client}")
        assert rooms.metrics().clients == 100
        for room in range(10):
            for client in range(10):
                worker.unsubscribe(f"r{room}", f"c{client}")
        assert rooms.metrics().clients == 0


def test_a_slow_handler_holds_up_its_own_room_alone(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    release, seen = threading.Event(), Seen()

    def handle(message: RoomMessage) -> None:
        if message.text() == "slow":
            release.wait(300)
        seen(message)

    with kind(handle, redis.url, concurrency=8) as worker:
        try:
            for room in ("slow", "quick"):
                worker.subscribe(room, "a")
                worker.subscribe(room, "b")
            rooms.send("slow", "slow")
            for number in range(20):
                rooms.send("quick", str(number))
            rooms.send_out_of_band("slow", "now")
            seen.wait(42)
            assert seen.of("a", "slow") == ["now"]
        finally:
            release.set()
        seen.wait(44)


def test_out_of_band_messages_go_to_all_at_once(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url, FanoutTerms(auto_ack=False)) as worker:
        worker.subscribe("r", "a")
        worker.subscribe("r", "b", mode="async")
        worker.subscribe("r", "c", mode="observer")
        rooms.send("r", "never acknowledged")
        seen.wait(3)
        for number in range(250):  # more than are read at once
            rooms.send_out_of_band("r", str(number))
        seen.wait(3 + 750)
        assert seen.of("a")[1:] == [str(number) for number in range(250)]
        assert [m.oob for m in seen.messages if m.text() == "7"] == [True] * 3
        assert worker.metrics().missed == 0
        worker.subscribe("r", "late")
        rooms.send_out_of_band("r", "for all")
        seen.wait(3 + 750 + 4)
        assert seen.of("late") == ["for all"]
    log = keys.room("r")[7]
    assert not redis.client().exists(log)


def test_a_burst_out_of_band_is_refused_rather_than_lost(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    release, seen = threading.Event(), Seen()

    def handle(message: RoomMessage) -> None:
        release.wait(60)
        seen(message)

    with kind(handle, redis.url) as worker:
        try:
            worker.subscribe("r", "a")
            sent = []
            with pytest.raises(RoomError, match="has not read 1000 messages") as caught:
                for number in range(5000):
                    sent.append(str(number))
                    rooms.send_out_of_band("r", sent[-1])
            sent.pop()
        finally:
            release.set()
        assert caught.value.code == "full"
        seen.wait(len(sent))
        assert seen.of("a") == sent
        assert worker.metrics().missed == rooms.room_metrics("r").missed == 0


def test_what_an_async_client_misses_beside_sync_ones_is_counted_and_logged(
    kind: Any, rooms: FanoutClient, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    release, seen = threading.Event(), Seen()

    def handle(message: RoomMessage) -> None:
        release.wait(60)
        seen(message)

    with kind(handle, redis.url) as worker:
        try:
            worker.subscribe("r", "a", mode="async")
            rooms.subscribe("r", "b", "reads nothing")
            for number in range(1400):
                rooms.ack("r", "b", rooms.send("r", str(number)))
        finally:
            release.set()
        wait_until(lambda: worker.metrics().missed)
        rooms.send_out_of_band("r", "the last one")
        wait_until(lambda: seen.of("a")[-1:] == ["the last one"])
        missed = 1401 - len(seen.messages)
        assert worker.metrics().missed == rooms.room_metrics("r").missed == missed
    told = re.findall(r"room r: (\d+) messages were removed before they were read", caplog.text)
    assert sum(map(int, told)) == missed


def test_async_clients_are_given_a_long_backlog_whole(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    for number in range(350):  # more than one step takes
        rooms.send("r", str(number))
    with kind(seen, redis.url) as worker:
        worker.subscribe("r", "a", mode="async")
        seen.wait(350)
        assert seen.of("a") == [str(number) for number in range(350)]
        assert rooms.room_metrics("r").backlog == 0
        assert worker.metrics().missed == 0


def test_what_is_out_of_band_is_not_repeated_when_a_client_is_taken_over(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    first, second = Seen(), Seen()
    rooms.subscribe("r", "reads nothing", "nobody")  # so the log is kept
    with kind(first, redis.url) as worker, kind(second, redis.url) as other:
        worker.subscribe("r", "a")
        rooms.send_out_of_band("r", "1")
        first.wait(1)
        known = "return cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]))"
        workers = keys.room("r")[6]
        wait_until(lambda: redis.client().eval(known, 1, workers, worker.name)[2] == 1)
        other.subscribe("r", "a")
        rooms.send_out_of_band("r", "2")
        second.wait(1)
        assert (first.of("a"), second.of("a")) == (["1"], ["2"])


def test_who_is_taken_over_is_given_what_the_new_worker_had_read_before(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    ejected: list[tuple[str, ...]] = []
    begun, goes_on, first, second = threading.Event(), threading.Event(), Seen(), Seen()

    def stop(message: RoomMessage) -> None:
        first(message)
        begun.set()
        goes_on.wait(60)

    with kind(second, redis.url) as worker:
        worker.subscribe("r", "b")
        with kind(stop, redis.url, on_ejected=lambda *who: ejected.append(who)) as slow:
            slow.subscribe("r", "a")
            for text in "123":
                rooms.send_out_of_band("r", text)
            assert begun.wait(60)
            second.wait(3)
            worker.subscribe("r", "a")
            second.wait(6)
            wait_until(lambda: ejected, message="the slow one has heard of it")
            goes_on.set()
        rooms.send_out_of_band("r", "4")
        second.wait(8)
    assert (second.of("a"), second.of("b")) == (["1", "2", "3", "4"],) * 2
    assert first.of("a") == ["1"]  # what was in hand, and nothing else twice


def test_what_a_worker_has_done_until_its_end_is_not_given_to_the_next_one(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen, terms = Seen(), FanoutTerms(name="w")
    rooms.subscribe("r", "a", "w")

    def stop_at_the_third(message: RoomMessage) -> None:
        seen(message)
        if message.text() == "0":
            for text in "1234":
                rooms.send_out_of_band("r", text)
        if message.text() == "3":
            worker.stop()

    with kind(stop_at_the_third, redis.url, terms) as worker:
        rooms.send_out_of_band("r", "0")
        worker.wait()
    with kind(seen, redis.url, terms):
        seen.wait(5)
    assert seen.of("a") == ["0", "1", "2", "3", "4"]


def test_who_was_subscribed_by_others_just_now_is_given_what_is_out_of_band(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen, names = Seen(), [f"r{number}" for number in range(100)]
    with kind(seen, redis.url) as worker:
        for room in names:
            worker.subscribe(room, "a")
        for room in names:
            rooms.subscribe(room, "b", worker.name)
            rooms.send_out_of_band(room, room)
        seen.wait(200)
    assert sorted(seen.of("a")) == sorted(seen.of("b")) == sorted(names)


def test_nothing_is_left_of_the_name_of_a_worker_that_has_ended(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        rooms.subscribe("r", "a", worker.name)
        rooms.send("r", "1")
        seen.wait(1)
        assert redis.client().exists(keys.worker_rooms(worker.name))
    assert not redis.client().exists(keys.worker_rooms(worker.name))


def test_what_all_have_done_leaves_the_log(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        worker.subscribe("r", "a")
        for number in range(10):
            rooms.send_out_of_band("r", str(number))
        seen.wait(10)
        wait_until(lambda: redis.client().xlen(keys.room("r")[7]) == 0)


def test_messages_are_acknowledged_by_hand(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url, FanoutTerms(auto_ack=False)) as worker:
        worker.subscribe("r", "a")
        for number in range(3):
            rooms.send("r", str(number))
        seen.wait(1)
        seen.messages[0].ack()
        seen.wait(2)
        rooms.ack("r", "a", seen.messages[1].id)  # by somebody else
        seen.wait(3)
        assert rooms.room_metrics("r").outstanding == seen.messages[2].id


def test_what_was_acknowledged_counts_also_if_the_client_leaves_at_once(
    kind: Any, rooms: FanoutClient, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    left = Seen()

    def handle(message: RoomMessage) -> None:
        message.ack()
        worker.unsubscribe(message.room, message.client)
        left(message)

    with kind(handle, redis.url, FanoutTerms(auto_ack=False)) as worker:
        for number in range(30):
            worker.subscribe("r", f"c{number}")
            rooms.send("r", str(number))
            left.wait(number + 1)
            metrics = rooms.room_metrics("r")
            assert (metrics.acknowledged, metrics.backlog) == (number + 1, 0)
        wait_until(lambda: worker.metrics().acknowledged == 30)
        # Somebody else has it leave, while the acknowledgement is under way.
        worker_of_seen = Seen()
        with kind(worker_of_seen, redis.url, FanoutTerms(auto_ack=False)) as other:
            for number in range(30):
                other.subscribe("r", "a")
                rooms.send("r", "x")
                outstanding = rooms.room_metrics("r").outstanding
                wait_until(lambda sent=outstanding: worker_of_seen.last_is(sent))
                worker_of_seen.messages[-1].ack()
                other.unsubscribe("r", "a")
                metrics = rooms.room_metrics("r")
                assert (metrics.acknowledged, metrics.backlog) == (30 + number + 1, 0)
            wait_until(lambda: other.metrics().acknowledged == 30)
    assert not caplog.messages


def test_a_coroutine_acknowledges_and_leaves(rooms: FanoutClient, redis: RedisServer) -> None:
    async def life() -> None:
        done = asyncio.Event()

        async def handle(message: RoomMessage) -> None:
            message.ack()
            await worker.unsubscribe(message.room, message.client)
            done.set()

        async with AsyncFanoutWorker(handle, redis.url, FanoutTerms(auto_ack=False)) as worker:
            await worker.subscribe("r", "a")
            await asyncio.to_thread(rooms.send, "r", "1")
            await done.wait()

    asyncio.run(life())
    metrics = rooms.room_metrics("r")
    assert (metrics.acknowledged, metrics.backlog) == (1, 0)


def test_acknowledges_later_for_who_could_not_leave(
    kind: Any, rooms: FanoutClient, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise UnavailableError("no")
        yield

    seen = Seen()
    with kind(seen, redis.url, FanoutTerms(auto_ack=False)) as worker:
        worker.subscribe("r", "a")
        rooms.send("r", "1")
        seen.wait(1)
        # It is under way, with no reply, or was not sent yet.
        redis.client().client_pause(60_000, all=False)
        seen.messages[0].ack()
        with monkeypatch.context() as patched:
            patched.setattr(Core, "ack_ahead", fail)
            patched.setattr(Core, "unsubscribe", fail)
            with pytest.raises(UnavailableError):
                worker.unsubscribe("r", "a")
        redis.client().client_unpause()
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
        assert rooms.room_state("r").clients.keys() == {"a"}


def test_acknowledged_by_the_worker_there_is_nothing_to_do_by_hand(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with FanoutWorker(seen, redis.url) as worker:
        worker.subscribe("r", "a")
        rooms.send("r", "1")
        seen.wait(1)
        with pytest.raises(RuntimeError, match="not acknowledged"):
            seen.messages[0].ack()


def test_a_handler_that_fails_is_called_again(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    attempts: list[tuple[str, int]] = []

    def handle(message: RoomMessage) -> None:
        attempts.append((message.text(), message.attempt))
        if message.text() == "hard" and message.attempt < 3:
            raise Retry(delay=0.001)
        if message.text() == "impossible":
            raise Reject("never")
        if message.text() == "broken":
            raise ValueError("no")

    with kind(handle, redis.url, FanoutTerms(max_attempts=2)) as worker:
        worker.subscribe("r", "a")
        for text in ("broken", "impossible", "fine"):
            rooms.send("r", text)
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 3)
        assert attempts == [("broken", 1), ("broken", 2), ("impossible", 1), ("fine", 1)]
        assert worker.metrics().failed == 3
    attempts.clear()
    with kind(handle, redis.url) as worker:
        worker.subscribe("r", "a")
        rooms.send("r", "hard")
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 4)
        assert attempts == [("hard", 1), ("hard", 2), ("hard", 3)]


@pytest.mark.parametrize("itself", [False, True])
def test_a_coroutine_that_is_cancelled_has_failed(
    rooms: FanoutClient, redis: RedisServer, itself: bool
) -> None:
    attempts: list[tuple[str, bool]] = []

    async def handle(message: RoomMessage) -> None:
        attempts.append((message.text(), message.oob))
        if attempts.count(attempts[-1]) == 1:
            if itself:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(60)
            raise asyncio.CancelledError

    async def life() -> None:
        async with AsyncFanoutWorker(handle, redis.url) as worker:
            await worker.subscribe("r", "a")
            for text in "12":
                await asyncio.to_thread(rooms.send, "r", text)
                await asyncio.to_thread(rooms.send_out_of_band, "r", text)
            await asyncio.to_thread(
                lambda: wait_until(lambda: rooms.room_metrics("r").acknowledged == 2)
            )
            await asyncio.to_thread(lambda: wait_until(lambda: ("2", True) in attempts))
            assert worker.metrics().failed >= 2

    asyncio.run(life())
    assert [text for text, oob in attempts if not oob] == ["1", "1", "2", "2"]
    if not itself:
        assert [text for text, oob in attempts if oob] == ["1", "2"]


def test_handlers_of_what_became_of_clients_may_fail(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    told: list[tuple[str, ...]] = []

    def fail(*what: str) -> None:
        told.append(what)
        raise asyncio.CancelledError if kind is Awaited else ValueError

    seen = Seen()
    with kind(seen, redis.url, on_ejected=fail, on_timeout=fail) as worker:
        for client in "abc":
            worker.subscribe("r", client)
        redis.client().zadd(keys.room("r")[2], {"a": 0, "b": 0})
        rooms.ping("c", "r")
        wait_until(lambda: len(told) == 4)
        rooms.send("r", "1")
        seen.wait(1)
    assert set(told) == {("r", "a", "timed-out"), ("r", "b", "timed-out"), ("r", "a"), ("r", "b")}


def test_a_time_out_is_reported_once_and_the_round_goes_on(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen, reported, ejected = Seen(), [], []
    told = {"on_timeout": lambda *what: reported.append(what)}
    with kind(seen, redis.url, **told) as worker, kind(seen, redis.url, **told) as other:
        worker.subscribe("r", "a")
        other.subscribe("r", "b")
        # Nobody pings for it.
        with FanoutClient(redis.url, timeout=0.5) as short:
            short.subscribe("r", "silent", "nobody")
        rooms.send("r", "1")
        rooms.send("r", "2")
        seen.wait(4)  # the second one waits for the time-out of `silent`
        wait_until(lambda: reported)
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 4)
        worker.unsubscribe("r", "a")
    assert reported == [("r", "silent")]
    assert not ejected
    assert rooms.room_metrics("r").timeouts == 1


def test_a_client_that_is_removed_is_told(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    ejected: set[tuple[str, str, str]] = set()
    with kind(Seen(), redis.url, on_ejected=lambda *what: ejected.add(what)) as worker:
        for client in ("silent", "taken", "removed", "stays"):
            worker.subscribe("r", client)
        redis.client().zadd(keys.room("r")[2], {"silent": 0})
        rooms.ping("stays", "r")
        rooms.subscribe("r", "taken", "other")
        rooms.unsubscribe("r", "removed")
        expected = {("r", "silent", "timed-out"), ("r", "taken", "taken-over"),
                    ("r", "removed", "not-subscribed")}  # fmt: skip
        wait_until(lambda: ejected == expected, message=f"{ejected}")
        assert worker.metrics().ejected == 3


def test_a_process_that_tells_who_was_removed_keeps_the_room(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    ejected: list[str] = []
    terms = FanoutTerms(name="push", timeout=300)
    with kind(Seen(), redis.url, terms, on_ejected=lambda _, *who: ejected.extend(who)) as worker:
        for client in ("removed", "stays"):
            worker.subscribe("r", client)
        with Rings("push", redis) as rings:
            rooms.unsubscribe("r", "removed")
            wait_until(lambda: ejected == ["removed", "not-subscribed"], message=f"{ejected}")
            assert "-" not in rings.holders()


def test_a_process_that_finds_out_that_somebody_has_joined_just_now_keeps_the_room(
    kind: Any, redis: RedisServer
) -> None:
    with kind(Seen(), redis.url, FanoutTerms(name="push", timeout=300)) as worker:
        worker.subscribe("r", "a")
        with Rings("push", redis) as rings:
            worker._leave_index("r")
            assert "-" not in rings.holders()
        assert redis.client().smembers(keys.worker_rooms("push")) == {b"r"}


class Rings:
    """Hears what is rung for a worker, from when one of its processes has the room r."""

    def __init__(self, worker: str, redis: RedisServer) -> None:
        self._client = redis.client()
        self._worker = worker
        self._heard = self._client.pubsub(ignore_subscribe_messages=True)

    def __enter__(self) -> Rings:
        request = Rooms(self._worker, "another process").ping("r", [])
        wait_until(lambda: self._client.execute_command(*request.command)[1] == -1)
        self._heard.subscribe(keys.BELL + self._worker, "end")
        wait_until(lambda: self._client.pubsub_numsub("end")[0][1] == 1)
        return self

    def holders(self) -> list[str]:
        """Return which process had the room at each ring so far; "-": none."""
        wait_until(lambda: self._client.publish("end", "") == 1)
        found = []
        for event in self._heard.listen():
            if event["channel"] == b"end":
                break
            found.append(event["data"].split(b" ")[4].decode())
        return found

    def __exit__(self, *error: object) -> None:
        self._heard.close()


def test_clients_are_kept_alive(
    kind: Any, rooms: FanoutClient, redis: RedisServer, pings_often: None
) -> None:
    release = threading.Event()
    with kind(lambda _: release.wait(300), redis.url) as worker:
        worker.subscribe("r", "a")
        deadline = rooms.room_state("r").clients["a"].seen_at + 2
        rooms.send("r", "its handler takes its time")
        wait_until(lambda: rooms.room_state("r").clients["a"].seen_at > deadline)
        release.set()
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
        assert rooms.room_metrics("r").timeouts == 0


def test_an_idle_client_costs_one_request_per_ping(
    kind: Any, rooms: FanoutClient, redis: RedisServer, pings_often: None
) -> None:
    def scripts() -> int:
        found = redis.client().info("commandstats")
        return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))

    with kind(Seen(), redis.url) as worker:
        worker.subscribe("r", "a")
        rooms.send("r", "1")
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
        redis.client().config_resetstat()
        begin = time.monotonic()
        wait_until(lambda: scripts() >= 8)
        pings = (time.monotonic() - begin) / 0.2
        # What was under way when the counting began, and one more at its end.
        assert scripts() <= pings + 4


def test_a_worker_that_ends_leaves_its_rooms_to_others_at_once(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    terms = FanoutTerms(name="push", timeout=300, auto_ack=False)
    first, second = Seen(), Seen()
    rooms.subscribe("r", "a", "push")
    message_id = rooms.send("r", "1")
    with kind(first, redis.url, terms) as ends:
        first.wait(1)
        with kind(second, redis.url, terms._replace(auto_ack=True)):
            ends.stop()
            wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
    assert [message.id for message in second.messages] == [message_id]


def test_a_room_has_one_process_of_a_worker_at_a_time(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    terms = FanoutTerms(name="push")
    seen = [Seen(), Seen()]
    for room in range(10):
        rooms.subscribe(f"r{room}", "a", "push")
    with FanoutWorker(seen[0], redis.url, terms), FanoutWorker(seen[1], redis.url, terms):
        for number in range(10):
            for room in range(10):
                rooms.send(f"r{room}", str(number))
                rooms.send_out_of_band(f"r{room}", f"!{number}")
        wait_until(lambda: sum(len(one.messages) for one in seen) >= 200)
        wait_until(lambda: rooms.metrics().acknowledged == 100)
    assert sum(len(one.messages) for one in seen) == 200
    for room in range(10):
        all_of_them = seen[0].of("a", f"r{room}") + seen[1].of("a", f"r{room}")
        assert [each for each in all_of_them if each[0] != "!"] == [str(n) for n in range(10)]


def test_what_is_no_room_in_the_index_of_a_worker_is_passed_over(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    rooms.subscribe("r", "a", "push")
    redis.client().sadd(keys.worker_rooms("push"), b"\xff")
    rooms.send("r", "1")
    with kind(seen, redis.url, FanoutTerms(name="push")):
        seen.wait(1)


def test_a_worker_that_was_killed_is_followed_by_another(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    """Its lease runs out, and what it had is delivered again while its clients live."""
    rooms.subscribe("r", "a", "push")
    message_id = rooms.send("r", "1")
    connection = Connection(RedisURL(redis.url), "dead")
    connection.connect()
    begin = time.monotonic()
    reply = connection.call(*Rooms("push", "dead").look("r", 1500, -1, False, []).command)
    connection.close()
    assert reply[4][:16].decode() == message_id  # it had it
    seen = Seen()
    with kind(seen, redis.url, FanoutTerms(name="push")):
        wait_until(lambda: seen.messages)
        assert time.monotonic() - begin > 1
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
    assert seen.messages[0].id == message_id


def test_nothing_is_lost_with_a_connection(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url, FanoutTerms(timeout=20)) as worker:
        worker.subscribe("r", "a")
        worker.subscribe("r", "b", mode="async")
        for number in range(30):
            rooms.send("r", str(number))
            rooms.send_out_of_band("r", f"!{number}")
            if number % 5 == 0:
                redis.client().execute_command("CLIENT KILL TYPE pubsub")
                redis.client().execute_command("CLIENT KILL TYPE normal SKIPME yes")
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 30)
        wait_until(lambda: len(seen.of("b")) >= 60 and len(seen.of("a")) >= 60)
    for client in "ab":
        found = seen.of(client)
        assert [each for each in found if each[0] != "!"] == [str(n) for n in range(30)]
        assert [each for each in found if each[0] == "!"] == [f"!{n}" for n in range(30)]


def test_goes_on_when_redis_was_restarted(
    kind: Any, own_redis: RedisServer, pings_often: None
) -> None:
    seen, ejected = Seen(), []
    told = {"on_ejected": lambda *what: ejected.append(what)}
    with (
        FanoutClient(own_redis.url) as rooms,
        kind(seen, own_redis.url, **told) as worker,
    ):
        worker.subscribe("r", "a")
        rooms.send("r", "1")
        seen.wait(1)
        own_redis.restart()  # empty
        wait_until(lambda: ejected)
        assert ejected == [("r", "a", "not-subscribed")]
        worker.subscribe("r", "a")
        rooms.send("r", "2")
        seen.wait(2)


def test_says_why_it_cannot_begin(kind: Any, own_redis: RedisServer) -> None:
    own_redis.client().config_set("requirepass", "secret")
    with pytest.raises(RefusedError, match="refuses the login"), kind(Seen(), own_redis.url):
        pass
    with pytest.raises(ConfigError, match="redis_url must begin"):
        FanoutWorker(Seen(), "ftp://localhost")
    with pytest.raises(ValueError, match="concurrency must be"):
        FanoutWorker(Seen(), own_redis.url, concurrency=0)
    with pytest.raises(ValueError, match="timeout must be"):
        FanoutWorker(Seen(), own_redis.url, FanoutTerms(timeout=-1))


@pytest.mark.parametrize("what", ["pubsub", "normal"])
def test_its_owner_is_told_when_redis_refuses_it_later(
    kind: Any, own_redis: RedisServer, caplog: pytest.LogCaptureFixture, what: str,
    pings_often: None,
) -> None:  # fmt: skip
    admin = own_redis.client()
    with (
        FanoutClient(own_redis.url) as rooms,
        pytest.raises(RefusedError, match="refuses the login"),
        kind(Seen(), own_redis.url) as worker,
    ):
        worker.subscribe("r", "a")
        rooms.room_state("r")
        admin.config_set("requirepass", "secret")
        admin.execute_command(f"CLIENT KILL TYPE {what} SKIPME yes")
        with pytest.raises(RefusedError, match="refuses the login"):
            worker.wait()
        for call in (worker.subscribe, worker.unsubscribe):
            with pytest.raises(RefusedError):
                call("r", "b")
    assert [text for text in caplog.messages if "has ended" in text] == [caplog.messages[-1]]


def test_the_error_of_the_application_is_not_hidden_by_that_of_the_worker(
    kind: Any, own_redis: RedisServer
) -> None:
    admin = own_redis.client()
    with pytest.raises(KeyError), kind(Seen(), own_redis.url) as worker:
        admin.config_set("requirepass", "secret")
        admin.execute_command("CLIENT KILL TYPE pubsub")
        with pytest.raises(RefusedError):
            worker.wait()
        raise KeyError


def test_goes_on_when_redis_could_not_write_for_a_while(kind: Any, own_redis: RedisServer) -> None:
    admin, seen = own_redis.client(), Seen()
    with (
        FanoutClient(own_redis.url) as rooms,
        kind(seen, own_redis.url, FanoutTerms(timeout=60)) as worker,
    ):
        worker.subscribe("r", "a")
        rooms.send("r", "1")
        wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
        rooms.send("r", "2", priority=1)
        admin.execute_command("REPLICAOF 127.0.0.1 1")
        admin.execute_command("CLIENT KILL TYPE pubsub")
        admin.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        with pytest.raises(UnavailableError):
            rooms.send("r", "3")
        admin.execute_command("REPLICAOF NO ONE")
        rooms.send("r", "4", priority=2)
        seen.wait(3)
        assert seen.of("a") == ["1", "2", "4"]


def test_a_room_that_somebody_has_broken_leaves_the_others_alone(
    kind: Any, rooms: FanoutClient, redis: RedisServer, caplog: pytest.LogCaptureFixture,
    pings_often: None,
) -> None:  # fmt: skip
    seen, broken = Seen(), keys.room("broken")[2]
    with kind(seen, redis.url) as worker:
        for room in ("broken", "r"):
            worker.subscribe(room, "a")
        redis.client().delete(broken)
        redis.client().set(broken, "what somebody else wrote")
        deadline = rooms.room_state("r").clients["a"].seen_at + 2
        wait_until(lambda: rooms.room_state("r").clients["a"].seen_at > deadline)
        rooms.send("r", "1")
        seen.wait(1)
        redis.client().delete(broken)
    errors = [text for text in caplog.messages if text.startswith("room broken: ")]
    assert len(errors) == 1


def test_what_others_publish_to_its_channel_is_passed_over(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        worker.subscribe("r", "a")
        for payload in (b"", b"hello", b"1 2 3 x - r", b"1 2 3 4 - \xff", b"1 2 3 4 -"):
            assert redis.client().publish(keys.BELL + worker.name, payload) == 1
        rooms.send("r", "1")
        seen.wait(1)


def test_what_is_no_message_is_counted_and_passed_over(
    kind: Any, rooms: FanoutClient, redis: RedisServer
) -> None:
    seen = Seen()
    with kind(seen, redis.url) as worker:
        worker.subscribe("r", "a")
        wait_until(lambda: redis.client().hexists(keys.room("r")[6], worker.name))
        written = redis.client().pipeline()
        written.xadd(keys.room("r")[7], {"r": 0, "m": "what somebody else wrote"}, id="1-0")
        written.hset(keys.room("r")[0], "logged", 1)
        written.execute()
        rooms.send_out_of_band("r", "fine")
        seen.wait(1)
        assert worker.metrics().invalid == 1
        assert worker.metrics().received == 1


def test_a_cluster_serves_rooms_on_all_its_nodes(kind: Any, short_dir: Any) -> None:
    cluster = Cluster(short_dir)
    cluster.start()
    try:
        seen = Seen()
        with FanoutClient(cluster.url(1)) as rooms, kind(seen, cluster.url(0)) as worker:
            for room in range(12):
                worker.subscribe(f"r{room}", "a")
                worker.subscribe(f"r{room}", "b")
            for number in range(5):
                for room in range(12):
                    rooms.send(f"r{room}", str(number))
            seen.wait(120)
            for room in range(12):
                assert seen.of("a", f"r{room}") == [str(number) for number in range(5)]
    finally:
        cluster.stop()


def test_goes_on_with_the_new_master(short_dir: Any) -> None:
    sentinels = Sentinels(short_dir)
    sentinels.start()
    try:
        seen = Seen()
        with (
            FanoutClient(sentinels.url) as rooms,
            FanoutWorker(seen, sentinels.url, FanoutTerms(timeout=60)) as worker,
        ):
            worker.subscribe("r", "a")
            rooms.send("r", "1")
            wait_until(lambda: rooms.room_metrics("r").acknowledged == 1)
            old = sentinels.master
            client = old.client()
            # It waits until what this connection has written is there, and all before it.
            client.set("last", 1)
            wait_until(lambda: client.wait(2, 1000) == 2)
            port = sentinels.master_port
            old.kill()
            sentinels.await_failover(port)
            rooms.send("r", "2")
            seen.wait(2)
            assert seen.of("a") == ["1", "2"]
    finally:
        sentinels.stop()
