"""The scripts of lua/, each way that they are sent: whole, by hash, by a hash that is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, G = "orders", "g"
RETRY = keys.retry(S, G)
STATS = keys.stats(S, G)
PAUSED = keys.paused(S)
HANDED_BACK_MS = 2**31 - 1
DAY_MS = 24 * 3600 * 1000

Run = Callable[..., Any]


def alive(consumer: str) -> str:
    return keys.alive(S, G, consumer)


@pytest.fixture(params=["whole", "by hash", "by a hash that is forgotten"])
def way(request: pytest.FixtureRequest) -> str:
    """How a script is sent."""
    return str(request.param)


@pytest.fixture
def connection(redis: RedisServer) -> Iterator[Connection]:
    made = Connection(RedisURL(redis.url), "wakeq-test")
    made.connect()
    yield made
    made.close()


@pytest.fixture
def run(connection: Connection, way: str) -> Run:
    """Run a script: `run(name, keys, arguments)`."""
    return runner(connection, way)


def runner(connection: Connection, way: str) -> Run:
    def run(name: str, names: list[str], arguments: list[Any]) -> Any:
        script = Script(name)
        if way != "whole":
            assert script.command([], [])[0] == b"EVAL"
            assert script.command([], [])[0] == b"EVALSHA"
        if way == "by hash":
            connection.call("SCRIPT", "LOAD", script.text)
        elif way == "by a hash that is forgotten":
            connection.call("SCRIPT", "FLUSH")
        return script.call(connection, names, arguments)

    return run


@pytest.fixture
def client(redis: RedisServer) -> Any:
    return redis.client()


@pytest.fixture
def full(own_redis: RedisServer) -> Iterator[Callable[[], Connection]]:
    """Fill a server's memory: `full()` returns a connection to it then."""
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")

    def fill() -> Connection:
        own_redis.client().config_set("maxmemory-policy", "noeviction")
        own_redis.client().config_set("maxmemory", 1)
        with pytest.raises(redis_py.ResponseError, match=r"OOM|maxmemory"):
            own_redis.client().set("k", "v")
        connection.connect()
        return connection

    yield fill
    connection.close()


def add(client: Any, stream: str, *ids: str) -> list[str]:
    return [client.xadd(stream, {"body": i}, id=i).decode() for i in ids]


def read(client: Any, consumer: str, stream: str = S, count: int = 100) -> list[str]:
    """Read new entries for a consumer; their ids."""
    replies = client.xreadgroup(G, consumer, {stream: ">"}, count=count)
    return [entry_id.decode() for _, entries in replies for entry_id, _ in entries]


def pending(client: Any, stream: str = S) -> dict[str, str]:
    """Return who has which entry pending."""
    found = client.xpending_range(stream, G, "-", "+", 1000)
    return {each["message_id"].decode(): each["consumer"].decode() for each in found}


def delivered(client: Any, stream: str = S) -> str:
    (group,) = client.xinfo_groups(stream)
    return str(group["last-delivered-id"].decode())


def consumers(client: Any, stream: str = S) -> set[str]:
    return {each["name"].decode() for each in client.xinfo_consumers(stream, G)}


def make_group(client: Any, stream: str = S) -> None:
    client.xgroup_create(stream, G, id="0", mkstream=True)


def three_pending(client: Any, consumer: str = "c", stream: str = S) -> list[str]:
    make_group(client, stream)
    ids = add(client, stream, "1-0", "2-0", "3-0")
    assert read(client, consumer, stream) == ids
    return ids


# -- ensure_group ------------------------------------------------------------------------------


@pytest.fixture
def ensure(run: Run, client: Any) -> Callable[..., str]:
    def ensure(start: str = "0", position: str = "") -> str:
        made, paused = run("ensure_group", [S, RETRY, STATS, PAUSED], [G, start, position])
        assert paused == client.exists(PAUSED)
        return str(made.decode())

    return ensure


def test_ensure_group_makes_both_groups_and_their_streams(ensure: Run, client: Any) -> None:
    assert ensure() == "0"
    assert (delivered(client), delivered(client, RETRY)) == ("0-0", "0-0")


def test_ensure_group_leaves_groups_that_are_there_alone(ensure: Run, client: Any) -> None:
    ensure()
    add(client, S, "5-1")
    read(client, "c")
    assert ensure("$", "3-0") == ""
    assert delivered(client) == "5-1"
    assert pending(client) == {"5-1": "c"}


