"""Rooms over the API, blocking and for asyncio, without a worker: who is waited for, what fails."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc  # noqa: F401  (else pytest may do so in the middle of a garbage collection)
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import NoScriptError

from redis_servers import Cluster, RedisServer, wait_until
from wakeq import AsyncFanoutClient, FanoutClient, RoomError, keys
from wakeq.errors import UnavailableError, WakeqError
from wakeq.fanout.core import Core
from wakeq.fanout.records import read_message
from wakeq.fanout.rooms import Request, Rooms

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


W = "w"
NAMES = ("x::y::room", "a*[b]?", "with space\n", "größe ✓", "{tag}", "}{", "%7Btag%7D", "a")


class Awaited:
    """An AsyncFanoutClient that is used like a FanoutClient, all calls in one loop."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncFanoutClient(url, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return self._loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[FanoutClient, Awaited], ids=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., FanoutClient]]:
    """Make a client, of either kind."""
    made: list[FanoutClient] = []

    def client(url: str, **options: Any) -> FanoutClient:
        made.append(request.param(url, **options))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def rooms(make: Callable[..., FanoutClient], redis: RedisServer) -> FanoutClient:
    return make(redis.url)


def overdue(redis: RedisServer, room: str, client: str) -> None:
    """Let a client's time be over."""
    assert redis.client().zadd(keys.room(room)[2], {client: 0}, xx=True, ch=True) == 1


def outstanding(rooms: FanoutClient, room: str) -> str:
    return rooms.room_metrics(room).outstanding


def refused(call: Callable[..., object], *arguments: Any) -> str:
    """Return the code of the RoomError that a call raises."""
    with pytest.raises(RoomError) as caught:
        call(*arguments)
    return caught.value.code


def test_delivers_the_next_message_when_all_have_acknowledged(rooms: FanoutClient) -> None:
    for client in "ab":
        rooms.subscribe("r", client, W)
    first, second = rooms.send("r", "one"), rooms.send("r", "two")
    assert outstanding(rooms, "r") == first
    rooms.ack("r", "a", first)
    assert outstanding(rooms, "r") == first
    rooms.ack("r", "b", first)
    assert outstanding(rooms, "r") == second
    rooms.ack("r", ["a", "b"], second)
    assert outstanding(rooms, "r") == ""


