"""Moving dead letters back for delivery: lua/redrive.lua."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py

from redis_servers import RedisServer
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, G = "orders", "billing"
DEAD, RETRY = keys.dead(S, G), keys.retry(S, G)
FAILURE = {
    "wakeq.failed_at": "1700000005000",
    "wakeq.first_failed_at": "1700000001000",
    "wakeq.attempt": "5",
    "wakeq.error": "ValueError: no",
    "wakeq.traceback": "Traceback",
    "wakeq.consumer": "host/orders:2",
    "wakeq.host": "host",
}


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    return redis.client()


@pytest.fixture
def connection(redis: RedisServer) -> Iterator[Connection]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    yield connection
    connection.close()


def redrive(connection: Connection, *ids: str) -> list[bytes]:
    return list(Script("redrive").call(connection, [DEAD, RETRY], ids))


def bury(client: redis_py.Redis, entry_id: str = "1-0", **fields: Any) -> None:
    own = FAILURE | {"wakeq.first_id": f"{entry_id}7"}
    client.xadd(DEAD, own | (fields or {"body": "b"}), id=entry_id)


def items(client: redis_py.Redis, key: str) -> list[tuple[bytes, list[bytes]]]:
    """Return the entries of a stream with their fields as a list: their order and doubles count."""
    client.set_response_callback("XRANGE", lambda reply, **_: reply)
    return [
        (entry_id, fields) for entry_id, fields in client.execute_command("XRANGE", key, "-", "+")
    ]


def test_moves_letters_and_leaves_the_failure_behind(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client, "1-0", **{"wakeq.key": "ada", "body": b"\x00\xff", "shop": "north"})
    (new,) = redrive(connection, "1-0")
    assert items(client, RETRY) == [
        (
            new,
            [
                b"wakeq.first_id",
                b"1-07",
                b"wakeq.key",
                b"ada",
                b"body",
                b"\x00\xff",
                b"shop",
                b"north",
            ],
        )
    ]
    assert client.xlen(DEAD) == 0


def test_moves_those_alone_that_are_named(connection: Connection, client: redis_py.Redis) -> None:
    for i in (1, 2, 3):
        bury(client, f"{i}-0")
    assert len(redrive(connection, "3-0", "1-0")) == 2
    assert [entry_id for entry_id, _ in client.xrange(DEAD)] == [b"2-0"]
    assert [fields[b"wakeq.first_id"] for _, fields in client.xrange(RETRY)] == [b"3-07", b"1-07"]


def test_tells_which_are_not_there_and_moves_the_others(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client, "2-0")
    before, moved, after = redrive(connection, "1-0", "2-0", "3-0")
    assert (before, after) == (b"", b"")
    assert items(client, RETRY)[0][0] == moved


def test_asked_again_after_a_lost_reply_moves_nothing_twice(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client)
    redrive(connection, "1-0")
    assert redrive(connection, "1-0") == [b""]
    assert client.xlen(RETRY) == 1


def test_what_is_moved_is_what_is_deleted_also_if_its_id_is_not_whole(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client, "5-1")
    bury(client, "5-2")
    assert len(redrive(connection, "5")) == 1
    assert [entry_id for entry_id, _ in client.xrange(DEAD)] == [b"5-2"]
    assert [fields[b"wakeq.first_id"] for _, fields in client.xrange(RETRY)] == [b"5-17"]


def test_a_message_without_user_fields_keeps_its_id(
    connection: Connection, client: redis_py.Redis
) -> None:
    client.xadd(DEAD, FAILURE, id="1-0")
    redrive(connection, "1-0")
    assert items(client, RETRY)[0][1] == [b"wakeq.first_id", b"1-0"]


def test_folded_fields_stay_folded_and_last(connection: Connection, client: redis_py.Redis) -> None:
    client.xadd(DEAD, FAILURE | {"wakeq.first_id": "9-0", "wakeq.folded": b"\x00\x00"}, id="1-0")
    redrive(connection, "1-0")
    assert items(client, RETRY)[0][1][-2:] == [b"wakeq.folded", b"\x00\x00"]


def test_a_name_that_stands_twice_stands_twice_afterwards(
    connection: Connection, client: redis_py.Redis
) -> None:
    client.execute_command("XADD", DEAD, "1-0", "wakeq.first_id", "9-0", "x", "1", "x", "2")
    redrive(connection, "1-0")
    assert items(client, RETRY)[0][1] == [b"wakeq.first_id", b"9-0", b"x", b"1", b"x", b"2"]


def test_a_letter_of_too_many_fields_stays_and_stops_no_other(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client, "1-0", **{f"f{i}": i for i in range(3996)})
    bury(client, "2-0")
    refused, moved = redrive(connection, "1-0", "2-0")
    assert refused == b"ERR it has 3997 fields, more than can be moved"
    assert client.xrange(DEAD)[0][0] == b"1-0"
    assert items(client, RETRY)[0][0] == moved


def test_as_many_fields_as_a_failure_may_leave_are_moved(
    connection: Connection, client: redis_py.Redis
) -> None:
    bury(client, "1-0", **{f"f{i}": i for i in range(3980)})
    redrive(connection, "1-0")
    assert len(items(client, RETRY)[0][1]) == 2 * 3981


@pytest.mark.parametrize("full", [True, False])
def test_a_server_that_cannot_take_them_changes_nothing(own_redis: RedisServer, full: bool) -> None:
    client = own_redis.client()
    bury(client)
    if full:
        client.config_set("maxmemory", 1)
    else:
        client.set(RETRY, "no stream")
    connection = Connection(RedisURL(own_redis.url), "wakeq-test")
    connection.connect()
    with pytest.raises(ServerError, match="OOM" if full else "WRONGTYPE"):
        redrive(connection, "1-0")
    connection.close()
    assert client.xlen(DEAD) == 1
    assert full != client.exists(RETRY)
