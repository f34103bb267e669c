"""What lua/backlog.lua tells of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

import wakeq
from redis_servers import RedisServer
from wakeq import keys

CLAIM_AFTER_MS = 600_000
SCRIPT = (Path(wakeq.__file__).parent / "lua/backlog.lua").read_text()


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    return redis.client()


def look(
    client: redis_py.Redis, stream: str = "s", start: str = "0", own: tuple[str, ...] = ("me",)
) -> list[Any]:
    names = [stream, keys.retry(stream, "g"), keys.alive(stream, "g", "")]
    names += [keys.paused(stream)]
    return client.eval(SCRIPT, 4, *names, "g", start, CLAIM_AFTER_MS, len(own), *own)[0]


def test_a_missing_stream_has_nothing(client: redis_py.Redis) -> None:
    assert look(client) == [b"", b"0-0", b"0-0", 0, 0, 0, 0, -1, 0, 0, 0]
    assert client.dbsize() == 0


def test_a_missing_group_has_everything_unread_or_must_be_made(client: redis_py.Redis) -> None:
    for number in (1, 2, 3):
        client.xadd("s", {"a": "b"}, id=f"{number}-0")
    assert look(client)[:5] == [b"", b"0-0", b"0-0", 1, 3]
    assert look(client, start="$")[1] == b""
    assert look(client, start="") == [b"NOGROUP g"]


def test_unread_is_known_where_the_lag_is_not(client: redis_py.Redis) -> None:
    for number in range(1, 11):
        client.xadd("s", {"a": "b"}, id=f"{number}-0")
    client.xgroup_create("s", "g", "5-0")
    client.xdel("s", "7-0")
    assert client.xinfo_groups("s")[0].get("lag") is None
    unread, lag = look(client)[3:5]
    assert unread == 1
    assert 4 <= lag <= 6


def test_a_deleted_entry_is_not_unread(client: redis_py.Redis) -> None:
    client.xgroup_create("s", "g", "0", mkstream=True)
    client.xdel("s", client.xadd("s", {"a": "b"}))
    assert look(client)[3] == 0


def test_the_retry_stream_counts(client: redis_py.Redis) -> None:
    client.xadd(keys.retry("s", "g"), {"a": "b"})
    assert look(client)[3:5] == [1, 1]


def test_tells_whose_messages_are_pending_and_when_they_are_claimable(
    client: redis_py.Redis,
) -> None:
    client.xgroup_create("s", "g", "0", mkstream=True)
    ids = [client.xadd("s", {"a": "b"}) for _ in range(3)]
    for consumer in ("me", "gone", "lives"):
        client.xreadgroup("g", consumer, {"s": ">"}, count=1)
    client.set(keys.alive("s", "g", "lives"), "1")
    answer = look(client)
    assert answer[3] == 0
    assert answer[5:7] == [3, 1]
    assert 0 < answer[7] <= CLAIM_AFTER_MS + 1
    assert answer[8:] == [0, 1, 0]

    client.xclaim("s", "g", "gone", 0, [ids[1]], idle=CLAIM_AFTER_MS, justid=True)
    assert look(client)[7] == 0
    # Without a socket of its own, a consumer of this host is like any other.
    client.xclaim("s", "g", "gone", 0, [ids[1]], idle=0, justid=True)
    client.xclaim("s", "g", "me", 0, [ids[0]], idle=CLAIM_AFTER_MS, justid=True)
    assert look(client, own=())[7:] == [0, 0]


def test_handed_back_messages_are_claimable_at_once(client: redis_py.Redis) -> None:
    client.xgroup_create("s", "g", "0", mkstream=True)
    ids = [client.xadd("s", {"a": "b"}) for _ in range(50)]
    client.xreadgroup("g", "gone", {"s": ">"})
    client.xclaim("s", "g", "gone", 0, [ids[-1]], idle=999_999_999, justid=True)
    assert look(client)[7] == 0


def test_what_is_no_stream_is_an_error(client: redis_py.Redis) -> None:
    client.set("s", "text")
    assert look(client)[0].startswith(b"WRONGTYPE")