def test_ensure_group_begins_at_the_end_if_told_so(ensure: Run, client: Any) -> None:
    add(client, S, "5-1")
    add(client, RETRY, "4-0")
    assert ensure("$") == "$"
    # What waits in the retry stream is this group's own, and never skipped.
    assert (delivered(client), delivered(client, RETRY)) == ("5-1", "0-0")


@pytest.mark.parametrize("start", ["0", "$"])
def test_ensure_group_goes_on_where_a_deleted_group_was(
    ensure: Run, client: Any, start: str
) -> None:
    add(client, S, "1-0", "2-0", "3-0")
    client.hset(STATS, "position", "2-0")
    assert ensure(start) == "2-0"
    assert read(client, "c") == ["3-0"]


def test_ensure_group_believes_the_caller_before_the_record(ensure: Run, client: Any) -> None:
    add(client, S, "1-0", "2-0", "3-0")
    client.hset(STATS, "position", "2-0")
    assert ensure("$", "1-0") == "1-0"
    assert read(client, "c") == ["2-0", "3-0"]


def test_ensure_group_makes_only_the_one_that_is_missing(ensure: Run, client: Any) -> None:
    make_group(client, RETRY)
    assert ensure() == "0"
    client.delete(RETRY)
    assert ensure() == ""
    assert delivered(client, RETRY) == "0-0"


@pytest.mark.parametrize(
    ("last", "position"), [("3-0", "4-0"), ("3-5", "3-6"), ("3-9", "3-10"), ("9-0", "10-0")]
)
def test_ensure_group_reads_all_of_a_stream_that_was_made_anew_with_lower_ids(
    ensure: Run, client: Any, last: str, position: str
) -> None:
    add(client, S, "1-0", last)
    client.hset(STATS, "position", position)
    assert ensure("$") == "0"
    assert read(client, "c") == ["1-0", last]


@pytest.mark.parametrize("position", ["3-10", "3-9", "2-99"])
def test_ensure_group_goes_on_in_the_same_stream_up_to_its_last_id(
    ensure: Run, client: Any, position: str
) -> None:
    add(client, S, "1-0", "3-10")
    assert ensure("0", position) == position
    client.xtrim(S, 0)
    client.xgroup_destroy(S, G)
    # A stream that is empty still knows its last id.
    assert ensure("0", position) == position


def test_ensure_group_reads_all_that_comes_when_the_stream_is_gone(
    ensure: Run, client: Any
) -> None:
    assert ensure("$", "7-0") == "0"
    add(client, S, "1-0")
    assert read(client, "c") == ["1-0"]


@pytest.mark.parametrize("wrong", [S, RETRY, STATS])
def test_ensure_group_says_that_a_key_is_something_else(
    ensure: Run, client: Any, wrong: str
) -> None:
    client.set(wrong, "v")
    with pytest.raises(ServerError) as caught:
        ensure("0")
    assert caught.value.code == "WRONGTYPE"
    assert client.get(wrong) == b"v"


def test_ensure_group_survives_a_position_that_is_none(ensure: Run, client: Any) -> None:
    add(client, S, "1-0")
    client.hset(STATS, "position", "nonsense")
    assert ensure("0") == "0"


def test_ensure_group_tells_of_a_pause(run: Run, client: Any) -> None:
    names, arguments = [S, RETRY, STATS, PAUSED], [G, "0", ""]
    assert run("ensure_group", names, arguments) == [b"0", 0]
    client.set(PAUSED, "1700000000000 by hand")
    assert run("ensure_group", names, arguments) == [b"", 1]
    client.delete(PAUSED)
    assert run("ensure_group", names, arguments) == [b"", 0]


# -- join, leave -------------------------------------------------------------------------------


@pytest.fixture
def join(run: Run) -> Callable[..., str]:
    def join(process: str, dead: str = "", lifetime_ms: int = 30_000) -> str:
        return str(run("join", [alive("c")], [process, dead, lifetime_ms]).decode())

    return join


@pytest.fixture
def leave(run: Run) -> Callable[..., int]:
    def leave(process: str, ring: str = "") -> int:
        return int(run("leave", [alive("c"), RETRY, keys.owner(S, G)], [process, ring, ""]))

    return leave


