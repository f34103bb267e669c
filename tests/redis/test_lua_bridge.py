"""The scripts of bridges: who takes a channel, what is published once, who stands in the list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

CHANNEL, STREAM, LIST, IDS = "news", "out", "jobs", "consumer:ids"
GROUP = keys.bridge_group("b")
LEASE, INSTANCES = keys.bridge_lease(CHANNEL, "b"), keys.bridge_instances(CHANNEL, "b")
LINE, MARKS = keys.bridge_line(CHANNEL, "b", 0, ""), keys.bridge_marks(CHANNEL, "b", 0)
STATS, DEAD, RETRY = keys.stats(STREAM, GROUP), keys.dead(STREAM, GROUP), keys.retry(STREAM, GROUP)
LEASE_MS = 60_000


class Bridges:
    """Runs the scripts, as any instance."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.client = server.client()
        self.connection = Connection(RedisURL(server.url), "test")
        self.connection.connect()

    def run(self, script: str, names: list[Any], *arguments: Any) -> Any:
        ahead = "bridge" if script in ("bridge_publish", "bridge_move") else ""
        return Script(script, ahead=ahead).call(self.connection, names, arguments)

    def hold(self, who: str, wants: int = 1, lease_ms: int = LEASE_MS, process: str = "") -> Any:
        arguments = [f"host/{who}", process or f"p{who}", lease_ms, wants, LINE]
        return self.run("bridge_hold", [LEASE, INSTANCES], *arguments)

    def begin(self, who: str, confirmed: int = 1) -> Any:
        return self.run("bridge_begin", [LEASE], f"p{who}", f"probe {who}", confirmed, MARKS)

    def leave(self, who: str, stops: int = 1) -> Any:
        arguments = [f"host/{who}", f"p{who}", stops, MARKS]
        return self.run("bridge_leave", [LEASE, INSTANCES], *arguments)

    def publish(self, number: int, *adds: Any, worker: str = "w", entry: str = "") -> Any:
        names = [STREAM, keys.bridge_batch(STREAM, "b", worker), STATS, DEAD, RETRY]
        return self.run("bridge_publish", names, number, 60_000, len(adds), entry, *flat(adds))

    def move(self, number: Any, *adds: Any, most: int = 100, end: str = "RIGHT") -> Any:
        names = [STREAM, keys.bridge_batch(STREAM, "b", "w"), STATS, DEAD, LIST, TAKEN, TAKERS]
        head = [number, 60_000, len(adds), "w", end, most, 1000]
        return self.run("bridge_move", names, *head, *flat(adds))

    def bodies(self, stream: str = STREAM) -> list[bytes]:
        return [fields[b"body"] for _, fields in self.client.xrange(stream)]


TAKEN, TAKERS = keys.bridge_taken(LIST, "b", "w"), keys.bridge_takers(LIST, "b")


def flat(adds: tuple[str, ...]) -> list[Any]:
    """Return the arguments for messages; what begins with ! is a dead letter."""
    found: list[Any] = []
    for add in adds:
        count = -4 if add.startswith("!") else 2
        found += [count, *(["wakeq.error", "no"] if count < 0 else []), "body", add]
    return found


@pytest.fixture
def bridges(redis: RedisServer) -> Iterator[Bridges]:
    found = Bridges(redis)
    yield found
    found.connection.close()


# -- who takes a channel -----------------------------------------------------------------------


def test_the_first_who_asks_holds_a_channel_and_keeps_it(bridges: Bridges) -> None:
    assert bridges.hold("a") == [1, b"host/a", 1, 1]
    assert bridges.hold("b") == [0, b"host/a", 2, 0]
    assert bridges.hold("a") == [1, b"host/a", 2, 0]
    assert 0 < bridges.client.pttl(LEASE) <= 10 * LEASE_MS


def test_who_does_not_want_a_channel_gets_none(bridges: Bridges) -> None:
    assert bridges.hold("a", wants=0) == [0, b"", 1, 0]


def test_a_channel_is_free_when_the_lease_is_over(bridges: Bridges) -> None:
    bridges.hold("a", lease_ms=20)
    wait_until(lambda: bridges.hold("b")[0] == 1)
    assert bridges.hold("a")[:2] == [0, b"host/b"]


def test_a_mark_is_sent_when_redis_knows_that_the_caller_is_subscribed(bridges: Bridges) -> None:
    bridges.hold("a")
    assert bridges.begin("a", confirmed=0) == -1
    assert bridges.client.hget(LEASE, "begun") == b"0"
    listener = bridges.client.pubsub()
    listener.subscribe("probe a")
    wait_until(lambda: bridges.client.pubsub_numsub("probe a")[0][1] == 1)
    assert bridges.begin("a", confirmed=0) == 1
    assert bridges.client.hget(LEASE, "begun") == b"1"
    listener.close()


