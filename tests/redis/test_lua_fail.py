"""fail.lua: a message that failed is delayed or dead, and pending no more, in one step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.message import FOLDED, Message, carry, fold, pack_failed
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, G, C = "orders", "g", "host/orders"
RETRY, STATS, DEAD = keys.retry(S, G), keys.stats(S, G), keys.dead(S, G)
DELAYED, DATA = keys.delayed(S), keys.delayed_data(S)
UNPACK = "return cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]))"
HOUR_MS = 3_600_000


class Failing:
    """Runs fail.lua on one stream, and looks at what came of it.

    Attributes:
        consumer: the caller, empty if it is sure to have what is pending and nothing is dead.
    """

    consumer = C

    def __init__(self, connection: Connection, client: Any) -> None:
        self.connection = connection
        self.client = client

    def pend(self, *ids: str, source: str = S, consumer: str = C) -> None:
        """Have messages pending for a consumer."""
        self.client.xgroup_create(source, G, "0", mkstream=True)
        for entry_id in ids:
            self.client.xadd(source, {"body": "x"}, id=entry_id)
        self.client.xreadgroup(G, consumer, {source: ">"})

    def __call__(
        self,
        *messages: tuple[Any, ...],
        source: str = S,
        position: str = "",
        connection: Connection | None = None,
    ) -> Any:
        """Fail messages: each is its id, its first id, the delay, and its items."""
        delays = [message[2] for message in messages if message[2] >= 0]
        caller = C if len(delays) < len(messages) else self.consumer
        arguments: list[Any] = [G, caller, position, S, keys.DOORBELL]
        arguments.append(min(delays, default=""))
        for entry_id, first, delay_ms, *items in messages:
            raw = [item.encode() if isinstance(item, str) else item for item in items]
            arguments += [entry_id, f"{first}@{G}", delay_ms, *pack_failed(G, first, raw)]
        names = [source, STATS, DELAYED, DATA]
        if len(delays) < len(messages):
            names.append(DEAD)
        return Script("fail").call(connection or self.connection, names, arguments)

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def pending(self, source: str = S) -> list[str]:
        found = self.client.xpending_range(source, G, "-", "+", 1000)
        return [each["message_id"].decode() for each in found]

    def delayed(self) -> dict[str, int]:
        """Return when each delayed message is due."""
        due = {k.decode(): int(v) for k, v in self.client.zrange(DELAYED, 0, -1, withscores=True)}
        assert set(due) == {k.decode() for k in self.client.hkeys(DATA)}
        return due

    def packed(self, member: str) -> list[bytes]:
        return list(self.client.eval(UNPACK, 1, DATA, member))

    def dead(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(DEAD)]

    def stats(self) -> dict[bytes, bytes]:
        return dict(self.client.hgetall(STATS))


@pytest.fixture(params=[C, ""], ids=["looks", "sure"])
def fail(redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[Failing]:
    with failing(redis, request.param) as some:
        yield some


@pytest.fixture(params=[C, ""], ids=["looks", "sure"])
def own_fail(own_redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[Failing]:
    """The same on a server of the test's own."""
    with failing(own_redis, request.param) as some:
        yield some


@contextmanager
def failing(server: RedisServer, consumer: str) -> Iterator[Failing]:
    connection = Connection(RedisURL(server.url), "wakeq-test")
    connection.connect()
    some = Failing(connection, server.client())
    some.consumer = consumer
    yield some
    connection.close()


# -- delayed -----------------------------------------------------------------------------------


def test_a_message_is_delayed_and_no_longer_pending(fail: Failing) -> None:
    fail.pend("1-0", "2-0")
    before = fail.now_ms()
    (due,) = fail(("1-0", "1-0", 5000, "wakeq.attempt", "2", "body", "x"))
    assert before + 5000 <= due <= fail.now_ms() + 5000
    assert fail.delayed() == {"1-0@g": due}
    failed_at = b"%d" % (due - 5000)
    assert fail.packed("1-0@g") == [
        *(b"g", b"1-0", b"wakeq.failed_at", failed_at, b"wakeq.first_failed_at", failed_at),
        *(b"wakeq.attempt", b"2", b"body", b"x"),
    ]
    assert fail.pending() == ["2-0"]
    assert fail.client.xlen(S) == 2, "the stream is the user's"
    assert fail.stats() == {b"failed": b"1"}
    assert fail.dead() == []