def test_join_takes_a_name_that_is_free_for_its_lifetime(join: Run, client: Any) -> None:
    assert join("p1", lifetime_ms=200_000) == ""
    assert client.get(alive("c")) == b"p1"
    assert 100_000 < client.pttl(alive("c")) <= 200_000


def test_join_keeps_a_name_for_another_lifetime(join: Run, client: Any) -> None:
    join("p1", lifetime_ms=1000)
    assert join("p1", lifetime_ms=200_000) == ""
    assert client.pttl(alive("c")) > 100_000


def test_join_does_not_take_the_name_of_another_process(join: Run, client: Any) -> None:
    join("p1", lifetime_ms=100_000)
    assert join("p2", lifetime_ms=200_000) == "p1"
    assert join("p2", dead="p0", lifetime_ms=200_000) == "p1"
    assert client.get(alive("c")) == b"p1"
    assert client.pttl(alive("c")) <= 100_000


def test_join_takes_the_name_of_a_process_that_is_dead(join: Run, client: Any) -> None:
    join("p1")
    assert join("p2", dead="p1") == ""
    # A third one that found the same dead process comes too late.
    assert join("p3", dead="p1") == "p2"


def test_join_takes_a_name_that_has_expired(join: Run, client: Any) -> None:
    join("p1", lifetime_ms=1)
    wait_until(lambda: client.get(alive("c")) is None)
    assert join("p2") == ""
    assert join("p1") == "p2"


def test_leave_gives_the_name_up(join: Run, leave: Run, client: Any) -> None:
    join("p1")
    assert leave("p1") == 1
    assert (client.exists(alive("c")), client.exists(RETRY)) == (0, 0)
    assert leave("p1") == 0
    assert join("p2") == ""


def test_leave_rings_for_what_was_handed_back(join: Run, leave: Run, client: Any) -> None:
    join("p1")
    assert leave("p1", ring="c") == 1
    ((_, fields),) = client.xrange(RETRY)
    assert fields == {b"wakeq.handed_back": b"c"}


def test_leave_does_not_touch_the_name_of_a_successor(join: Run, leave: Run, client: Any) -> None:
    join("p1")
    join("p2", dead="p1")
    assert leave("p1", ring="c") == 0
    assert client.get(alive("c")) == b"p2"
    assert client.exists(RETRY) == 0


# -- set_idle ----------------------------------------------------------------------------------


@pytest.fixture
def set_idle(run: Run) -> Callable[..., list[bytes]]:
    def set_idle(
        idle_ms: int, *ids: str, consumer: str = "c", deliveries: int | str = ""
    ) -> list[bytes]:
        return list(run("set_idle", [S], [G, consumer, idle_ms, deliveries, *ids]))

    return set_idle


def idle_ms(client: Any) -> dict[str, int]:
    found = client.xpending_range(S, G, "-", "+", 1000)
    return {each["message_id"].decode(): each["time_since_delivered"] for each in found}


def counts(client: Any) -> dict[str, int]:
    found = client.xpending_range(S, G, "-", "+", 1000)
    return {each["message_id"].decode(): each["times_delivered"] for each in found}


def test_set_idle_hands_back_what_it_names_and_nothing_else(set_idle: Run, client: Any) -> None:
    three_pending(client)
    assert set_idle(HANDED_BACK_MS, "1-0", "3-0") == []
    idle = idle_ms(client)
    assert idle["1-0"] > DAY_MS and idle["3-0"] > DAY_MS
    assert idle["2-0"] < 60_000
    assert counts(client) == {"1-0": 1, "2-0": 1, "3-0": 1}


def test_set_idle_keeps_what_is_still_being_handled(set_idle: Run, client: Any) -> None:
    three_pending(client)
    set_idle(HANDED_BACK_MS, "1-0")
    assert set_idle(0, "1-0") == []
    assert idle_ms(client)["1-0"] < 60_000


def test_set_idle_does_not_take_what_another_consumer_has(set_idle: Run, client: Any) -> None:
    three_pending(client)
    client.xclaim(S, G, "other", 0, ["2-0"])
    assert set_idle(HANDED_BACK_MS, "1-0", "2-0", "3-0") == [b"2-0"]
    assert pending(client) == {"1-0": "c", "2-0": "other", "3-0": "c"}
    assert idle_ms(client)["2-0"] < 60_000


