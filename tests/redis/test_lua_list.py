"""The scripts of lists: a message is in the list, or in hand of one taker, or done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from redis_servers import RedisServer
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

L, NODE, A, B = "jobs", "node", "boot/1/1/1/1", "boot/1/2/2/1"
TAKERS, SUSPECTS, STATS = keys.takers(L), keys.suspects(L), keys.stats(L, NODE)
ERRORS = keys.errors(L, NODE)
LIFETIME_MS, DAY_MS = 30_000, 86_400_000


def given_up(taker: str) -> str:
    return keys.GIVEN_UP + taker


class Takers:
    """Runs the scripts, and looks at what came of it."""

    def __init__(self, connection: Connection, client: Any) -> None:
        self.connection = connection
        self.client = client
        self.first = {A: 1, B: 1}

    def call(self, script: str, names: list[str], *arguments: Any) -> Any:
        return Script(script).call(self.connection, names, arguments)

    def push(self, *bodies: str | bytes) -> None:
        self.client.lpush(L, *bodies)

    def keep(self, taker: str = A, everybody: bool = False, lifetime_ms: int = LIFETIME_MS) -> Any:
        arguments = (taker, given_up(taker), lifetime_ms, int(everybody))
        return self.call("keep_taker", [TAKERS], *arguments)

    def take(self, most: int = 10, size: int = 1_000_000, taker: str = A) -> Any:
        names = [L, keys.taken(L, taker), keys.taking(L, taker), TAKERS, SUSPECTS]
        reply = self.call("take", names, taker, self.first[taker], most, size)
        self.first[taker] += most
        return reply

    def finish(self, *numbers: int, failed: dict[int, str] | None = None, taker: str = A) -> Any:
        names = [keys.taken(L, taker), ERRORS, STATS, SUSPECTS]
        pairs = [part for pair in (failed or {}).items() for part in pair]
        return self.call("finish_taken", names, len(numbers), *numbers, *pairs)

    def publish(self, numbers: list[int], *messages: tuple[str, ...], taker: str = A) -> Any:
        names = [keys.taken(L, taker), STATS, SUSPECTS, *(stream for stream, *_ in messages)]
        parts = [part for _, *items in messages for part in (len(items), *items)]
        return self.call("publish_taken", names, len(numbers), *numbers, *parts)

    def give_back(self, why: str = "dead", taker: str = A, again: str | None = None) -> Any:
        own = taker.removeprefix(keys.GIVEN_UP)
        names = [L, keys.taken(L, own), keys.taking(L, own), TAKERS, SUSPECTS]
        name = given_up(own) if again is None else again
        return self.call("return_taken", names, taker, why, name, 60_000, DAY_MS)

    def waiting(self) -> list[bytes]:
        """Return the messages of the list, the one that is taken next first."""
        return list(reversed(self.client.lrange(L, 0, -1)))

    def in_hand(self, taker: str = A) -> dict[bytes, bytes]:
        return dict(self.client.hgetall(keys.taken(L, taker)))

    def suspects(self) -> dict[bytes, bytes]:
        return dict(self.client.hgetall(SUSPECTS))

    def takers(self) -> dict[bytes, float]:
        return dict(self.client.zrange(TAKERS, 0, -1, withscores=True))

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


@pytest.fixture
def jobs(redis: RedisServer) -> Iterator[Takers]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    takers = Takers(connection, redis.client())
    takers.keep(A)
    takers.keep(B)
    yield takers
    connection.close()


def name_of(body: bytes) -> bytes:
    return hashlib.sha1(body).hexdigest().encode()


# -- taking ----------------------------------------------------------------------------------


def test_takes_the_oldest_in_their_order(jobs: Takers) -> None:
    jobs.push("a", "b", "c", "d")
    assert jobs.take(3) == [b"a", b"", b"b", b"", b"c", b""]
    assert jobs.in_hand() == {b"1": b"a", b"2": b"b", b"3": b"c"}
    assert jobs.waiting() == [b"d"]


def test_takes_first_what_it_got_by_waiting(jobs: Takers) -> None:
    jobs.client.lpush(keys.taking(L, A), "a", "b")
    jobs.push("c", "d")
    assert jobs.take(3)[::2] == [b"a", b"b", b"c"]
    assert not jobs.client.exists(keys.taking(L, A))
    assert jobs.waiting() == [b"d"]


def test_takes_no_more_once_there_are_enough_bytes(jobs: Takers) -> None:
    jobs.push(*("x" * 100 for _ in range(5)))
    assert len(jobs.take(5, size=150)) == 2 * 2
    assert len(jobs.take(5, size=1)) == 1 * 2, "one at least"


def test_takes_more_than_one_command_passes_on(jobs: Takers) -> None:
    bodies = [b"%d" % n for n in range(2000)]
    jobs.push(*bodies)
    assert jobs.take(2000)[::2] == bodies
    assert [jobs.in_hand()[b"%d" % (n + 1)] for n in range(2000)] == bodies


def test_takes_nothing_of_an_empty_list(jobs: Takers) -> None:
    assert jobs.take() == []
    assert not jobs.in_hand()


def test_takes_nothing_for_who_was_taken_for_dead(jobs: Takers) -> None:
    jobs.push("a")
    jobs.give_back("dead")
    with pytest.raises(ServerError, match=r"^GONE"):
        jobs.take()
    assert jobs.waiting() == [b"a"]


@pytest.mark.parametrize("key", [L, keys.taken(L, A), keys.taking(L, A)])
def test_takes_nothing_if_a_key_is_something_else(jobs: Takers, key: str) -> None:
    if key != L:
        jobs.push("a")
    jobs.client.set(key, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        jobs.take()
    assert key == L or jobs.waiting() == [b"a"]


# -- finishing -------------------------------------------------------------------------------


def test_what_is_handled_is_out_of_hand_and_counted(jobs: Takers) -> None:
    jobs.push("a", "b", "c")
    jobs.take()
    assert jobs.finish(1, 3) == 2
    assert jobs.in_hand() == {b"2": b"b"}
    assert jobs.client.hgetall(STATS) == {b"handled": b"2"}
    assert jobs.finish(1, 3) == 0, "a second time, after a lost reply"
    assert jobs.client.hgetall(STATS) == {b"handled": b"2"}


def test_what_failed_goes_to_the_error_list_once(jobs: Takers) -> None:
    jobs.push("a", "b", "c")
    jobs.take()
    for expected in (3, 0):
        assert jobs.finish(2, failed={1: "no a", 3: "no c"}) == expected
    assert jobs.client.lrange(ERRORS, 0, -1) == [b"no c", b"no a"]
    assert not jobs.in_hand()
    assert jobs.client.hgetall(STATS) == {b"handled": b"1", b"failed": b"2"}


def test_what_somebody_else_has_by_now_does_not_go_to_the_error_list(jobs: Takers) -> None:
    jobs.push("a")
    jobs.take()
    jobs.give_back("dead")
    assert jobs.finish(failed={1: "no"}) == 0
    assert not jobs.client.exists(ERRORS)
    assert jobs.waiting() == [b"a"]


def test_an_error_list_that_is_none_changes_nothing(jobs: Takers) -> None:
    jobs.push("a", "b")
    jobs.take()
    jobs.client.set(ERRORS, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        jobs.finish(1, failed={2: "no"})
    assert len(jobs.in_hand()) == 2


def test_publishes_with_the_finish_or_not_at_all(jobs: Takers) -> None:
    jobs.push("a", "b")
    jobs.take()
    jobs.client.set("text", "x")
    with pytest.raises(ServerError, match="WRONGTYPE text is a string"):
        jobs.publish([1], ("out", "body", "1"), ("text", "body", "2"))
    with pytest.raises(ServerError, match="cannot take a message of 0 fields"):
        jobs.publish([1], ("out", "body", "1"), ("out",))
    assert not jobs.client.exists("out")
    assert len(jobs.in_hand()) == 2
    assert jobs.publish([1, 2], ("out", "body", "1"), ("out", "body", "2")) == 2
    assert jobs.publish([1, 2], ("out", "body", "1"), ("out", "body", "2")) == 0
    assert [fields for _, fields in jobs.client.xrange("out")] == [
        {b"body": b"1"}, {b"body": b"2"},
    ]  # fmt: skip
    assert not jobs.in_hand()
    assert jobs.client.hgetall(STATS) == {b"handled": b"2", b"published": b"2"}


# -- putting back ----------------------------------------------------------------------------


def test_puts_back_in_the_old_order(jobs: Takers) -> None:
    jobs.push("a", "b", "c", "d", "e")
    jobs.take(4)
    names = [L, keys.taken(L, A)]
    assert jobs.call("put_back", names, 4, 3, 2) == 3
    assert jobs.call("put_back", names, 4, 3, 2) == 0, "a second time, after a lost reply"
    assert jobs.waiting() == [b"b", b"c", b"d", b"e"]
    assert jobs.in_hand() == {b"1": b"a"}


def test_who_leaves_leaves_nothing_behind(jobs: Takers) -> None:
    jobs.push(*(str(n) for n in range(15)))
    jobs.take(12)
    jobs.client.lmove(L, keys.taking(L, A), "RIGHT", "LEFT")
    assert jobs.give_back("left", again="") == 13
    assert jobs.waiting() == [b"%d" % n for n in range(15)], "9 before 10"
    assert jobs.takers().keys() == {B.encode()}
    assert not jobs.suspects()
    assert not jobs.in_hand()


def test_a_dead_one_is_looked_after_for_longer(jobs: Takers) -> None:
    jobs.push("a", "b")
    jobs.take(1)
    before = jobs.now_ms()
    assert jobs.give_back("dead") == 1
    assert jobs.waiting() == [b"a", b"b"]
    assert jobs.takers()[given_up(A).encode()] >= before + 60_000
    assert A.encode() not in jobs.takers()
    # What it had asked for arrives late.
    jobs.client.lmove(L, keys.taking(L, A), "RIGHT", "LEFT")
    assert jobs.give_back("late", given_up(A)) == -1, "its time is not over"
    jobs.client.zadd(TAKERS, {given_up(A): before - 1})
    assert jobs.give_back("late", given_up(A)) == 1
    assert jobs.waiting() == [b"a", b"b"]
    jobs.client.zadd(TAKERS, {given_up(A): before - 1})
    assert jobs.give_back("late", given_up(A)) == 0
    assert jobs.takers().keys() == {B.encode()}


def test_puts_nothing_back_of_who_lives(jobs: Takers) -> None:
    jobs.push("a")
    jobs.take()
    assert jobs.give_back("late") == -1
    assert jobs.give_back("late", "nobody") == -1
    assert jobs.in_hand() == {b"1": b"a"}


def test_puts_back_of_who_was_found_dead_twice_once(jobs: Takers) -> None:
    jobs.push("a")
    jobs.take()
    assert [jobs.give_back("dead"), jobs.give_back("dead")] == [1, 0]
    assert jobs.waiting() == [b"a"]


# -- suspects --------------------------------------------------------------------------------


def test_counts_how_often_messages_were_in_hand_when_takers_died(jobs: Takers) -> None:
    jobs.push("a", "b")
    jobs.take(taker=A)
    jobs.give_back("dead", A)
    assert jobs.suspects() == {name_of(b"a"): b"1 0", name_of(b"b"): b"1 0"}
    assert 0 < jobs.client.pttl(SUSPECTS) <= DAY_MS
    assert jobs.take(1, taker=B) == [b"a", b"1 0"]
    jobs.give_back("dead", B)
    assert jobs.suspects() == {name_of(b"a"): b"2 0", name_of(b"b"): b"1 0"}


def test_blames_the_one_that_was_alone(jobs: Takers) -> None:
    jobs.push("a", "b")
    jobs.take()
    jobs.client.hset(keys.taken(L, A), keys.ALONE, 2)
    jobs.give_back("dead")
    assert jobs.waiting() == [b"a", b"b"]
    assert jobs.suspects() == {name_of(b"b"): b"1 1"}
    assert jobs.take(taker=B) == [b"a", b"", b"b", b"1 1"]


def test_what_is_done_is_no_suspect_any_more(jobs: Takers) -> None:
    jobs.push("a", "b", "c")
    jobs.take(taker=A)
    jobs.give_back("dead", A)
    jobs.take(taker=B)
    jobs.client.hset(keys.taken(L, B), keys.ALONE, 2)
    jobs.finish(1, taker=B)
    assert jobs.in_hand(B)[b"alone"] == b"2"
    jobs.finish(failed={2: "no"}, taker=B)
    jobs.publish([3], ("out", "body", "x"), taker=B)
    assert not jobs.in_hand(B)
    assert not jobs.suspects()


# -- living ----------------------------------------------------------------------------------


def test_joins_once_and_stays(jobs: Takers) -> None:
    known, now, *others = jobs.keep("new", everybody=True)
    assert (known, sorted(others)) == (0, sorted([A.encode(), B.encode(), b"new"]))
    assert abs(now - jobs.now_ms()) < 60_000
    assert jobs.keep("new")[0] == 1
    assert jobs.takers()[b"new"] >= now + LIFETIME_MS


def test_is_told_whose_time_is_over(jobs: Takers) -> None:
    jobs.client.zadd(TAKERS, {B: jobs.now_ms() - 1})
    assert jobs.keep(A)[2:] == [B.encode()]


def test_does_not_join_again_under_a_name_that_was_given_up(jobs: Takers) -> None:
    jobs.give_back("dead", A)
    assert jobs.keep(A)[0] == -1
    assert A.encode() not in jobs.takers()


def test_cuts_times_short_that_are_of_before_the_clock_was_set_back(jobs: Takers) -> None:
    far = jobs.now_ms() + 3_600_000
    jobs.client.zadd(TAKERS, {B: far})
    jobs.keep(A)
    assert jobs.takers()[B.encode()] == far
    jobs.keep(A, everybody=True)
    assert jobs.takers()[B.encode()] <= jobs.now_ms() + LIFETIME_MS


# -- surroundings ----------------------------------------------------------------------------


def test_goes_on_when_redis_is_full(redis_server: Any) -> None:
    server = redis_server()
    client = server.client()
    connection = Connection(RedisURL(server.url), "wakeq-test")
    connection.connect()
    try:
        jobs = Takers(connection, client)
        jobs.push("a", "b", "c")
        client.config_set("maxmemory", 1)
        jobs.keep()
        assert jobs.take()[::2] == [b"a", b"b", b"c"]
        assert jobs.finish(1, failed={2: "no"}) == 2
        assert jobs.give_back("left", again="") == 1
        assert jobs.waiting() == [b"c"]
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["jobs", "{shop}jobs", "a{b}c"])
def test_all_keys_are_in_the_slot_of_the_list(redis: RedisServer, name: str) -> None:
    tag = name.partition("{")[2].partition("}")[0] or name
    for key in (keys.takers(name), keys.taken(name, A), keys.taking(name, A), keys.suspects(name),
                keys.errors(name, NODE), keys.stats(name, NODE)):  # fmt: skip
        assert key.partition("{")[2].partition("}")[0] == tag