def test_without_a_delay_it_is_due_at_once(fail: Failing) -> None:
    fail.pend("1-0")
    (due,) = fail(("1-0", "1-0", 0, "body", "x"))
    assert due <= fail.now_ms()
    assert fail.delayed() == {"1-0@g": due}


def test_the_first_failure_is_remembered(fail: Failing) -> None:
    fail.pend("1-0")
    items = ("wakeq.attempt", "3", "wakeq.key", "k", "wakeq.first_failed_at", "17", "body", "x")
    (due,) = fail(("1-0", "0-7", 9, *items))
    packed = [each.decode() for each in fail.packed("0-7@g")]
    assert packed == ["g", "0-7", "wakeq.failed_at", str(due - 9), *items]


def test_a_field_of_the_user_is_not_taken_for_the_first_failure(fail: Failing) -> None:
    fail.pend("1-0")
    fail(("1-0", "1-0", 9, "wakeq.attempt", "2", "a", "b", "wakeq.first_failed_at", "17"))
    assert fail.packed("1-0@g").count(b"wakeq.first_failed_at") == 2


def test_fields_may_be_any_bytes(fail: Failing) -> None:
    fail.pend("1-0", "2-0")
    every = bytes(range(256))
    items = (every, every[::-1], b"", b"", "ä", b"\0", "body", b"\r\n$5\r\n")
    fail(("1-0", "1-0", 9, *items), ("2-0", "2-0", -1, *items))
    as_bytes = [each.encode() if isinstance(each, str) else each for each in items]
    assert fail.packed("1-0@g")[6:] == as_bytes
    (letter,) = fail.dead()
    assert list(letter)[2:] == as_bytes[::2]
    assert list(letter.values())[2:] == as_bytes[1::2]


def test_a_member_that_is_taken_is_given_a_number(fail: Failing) -> None:
    fail.pend("1-0", "2-0", "3-0")
    fail(("1-0", "0-7", 9, "body", "a"))
    fail(("2-0", "0-7", 8, "body", "b"), ("3-0", "0-7", -1, "body", "dead"))
    assert set(fail.delayed()) == {"0-7@g", "0-7@g@2"}
    assert fail.packed("0-7@g")[-1] == b"a"
    assert fail.packed("0-7@g@2")[-1] == b"b"
    assert fail.packed("0-7@g@2")[1] == b"0-7"


# -- dead ----------------------------------------------------------------------------------------


def test_a_message_is_dead_and_no_longer_pending(fail: Failing) -> None:
    fail.pend("1-0")
    before = fail.now_ms()
    assert fail(("1-0", "1-0", -1, "wakeq.error", "Reject: never", "body", "x")) == [0]
    (letter,) = fail.dead()
    assert letter[b"wakeq.failed_at"] == letter[b"wakeq.first_failed_at"]
    assert before <= int(letter[b"wakeq.failed_at"]) <= fail.now_ms()
    assert letter[b"wakeq.error"] == b"Reject: never"
    assert letter[b"body"] == b"x"
    assert fail.pending() == []
    assert fail.delayed() == {}
    assert fail.stats() == {b"failed": b"1", b"dead": b"1"}


# -- several, and again ------------------------------------------------------------------------


def test_several_go_each_their_own_way(fail: Failing) -> None:
    fail.pend("1-0", "2-0", "3-0", "4-0")
    first, dead, third = fail(
        ("1-0", "1-0", 9000, "body", "a"),
        ("2-0", "2-0", -1, "body", "b"),
        ("4-0", "0-1", 1000, "body", "d"),
        position="3-0",
    )
    assert (first - third, dead) == (8000, 0)
    assert set(fail.delayed()) == {"1-0@g", "0-1@g"}
    assert [letter[b"body"] for letter in fail.dead()] == [b"b"]
    assert fail.pending() == ["3-0"]
    assert fail.stats() == {b"failed": b"3", b"dead": b"1", b"position": b"3-0"}