def test_set_idle_undoes_deliveries_of_its_own_messages_alone(set_idle: Run, client: Any) -> None:
    three_pending(client)
    client.xclaim(S, G, "c", 0, ["1-0"])
    client.xclaim(S, G, "other", 0, ["2-0"])
    assert counts(client) == {"1-0": 2, "2-0": 2, "3-0": 1}
    assert set_idle(HANDED_BACK_MS, "1-0", "2-0", deliveries=1) == [b"2-0"]
    assert counts(client) == {"1-0": 1, "2-0": 2, "3-0": 1}
    assert set_idle(HANDED_BACK_MS, "3-0", deliveries=0) == []
    assert counts(client)["3-0"] == 0
    assert idle_ms(client)["3-0"] > DAY_MS
    client.xreadgroup(G, "c", {S: "0"})
    assert counts(client)["3-0"] == 1, "its first delivery again"


def test_set_idle_tells_what_is_not_pending(set_idle: Run, client: Any) -> None:
    three_pending(client)
    client.xack(S, G, "1-0")
    assert set_idle(0, "1-0", "2-0", "9-9") == [b"1-0", b"9-9"]
    assert set_idle(0, "1-0") == [b"1-0"]
    assert pending(client) == {"2-0": "c", "3-0": "c"}


def test_set_idle_survives_an_entry_that_was_deleted(set_idle: Run, client: Any) -> None:
    three_pending(client)
    client.xdel(S, "1-0")
    set_idle(0, "1-0", "2-0")
    assert set(pending(client)) >= {"2-0", "3-0"}


def test_set_idle_takes_a_thousand(set_idle: Run, client: Any) -> None:
    make_group(client)
    ids = add(client, S, *(f"{i}-0" for i in range(1, 1001)))
    read(client, "c", count=1000)
    assert set_idle(HANDED_BACK_MS, *ids) == []
    assert min(idle_ms(client).values()) > DAY_MS


# -- claim -------------------------------------------------------------------------------------


@pytest.fixture
def claim(run: Run) -> Callable[..., list[str]]:
    def claim(
        *gone: str, idle_ms: int = 0, count: int = 100, forget_ms: int = DAY_MS, me: str = "me"
    ) -> list[str]:
        names = [S, *map(alive, gone)]
        entries = run("claim", names, [G, me, idle_ms, count, forget_ms, *gone])
        return [entry_id.decode() for entry_id, _, _ in entries]

    return claim


def test_claim_takes_from_a_consumer_that_is_gone(claim: Run, client: Any) -> None:
    ids = three_pending(client)
    assert claim("c") == ids
    assert set(pending(client).values()) == {"me"}
    assert set(counts(client).values()) == {2}


def test_claim_gives_the_fields(run: Run, client: Any) -> None:
    make_group(client)
    client.xadd(S, {"a": b"\0\xff", "b": ""}, id="1-0")
    read(client, "c")
    entries = run("claim", [S, alive("c")], [G, "me", 0, 10, DAY_MS, "c"])
    assert entries == [[b"1-0", [b"a", b"\0\xff", b"b", b""], 2]]


def test_claim_tells_how_often_each_message_was_delivered(run: Run, client: Any) -> None:
    three_pending(client)
    client.xreadgroup(G, "c", {S: "1-0"})
    client.xclaim(S, G, "c", 0, ["3-0"], retrycount=8)
    names, arguments = [S, alive("c")], [G, "me", 0, 2, DAY_MS, "c"]
    first = run("claim", names, arguments)
    assert [(entry_id, times) for entry_id, _, times in first] == [(b"1-0", 2), (b"2-0", 3)]
    assert [times for _, _, times in run("claim", names, arguments)] == [9]
    assert counts(client) == {"1-0": 2, "2-0": 3, "3-0": 9}


def test_claim_takes_nothing_from_a_consumer_that_lives(claim: Run, client: Any) -> None:
    three_pending(client)
    client.set(alive("c"), "p")
    assert claim("c") == []
    assert set(pending(client).values()) == {"c"}


def test_claim_takes_only_from_those_that_it_names(claim: Run, client: Any) -> None:
    three_pending(client)
    assert claim("d") == []
    assert set(pending(client).values()) == {"c"}


def test_claim_leaves_young_messages_alone(claim: Run, set_idle: Run, client: Any) -> None:
    three_pending(client)
    set_idle(HANDED_BACK_MS, "2-0")
    assert claim("c", idle_ms=60_000) == ["2-0"]


