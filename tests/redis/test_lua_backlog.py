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
    return Look(error.decode(), delivered.decode(), retried.decode(), *numbers[:5], numbers[5:])


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
    client.xclaim(RETRY, G, "gone", 0, ["2-0"], idle=59_000, justid=True)
    assert 0 < look().claimable_ms <= 1_001


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


def test_changes_nothing(look: Looks, client: Any) -> None:
    make_groups(client)
    add(client, S, "1-0")
    read(client, "c")
    before = client.dump(S), client.dump(RETRY)
    look("c", "d")
    assert (client.dump(S), client.dump(RETRY)) == before
    assert client.dbsize() == 2
