"""The look at what there is to do: lua/backlog.lua."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from redis_servers import RedisServer
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection

S, G = "orders", "g"
RETRY = keys.retry(S, G)


class Look(NamedTuple):
    """What is found for one group."""

    error: str
    delivered: str
    retried: str
    unread: int
    lag: int
    pending: int
    others: int
    claimable_ms: int
    paused: int
    own: list[int]


Looks = Callable[..., Any]


@pytest.fixture
def client(redis: RedisServer) -> Any:
    return redis.client()


@pytest.fixture(params=["whole", "forgotten"])
def ask(redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[Looks]:
    """Run the script for (stream, group, start, claim_after_ms, own consumers) each."""
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    script = Script("backlog")

    def ask(*groups: tuple[str, str, str, int, list[str]]) -> list[Look | str]:
        names: list[str] = []
        arguments: list[Any] = []
        for stream, group, start, claim_after_ms, own in groups:
            names += [stream, keys.retry(stream, group), keys.alive(stream, group, "")]
            names += [keys.paused(stream)]
            arguments += [group, start, claim_after_ms, len(own), *own]
        if request.param == "forgotten":
            script.command([], [])
            connection.call("SCRIPT", "FLUSH")
        return [understood(answer) for answer in script.call(connection, names, arguments)]

    yield ask
    connection.close()


def understood(answer: list[Any]) -> Look | str:
    if len(answer) == 1:
        return str(answer[0].decode())
    error, delivered, retried, *numbers = answer
    return Look(error.decode(), delivered.decode(), retried.decode(), *numbers[:6], numbers[6:])


@pytest.fixture
def look(ask: Looks) -> Looks:
    """Look at the group of this test alone."""

    def look(*own: str, start: str = "0", claim_after_ms: int = 60_000) -> Any:
        (found,) = ask((S, G, start, claim_after_ms, list(own)))
        return found

    return look


def make_groups(client: Any) -> None:
    for stream in (S, RETRY):
        client.xgroup_create(stream, G, id="0", mkstream=True)


def add(client: Any, stream: str, *ids: str) -> None:
    for entry_id in ids:
        client.xadd(stream, {"x": 1}, id=entry_id)


def read(client: Any, consumer: str, stream: str = S, count: int = 100) -> None:
    client.xreadgroup(G, consumer, {stream: ">"}, count=count)


def test_finds_what_nobody_has_read(look: Looks, client: Any) -> None:
    make_groups(client)
    add(client, S, "1-0", "2-0", "3-0")
    read(client, "c", count=1)
    found = look("c")
    assert (found.delivered, found.unread, found.lag, found.pending) == ("1-0", 1, 2, 1)
    assert found.own == [1, 0]


@pytest.mark.parametrize(("start", "unread", "delivered"), [("0", 1, "0-0"), ("$", 0, "")])
def test_a_missing_group_begins_where_it_would_be_made(
    look: Looks, client: Any, start: str, unread: int, delivered: str
) -> None:
    add(client, S, "1-0")
    found = look(start=start)
    assert (found.error, found.unread, found.delivered) == ("", unread, delivered)


def test_a_group_that_may_not_be_missing_is_an_error(look: Looks, client: Any) -> None:
    add(client, S, "1-0")
    assert look(start="") == "NOGROUP g"


@pytest.mark.parametrize("wrong", [S, RETRY])
def test_something_else_is_an_error_of_that_group_alone(
    ask: Looks, client: Any, wrong: str
) -> None:
    client.set(wrong, "v")
    add(client, "other", "1-0")
    first, second = ask((S, G, "0", 1000, []), ("other", G, "0", 1000, []))
    assert first.startswith("WRONGTYPE")
    assert (second.unread, second.lag) == (1, 1)


def test_tells_own_consumers_that_live_from_those_that_do_not(look: Looks, client: Any) -> None:
    make_groups(client)
    add(client, S, "1-0", "2-0", "3-0")
    read(client, "c", count=1)
    read(client, "d", count=2)
    client.set(keys.alive(S, G, "d"), "p")
    found = look("c", "d", "e")
    assert found.own == [1, 0, 2, 1, 0, 0]
    assert (found.pending, found.others, found.claimable_ms) == (3, 0, -1)


def test_the_first_of_many_retries_decides_when_something_can_be_claimed(
    look: Looks, client: Any
) -> None:
    make_groups(client)
    add(client, S, "1-0")
    add(client, RETRY, "2-0")
    read(client, "gone")
    read(client, "gone", RETRY)
    client.xclaim(RETRY, G, "gone", 0, ["2-0"], idle=1_800_000, justid=True)
    assert 0 < look(claim_after_ms=3_600_000).claimable_ms <= 1_800_001


def test_answers_for_a_hundred_groups_in_their_order(ask: Looks, client: Any) -> None:
    for i in range(0, 100, 7):
        add(client, f"s{i}", "1-0")
    answers = ask(*((f"s{i}", G, "0", 1000, ["c"] * (i % 3)) for i in range(100)))
    assert [found.unread for found in answers] == [int(i % 7 == 0) for i in range(100)]
    assert [len(found.own) for found in answers] == [2 * (i % 3) for i in range(100)]


def test_several_groups_of_one_stream_have_each_their_own(ask: Looks, client: Any) -> None:
    client.xgroup_create(S, "a", id="0", mkstream=True)
    client.xgroup_create(S, "b", id="0")
    add(client, S, "1-0")
    client.xreadgroup("a", "c", {S: ">"})
    first, second = ask((S, "a", "0", 1000, ["c"]), (S, "b", "0", 1000, ["c"]))
    assert (first.unread, first.own) == (0, [1, 0])
    assert (second.unread, second.own) == (1, [0, 0])


def make_quiet(client: Any, stream: str = S) -> None:
    """Have groups that have handled what there was, in both streams."""
    client.xgroup_create(stream, G, id="0", mkstream=True)
    client.xgroup_create(keys.retry(stream, G), G, id="0", mkstream=True)
    for key in (stream, keys.retry(stream, G)):
        client.xadd(key, {"x": 1}, id="1-0")
        client.xreadgroup(G, "c", {key: ">"})
        client.xack(key, G, "1-0")
    client.xdel(keys.retry(stream, G), "1-0")


def test_a_hundred_quiet_groups_take_little_more_than_one_command_each(
    ask: Looks, client: Any
) -> None:
    for i in range(100):
        make_quiet(client, f"s{i}")
    client.config_resetstat()
    answers = ask(*((f"s{i}", G, "0", 1000, ["c", "d"]) for i in range(100)))
    called = {
        name.removeprefix("cmdstat_"): values["calls"]
        for name, values in client.info("commandstats").items()
    }
    assert answers == [Look("", "1-0", "0-0", 0, 0, 0, 0, -1, 0, [0, 0, 0, 0])] * 100
    assert (called["xinfo|groups"], called["xread"], called["exists"]) == (100, 10, 2)
    assert not called.keys() & {"xrange", "xinfo|consumers", "xpending"}


def test_one_of_many_quiet_groups_that_is_not_is_found(ask: Looks, client: Any) -> None:
    streams = [f"s{i}" for i in range(25)]
    for stream in streams:
        make_quiet(client, stream)
    add(client, "s3", "2-0")
    add(client, keys.retry("s14", G), "2-0")
    add(client, "s15", "2-0")
    read(client, "d", "s15")
    client.set(keys.alive("s22", G, "c"), "p")
    client.delete(keys.retry("s24", G))
    client.set(keys.retry("s24", G), "v")
    answers = ask(*((stream, G, "0", 1000, ["c"]) for stream in streams))
    assert answers.pop().startswith("WRONGTYPE")
    assert [i for i, found in enumerate(answers) if found.unread] == [3, 14]
    assert [i for i, found in enumerate(answers) if found.pending] == [15]
    assert [i for i, found in enumerate(answers) if found.own != [0, 0]] == [22]


def test_a_retry_that_a_consumer_has_in_hand_is_not_watched_for(look: Looks, client: Any) -> None:
    make_quiet(client)
    add(client, RETRY, "2-0")
    read(client, "d", RETRY)
    client.set(keys.alive(S, G, "d"), "p")
    found = look("c")
    assert (found.retried, found.unread, found.pending, found.others) == ("2-0", 0, 1, 1)


def test_what_only_the_look_can_find_is_found(look: Looks, client: Any) -> None:
    make_quiet(client)
    add(client, S, "2-0", "3-0")
    read(client, "c")
    client.xack(S, G, "2-0", "3-0")
    assert look().unread == 0
    # Moved back; the lag that Redis is told is none.
    client.execute_command("XGROUP", "SETID", S, G, "1-0", "ENTRIESREAD", 3)
    assert client.xinfo_groups(S)[0]["lag"] == 0
    assert (look().delivered, look().unread) == ("1-0", 1)
    client.xgroup_destroy(S, G)
    assert (look().delivered, look().unread, look().lag) == ("0-0", 1, 3)
    client.delete(S)
    assert (look().delivered, look().unread) == ("0-0", 0)
    add(client, S, "0-1")
    assert (look().delivered, look().unread) == ("0-0", 1)


def test_changes_nothing(look: Looks, client: Any) -> None:
    make_groups(client)
    add(client, S, "1-0")
    read(client, "c")
    before = client.dump(S), client.dump(RETRY)
    look("c", "d")
    assert (client.dump(S), client.dump(RETRY)) == before
    assert client.dbsize() == 2


def test_a_paused_stream_has_nothing_to_do(look: Looks, client: Any) -> None:
    make_groups(client)
    add(client, S, "1-0", "2-0")
    read(client, "gone", count=1)
    assert (look("c").unread, look("c").claimable_ms > 0, look("c").paused) == (1, True, 0)
    client.set(keys.paused(S), "")
    found = look("c", "d")
    assert found == Look("", "1-0", "0-0", 0, 0, 0, 0, -1, 1, [0, 0, 0, 0])


def test_what_is_watched_in_a_pause_begins_after_all_that_is_in_the_retry_stream(
    look: Looks, client: Any
) -> None:
    make_groups(client)
    add(client, RETRY, "3-0", "4-0")
    client.xdel(RETRY, "4-0")
    client.set(keys.paused(S), "1")
    assert look().retried == "4-0"


@pytest.mark.parametrize("missing", [S, RETRY])
@pytest.mark.parametrize("start", ["0", "$"])
def test_in_a_pause_a_group_must_be_made_to_be_rung_for(
    look: Looks, client: Any, missing: str, start: str
) -> None:
    client.set(keys.paused(S), "1")
    for stream in {S, RETRY} - {missing}:
        client.xgroup_create(stream, G, id="0", mkstream=True)
    found = look(start=start)
    assert (found.error, found.delivered, found.paused) == ("", "", 1)


def test_in_a_pause_a_foreign_group_is_left_as_it_is(look: Looks, client: Any) -> None:
    client.set(keys.paused(S), "1")
    assert look(start="") == "NOGROUP g"
    client.xgroup_create(S, G, id="0", mkstream=True)
    found = look(start="")
    assert (found.delivered, found.retried, found.paused) == ("0-0", "0-0", 1)


def test_a_pause_is_of_one_stream_alone(ask: Looks, client: Any) -> None:
    for i in range(30):
        add(client, f"s{i}", "1-0")
        client.xgroup_create(f"s{i}", G, id="0")
        client.xgroup_create(keys.retry(f"s{i}", G), G, id="0", mkstream=True)
    for i in range(0, 30, 4):
        client.set(keys.paused(f"s{i}"), "1")
    answers = ask(*((f"s{i}", G, "0", 1000, ["c"]) for i in range(30)))
    assert [found.paused for found in answers] == [int(i % 4 == 0) for i in range(30)]
    assert [found.unread for found in answers] == [int(i % 4 != 0) for i in range(30)]


@pytest.mark.parametrize("wrong", [S, RETRY])
def test_something_else_is_an_error_in_a_pause_too(look: Looks, client: Any, wrong: str) -> None:
    client.set(wrong, "v")
    client.set(keys.paused(S), "1")
    assert look().startswith("WRONGTYPE")