def test_claim_takes_no_more_than_it_has_room_for(claim: Run, client: Any) -> None:
    make_group(client)
    add(client, S, *(f"{i}-0" for i in range(1, 11)))
    read(client, "c", count=4)
    read(client, "d", count=6)
    assert claim("c", "d", count=5) == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    assert claim("c", "d", count=3) == ["6-0", "7-0", "8-0"]
    assert claim("c", "d", count=3) == ["9-0", "10-0"]
    assert claim("c", "d", count=3) == []


def test_claim_takes_a_thousand(claim: Run, client: Any) -> None:
    make_group(client)
    ids = add(client, S, *(f"{i}-0" for i in range(1, 1101)))
    read(client, "c", count=2000)
    assert claim("c", count=1000) == ids[:1000]


def test_claim_drops_entries_that_were_deleted(claim: Run, client: Any) -> None:
    three_pending(client)
    client.xdel(S, "1-0", "3-0")
    assert claim("c") == ["2-0"]
    assert pending(client) == {"2-0": "me"}


def test_claim_forgets_a_consumer_that_is_gone_for_good(claim: Run, client: Any) -> None:
    make_group(client)
    client.xgroup_createconsumer(S, G, "c")
    assert claim("c", forget_ms=DAY_MS) == []
    assert consumers(client) == {"c"}
    wait_until(lambda: client.xinfo_consumers(S, G)[0]["idle"] > 1)
    claim("c", forget_ms=1)
    assert consumers(client) == set()


def test_claim_forgets_no_consumer_that_lives_or_has_something(claim: Run, client: Any) -> None:
    three_pending(client)
    client.xgroup_createconsumer(S, G, "d")
    client.set(alive("d"), "p")
    wait_until(lambda: min(each["idle"] for each in client.xinfo_consumers(S, G)) > 1)
    assert claim("c", "d", idle_ms=60_000, forget_ms=1) == []
    assert claim("c", "d", idle_ms=0, count=0, forget_ms=1) == []
    assert consumers(client) == {"c", "d"}
    assert len(pending(client)) == 3


def test_claim_forgets_a_consumer_when_it_comes_by_again(claim: Run, client: Any) -> None:
    ids = three_pending(client)
    wait_until(lambda: client.xinfo_consumers(S, G)[0]["idle"] > 1)
    assert claim("c", forget_ms=1) == ids
    assert consumers(client) == {"c", "me"}
    assert claim("c", forget_ms=1) == []
    assert consumers(client) == {"me"}


def test_claim_passes_over_a_consumer_that_is_unknown(claim: Run, client: Any) -> None:
    ids = three_pending(client)
    assert claim("nobody", "c") == ids
    assert "nobody" not in consumers(client)


@pytest.mark.parametrize("exists", [False, True])
def test_claim_says_that_the_group_is_gone(claim: Run, client: Any, exists: bool) -> None:
    if exists:
        add(client, S, "1-0")
    with pytest.raises(ServerError, match="NOGROUP" if exists else "no such key"):
        claim("c")


# -- acknowledge -------------------------------------------------------------------------------


@pytest.fixture
def acknowledge(run: Run) -> Callable[..., int]:
    def acknowledge(*ids: str, position: str = "", delete: int = 0, stream: str = S) -> int:
        return int(run("acknowledge", [stream, STATS], [G, position, delete, *ids]))

    return acknowledge


def test_acknowledge_counts_and_records_the_position(acknowledge: Run, client: Any) -> None:
    three_pending(client)
    assert acknowledge("1-0", "2-0", position="2-0") == 2
    assert pending(client) == {"3-0": "c"}
    assert client.hgetall(STATS) == {b"handled": b"2", b"position": b"2-0"}
    assert client.xlen(S) == 3


def test_acknowledge_twice_counts_once(acknowledge: Run, client: Any) -> None:
    three_pending(client)
    assert acknowledge("1-0", "2-0") == 2
    assert acknowledge("1-0", "2-0", "3-0", "9-9") == 1
    assert acknowledge("1-0", "2-0", "3-0") == 0
    assert client.hgetall(STATS) == {b"handled": b"3"}


def test_acknowledge_deletes_what_is_ours(acknowledge: Run, client: Any) -> None:
    three_pending(client, stream=RETRY)
    assert acknowledge("1-0", "3-0", delete=1, stream=RETRY) == 2
    assert acknowledge("1-0", "3-0", delete=1, stream=RETRY) == 0
    assert [entry_id for entry_id, _ in client.xrange(RETRY)] == [b"2-0"]
    assert client.hget(STATS, "handled") == b"2"


