"""The scripts of delayed messages: schedule, deliver, repair, list, cancel, make due."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, G = "orders", "g"
DELAYED, DATA, REPAIRS = keys.delayed(S), keys.delayed_data(S), keys.repairs(S)
RETRY, DEAD, STATS = keys.retry(S, G), keys.dead(S, G), keys.stats(S, G)
PREFIX = keys.retry(S, "")
HOUR_MS = 3_600_000
PUT_OFF_MS = 60_000
# Packs its arguments from the third on, as fail.lua does, and puts them under an id.
PUT = "redis.call('HSET', KEYS[2], ARGV[1], cmsgpack.pack({unpack(ARGV, 3)}))" \
      " redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])"  # fmt: skip


class Delayed:
    """Runs the scripts on one stream."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run(self, name: str, names: list[str], *arguments: Any) -> Any:
        return Script(name).call(self.connection, names, arguments)

    def now_ms(self) -> int:
        seconds, microseconds = self.connection.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    def schedule(
        self, *items: Any, delay: int = 0, at: int | None = None, dedup: str = "", window: int = 1
    ) -> Any:
        names = [S, DELAYED, DATA, *([keys.dedup(S, dedup)] if dedup else [])]
        kind, due = ("in", delay) if at is None else ("at", at)
        return self.run(
            "schedule", names, keys.DOORBELL, S, kind, due, window, *(items or ("body", "x"))
        )

    def put(self, member: str, due: int, *packed: Any) -> None:
        """Put a message as packed among the delayed ones: group, first id, field, value …"""
        self.connection.call("EVAL", PUT, 2, DELAYED, DATA, member, due, *packed)

    def put_retry(self, number: int, due: int = 0, group: str = G) -> str:
        first = f"{number}-0"
        items = ("wakeq.attempt", "2", "wakeq.first_id", first, "wakeq.error", "E: no", "body", "x")
        self.put(f"{first}@{group}", due, group, first, *items)
        return f"{first}@{group}"

    def deliver(self, batch: int = 100, repair: bool = False, tell: bool = True) -> Delivery:
        reply = self.run(
            "deliver",
            [S, DELAYED, DATA, REPAIRS],
            PREFIX,
            batch,
            PUT_OFF_MS,
            int(repair),
            int(tell),
        )
        return Delivery(reply)

    def hand_out(self, lease: int = HOUR_MS) -> Any:
        return self.run("hand_out", [REPAIRS, DATA], lease)

    def finish(self, member: Any, token: Any, dead: bool, *items: Any) -> Any:
        target = DEAD if dead else RETRY
        return self.run(
            "finish_repair", [REPAIRS, DATA, target, STATS], member, token, int(dead), *items
        )


class Delivery:
    """What deliver.lua returns, by name."""

    def __init__(self, reply: Any) -> None:
        self.now_us, self.next, self.repair, self.delayed, self.strays, self.moved = reply[:6]
        self.troubles = [text.decode(errors="replace") for text in reply[6]]
        self.told = reply[7]


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    return redis.client()


@pytest.fixture
def delayed(redis: RedisServer) -> Iterator[Delayed]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    yield Delayed(connection)
    connection.close()


@pytest.fixture
def full(own_redis: RedisServer) -> Iterator[Callable[[], Delayed]]:
    """A server whose memory is filled by `full()`."""
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()

    def fill() -> Delayed:
        connection.call("CONFIG", "SET", "maxmemory", 1)
        return Delayed(connection)

    own_redis.client().xadd(S, {"a": "b"})
    yield fill
    connection.close()


def entries(client: redis_py.Redis, key: str) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in client.xrange(key)]


# -- schedule --------------------------------------------------------------------------------