def test_a_channel_is_free_when_redis_knows_that_nobody_listens(bridges: Bridges) -> None:
    bridges.hold("a")
    assert bridges.hold("b")[0] == 0, "it may be about to subscribe"
    listener = bridges.client.pubsub()
    listener.subscribe(f"{LINE}pa")
    assert bridges.begin("a") == 1
    wait_until(lambda: bridges.client.pubsub_numsub(f"{LINE}pa")[0][1] == 1)
    assert bridges.hold("b")[0] == 0
    listener.close()
    wait_until(lambda: bridges.client.pubsub_numsub(f"{LINE}pa")[0][1] == 0)
    assert bridges.hold("b") == [1, b"host/b", 2, 1]


def test_the_successor_of_the_same_name_holds_a_channel_at_once(bridges: Bridges) -> None:
    bridges.hold("a")
    assert bridges.hold("a", process="another") == [1, b"host/a", 1, 1]


def test_a_clock_that_was_set_back_holds_a_channel_for_no_longer(bridges: Bridges) -> None:
    bridges.hold("a")
    bridges.client.hset(LEASE, "until", 9_999_999_999_999)
    assert bridges.hold("b")[0] == 1


def test_a_mark_is_sent_by_who_holds_the_channel_alone(bridges: Bridges) -> None:
    marks = bridges.client.pubsub(ignore_subscribe_messages=True)
    marks.subscribe(MARKS)
    wait_until(lambda: bridges.client.pubsub_numsub(MARKS)[0][1] == 1)
    bridges.hold("a")
    assert bridges.begin("b") == 0
    assert bridges.begin("a") == 1
    message = wait_until(marks.get_message)
    assert message["data"] == b"pa"
    assert bridges.client.hget(LEASE, "begun") == b"1"
    bridges.leave("a")
    assert wait_until(marks.get_message)["data"] == b""
    assert bridges.begin("a") == 0
    marks.close()


def test_who_leaves_is_told_whether_there_are_others(bridges: Bridges) -> None:
    bridges.hold("a")
    assert bridges.leave("a") == 0
    bridges.hold("a")
    bridges.hold("b")
    assert bridges.leave("b") == 0, "it does not hold it"
    assert bridges.hold("a")[2] == 1
    bridges.hold("b")
    assert bridges.leave("a", stops=0) == 1
    assert bridges.client.zcard(INSTANCES) == 2
    assert bridges.hold("b")[0] == 1


def test_instances_that_ask_no_more_are_forgotten(bridges: Bridges) -> None:
    bridges.hold("a")
    bridges.client.zadd(INSTANCES, {"host/gone": 1})
    assert bridges.hold("a")[2] == 1


# -- what is published once --------------------------------------------------------------------


def test_a_batch_is_published_once(bridges: Bridges) -> None:
    assert bridges.publish(1000, "one", "two") == 1
    assert bridges.publish(1000, "one", "two") == 0
    assert bridges.publish(999, "old") == 0
    assert bridges.publish(1001, "three") == 1
    assert bridges.publish(5, "of another", worker="v") == 1
    assert bridges.bodies() == [b"one", b"two", b"three", b"of another"]
    assert bridges.client.hgetall(STATS) == {b"handled": b"4", b"published": b"4"}


def test_dead_letters_are_added_in_the_same_step(bridges: Bridges) -> None:
    assert bridges.publish(1, "good", "!bad") == 1
    ((_, letter),) = bridges.client.xrange(DEAD)
    assert (letter[b"body"], letter[b"wakeq.error"]) == (b"!bad", b"no")
    assert letter[b"wakeq.failed_at"] == letter[b"wakeq.first_failed_at"]
    assert bridges.client.hgetall(STATS) == {
        b"handled": b"2", b"published": b"1", b"dead": b"1",
    }  # fmt: skip