def test_acknowledge_takes_entries_that_were_deleted(acknowledge: Run, client: Any) -> None:
    three_pending(client)
    client.xdel(S, "1-0")
    assert acknowledge("1-0") == 1
    assert "1-0" not in pending(client)


def test_acknowledge_takes_a_thousand(acknowledge: Run, client: Any) -> None:
    make_group(client)
    ids = add(client, S, *(f"{i}-0" for i in range(1, 1001)))
    read(client, "c", count=1000)
    assert acknowledge(*ids, delete=1) == 1000
    assert client.xlen(S) == 0


def test_acknowledge_of_a_stream_or_group_that_is_gone_is_of_nothing(
    acknowledge: Run, client: Any
) -> None:
    assert acknowledge("1-0") == 0
    add(client, S, "1-0")
    assert acknowledge("1-0") == 0


def test_acknowledge_does_without_counters_that_cannot_be_kept(
    acknowledge: Run, client: Any
) -> None:
    three_pending(client)
    client.set(STATS, "something else")
    assert acknowledge("1-0", position="1-0") == 1
    assert "1-0" not in pending(client)


def test_acknowledge_says_that_the_stream_is_something_else(acknowledge: Run, client: Any) -> None:
    client.set(S, "v")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        acknowledge("1-0")
    assert client.exists(STATS) == 0


# -- publish_and_acknowledge -------------------------------------------------------------------


@pytest.fixture
def publish(run: Run) -> Callable[..., int]:
    def publish(
        ids: list[str], *messages: tuple[str, list[Any]], delete: int = 0, stream: str = S
    ) -> int:
        arguments: list[Any] = [G, delete, "", len(ids), *ids]
        for _, items in messages:
            arguments += [len(items), *items]
        names = [stream, STATS, *(target for target, _ in messages)]
        return int(run("publish_and_acknowledge", names, arguments))

    return publish


def test_publish_and_acknowledge_does_both(publish: Run, client: Any) -> None:
    three_pending(client)
    messages = ("a", ["x", b"\0\xff"]), ("b", ["x", "1", "x", "2"]), ("a", ["y", ""])
    assert publish(["1-0", "2-0"], *messages) == 2
    assert [fields for _, fields in client.xrange("a")] == [{b"x": b"\0\xff"}, {b"y": b""}]
    assert client.xlen("b") == 1
    assert pending(client) == {"3-0": "c"}
    assert client.hgetall(STATS) == {b"handled": b"2", b"published": b"3"}


def test_publish_and_acknowledge_twice_publishes_once(publish: Run, client: Any) -> None:
    three_pending(client)
    assert publish(["1-0", "2-0"], ("a", ["x", "1"])) == 2
    assert publish(["1-0", "2-0"], ("a", ["x", "1"])) == 0
    assert client.xlen("a") == 1
    assert client.hgetall(STATS) == {b"handled": b"2", b"published": b"1"}


def test_publish_and_acknowledge_deletes_what_is_ours(publish: Run, client: Any) -> None:
    three_pending(client, stream=RETRY)
    assert publish(["1-0"], ("a", ["x", "1"]), delete=1, stream=RETRY) == 1
    assert [entry_id for entry_id, _ in client.xrange(RETRY)] == [b"2-0", b"3-0"]


def test_publish_and_acknowledge_into_the_stream_it_came_from(publish: Run, client: Any) -> None:
    three_pending(client)
    assert publish(["1-0"], (S, ["x", "1"])) == 1
    assert client.xlen(S) == 4


@pytest.mark.parametrize("place", [0, 1, 2])
def test_publish_and_acknowledge_does_nothing_if_one_target_is_something_else(
    publish: Run, client: Any, place: int
) -> None:
    three_pending(client)
    client.set("wrong", "v")
    messages = [("a", ["x", "1"]), ("b", ["x", "1"])]
    messages.insert(place, ("wrong", ["x", "1"]))
    with pytest.raises(ServerError) as caught:
        publish(["1-0"], *messages)
    assert caught.value.code == "WRONGTYPE"
    assert "wrong is a string, not a stream" in str(caught.value)
    assert client.exists("a", "b", STATS) == 0
    assert len(pending(client)) == 3