def test_client_ids_are_distinct_however_many_are_made_at_once(redis: RedisServer) -> None:
    found: list[str] = []

    def make_some() -> None:
        with FanoutClient(redis.url) as client:
            found.extend(client.create_client_id() for _ in range(1000))

    threads = [threading.Thread(target=make_some) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 10_000


def test_identical_messages_are_all_kept_in_the_order_of_sending(redis: RedisServer) -> None:
    sent: list[list[str]] = []

    def send_some() -> None:
        with FanoutClient(redis.url) as client:
            sent.append([client.send("r", "same", producer="p") for _ in range(250)])

    threads = [threading.Thread(target=send_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with FanoutClient(redis.url) as client:
        waiting = [message.id for message in client.peek("r", limit=None)]
        assert len(set(waiting)) == 1000
        assert waiting == sorted(waiting)
        for one in sent:
            assert [each for each in waiting if each in set(one)] == one
        client.subscribe("r", "a", W)
        for expected in waiting:
            assert outstanding(client, "r") == expected
            client.ack("r", "a", expected)


def test_lower_priorities_are_delivered_first(rooms: FanoutClient) -> None:
    for priority in (5, 0, -1, 0, -(2**53)):
        rooms.send("r", str(priority), priority=priority)
    found = rooms.peek("r")
    assert [message.priority for message in found] == [-(2**53), -1, 0, 0, 5]
    assert found[2].id < found[3].id
    with pytest.raises(TypeError, match="priority must be an int"):
        rooms.send("r", "", priority=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="priority must be"):
        rooms.send("r", "", priority=2**53 + 1)


def test_an_acknowledgement_that_is_not_waited_for_is_an_error_and_advances_nothing(
    rooms: FanoutClient,
) -> None:
    for client in "ab":
        rooms.subscribe("r", client, W)
    rooms.subscribe("r", "listener", W, mode="async")
    first, second = rooms.send("r", "1"), rooms.send("r", "2")
    oob = rooms.send_out_of_band("r", "!")
    rooms.subscribe("r", "newcomer", W)
    assert refused(rooms.ack, "r", "a", second) == "not-outstanding"  # early
    assert refused(rooms.ack, "r", "a", oob) == "not-outstanding"
    assert refused(rooms.ack, "r", "stranger", first) == "not-subscribed"
    assert refused(rooms.ack, "r", "listener", first) == "not-waited-for"
    assert refused(rooms.ack, "r", "newcomer", first) == "not-waited-for"
    rooms.ack("r", "a", first)
    assert refused(rooms.ack, "r", "a", first) == "doubled"
    assert refused(rooms.ack, "r", "a", "x::y::r") == "not-outstanding"
    assert outstanding(rooms, "r") == first
    rooms.ack("r", "b", first)
    assert refused(rooms.ack, "r", "b", first) == "not-outstanding"  # late
    assert outstanding(rooms, "r") == second
    assert rooms.room_metrics("r").acknowledged == 2


def test_of_several_acknowledgements_those_count_that_are_right(rooms: FanoutClient) -> None:
    for client in "abc":
        rooms.subscribe("r", client, W)
    first = rooms.send("r", "1")
    with pytest.raises(RoomError) as caught:
        rooms.ack("r", ["a", "stranger", "b", "a"], first)
    assert caught.value.failed == {"stranger": "not-subscribed", "a": "doubled"}
    assert rooms.room_state("r").acknowledged == {"a", "b"}
    rooms.ack("r", "c", first)
    assert outstanding(rooms, "r") == ""


def test_who_is_silent_is_timed_out_and_hears_of_it(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    for client in "ab":
        rooms.subscribe("r", client, W)
    first, second = rooms.send("r", "1"), rooms.send("r", "2")
    rooms.ack("r", "a", first)
    overdue(redis, "r", "b")
    rooms.ping("a")
    assert outstanding(rooms, "r") == second
    assert refused(rooms.ping, "b") == "timed-out"
    assert refused(rooms.ping, "b", "r") == "timed-out"
    assert refused(rooms.ack, "r", "b", first) == "timed-out"
    assert refused(rooms.unsubscribe, "r", "b") == "timed-out"
    assert rooms.room_metrics("r").timeouts == 1
    rooms.subscribe("r", "b", W)
    rooms.ping("b")
    assert refused(rooms.ack, "r", "b", second) == "not-waited-for"


def test_a_ping_that_comes_too_late_does_not_count(rooms: FanoutClient, redis: RedisServer) -> None:
    rooms.subscribe("r", "a", W)
    overdue(redis, "r", "a")
    assert refused(rooms.ping, "a") == "timed-out"


def test_time_outs_go_by_the_clock_of_redis(
    make: Callable[..., FanoutClient], redis: RedisServer
) -> None:
    rooms = make(redis.url, timeout=0.3)
    rooms.subscribe("r", "a", W)
    rooms.send("r", "1")
    wait_until(lambda: not rooms.room_state("r").clients)
    state = rooms.room_metrics("r")
    assert (state.timeouts, state.backlog, state.outstanding) == (1, 1, "")


def test_pings_and_acknowledgements_put_a_time_out_off(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    rooms.subscribe("r", "a", W)
    first = rooms.send("r", "1")
    clients = keys.room("r")[2]
    for sign_of_life in (lambda: rooms.ping("a"), lambda: rooms.ack("r", "a", first)):
        soon = redis.client().time()[0] * 1000 + 10_000
        redis.client().zadd(clients, {"a": soon})
        sign_of_life()
        assert (redis.client().zscore(clients, "a") or 0) > soon + 10_000


def test_pings_say_all_rooms_of_a_client(rooms: FanoutClient, redis: RedisServer) -> None:
    for room in ("r1", "r2", "r3"):
        rooms.subscribe(room, "a", W)
        redis.client().zadd(keys.room(room)[2], {"a": 10**14})
    overdue(redis, "r2", "a")
    assert refused(rooms.ping, "a") == "timed-out"
    for room in ("r1", "r3"):
        assert (redis.client().zscore(keys.room(room)[2], "a") or 0) < 10**14
    rooms.ping("a")  # what it was timed out of is known now
    assert refused(rooms.ping, "b") == "not-subscribed"


def test_remembers_no_more_than_so_many_clients_for_their_pings(
    rooms: FanoutClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wakeq.fanout.core._JOINED_MOST", 2)
    rooms.subscribe("r", "a", W)
    rooms.subscribe("r", "b", W)
    rooms.ping("a")
    rooms.subscribe("r", "c", W)
    rooms.ping("a")
    rooms.ping("c")
    rooms.ping("b", "r")
    assert refused(rooms.ping, "b") == "not-subscribed"


def test_a_worker_and_a_gateway_remember_nobody_whom_they_do_not_ping_for() -> None:
    core = Core(None, 30.0, 0)
    steps = core.subscribe("r", "a", W, "sync", "keep", index=False)
    next(steps)  # joins
    steps.send([0, 1, 0, 0])  # registers the room
    with pytest.raises(StopIteration):
        steps.send(1)
    with pytest.raises(RoomError, match="was not subscribed to any room here"):
        next(core.ping("a", None))


def test_the_backlog_is_kept_when_the_last_client_leaves(rooms: FanoutClient) -> None:
    rooms.subscribe("r", "a", W)
    ids = [rooms.send("r", str(number)) for number in range(10)]
    rooms.ack("r", "a", ids[0])
    rooms.unsubscribe("r", "a")
    # Nobody has acknowledged the second one; it waits in its old place.
    assert [message.id for message in rooms.peek("r")] == ids[1:]
    rooms.send("r", "nobody is there")
    assert rooms.room_metrics("r").backlog == 10
    rooms.subscribe("r", "b", W)
    assert (outstanding(rooms, "r"), rooms.room_metrics("r").backlog) == (ids[1], 9)


def test_the_backlog_is_dropped_if_that_was_asked_for(rooms: FanoutClient) -> None:
    rooms.subscribe("r", "a", W, backlog="drop")
    for number in range(3):
        rooms.send("r", str(number))
    rooms.unsubscribe("r", "a")
    rooms.send("r", "nobody is there")
    assert rooms.peek("r") == []
    assert rooms.room_metrics("r").dropped == 4


def test_a_message_that_somebody_acknowledged_is_not_delivered_again(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    for client in "ab":
        rooms.subscribe("r", client, W)
    first, second = rooms.send("r", "1"), rooms.send("r", "2")
    rooms.ack("r", "a", first)
    overdue(redis, "r", "b")
    assert outstanding(rooms, "r") == second


def test_where_only_async_clients_are_messages_wait_for_nobody(rooms: FanoutClient) -> None:
    rooms.send("r", "1")
    rooms.subscribe("r", "watcher", W, mode="observer")
    assert rooms.room_metrics("r").backlog == 1
    rooms.subscribe("r", "a", W, mode="async")
    rooms.send("r", "2")
    metrics = rooms.room_metrics("r")
    assert (metrics.backlog, metrics.rounds, metrics.outstanding) == (0, 2, "")


GARBAGE = (b"what somebody else wrote", b"", b"\xff" * 30, b"1" * 20, b"0" * 16 + b"99999x",
           b"0" * 16 + b"-0001", b"0" * 15 + b"\0" + b"00000")  # fmt: skip


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_is_no_message_is_dropped_from_the_line_and_counted(
    rooms: FanoutClient, redis: RedisServer, mode: str
) -> None:
    queue = keys.room("r")[1]
    redis.client().zadd(queue, dict.fromkeys(GARBAGE, -1))
    redis.client().zadd(queue, {b"%d" % number: -2 for number in range(1100)})
    first = rooms.send("r", "1")
    # Its producer is no text.
    redis.client().zadd(queue, {b"9" * 16 + b"00001\xff" + b"data": float("inf")})
    metrics = rooms.room_metrics("r")
    assert (metrics.backlog, metrics.invalid) == (1100 + len(GARBAGE) + 2, 0)
    assert metrics.delay < 60
    assert rooms.peek("r", 0, None)[-1].producer == "\ufffd"
    rooms.subscribe("r", "a", W, mode=mode)
    rooms.ping("a")
    metrics = rooms.room_metrics("r")
    assert metrics.invalid == 1100 + len(GARBAGE)
    if mode == "sync":
        assert (metrics.outstanding, metrics.backlog) == (first, 1)
        rooms.ack("r", "a", first)
        state = rooms.room_state("r")
        assert state.message is not None
        assert (state.message.id, state.message.producer) == ("9" * 16, "\ufffd")
        rooms.unsubscribe("r", "a")
        assert rooms.room_metrics("r").backlog == 1
    else:
        assert (metrics.rounds, metrics.backlog) == (2, 0)
    assert rooms.metrics().invalid == metrics.invalid
    redis.client().hset(keys.room("r")[0], "message", b"\xff")
    assert rooms.room_state("r").message is None


def test_a_worker_may_have_more_clients_in_a_room_than_lua_takes_arguments(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    reader = Reader(redis, "w")
    clients = [f"c{number}" for number in range(9000)]
    pipeline = redis.client().pipeline(transaction=False)
    for client in clients:
        pipeline.execute_command(*Rooms().join("r", client, "w", "sync", 600_000, False).command)
    pipeline.execute()
    rooms.send("r", "1")
    version = reader.ask(Rooms("w").look("r", 1000, -1, False, []))[1]
    reply = reader.ask(Rooms("w").look("r", 1000, version, False, clients))
    assert (reply[1], len(reply[5])) == (version, 9000)


class Reader:
    """A worker that has a client and reads the log of a room when it is told to.

    Attributes:
        seen: what it has read, as text.
    """

    def __init__(self, redis: RedisServer, name: str) -> None:
        self._rooms = Rooms(name)
        self._redis = redis.client()
        self._read: int | None = None
        self.seen: list[str] = []

    def ask(self, request: Request) -> Any:
        try:
            return self._redis.execute_command(*request.command)
        except NoScriptError:
            assert request.send_whole()
            return self._redis.execute_command(*request.command)

    def look(self) -> None:
        self.ask(self._rooms.look("r", 1000, -1, False, []))

    def read(self) -> bool:
        """Read on, and say that what was read before is done; tell whether there was something."""
        _, _, after, entries, *_ = self.ask(self._rooms.read("r", self._read, self._read, 2**53))
        self._read = entries[-3] if entries else after
        self.seen += [read_message(raw).text() for raw in entries[2::3]]
        return bool(entries)

    def read_all(self) -> None:
        while self.read():
            pass


def test_a_backlog_waits_for_the_slowest_of_the_async_clients(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    slow, quick = Reader(redis, "slow"), Reader(redis, "quick")
    expected = [str(number) for number in range(3000)]
    rooms.subscribe("r", "a", "slow", mode="async")
    rooms.subscribe("r", "b", "quick", mode="async")
    for text in expected:
        rooms.send("r", text)
    for _ in range(40):
        slow.look()
        quick.read()
    assert rooms.room_metrics("r").backlog >= 2000
    slow.read()
    for _ in range(40):
        slow.read_all()
        quick.read_all()
    assert slow.seen == quick.seen == expected
    metrics = rooms.room_metrics("r")
    assert (metrics.backlog, metrics.missed) == (0, 0)


def test_what_comes_after_a_promotion_that_lost_the_last_steps_is_read(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    reader = Reader(redis, "w")
    rooms.subscribe("r", "a", "w")
    for text in "123":
        rooms.send_out_of_band("r", text)
    old = {key: redis.client().dump(key) for key in keys.room("r")}
    for text in "456":
        rooms.send_out_of_band("r", text)
    reader.read_all()
    for key, value in old.items():
        redis.client().delete(key)
        if value is not None:
            redis.client().restore(key, 0, value)
    rooms.send_out_of_band("r", "7")
    reader.read_all()
    assert reader.seen == [*"123456", *"1237"]
    assert rooms.room_metrics("r").missed == 0


def test_an_observer_holds_up_nobody_and_what_it_misses_is_counted(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    observer, quick = Reader(redis, "observer"), Reader(redis, "quick")
    expected = [str(number) for number in range(1500)]
    rooms.subscribe("r", "a", "observer", mode="observer")
    rooms.subscribe("r", "b", "quick", mode="async")
    for text in expected:
        rooms.send("r", text)
        quick.read()
    quick.read_all()
    rooms.send_out_of_band("r", "now")
    quick.read_all()
    assert quick.seen == [*expected, "now"]
    observer.read_all()
    assert observer.seen == [*expected, "now"][-len(observer.seen) :]
    missed = rooms.room_metrics("r").missed
    assert missed == 1501 - len(observer.seen) > 0
    assert rooms.metrics().missed == missed


def test_out_of_band_messages_are_refused_before_one_who_is_waited_for_misses_any(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    slow, quick = Reader(redis, "slow"), Reader(redis, "quick")
    rooms.subscribe("r", "a", "slow")
    rooms.subscribe("r", "b", "quick", mode="async")
    rooms.subscribe("r", "c", "has no process")
    slow.read()
    quick.read()
    expected = [str(number) for number in range(1000)]
    for text in expected:
        rooms.send_out_of_band("r", text)
    with pytest.raises(RoomError, match="worker slow has not read 1000 messages") as caught:
        quick.read_all()
        rooms.send_out_of_band("r", "one more")
    assert caught.value.code == "full"
    assert rooms.room_metrics("r").refused == 1
    slow.read_all()
    rooms.send_out_of_band("r", "again")
    slow.read_all()
    assert slow.seen == [*expected, "again"]
    rooms.unsubscribe("r", "c")
    # Where there are no sync clients, async ones are waited for; beside them they are not.
    rooms.unsubscribe("r", "a")
    for _ in range(999):
        rooms.send_out_of_band("r", "x")
    assert refused(rooms.send_out_of_band, "r", "one more") == "full"
    rooms.subscribe("r", "a", "slow")
    rooms.send_out_of_band("r", "for all")


def test_a_full_line_is_an_error_to_the_sender(
    make: Callable[..., FanoutClient], redis: RedisServer
) -> None:
    rooms = make(redis.url, queue_limit=2)
    for _ in range(2):
        rooms.send("r", "1")
    assert refused(rooms.send, "r", "3") == "full"
    metrics = rooms.room_metrics("r")
    assert (metrics.backlog, metrics.refused, metrics.sent) == (2, 1, 2)


def test_peek_shows_a_part_of_what_waits_and_changes_nothing(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    ids = [rooms.send("r", {"n": number}, producer="p::q") for number in range(5)]
    assert [message.id for message in rooms.peek("r", 1, 2)] == ids[1:3]
    assert rooms.peek("r", 0, 0) == []
    assert len(rooms.peek("r", 2, None)) == 3
    assert rooms.peek("r", 9) == []
    message = rooms.peek("r")[4]
    assert (message.json(), message.producer, message.text()) == ({"n": 4}, "p::q", '{"n":4}')
    redis.client().zadd(keys.room("r")[1], {"what somebody else wrote": -5})
    assert [message.id for message in rooms.peek("r", 0, None)] == ids
    for offset in (-1, 2**53 + 1, 10**4300 - 1):
        with pytest.raises(ValueError, match="offset must be 0 to"):
            rooms.peek("r", offset)
    assert rooms.peek("r", 2**53, 2**53) == []


def test_the_state_of_a_room_is_exact(rooms: FanoutClient, redis: RedisServer) -> None:
    rooms.subscribe("r::1", "a::b", W)
    rooms.subscribe("r::1", "c", "w2", mode="async")
    rooms.send("r::1", "x", producer="p")
    rooms.send("r::1", "y")
    now = float(redis.client().time()[0])
    state = rooms.room_state("r::1")
    assert set(state.clients) == {"a::b", "c"}
    client = state.clients["a::b"]
    assert (client.worker, client.mode, client.waiting, client.timeout) == (W, "sync", True, 30)
    assert abs(client.seen_at - now) < 60
    assert abs(client.joined_at - now) < 60
    assert not state.clients["c"].waiting
    assert state.message is not None
    assert (state.message.data, state.message.producer) == (b"x", "p")
    assert abs(state.message.sent_at - now) < 60
    metrics = state.metrics
    assert (metrics.clients, metrics.sync, metrics.backlog, metrics.waiting) == (2, 1, 1, 1)
    assert metrics.outstanding == state.message.id
    assert 0 <= metrics.delay < 60
    assert 0 <= metrics.round_age < 60


def test_the_metrics_of_all_rooms_name_as_many_as_were_asked_for(rooms: FanoutClient) -> None:
    for number, name in enumerate(NAMES):
        for _ in range(number):
            rooms.send(name, "x")
    rooms.subscribe(NAMES[0], "a", W)
    metrics = rooms.metrics(top=2)
    assert [(one.room, one.backlog) for one in metrics.top] == [(NAMES[7], 7), (NAMES[6], 6)]
    assert (metrics.rooms, metrics.waiting_rooms, metrics.backlog, metrics.clients) == (8, 7, 28, 1)
    assert rooms.metrics(top=0).top == []
    assert len(rooms.metrics(top=100, by="delay").top) == 8
    assert rooms.metrics(top=1, by="clients").top[0].room == NAMES[0]
    rooms.unsubscribe(NAMES[0], "a")
    assert rooms.metrics().rooms == 7


def test_rooms_where_somebody_else_has_written_are_left_out_and_named(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    for name in ("fine", "type", "figure"):
        rooms.send(name, "x")
    client = redis.client()
    client.set(keys.room("type")[2], "x")
    client.hset(keys.room("figure")[0], "oob", "many")
    client.sadd(keys.ROOMS, b"\xff")
    metrics = rooms.metrics()
    assert [one.room for one in metrics.top] == ["fine"]
    assert (sorted(metrics.broken), metrics.rooms, metrics.sent) == (["figure", "type"], 1, 1)
    for look in (rooms.room_metrics, rooms.room_state):
        with pytest.raises(WakeqError, match="room figure: Redis holds something other"):
            look("figure")


def test_a_room_leaves_the_registry_when_whoever_uses_it_next_puts_it_there_again(
    make: Callable[..., FanoutClient], redis: RedisServer
) -> None:
    def used(seconds_ago: int) -> None:
        now = redis.client().time()[0]
        state = {"seq": (now - seconds_ago) * 10**6, "used": (now - seconds_ago) * 1000}
        redis.client().hset(keys.room("r")[0], mapping=state)

    sender, other = make(redis.url), make(redis.url)
    sender.subscribe("r", "a", W)
    sender.ack("r", "a", sender.send("r", "1"))
    sender.unsubscribe("r", "a")
    assert other.metrics().rooms == 0
    # The sender does not say again within a minute that there is this room.
    sender.send("r", "2")
    assert [(one.room, one.backlog) for one in other.metrics().top] == [("r", 1)]
    redis.client().delete(keys.room("r")[1])
    used(100)
    other.metrics()
    assert redis.client().smembers(keys.ROOMS) == {b"r"}
    used(130)
    other.metrics()
    assert redis.client().smembers(keys.ROOMS) == set()
    other.subscribe("r", "a", W)  # which counts as use
    other.unsubscribe("r", "a")
    other.metrics()
    assert redis.client().smembers(keys.ROOMS) == {b"r"}


def test_the_delay_is_that_of_the_oldest_message_whatever_its_priority(
    rooms: FanoutClient,
) -> None:
    rooms.send("r", "old", priority=9)
    wait_until(lambda: rooms.room_metrics("r").delay > 0.05)
    rooms.send("r", "new", priority=-9)
    assert rooms.room_metrics("r").delay > 0.05


def test_names_may_be_any_text(rooms: FanoutClient, redis: RedisServer) -> None:
    for room in NAMES:
        for client in NAMES:
            rooms.subscribe(room, client, "w::*{}")
        first = rooms.send(room, "1", producer=room)
        second = rooms.send(room, "2", producer=room)
        for client in NAMES:
            rooms.ping(client, room)
            rooms.ack(room, client, first)
        state = rooms.room_state(room)
        assert set(state.clients) == set(NAMES)
        assert state.message is not None
        assert (state.message.id, state.message.producer) == (second, room)
        for client in NAMES:
            rooms.unsubscribe(room, client)
        assert rooms.room_state(room).clients == {}
    assert {one.room for one in rooms.metrics(top=99).top} == set(NAMES)


@pytest.mark.parametrize("name", ["", "\ud800", "x" * 1001, 7, None, b"r"])
def test_what_cannot_be_a_name_is_refused_in_words(rooms: FanoutClient, name: Any) -> None:
    for call in (
        lambda: rooms.send(name, ""),
        lambda: rooms.subscribe("r", name, W),
        lambda: rooms.subscribe("r", "a", name),
        lambda: rooms.ack("r", [name], "1"),
        lambda: rooms.peek(name),
        lambda: rooms.room_state(name),
    ):
        with pytest.raises((TypeError, ValueError), match="must"):
            call()


def test_wrong_arguments_are_refused_in_words(rooms: FanoutClient, redis: RedisServer) -> None:
    for call, text in (
        (lambda: rooms.subscribe("r", "a", W, mode="both"), "mode must be sync, async, observer"),
        (lambda: rooms.subscribe("r", "a", W, backlog="lose"), "backlog must be keep or drop"),
        (lambda: rooms.subscribe("r", "a", "w\0"), "NUL"),
        (lambda: rooms.metrics(by="size"), "by must be one of"),
        (lambda: rooms.metrics(top=-1), "top must be"),
        (lambda: FanoutClient(redis.url, timeout=0), "timeout must be"),
        (lambda: FanoutClient(redis.url, queue_limit=-1), "queue_limit must be"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_a_client_that_is_subscribed_again_is_the_same_one(rooms: FanoutClient) -> None:
    rooms.subscribe("r", "a", W)
    first = rooms.send("r", "1")
    rooms.subscribe("r", "a", W)
    assert outstanding(rooms, "r") == first
    rooms.subscribe("r", "a", "other")
    state = rooms.room_state("r")
    assert state.clients["a"].worker == "other"
    assert state.clients["a"].waiting
    rooms.subscribe("r", "a", W, mode="async")
    assert rooms.room_state("r").metrics.sync == 0
    # Nobody is waited for any more, and nobody had acknowledged it.
    assert rooms.room_metrics("r").rounds == 2


def test_nothing_is_left_of_a_room_that_nobody_uses(
    rooms: FanoutClient, redis: RedisServer
) -> None:
    rooms.subscribe("r", "a", W)
    rooms.subscribe("r", "b", W, mode="async")
    rooms.send_out_of_band("r", "!")
    rooms.ack("r", "a", rooms.send("r", "1"))
    rooms.unsubscribe("r", "a")
    rooms.unsubscribe("r", "b")
    left = {key.decode() for key in redis.client().keys("wakeq:room:*")}
    assert left == {keys.room("r")[0]}
    assert 0 < redis.client().ttl(keys.room("r")[0]) <= 86_400


def test_says_that_redis_cannot_be_reached(
    make: Callable[..., FanoutClient], own_redis: RedisServer
) -> None:
    rooms = make(own_redis.url)
    rooms.subscribe("r", "a", W)
    own_redis.stop()
    for call in (lambda: rooms.send("r", "1"), lambda: rooms.ping("a")):
        with pytest.raises(UnavailableError, match="cannot be reached"):
            call()
    own_redis.start()
    # It was started empty.
    assert refused(rooms.ping, "a") == "not-subscribed"
    rooms.subscribe("r", "a", W)
    rooms.ack("r", "a", rooms.send("r", "1"))


def test_rounds_in_flight_go_on_when_redis_is_full(
    make: Callable[..., FanoutClient], own_redis: RedisServer
) -> None:
    rooms = make(own_redis.url)
    rooms.subscribe("r", "a", W)
    ids = [rooms.send("r", str(number)) for number in range(3)]
    own_redis.client().config_set("maxmemory", 1)
    with pytest.raises(WakeqError, match="OOM"):
        rooms.send("r", "4")
    with pytest.raises(WakeqError, match="OOM"):
        rooms.subscribe("r", "b", W)
    for message_id in ids:
        rooms.ping("a")
        rooms.ack("r", "a", message_id)
    assert rooms.peek("r") == []
    rooms.unsubscribe("r", "a")


def test_a_room_lies_in_one_slot_of_a_cluster(
    make: Callable[..., FanoutClient], short_dir: Any
) -> None:
    cluster = Cluster(short_dir)
    cluster.start()
    try:
        rooms = make(cluster.url(0))
        for room in NAMES:
            rooms.subscribe(room, "a", W)
            first = rooms.send(room, "1")
            rooms.send(room, "2")
            rooms.ack(room, "a", first)
            rooms.ping("a", room)
        metrics = rooms.metrics(top=99)
        assert {one.room for one in metrics.top} == set(NAMES)
        assert (metrics.clients, metrics.acknowledged) == (len(NAMES), len(NAMES))
        cluster.move(keys.room("a")[0], (cluster.owner(keys.room("a")[0]) + 1) % 3)
        rooms.ack("a", "a", outstanding(rooms, "a"))
    finally:
        cluster.stop()


def test_a_worker_hears_that_somebody_else_let_its_last_client_leave(redis: RedisServer) -> None:
    with FanoutClient(redis.url) as client, redis.client().pubsub() as bell:
        bell.subscribe(keys.BELL + W)
        wait_until(lambda: bell.get_message(timeout=1))
        client.subscribe("r", "ada", worker=W)
        redis.client().publish(keys.BELL + W, "subscribed")
        while (bell.get_message(timeout=1) or {}).get("data") != b"subscribed":
            pass
        client.unsubscribe("r", "ada")
        news = wait_until(lambda: bell.get_message(timeout=1))
    assert news["data"].endswith(b" r")