def test_the_second_call_changes_nothing(fail: Failing) -> None:
    fail.pend("1-0", "2-0")
    messages = (("1-0", "1-0", 9000, "body", "a"), ("2-0", "2-0", -1, "body", "b"))
    fail(*messages)
    before = (fail.delayed(), fail.dead(), fail.stats())
    assert fail(*messages) == [-1, -1]
    assert (fail.delayed(), fail.dead(), fail.stats()) == before


def test_one_that_stands_twice_in_a_call_is_moved_twice_at_most_as_two(fail: Failing) -> None:
    fail.pend("1-0")
    fail(("1-0", "1-0", 9000, "body", "a"))
    assert fail(("1-0", "1-0", 9000, "body", "a"), ("1-0", "1-0", -1, "body", "a")) == [-1, -1]
    assert len(fail.delayed()) == 1


def test_what_another_consumer_has_is_left_to_it(fail: Failing) -> None:
    fail.consumer = C
    fail.pend("1-0", "2-0")
    fail.client.xclaim(S, G, "other", 0, ["1-0"])
    assert fail(("1-0", "1-0", -1, "body", "a"), ("2-0", "2-0", -1, "body", "b"))[0] == -1
    assert [letter[b"body"] for letter in fail.dead()] == [b"b"]
    assert fail.pending() == ["1-0"]
    assert fail.stats() == {b"failed": b"1", b"dead": b"1"}


def test_what_is_sure_to_be_the_callers_is_moved_without_a_look_whose_it_is(fail: Failing) -> None:
    fail.consumer = ""
    fail.pend("1-0", consumer="renamed")
    (due,) = fail(("1-0", "1-0", 9, "body", "a"))
    assert fail.delayed() == {"1-0@g": due}
    assert fail.pending() == []


def test_what_was_acknowledged_is_not_moved(fail: Failing) -> None:
    fail.pend("1-0")
    fail.client.xack(S, G, "1-0")
    assert fail(("1-0", "1-0", 0, "body", "a"), ("9-9", "9-9", -1, "body", "b")) == [-1, -1]
    assert fail.delayed() == {}
    assert fail.dead() == []
    assert fail.stats() == {}


def test_a_message_whose_entry_was_deleted_is_moved_all_the_same(fail: Failing) -> None:
    fail.pend("1-0")
    fail.client.xdel(S, "1-0")
    assert fail(("1-0", "1-0", -1, "body", "a")) == [0]
    assert [letter[b"body"] for letter in fail.dead()] == [b"a"]
    assert fail.pending() == []


def test_an_entry_of_the_retry_stream_is_deleted(fail: Failing) -> None:
    fail.pend("1-0", "2-0", "3-0", source=RETRY)
    messages = (("1-0", "0-1", 9000, "body", "a"), ("2-0", "0-2", -1, "body", "b"))
    fail(*messages, source=RETRY)
    assert [entry_id for entry_id, _ in fail.client.xrange(RETRY)] == [b"3-0"]
    assert fail.pending(RETRY) == ["3-0"]
    assert set(fail.delayed()) == {"0-1@g"}
    assert len(fail.dead()) == 1


def test_a_hundred_at_once(fail: Failing) -> None:
    ids = [f"{n}-0" for n in range(1, 101)]
    fail.pend(*ids)
    assert len(fail(*((i, i, n, "body", "x" * 1000) for n, i in enumerate(ids)))) == 100
    assert fail.pending() == []
    assert list(fail.delayed()) == [f"{i}@g" for i in ids]


def test_many_callers_at_once_move_a_message_once(redis: RedisServer, fail: Failing) -> None:
    fail.pend("1-0")
    barrier = threading.Barrier(8)

    def one(_: int) -> Any:
        connection = Connection(RedisURL(redis.url), "wakeq-test")
        connection.connect()
        try:
            barrier.wait(60)
            return fail(("1-0", "1-0", HOUR_MS, "body", "a"), connection=connection)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for (answer,) in pool.map(one, range(8))]
    assert sorted(answers)[:7] == [-1] * 7
    assert list(fail.delayed().values()) == [max(answers)]
    assert fail.stats() == {b"failed": b"1"}


# -- the bell ------------------------------------------------------------------------------------