@pytest.mark.parametrize("items", [["x"], [], ["x", "1"] * 3996])
def test_publish_and_acknowledge_does_nothing_if_one_message_cannot_be_added(
    publish: Run, client: Any, items: list[str]
) -> None:
    three_pending(client)
    with pytest.raises(ServerError, match="b cannot take a message of"):
        publish(["1-0"], ("a", ["x", "1"]), ("b", items))
    assert client.exists("a", "b", STATS) == 0
    assert len(pending(client)) == 3


def test_publish_and_acknowledge_takes_many(publish: Run, client: Any) -> None:
    make_group(client)
    ids = add(client, S, *(f"{i}-0" for i in range(1, 1001)))
    read(client, "c", count=1000)
    messages = [(f"t{i % 3}", ["body", str(i)]) for i in range(1000)]
    assert publish(ids, *messages) == 1000
    assert sum(client.xlen(f"t{i}") for i in range(3)) == 1000
    assert publish(ids, *messages) == 0


def test_publish_and_acknowledge_publishes_a_message_of_many_fields(
    publish: Run, client: Any
) -> None:
    three_pending(client)
    items = [part for i in range(3995) for part in (f"f{i}", str(i))]
    assert publish(["1-0"], ("a", items)) == 1
    ((_, fields),) = client.xrange("a")
    assert len(fields) == 3995


def test_publish_and_acknowledge_says_that_the_group_is_gone(publish: Run, client: Any) -> None:
    add(client, S, "1-0")
    with pytest.raises(ServerError, match="NOGROUP"):
        publish(["1-0"], ("a", ["x", "1"]))
    assert client.exists("a") == 0


# -- publish_once ------------------------------------------------------------------------------


@pytest.fixture
def once(run: Run) -> Callable[..., tuple[str, int]]:
    def once(key: str, *items: Any, window_ms: int = 60_000) -> tuple[str, int]:
        entry_id, added = run("publish_once", [S, keys.dedup(S, key)], [window_ms, *items])
        return entry_id.decode(), added

    return once


def test_publish_once_adds_a_message_once(once: Run, client: Any) -> None:
    entry_id, added = once("k", "body", b"\0\xff", "n", "1")
    assert added == 1
    assert once("k", "body", "other") == (entry_id, 0)
    ((found, fields),) = client.xrange(S)
    assert (found.decode(), fields) == (entry_id, {b"body": b"\0\xff", b"n": b"1"})


def test_publish_once_tells_keys_apart(once: Run, client: Any) -> None:
    first, second = once("k", "body", "x"), once("l", "body", "x")
    assert first[0] != second[0]
    assert first[1] == second[1] == 1


def test_publish_once_remembers_for_its_window(once: Run, client: Any) -> None:
    once("k", "body", "x", window_ms=500_000)
    assert 400_000 < client.pttl(keys.dedup(S, "k")) <= 500_000
    client.pexpire(keys.dedup(S, "k"), 1)
    wait_until(lambda: not client.exists(keys.dedup(S, "k")))
    assert once("k", "body", "x")[1] == 1
    assert client.xlen(S) == 2


@pytest.mark.parametrize("wrong", [S, keys.dedup(S, "k")])
def test_publish_once_does_nothing_if_a_key_is_something_else(
    once: Run, client: Any, wrong: str
) -> None:
    client.lpush(wrong, "v")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        once("k", "body", "x")
    assert client.dbsize() == 1


# -- when Redis is out of memory ---------------------------------------------------------------


def test_acknowledge_goes_through_when_memory_is_full(
    own_redis: RedisServer, full: Callable[[], Connection], way: str
) -> None:
    client = own_redis.client()
    three_pending(client)
    client.hset(STATS, "handled", 5)
    run = runner(full(), way)
    assert run("acknowledge", [S, STATS], [G, "2-0", 1, "1-0", "2-0"]) == 2
    assert pending(client) == {"3-0": "c"}
    assert client.xlen(S) == 1
    assert run("acknowledge", [S, STATS], [G, "2-0", 1, "1-0", "2-0"]) == 0


def test_publish_and_acknowledge_does_nothing_when_memory_is_full(
    own_redis: RedisServer, full: Callable[[], Connection], way: str
) -> None:
    client = own_redis.client()
    three_pending(client)
    run = runner(full(), way)
    for name, names, arguments in (
        ("publish_and_acknowledge", [S, STATS, "a"], [G, 0, "", 1, "1-0", 2, "x", "1"]),
        ("publish_once", ["a", keys.dedup("a", "k")], [1000, "x", "1"]),
    ):
        with pytest.raises(ServerError) as caught:
            run(name, names, arguments)
        assert caught.value.code == "OOM"
    assert client.exists("a", STATS, keys.dedup("a", "k")) == 0
    assert len(pending(client)) == 3