@pytest.mark.parametrize("key", [STREAM, DEAD])
def test_a_batch_that_cannot_be_published_as_a_whole_is_not_at_all(
    bridges: Bridges, key: str
) -> None:
    bridges.client.set(key, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        bridges.publish(1, "good", "!bad")
    bridges.client.delete(key)
    assert bridges.client.keys("*") == []
    assert bridges.publish(1, "good", "!bad") == 1


def test_a_dead_letter_is_tried_again_once(bridges: Bridges) -> None:
    entry = bridges.client.xadd(RETRY, {"body": "again"}).decode()
    assert bridges.publish(1, "again", entry=entry) == 1
    assert bridges.publish(7, "again", worker="v", entry=entry) == 0
    assert bridges.bodies() == [b"again"]
    assert bridges.client.xlen(RETRY) == 0


# -- lists -------------------------------------------------------------------------------------


def test_elements_are_taken_and_removed_with_the_publish(bridges: Bridges) -> None:
    bridges.client.lpush(LIST, *(f"{n}" for n in range(5)))
    assert bridges.move("", most=2) == [b"1", b"0", b"1"]
    assert bridges.client.lrange(TAKEN, 0, -1) == [b"0", b"1"]
    assert bridges.move("", most=2) == [b"1", b"0", b"1"], "the reply was lost"
    assert bridges.move(1, "0", "1", most=2) == [b"2", b"2", b"3"]
    assert bridges.move(1, "0", "1", most=2) == [b"2", b"2", b"3"], "the reply was lost"
    assert bridges.move(2, "2", "3", most=0) == [b"3"]
    assert bridges.bodies() == [b"0", b"1", b"2", b"3"]
    assert bridges.client.lrange(LIST, 0, -1) == [b"4"]
    assert bridges.client.smembers(TAKERS) == set(), "it takes no more"


def test_who_waits_for_an_element_is_known_to_have_it_soon(bridges: Bridges) -> None:
    assert bridges.move("") == [b"1"]
    assert bridges.client.smembers(TAKERS) == {b"w"}
    bridges.client.rpush(TAKEN, "a")  # what its BLMOVE was given when it died
    assert bridges.move("", most=0) == [b"1", b"a"]
    assert bridges.client.smembers(TAKERS) == {b"w"}


def test_no_more_is_taken_once_it_is_enough_bytes(bridges: Bridges) -> None:
    bridges.client.rpush(LIST, *["x" * 600] * 5)
    assert len(bridges.move("", end="LEFT")) == 1 + 2


def test_what_another_process_of_the_worker_has_added_is_the_next_batch(bridges: Bridges) -> None:
    bridges.client.lpush(LIST, "a")
    assert bridges.move("") == [b"1", b"a"]
    bridges.client.rpush(TAKEN, "b")  # a BLMOVE that came late
    assert bridges.move(1, "a") == [b"2", b"b"]
    assert bridges.move(1, "a", "b") == [b"2", b"b"], "what it had seen is published already"
    assert bridges.bodies() == [b"a"]


def test_a_list_that_is_none_changes_nothing(bridges: Bridges) -> None:
    bridges.client.lpush(LIST, "a")
    bridges.move("")
    bridges.client.set(STREAM, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        bridges.move(1, "a")
    assert bridges.client.lrange(TAKEN, 0, -1) == [b"a"]


@pytest.mark.parametrize(("end", "order"), [("RIGHT", [b"new", b"b", b"a"]),
                                           ("LEFT", [b"a", b"b", b"new"])])  # fmt: skip
def test_what_was_taken_is_put_back_in_its_order(
    bridges: Bridges, end: str, order: list[bytes]
) -> None:
    alive = keys.alive(STREAM, GROUP, "host/gone")
    batch = keys.bridge_batch(STREAM, "b", "w")
    bridges.client.rpush(LIST, "new")
    bridges.client.rpush(TAKEN, "a", "b")
    bridges.client.sadd(TAKERS, "w")
    names = [LIST, TAKEN, TAKERS, batch, alive]
    bridges.client.set(alive, "a process")
    assert bridges.run("bridge_return", names, "w", end, "me") == -1
    bridges.client.delete(alive)
    bridges.client.set(batch, 5)
    assert bridges.run("bridge_return", names, "w", end, "me") == 2
    assert bridges.client.lrange(LIST, 0, -1) == order
    assert bridges.client.exists(TAKEN, TAKERS) == 0
    assert bridges.client.get(batch) == b"6", "the old process publishes nothing of it"


def test_retries_of_a_list_are_put_back_into_it(bridges: Bridges) -> None:
    for body in ("a", "b"):
        bridges.client.xadd(RETRY, {"wakeq.first_id": "1-1", "body": body})
    assert bridges.run("bridge_requeue", [RETRY, LIST], "RIGHT", 1) == 1
    assert bridges.run("bridge_requeue", [RETRY, LIST], "LEFT", 100) == 1
    assert bridges.client.lrange(LIST, 0, -1) == [b"b", b"a"]
    assert bridges.client.xlen(RETRY) == 0


# -- the ids -----------------------------------------------------------------------------------


def test_ids_stand_in_the_list_while_they_are_named(bridges: Bridges) -> None:
    names = [IDS, keys.enlisted(IDS)]
    bridges.client.rpush(IDS, "foreign")

    def enlist(gone: list[str], living: list[str], lifetime_ms: int = 600_000) -> Any:
        return bridges.run("bridge_enlist", names, lifetime_ms, len(gone), *gone, *living)

    def listed() -> list[bytes]:
        return list(bridges.client.lrange(IDS, 0, -1))

    assert enlist([], ["a/1", "a/2"]) == 0
    assert enlist([], ["a/1", "a/2"]) == 0
    assert enlist([], ["b/1"], lifetime_ms=1) == 0
    assert listed() == [b"foreign", b"a/1", b"a/2", b"b/1"]
    assert enlist(["foreign", "a/2"], ["a/1"]) >= 1
    wait_until(lambda: enlist([], ["a/1"]) == 0 and b"b/1" not in listed())
    assert listed() == [b"foreign", b"a/1"]
    bridges.client.delete(IDS)
    enlist([], ["a/1"])
    assert listed() == [b"a/1"]