def test_schedules_in_some_time_by_the_clock_of_redis(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    before = delayed.now_ms()
    message_id, added, due = delayed.schedule("body", "x", delay=HOUR_MS)
    after = delayed.now_ms()
    assert (added, client.zscore(DELAYED, message_id)) == (1, due)
    assert before + HOUR_MS <= due <= after + HOUR_MS
    assert before <= int(message_id.split(b"-")[0]) <= after
    assert 1_000_000 <= int(message_id.split(b"-")[1]) < 3_000_000


def test_schedules_at_a_time(delayed: Delayed) -> None:
    assert delayed.schedule(at=4_000_000_000_123)[2] == 4_000_000_000_123


def test_a_time_that_has_passed_is_now(delayed: Delayed) -> None:
    before = delayed.now_ms()
    assert before <= delayed.schedule(at=5)[2] <= delayed.now_ms()
    assert before <= delayed.schedule(delay=-HOUR_MS)[2] <= delayed.now_ms()


def test_ids_are_unique_also_within_one_microsecond(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    text = Script("schedule").text
    # In one transaction all scripts see one time.
    commands = [("MULTI",)]
    arguments = (keys.DOORBELL, S, "in", HOUR_MS, 1, "body", "x")
    commands += [("EVAL", text, 3, S, DELAYED, DATA, *arguments)] * 50  # type: ignore[list-item]
    replies = delayed.connection.call_many([*commands, ("EXEC",)])[-1]
    assert len({reply[0] for reply in replies}) == 50
    assert client.zcard(DELAYED) == client.hlen(DATA) == 50


def test_a_deduplication_key_takes_one(delayed: Delayed, client: redis_py.Redis) -> None:
    first = delayed.schedule(delay=HOUR_MS, dedup="k", window=1)
    assert delayed.schedule(delay=5, dedup="k", window=1) == [first[0], 0, 0]
    assert client.zcard(DELAYED) == 1


def test_a_deduplication_key_holds_until_the_delivery(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    delayed.schedule(delay=HOUR_MS, dedup="short", window=1)
    delayed.schedule(delay=5, dedup="long", window=HOUR_MS * 5)
    assert client.pttl(keys.dedup(S, "short")) > HOUR_MS
    assert HOUR_MS * 4 < client.pttl(keys.dedup(S, "long")) <= HOUR_MS * 5


def test_rings_only_when_the_message_is_due_before_all_others(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(keys.DOORBELL)
    wait_until(lambda: client.pubsub_numsub(keys.DOORBELL)[0][1] == 1)
    for delay in (HOUR_MS, HOUR_MS * 2, HOUR_MS // 2):
        delayed.schedule(delay=delay)
    client.publish(keys.DOORBELL, "end")
    rung = []
    while not rung or rung[-1] != b"end":
        message = pubsub.get_message(timeout=1)
        rung += [message["data"]] if message else []
    pubsub.close()
    assert rung == [S.encode(), S.encode(), b"end"]


@pytest.mark.parametrize("key", [S, DELAYED, DATA, keys.dedup(S, "k")])
def test_schedule_refuses_a_key_of_another_type_and_changes_nothing(
    delayed: Delayed, client: redis_py.Redis, key: str
) -> None:
    client.sadd(key, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        delayed.schedule(dedup="k")
    assert client.keys() == [key.encode()]


def test_schedule_refuses_a_window_out_of_range_and_changes_nothing(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    with pytest.raises(ServerError, match="out of range"):
        delayed.schedule(dedup="k", window=2**63)
    assert client.keys() == []


def test_schedule_refuses_without_memory_and_changes_nothing(
    full: Callable[[], Delayed], own_redis: RedisServer
) -> None:
    with pytest.raises(ServerError, match="OOM"):
        full().schedule(dedup="k")
    assert own_redis.client().keys() == [S.encode()]


@pytest.mark.parametrize("items", [["a"], ["f", "v"] * 3901, []])
def test_schedule_says_how_many_fields_it_takes(
    delayed: Delayed, client: redis_py.Redis, items: list[str]
) -> None:
    with pytest.raises(ServerError, match="has 1 to 3900 fields, not"):
        delayed.run("schedule", [S, DELAYED, DATA], keys.DOORBELL, S, "in", 1, 1, *items)
    assert client.keys() == []


def test_the_longest_message_arrives_whole(delayed: Delayed, client: redis_py.Redis) -> None:
    items = [part for i in range(3900) for part in (f"f{i}", f"v{i}")]
    message_id = delayed.schedule(*items)[0]
    assert delayed.deliver().moved == 1
    (fields,) = entries(client, S)
    assert fields.pop(b"wakeq.first_id") == message_id
    assert fields == {f"f{i}".encode(): f"v{i}".encode() for i in range(3900)}


# -- deliver ---------------------------------------------------------------------------------


def test_delivers_what_is_due_and_nothing_else(delayed: Delayed, client: redis_py.Redis) -> None:
    message_id = delayed.schedule("body", b"\x00\xff", "n", "1")[0]
    later = delayed.schedule(delay=HOUR_MS)
    delivery = delayed.deliver()
    assert entries(client, S) == [{b"wakeq.first_id": message_id, b"body": b"\x00\xff", b"n": b"1"}]
    assert (delivery.moved, delivery.delayed, delivery.strays) == (1, 1, 0)
    assert int(delivery.next) == later[2]
    assert delivery.told == [message_id, b"", client.xrange(S)[0][0]]
    assert client.hkeys(DATA) == client.zrange(DELAYED, 0, -1) == [later[0]]


def test_a_retry_goes_to_its_group_alone(delayed: Delayed, client: redis_py.Redis) -> None:
    delayed.put_retry(7)
    delivery = delayed.deliver()
    assert delivery.told[:2] == [b"7-0", b"g"]
    (fields,) = entries(client, RETRY)
    assert fields[b"wakeq.first_id"] == b"7-0"
    assert set(client.keys()) == {RETRY.encode()}


def test_moves_no_more_than_a_batch_and_the_earliest_first(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    for number in (3, 1, 2):
        delayed.put(f"{number}-0", number, "", f"{number}-0", "n", number)
    delivery = delayed.deliver(batch=2)
    assert (delivery.moved, delivery.delayed, delivery.next) == (2, 1, b"3")
    assert entries(client, S) == [{b"n": b"1"}, {b"n": b"2"}]


def test_a_batch_of_large_messages_is_smaller(delayed: Delayed) -> None:
    for _ in range(4):
        delayed.schedule("body", b"x" * 700_000)
    assert [delayed.deliver().moved for _ in range(3)] == [2, 2, 0]


def test_tells_nothing_when_not_asked(delayed: Delayed) -> None:
    delayed.schedule()
    delivery = delayed.deliver(tell=False)
    assert (delivery.moved, delivery.told) == (1, [])


def test_drops_a_message_of_which_nothing_is_stored(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    client.zadd(DELAYED, {"1-0": 1})
    delayed.schedule()
    delivery = delayed.deliver()
    assert delivery.troubles == ["1-0", "dropped: nothing is stored under this id"]
    assert (delivery.moved, client.zcard(DELAYED)) == (1, 0)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xc1", b"no pack", b"\x01", b"\x90", b"\x93\xa0\xa0\xa0", b"\x94\xa0\xa0\xa1f\x90",
     b"\x94\x01\xa0\xa1f\xa1v", b"\xdd\xff\xff\xff\xff", b"\xdc\x1f\xff" + b"\xa1x" * 8191],
    ids=repr,
)  # fmt: skip
def test_garbage_is_put_off_and_holds_up_nobody(
    delayed: Delayed, client: redis_py.Redis, garbage: bytes
) -> None:
    client.zadd(DELAYED, {"1-0": 1})
    client.hset(DATA, "1-0", garbage)
    delayed.schedule()
    delivery = delayed.deliver()
    assert delivery.troubles[0] == "1-0"
    assert (delivery.moved, delivery.delayed) == (1, 1)
    assert client.zscore(DELAYED, "1-0") == delivery.now_us // 1000 + PUT_OFF_MS
    assert client.hget(DATA, "1-0") == garbage


def test_a_stream_that_is_none_is_put_off_and_others_are_delivered(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    client.set(RETRY, "x")
    member = delayed.put_retry(1)
    delayed.put_retry(2, group="other")
    delivery = delayed.deliver()
    assert delivery.troubles[0] == member
    assert re.match(rf"{re.escape(RETRY)}: WRONGTYPE", delivery.troubles[1])
    assert (delivery.moved, client.xlen(keys.retry(S, "other"))) == (1, 1)
    client.delete(RETRY)
    client.zadd(DELAYED, {member: 1})
    assert delayed.deliver().moved == 1


def test_deliver_refuses_without_memory_and_loses_nothing(
    full: Callable[[], Delayed], own_redis: RedisServer
) -> None:
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()
    Delayed(connection).schedule()
    connection.close()
    delayed = full()
    with pytest.raises(ServerError, match="OOM"):
        delayed.deliver()
    delayed.connection.call("CONFIG", "SET", "maxmemory", 0)
    assert delayed.deliver().moved == 1


def test_deliver_says_that_a_replica_is_one(delayed: Delayed, own_redis: RedisServer) -> None:
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()
    Delayed(connection).schedule()
    connection.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(ServerError) as caught:
        Delayed(connection).deliver()
    connection.close()
    assert caught.value.code == "READONLY"


def test_says_how_many_are_stored_in_vain_and_drops_them(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    kept = delayed.schedule(delay=HOUR_MS)[0]
    client.hset(DATA, mapping={f"{i}-0": b"x" for i in range(700)})
    delivery = delayed.deliver()
    assert (delivery.delayed, delivery.strays) == (1, 700)
    cursor, dropped = b"0", []
    while True:
        cursor, *ids = delayed.run("drop_strays", [DELAYED, REPAIRS, DATA], cursor, 100)
        dropped += ids
        if cursor == b"0":
            break
    assert len(set(dropped)) == 700
    assert client.hkeys(DATA) == [kept]


# -- repair ----------------------------------------------------------------------------------


def test_with_a_repair_retries_wait_and_publishes_do_not(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    member = delayed.put_retry(1, due=5)
    delayed.schedule()
    delivery = delayed.deliver(repair=True)
    assert (delivery.moved, delivery.delayed, delivery.strays) == (1, 1, 0)
    assert (delivery.next, delivery.repair) == (b"", b"5")
    assert client.zrange(REPAIRS, 0, -1) == [member.encode()]
    assert client.exists(RETRY) == 0


def test_without_a_repair_what_waited_for_one_is_delivered(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    assert delayed.deliver().moved == 1
    assert client.keys() == [RETRY.encode()]


def test_hands_out_one_and_keeps_it_for_a_while(delayed: Delayed, client: redis_py.Redis) -> None:
    for number in (2, 1):
        delayed.put_retry(number, due=number)
    delayed.deliver(repair=True)
    now_us, following, member, token, due, items = delayed.hand_out()
    assert (member, due, following) == (b"1-0@g", b"1", b"2")
    assert items[:4] == [b"g", b"1-0", b"wakeq.attempt", b"2"]
    assert token.decode() == hashlib.sha1(client.hget(DATA, member)).hexdigest()
    assert client.zscore(REPAIRS, member) == now_us // 1000 + HOUR_MS
    assert delayed.hand_out()[2] == b"2-0@g"
    assert len(delayed.hand_out()) == 2


def test_what_was_handed_out_comes_again_when_nobody_finished_it(delayed: Delayed) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    assert delayed.hand_out(lease=1)[2] == b"1-0@g"
    wait_until(lambda: len(delayed.hand_out(lease=1)) > 2)


def test_hands_out_nothing_that_is_not_stored_or_no_message(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    delayed.put_retry(3)
    delayed.deliver(repair=True)
    client.zadd(REPAIRS, {"1-0@g": -2, "2-0@g": -1})
    client.hset(DATA, "2-0@g", b"garbage")
    assert delayed.hand_out()[2] == b"3-0@g"
    assert set(client.zrange(REPAIRS, 0, -1)) == {b"2-0@g", b"3-0@g"}


@pytest.mark.parametrize("dead", [False, True])
def test_finishes_a_repair_once(delayed: Delayed, client: redis_py.Redis, dead: bool) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    _, _, member, token, _, _ = delayed.hand_out()
    before = delayed.now_ms()
    entry = delayed.finish(member, token, dead, "body", "better")
    assert delayed.finish(member, token, dead, "body", "better") == b""
    ((found, fields),) = client.xrange(DEAD if dead else RETRY)
    assert (found, fields[b"body"]) == (entry, b"better")
    if dead:
        assert before <= int(fields[b"wakeq.failed_at"]) <= delayed.now_ms()
        assert client.hgetall(STATS) == {b"dead": b"1"}
    assert client.exists(DELAYED, DATA, REPAIRS) == 0


def test_a_repair_of_what_has_changed_since_is_not_taken(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    _, _, member, token, _, _ = delayed.hand_out()
    client.hset(DATA, member, b"other")
    assert delayed.finish(member, token, False, "body", "better") == b""
    assert client.exists(RETRY) == 0


def test_a_repair_that_cannot_be_delivered_changes_nothing(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    _, _, member, token, _, _ = delayed.hand_out()
    client.set(RETRY, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        delayed.finish(member, token, False, "body", "better")
    assert client.hexists(DATA, member)
    assert client.zcard(REPAIRS) == 1


# -- list, cancel, make due ------------------------------------------------------------------


def test_lists_what_waits_for_a_repair_and_then_what_is_due(delayed: Delayed) -> None:
    delayed.put_retry(1)
    delayed.deliver(repair=True)
    message_id, _, due = delayed.schedule("body", "abcdef", delay=HOUR_MS)
    names = [DELAYED, REPAIRS, DATA]
    _, total, rows = delayed.run("list_delayed", names, 0, 10, 3)
    assert total == 2
    assert rows == [
        [b"1-0@g", b"0", 1, b"g", b"1-0", b"2", b"E: no", b"x", 1],
        [message_id, b"%d" % due, 0, b"", message_id, b"1", b"", b"abc", 6],
    ]
    assert delayed.run("list_delayed", names, 1, 10, 3)[2] == rows[1:]
    assert delayed.run("list_delayed", names, 0, 1, 3)[2] == rows[:1]
    assert delayed.run("list_delayed", names, 2, 10, 3)[2] == []


def test_lists_garbage_too(delayed: Delayed, client: redis_py.Redis) -> None:
    client.zadd(DELAYED, {"1-0": 1, "2-0": 2, "3-0": 3})
    client.hset(DATA, mapping={"1-0": b"\xc1", "2-0": b"\x93\x01\x02\x03"})
    rows = delayed.run("list_delayed", [DELAYED, REPAIRS, DATA], 0, 10, 3)[2]
    assert [row[:3] for row in rows] == [[b"1-0", b"1", 0], [b"2-0", b"2", 0], [b"3-0", b"3", 0]]


def test_cancels_by_id_and_names_what_is_not_there(
    delayed: Delayed, client: redis_py.Redis
) -> None:
    first, second = (delayed.schedule(delay=HOUR_MS)[0] for _ in range(2))
    retry = delayed.put_retry(1)
    delayed.deliver(repair=True)
    names = [DELAYED, REPAIRS, DATA]
    reply = delayed.run("cancel_delayed", names, 0, first, retry, "1-2")
    assert reply == [2, b"1-2"]
    assert client.hkeys(DATA) == client.zrange(DELAYED, 0, -1) == [second]
    assert client.exists(REPAIRS) == 0


def test_cancels_so_many(delayed: Delayed, client: redis_py.Redis) -> None:
    kept = delayed.put_retry(1)
    delayed.deliver(repair=True)
    for delay in range(3):
        delayed.schedule(delay=HOUR_MS + delay)
    names = [DELAYED, REPAIRS, DATA]
    assert delayed.run("cancel_delayed", names, 2) == [2]
    assert delayed.run("cancel_delayed", names, 1) == [1]
    assert client.hkeys(DATA) == [kept.encode()]
    assert delayed.run("cancel_delayed", names, 10) == [1]
    assert client.exists(DELAYED, DATA, REPAIRS) == 0


def test_makes_due_by_id_and_rings(delayed: Delayed, client: redis_py.Redis) -> None:
    message_id = delayed.schedule(delay=HOUR_MS)[0]
    retry = delayed.put_retry(1)
    delayed.deliver(repair=True)
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(keys.DOORBELL)
    wait_until(lambda: client.pubsub_numsub(keys.DOORBELL)[0][1] == 1)
    arguments = (keys.DOORBELL, S, 0, message_id, retry, "1-2")
    assert delayed.run("make_due", [DELAYED, REPAIRS], *arguments) == [1, b"1-2"]
    wait_until(lambda: (pubsub.get_message(timeout=1) or {}).get("data") == S.encode())
    pubsub.close()
    assert delayed.deliver(repair=True).moved == 1


def test_makes_so_many_due(delayed: Delayed) -> None:
    for _ in range(3):
        delayed.schedule(delay=HOUR_MS)
    counts = [delayed.run("make_due", [DELAYED, REPAIRS], keys.DOORBELL, S, 2)[0] for _ in range(3)]
    assert counts == [2, 1, 0]
    assert delayed.deliver().moved == 3