def test_rings_when_it_is_the_first_that_is_due_and_not_else(fail: Failing) -> None:
    fail.pend("1-0", "2-0", "3-0", "4-0")
    heard = fail.client.pubsub(ignore_subscribe_messages=True)
    try:
        heard.subscribe(keys.DOORBELL)
        wait_until(lambda: fail.client.pubsub_numsub(keys.DOORBELL)[0][1] == 1)
        fail(("1-0", "1-0", HOUR_MS, "body", "x"))
        fail(("2-0", "2-0", 2 * HOUR_MS, "body", "x"))
        fail(("3-0", "3-0", -1, "body", "x"))
        fail(("4-0", "4-0", 0, "body", "x"))
        fail.client.publish(keys.DOORBELL, "end")
        rings: list[bytes] = []
        while not rings or rings[-1] != b"end":
            message = heard.get_message(timeout=10)
            assert message is None or message["type"] in ("subscribe", "message")
            if message is not None:
                rings.append(message["data"])
    finally:
        heard.close()
    assert rings == [b"orders", b"orders", b"end"]


def test_rings_when_several_are_the_first_whichever_order_they_have(fail: Failing) -> None:
    fail.pend("1-1", "1-10")
    heard = fail.client.pubsub(ignore_subscribe_messages=True)
    try:
        heard.subscribe(keys.DOORBELL)
        wait_until(lambda: fail.client.pubsub_numsub(keys.DOORBELL)[0][1] == 1)
        due, same = fail(
            ("1-1", "1-1", HOUR_MS, "body", "x"), ("1-10", "1-10", HOUR_MS, "body", "x")
        )
        fail.client.publish(keys.DOORBELL, "end")
        rung = wait_until(lambda: heard.get_message(timeout=1))
    finally:
        heard.close()
    assert due == same
    assert list(fail.delayed()) == ["1-10@g", "1-1@g"], "of two that are due at once"
    assert rung["data"] == b"orders"


def test_who_may_not_ring_moves_all_the_same(own_fail: Failing, own_redis: RedisServer) -> None:
    own_fail.pend("1-0", "2-0")
    rights = ("on", ">pw", "~*", "resetchannels", "+@all")
    own_fail.client.execute_command("ACL", "SETUSER", "poor", *rights)
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()
    try:
        connection.call("AUTH", "poor", "pw")
        with pytest.raises(ServerError, match="NOPERM"):
            connection.call("PUBLISH", keys.DOORBELL, S)
        answers = own_fail(
            ("1-0", "1-0", 9, "body", "x"), ("2-0", "2-0", -1, "body", "x"), connection=connection
        )
    finally:
        connection.close()
    assert answers[1] == 0
    assert own_fail.delayed() == {"1-0@g": answers[0]}
    assert own_fail.pending() == []


# -- what goes wrong -----------------------------------------------------------------------------


def test_says_that_the_group_is_gone_and_changes_nothing(fail: Failing) -> None:
    fail.pend("1-0")
    fail.client.xgroup_destroy(S, G)
    with pytest.raises(ServerError) as caught:
        fail(("1-0", "1-0", 9, "body", "x"))
    assert caught.value.code == "NOGROUP"
    assert fail.client.exists(DELAYED, DATA, DEAD, STATS) == 0


@pytest.mark.parametrize("delay_ms", [9, -1])
def test_changes_nothing_if_the_stream_is_something_else(fail: Failing, delay_ms: int) -> None:
    fail.client.set(S, "v")
    with pytest.raises(ServerError) as caught:
        fail(("1-0", "1-0", delay_ms, "body", "x"))
    assert caught.value.code == "WRONGTYPE"
    assert fail.client.exists(DELAYED, DATA, DEAD, STATS) == 0


@pytest.mark.parametrize("wrong", [DELAYED, DATA, DEAD])
def test_changes_nothing_if_a_key_is_something_else(fail: Failing, wrong: str) -> None:
    fail.pend("1-0", "2-0", "3-0")
    fail.client.set(wrong, "v")
    messages = [("1-0", "1-0", 9, "body", "x"), ("2-0", "2-0", -1, "body", "x")]
    with pytest.raises(ServerError) as caught:
        fail(*messages, ("3-0", "3-0", 9, "body", "x"))
    assert caught.value.code == "WRONGTYPE"
    assert fail.pending() == ["1-0", "2-0", "3-0"]
    assert fail.client.exists(DELAYED, DATA, DEAD, STATS) == 1