def test_a_consumer_can_start_and_go_on_when_memory_is_full(
    own_redis: RedisServer, full: Callable[[], Connection], way: str
) -> None:
    """Only what was handled can be trimmed: who handles it must not wait for room."""
    client = own_redis.client()
    three_pending(client)
    make_group(client, RETRY)
    run = runner(full(), way)
    assert run("join", [alive("new")], ["p1", "", 30_000]) == b""
    assert run("join", [alive("new")], ["p1", "", 30_000]) == b""
    assert run("ensure_group", [S, RETRY, STATS, PAUSED], [G, "0", ""]) == [b"", 0]
    assert len(run("claim", [S, alive("c")], [G, "new", 0, 10, DAY_MS, "c"])) == 3
    assert run("set_idle", [S], [G, "new", HANDED_BACK_MS, 0, "1-0"]) == []
    assert run("leave", [alive("new"), RETRY, keys.owner(S, G)], ["p1", "new", ""]) == 1
    assert client.xlen(RETRY) == 1


# -- races -------------------------------------------------------------------------------------


def at_once(redis: RedisServer, count: int, call: Callable[[Run, int], Any]) -> list[Any]:
    """Have several processes do the same thing at the same time; what each of them got."""
    barrier = threading.Barrier(count)

    def one(index: int) -> Any:
        connection = Connection(RedisURL(redis.url), "wakeq-test")
        connection.connect()
        try:
            barrier.wait(60)
            return call(runner(connection, "whole"), index)
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("dead", ["", "p"])
def test_one_of_many_processes_joins(redis: RedisServer, client: Any, dead: str) -> None:
    if dead:
        client.set(alive("c"), dead)
    answers = at_once(
        redis, 8, lambda run, index: run("join", [alive("c")], [f"p{index}", dead, 30_000])
    )
    winner = client.get(alive("c"))
    assert sorted(answers) == [b""] + [winner] * 7
    assert answers[int(winner[1:])] == b""


def test_one_of_many_makes_the_group(redis: RedisServer, client: Any) -> None:
    add(client, S, "1-0", "2-0")
    client.hset(STATS, "position", "1-0")
    names = [S, RETRY, STATS, PAUSED]
    answers = at_once(redis, 8, lambda run, _: run("ensure_group", names, [G, "0", ""]))
    assert sorted(answers) == [[b"", 0]] * 7 + [[b"1-0", 0]]


def test_each_message_is_claimed_by_one(redis: RedisServer, client: Any) -> None:
    make_group(client)
    ids = add(client, S, *(f"{i}-0" for i in range(1, 201)))
    read(client, "c", count=200)
    client.xclaim(S, G, "c", 0, ids, idle=HANDED_BACK_MS, justid=True)
    answers = at_once(
        redis,
        8,
        lambda run, index: run("claim", [S, alive("c")], [G, f"n{index}", 1000, 30, DAY_MS, "c"]),
    )
    claimed = [entry_id.decode() for entries in answers for entry_id, _, _ in entries]
    assert sorted(claimed) == sorted(ids)


def test_what_is_acknowledged_many_times_at_once_is_published_and_counted_once(
    redis: RedisServer, client: Any
) -> None:
    three_pending(client)
    answers = at_once(
        redis,
        8,
        lambda run, _: run(
            "publish_and_acknowledge", [S, STATS, "a"], [G, 0, "", 2, "1-0", "2-0", 2, "x", "1"]
        ),
    )
    assert sorted(answers) == [0] * 7 + [2]
    assert client.xlen("a") == 1
    assert client.hgetall(STATS) == {b"handled": b"2", b"published": b"1"}


def test_many_publishers_with_one_key_add_one_message(redis: RedisServer, client: Any) -> None:
    answers = at_once(
        redis, 8, lambda run, _: run("publish_once", [S, keys.dedup(S, "k")], [60_000, "x", "1"])
    )
    ((entry_id, _),) = client.xrange(S)
    assert sorted(answers) == [[entry_id, 0]] * 7 + [[entry_id, 1]]
