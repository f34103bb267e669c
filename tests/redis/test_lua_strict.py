"""The scripts of strict order: own, the fence, take_over, read, hold and leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.message import pack_failed
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, G = "orders", "g"
RETRY, STATS = keys.retry(S, G), keys.stats(S, G)
OWNER, TURN = keys.owner(S, G), keys.turn(S, G)
LEASE_MS, PATIENCE_MS = 60_000, 60_000


class Group:
    """Runs the scripts for a group of one stream."""

    def __init__(self, server: RedisServer, connection: Connection) -> None:
        self.client = server.client()
        self.connection = connection

    def own(
        self,
        who: str,
        token: bytes = b"",
        dead: str = "",
        lease_ms: int = LEASE_MS,
        connection: Connection | None = None,
    ) -> Any:
        """Ask to own the group, as the process `who` that has the name `host/who`."""
        arguments: list[Any] = [who, f"host/{who}", lease_ms, token, dead, PATIENCE_MS]
        return Script("own").call(connection or self.connection, [OWNER, TURN], arguments)

    def fenced(self, name: str, names: list[str], arguments: list[Any], token: bytes) -> Any:
        script = Script(name, fenced=True)
        return script.call(self.connection, [*names, OWNER], [*arguments, token])

    def leave(self, who: str, token: bytes = b"", ring: str = "") -> Any:
        names: list[Any] = [keys.alive(S, G, f"host/{who}"), RETRY, OWNER, TURN]
        return Script("leave").call(self.connection, names, [who, ring, token])

    def take_over(self, token: bytes, count: int = 1000, source: str = S) -> list[int]:
        """Take everything over; return how many the others had before each page."""
        pages, start = [], b"0-0"
        while True:
            arguments = [G, "host/b", count, start]
            start, left = self.fenced("take_over", [source], arguments, token)
            pages.append(left)
            if start == b"0-0":
                return pages

    def fields(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.client.hgetall(OWNER).items()}

    def pend(self, consumer: str, count: int, source: str = S) -> list[bytes]:
        """Have so many new messages pending for a consumer."""
        pipeline = self.client.pipeline(transaction=False)
        for number in range(count):
            pipeline.xadd(source, {"body": number})
        ids = list(pipeline.execute())
        self.client.xreadgroup(G, consumer, {source: ">"}, count=count)
        return ids

    def pending(self, consumer: str, source: str = S) -> list[bytes]:
        found = self.client.xpending_range(source, G, "-", "+", 200_000, consumername=consumer)
        return [each["message_id"] for each in found]

    def consumers(self, source: str = S) -> set[str]:
        return {each["name"].decode() for each in self.client.xinfo_consumers(source, G)}

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


@pytest.fixture
def group(redis: RedisServer) -> Iterator[Group]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    made = Group(redis, connection)
    for source in (S, RETRY):
        made.client.xgroup_create(source, G, "0", mkstream=True)
    yield made
    connection.close()


# -- own -------------------------------------------------------------------------------------


def test_the_first_one_owns_the_group(group: Group) -> None:
    before = group.now_ms()
    token, held, forgot = group.own("a")
    assert (held, forgot) == (b"", 0)
    fields = group.fields()
    assert fields["process"] == "a"
    assert fields["consumer"] == "host/a"
    assert fields["token"].encode() == token
    assert fields["lease"] == str(LEASE_MS)
    assert before + LEASE_MS <= int(fields["until"]) <= group.now_ms() + LEASE_MS


def test_another_one_learns_who_owns_it_and_for_how_long(group: Group) -> None:
    group.own("a")
    token, process, consumer, left, last = group.own("b")
    assert (token, process, consumer, last) == (b"", b"a", b"host/a", b"0-0")
    assert 0 < left <= LEASE_MS
    assert group.fields()["process"] == "a"
    assert int(group.fields()["standby"]) > group.now_ms()


def test_the_owner_stays_it_with_the_same_token(group: Group) -> None:
    token = group.own("a")[0]
    first = int(group.fields()["until"])
    wait_until(lambda: group.now_ms() > first - LEASE_MS)
    assert group.own("a", token)[0] == token
    assert int(group.fields()["until"]) > first


def test_an_owner_whose_lease_is_over_stays_it_if_nobody_came(group: Group) -> None:
    token = group.own("a", lease_ms=1)[0]
    wait_until(lambda: group.now_ms() > int(group.fields()["until"]))
    assert group.own("a", token) == [token, b"", 0]


def test_the_next_one_comes_when_the_lease_is_over_with_a_higher_token(group: Group) -> None:
    first = group.own("a", lease_ms=1)[0]
    second = wait_until(lambda: group.own("b")[0])
    assert int(second) > int(first)
    assert group.fields()["process"] == "b"
    # The one before learns of it, and of whom.
    assert group.own("a", first)[:3] == [b"", b"b", b"host/b"]


def test_the_next_one_comes_at_once_when_the_owner_is_known_to_be_dead(group: Group) -> None:
    first = group.own("a")[0]
    assert group.own("b", dead="c")[0] == b""
    assert int(group.own("b", dead="a")[0]) > int(first)


def test_a_reply_that_was_lost_gives_another_token_to_the_same_process(group: Group) -> None:
    first = group.own("a")[0]
    second = group.own("a")[0]
    assert int(second) > int(first)
    assert group.own("a", second)[0] == second


def test_a_token_is_not_given_twice_when_redis_has_lost_the_owner(group: Group) -> None:
    first = group.own("a")[0]
    group.client.delete(OWNER)
    second = group.own("b")[0]
    assert int(second) > int(first)
    assert group.own("a", first)[:2] == [b"", b"b"]


def test_an_owner_that_redis_has_forgotten_goes_on_with_its_token(group: Group) -> None:
    token = group.own("a")[0]
    group.client.delete(OWNER)
    assert group.own("a", token) == [token, b"", 1]
    assert group.own("a", token) == [token, b"", 0]


def test_an_owner_goes_on_where_a_replica_knew_only_the_one_before(group: Group) -> None:
    old = group.own("a")[0]
    stale = group.client.hgetall(OWNER)
    group.leave("a", old)
    token = group.own("b")[0]
    group.client.delete(OWNER)
    group.client.hset(OWNER, mapping=stale | {b"until": b"1"})
    assert group.own("b", token) == [token, b"", 1]


def test_a_late_request_of_who_has_left_does_not_bring_it_back(group: Group) -> None:
    token = group.own("a")[0]
    group.leave("a", token)
    assert group.own("a", token) == [token, b"", 0]
    assert "process" not in group.fields()
    assert group.own("b")[0] != b""


def test_the_lease_is_not_longer_because_the_clock_was_set_back(group: Group) -> None:
    group.own("a")
    hour_ms = 3_600_000
    group.client.hset(OWNER, "until", group.now_ms() + hour_ms)
    assert group.own("b")[3] == LEASE_MS
    assert int(group.fields()["until"]) <= group.now_ms() + LEASE_MS


def test_of_many_that_ask_at_once_one_is_the_owner(group: Group, redis: RedisServer) -> None:
    count = 16
    barrier = threading.Barrier(count)

    def ask(number: int) -> bytes:
        connection = Connection(RedisURL(redis.url), "wakeq-test")
        connection.connect()
        try:
            barrier.wait()
            token: bytes = group.own(f"p{number}", connection=connection)[0]
        finally:
            connection.close()
        return token

    with ThreadPoolExecutor(count) as pool:
        tokens = list(pool.map(ask, range(count)))
    assert len([token for token in tokens if token]) == 1


def test_the_owner_is_told_what_held_the_line(group: Group) -> None:
    token = group.own("a")[0]
    group.fenced("hold", [OWNER, STATS], ["0:1-1=3 0:1-2=2", 2], token)
    group.leave("a", token)
    assert group.own("b")[1] == b"0:1-1=3 0:1-2=2"


# -- the fence -------------------------------------------------------------------------------


def scripts(group: Group, token: bytes) -> list[Any]:
    """Run each fenced script; return what each says."""
    (entry_id,) = group.pend("host/a", 1)
    packed = pack_failed(G, "1-0", [b"k", b"v"])
    failing = [STATS, keys.delayed(S), keys.delayed_data(S)]
    runs: list[tuple[str, list[str], list[Any]]] = [
        ("hold", [OWNER, STATS], ["", 1]),
        ("read", [S, RETRY], [G, "host/a", 10, ">", ">"]),
        ("take_over", [S], [G, "host/b", 10, "0-0"]),
        (
            "fail",
            [S, *failing],
            [G, "host/b", "", S, "bell", 0, entry_id, f"{entry_id}@{G}", 0, *packed],
        ),
        ("acknowledge", [S, STATS], [G, "", 0, entry_id]),
        ("publish_and_acknowledge", [S, STATS, "out"], [G, 0, "", 1, entry_id, 2, "k", "v"]),
    ]
    said = []
    for name, names, arguments in runs:
        try:
            group.fenced(name, names, arguments, token)
            said.append("")
        except ServerError as error:
            said.append(str(error))
    return said


def test_all_scripts_run_for_the_owner(group: Group) -> None:
    assert scripts(group, group.own("a")[0]) == [""] * 6


def test_no_script_runs_for_an_owner_of_before_nor_changes_anything(group: Group) -> None:
    token = group.own("a", lease_ms=1)[0]
    wait_until(lambda: group.own("b")[0])
    assert scripts(group, token) == ["FENCED host/b"] * 6
    assert len(group.pending("host/a")) == 1
    assert not group.client.exists("out", STATS, keys.delayed(S))


def test_no_script_runs_when_redis_knows_of_no_owner(group: Group) -> None:
    token = group.own("a")[0]
    group.client.delete(OWNER)
    assert scripts(group, token) == ["FENCED nobody"] * 6


def test_the_owner_whose_lease_is_over_is_not_kept_out_before_another_one_came(
    group: Group,
) -> None:
    token = group.own("a", lease_ms=1)[0]
    wait_until(lambda: group.now_ms() > int(group.fields()["until"]))
    assert scripts(group, token) == [""] * 6


# -- take_over -------------------------------------------------------------------------------


def test_takes_all_that_others_have_and_deletes_them(group: Group) -> None:
    token = group.own("b")[0]
    ids = group.pend("host/a", 3) + group.pend("host/c", 2) + group.pend("host/b", 1)
    group.client.xgroup_createconsumer(S, G, "host/d")
    assert group.take_over(token) == [5]
    assert group.take_over(token) == [0]
    assert group.pending("host/b") == ids
    assert group.consumers() == {"host/b"}


def test_takes_a_hundred_thousand_page_by_page(group: Group) -> None:
    token = group.own("b")[0]
    total = 100_000
    for _ in range(total // 10_000):
        group.pend("host/a", 10_000)
    assert group.take_over(token) == list(range(total, 0, -1000))
    assert len(group.pending("host/b")) == total
    assert group.consumers() == {"host/b"}


def test_a_page_ends_in_the_middle_of_a_consumer(group: Group) -> None:
    token = group.own("b")[0]
    for name in ("host/a", "host/c"):
        group.pend(name, 3)
    assert group.take_over(token, count=4) == [6, 2]
    assert len(group.pending("host/b")) == 6


def test_entries_that_were_deleted_are_dropped_when_they_are_taken(group: Group) -> None:
    token = group.own("b")[0]
    ids = group.pend("host/a", 5)
    group.client.xdel(S, *ids[1:4])
    assert group.take_over(token) == [5]
    assert group.pending("host/b") == [ids[0], ids[4]]
    assert group.client.xpending(S, G)["pending"] == 2


def test_takes_what_a_consumer_with_any_name_has(group: Group) -> None:
    token = group.own("b")[0]
    group.client.xadd(S, {"body": "x"})
    group.client.xreadgroup(G, b"\xff\x00 %s", {S: ">"})
    assert group.take_over(token) == [1]
    assert group.consumers() == {"host/b"}


def test_takes_from_the_retry_stream_too(group: Group) -> None:
    token = group.own("b")[0]
    ids = group.pend("host/a", 2, RETRY)
    assert group.take_over(token, source=RETRY) == [2]
    assert group.pending("host/b", RETRY) == ids


# -- read ------------------------------------------------------------------------------------


def test_reads_from_both_or_says_up_to_where_they_were_delivered(group: Group) -> None:
    token = group.own("a")[0]
    arguments = [G, "host/a", 10, ">", ">"]
    assert group.fenced("read", [S, RETRY], arguments, token) == [b"0-0", b"0-0"]
    added = [group.client.xadd(S, {"n": 1}), group.client.xadd(RETRY, {"n": 2})]
    reply = group.fenced("read", [S, RETRY], arguments, token)
    assert [(key, entries[0][0]) for key, entries in reply] == [
        (S.encode(), added[0]),
        (RETRY.encode(), added[1]),
    ]
    assert group.fenced("read", [S, RETRY], arguments, token) == added


def test_reads_own_pending_messages_by_their_ids(group: Group) -> None:
    token = group.own("a")[0]
    ids = group.pend("host/a", 3)
    reply = group.fenced("read", [S, RETRY], [G, "host/a", 10, ids[0], "0"], token)
    assert [entry_id for entry_id, _ in reply[0][1]] == ids[1:]


# -- hold ------------------------------------------------------------------------------------


def test_counts_the_failures_of_what_holds_the_line(group: Group) -> None:
    token = group.own("a")[0]
    for attempt in (2, 3):
        group.fenced("hold", [OWNER, STATS], [f"0:1-1={attempt}", 1], token)
    assert group.fields()["held"] == "0:1-1=3"
    assert group.client.hget(STATS, "failed") == b"2"


# -- leave -----------------------------------------------------------------------------------


def test_who_leaves_rings_for_who_waits_and_for_nobody_else(group: Group) -> None:
    token = group.own("a")[0]
    group.leave("a", token)
    assert not group.client.exists(TURN)
    token = group.own("a")[0]
    last = group.own("b")[4]
    group.leave("a", token)
    ((_, entries),) = group.client.xread({TURN: last}, block=1)
    assert len(entries) == 1
    assert 0 < group.client.pttl(TURN) <= 60_000
    assert group.client.xlen(RETRY) == 0


def test_who_waited_long_ago_is_not_rung_for(group: Group) -> None:
    token = group.own("a")[0]
    group.own("b")
    group.client.hset(OWNER, "standby", group.now_ms() - 1000)
    group.leave("a", token)
    assert not group.client.exists(TURN)


def test_the_second_ring_comes_after_the_first(group: Group) -> None:
    for _ in range(2):
        token = group.own("a")[0]
        last = group.own("b")[4]
        assert group.client.xread({TURN: last}, block=1) == []
        group.leave("a", token)
        assert len(group.client.xread({TURN: last}, block=1)) == 1


def test_an_owner_of_before_that_leaves_changes_nothing(group: Group) -> None:
    first = group.own("a", lease_ms=1)[0]
    wait_until(lambda: group.own("b")[0])
    before = group.fields()
    group.leave("a", first)
    assert group.fields() == before


def test_who_hands_back_rings_in_the_retry_stream_if_nobody_waits(group: Group) -> None:
    token = group.own("a")[0]
    group.client.set(keys.alive(S, G, "host/a"), "a")
    assert group.leave("a", token, ring="host/a") == 1
    assert group.client.xlen(RETRY) == 1


# -- without memory --------------------------------------------------------------------------


def test_the_lease_is_kept_when_redis_is_out_of_memory(own_redis: RedisServer) -> None:
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()
    group = Group(own_redis, connection)
    for source in (S, RETRY):
        group.client.xgroup_create(source, G, "0", mkstream=True)
    ids = group.pend("host/a", 2)
    group.client.config_set("maxmemory", 1)
    with pytest.raises(redis_py.ResponseError, match=r"OOM|maxmemory"):
        group.client.set("some", "thing")
    token = group.own("b")[0]
    assert group.own("b", token)[0] == token
    assert group.take_over(token) == [2]
    group.fenced("hold", [OWNER, STATS], ["0:1-1=2", 1], token)
    assert group.fenced("acknowledge", [S, STATS], [G, "", 0, *ids], token) == 2
    group.leave("b", token)
    assert group.own("c")[0] != b""
    connection.close()