def test_counters_that_are_something_else_do_not_keep_it_from_its_work(fail: Failing) -> None:
    fail.pend("1-0", "2-0")
    fail.client.set(STATS, "v")
    assert fail(("1-0", "1-0", 9, "body", "x"), ("2-0", "2-0", -1, "body", "x"))[1] == 0
    assert fail.pending() == []


@pytest.mark.parametrize("delay_ms", [9000, -1])
def test_changes_nothing_when_memory_is_full_and_goes_on_later(
    own_fail: Failing, delay_ms: int
) -> None:
    own_fail.pend("1-0", "2-0")
    client = own_fail.client
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis_py.ResponseError, match=r"OOM|maxmemory"):
        client.set("k", "v")
    with pytest.raises(ServerError) as caught:
        own_fail(("1-0", "1-0", delay_ms, "body", "x"), position="1-0")
    assert caught.value.code == "OOM"
    assert client.exists(DELAYED, DATA, DEAD, STATS) == 0
    assert own_fail.pending() == ["1-0", "2-0"]
    client.config_set("maxmemory", 0)
    own_fail(("1-0", "1-0", delay_ms, "body", "x"))
    assert own_fail.pending() == ["2-0"]
    assert len(own_fail.delayed()) + len(own_fail.dead()) == 1


# -- messages with many fields -----------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [9, -1])
def test_takes_as_many_fields_as_it_says(fail: Failing, delay_ms: int) -> None:
    fail.pend("1-0")
    items = [part for n in range(3990) for part in (f"f{n}", str(n))]
    fail(("1-0", "1-0", delay_ms, *items))
    assert fail.pending() == []
    fields = fail.packed("1-0@g")[2:] if delay_ms > 0 else fail.client.xrange(DEAD)[0][1]
    assert len(fields) in (3992, 2 * 3992)


@pytest.mark.parametrize("delay_ms", [9, -1])
@pytest.mark.parametrize("many", ["fields", "fields that are ours"])
def test_a_message_with_any_number_of_fields_survives(
    fail: Failing, many: str, delay_ms: int
) -> None:
    fail.pend("1-0")
    prefix = b"wakeq.x" if many == "fields that are ours" else b"f"
    pairs = [(prefix + b"%d" % n, bytes([n % 256])) for n in range(20_000)]
    items = [part for pair in [(b"wakeq.key", b"k"), *pairs, (b"body", b"x")] for part in pair]
    message = Message(S, 0, b"1-0", items)
    moved = carry(message, [(b"wakeq.attempt", b"2"), (b"wakeq.first_id", b"1-0")])
    assert len(moved) < 100
    fail(("1-0", "1-0", delay_ms, *moved))
    if delay_ms > 0:
        entry = fail.packed("1-0@g")[2:]
    else:
        (letter,) = fail.dead()
        entry = [part for pair in letter.items() for part in pair]
    assert entry[-2] == FOLDED
    again = Message(S, 1, b"5-0", entry)
    assert (again.id, again.attempt, again.key) == ("1-0", 2, b"k")
    assert again.fields == message.fields
    assert [pair for pair in again.pairs() if pair[0].startswith(prefix)] == pairs
    # And once more: it has failed again.
    third = Message(S, 1, b"6-0", carry(again, [(b"wakeq.attempt", b"3")]))
    assert third.fields == message.fields
    assert third.own(b"wakeq.first_failed_at") == again.own(b"wakeq.first_failed_at")


def test_what_a_user_calls_as_we_call_folded_fields_is_not_unfolded() -> None:
    message = Message(S, 0, b"1-0", [FOLDED, b"\0\0\0\1"])
    moved = carry(message, [(b"wakeq.attempt", b"2")])
    assert list(Message(S, 1, b"2-0", moved).pairs()) == [(b"wakeq.attempt", b"2")]
    assert fold([b"a", b""]) == [FOLDED, b"\0\0\0\1a\0\0\0\0"]
