"""wakeq peek."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from redis_servers import RedisServer
from wakeq_command import Wakeq


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


def test_shows_ids_ages_and_fields(wakeq: Wakeq, redis: RedisServer) -> None:
    three_s_ago = f"{int(time.time() * 1000) - 3000}-0"
    redis.client().xadd("orders", {"body": '{"id": 7}', "shop": "north"}, id=three_s_ago)
    result = wakeq.run("peek", "orders")
    assert result.code == 0
    assert result.lines[0].startswith(f"{three_s_ago}  ")
    assert result.lines[0].endswith("s old")
    assert result.lines[1:] == ['  body  {"id": 7}', "  shop  north"]


def test_escapes_what_is_not_text(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xadd("orders", {"raw": b"\xff\x00", "colour": "\x1b[31m\u009bred\nnext"})
    result = wakeq.run("peek", "orders")
    assert result.lines[1:] == ["  raw     \\xff\\x00", "  colour  \\x1b[31m\\x9bred\\nnext"]


def test_shortens_a_long_value_and_says_its_length(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xadd("orders", {"body": "ä" * 600_000})
    result = wakeq.run("peek", "orders")
    assert result.lines[1].endswith("… (1,200,000 bytes)")
    assert len(result.lines[1]) < 160


def test_prints_whole_values_as_json(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xadd("orders", {"body": "x" * 1000, "raw": b"\xff"}, id="1000-1")
    (message,) = wakeq.run("peek", "orders", "--json").json()
    assert message["id"] == "1000-1"
    assert message["published"] == "1970-01-01T00:00:01Z"
    assert message["fields"] == {"body": "x" * 1000, "raw": {"base64": "/w=="}}


def test_shows_the_oldest_ten(wakeq: Wakeq, redis: RedisServer) -> None:
    for i in range(1, 13):
        redis.client().xadd("orders", {"body": i}, id=f"{i}-0")
    shown = wakeq.run("peek", "orders", "--json").json()
    assert [message["id"] for message in shown] == [f"{i}-0" for i in range(1, 11)]


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["--count", "2"], ["1-0", "2-0"]),
        (["--last", "--count", "2"], ["4-0", "5-0"]),
        (["--from", "4-0"], ["4-0", "5-0"]),
        (["--from", "5"], ["5-0"]),
        (["--group", "billing"], ["3-0", "4-0", "5-0"]),
    ],
)
def test_shows_what_is_asked_for(
    wakeq: Wakeq, redis: RedisServer, words: list[str], ids: list[str]
) -> None:
    for i in range(1, 6):
        redis.client().xadd("orders", {"body": i}, id=f"{i}-0")
    redis.client().xgroup_create("orders", "billing", "2-0")
    shown = wakeq.run("peek", "orders", "--json", *words).json()
    assert [message["id"] for message in shown] == ids


def test_changes_nothing(wakeq: Wakeq, redis: RedisServer) -> None:
    client = redis.client()
    client.xadd("orders", {"body": 1})
    client.xgroup_create("orders", "billing", "0")
    before = (client.xinfo_groups("orders"), client.keys())
    wakeq.run("peek", "orders", "--group", "billing")
    wakeq.run("peek", "other")
    assert (client.xinfo_groups("orders"), client.keys()) == before


def test_says_that_there_is_nothing(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xgroup_create("orders", "billing", "0", mkstream=True)
    nothing = wakeq.run("peek", "none")
    unread = wakeq.run("peek", "orders", "--group", "billing")
    assert (nothing.code, nothing.out) == (0, "")
    assert "none: no message" in nothing.err
    assert "orders: nothing unread for group billing" in unread.err


@pytest.mark.parametrize("stream", ["orders", "none"])
def test_names_the_groups_when_one_is_unknown(
    wakeq: Wakeq, redis: RedisServer, stream: str
) -> None:
    redis.client().xgroup_create("orders", "billing", "0", mkstream=True)
    result = wakeq.run("peek", stream, "--group", "biling")
    assert result.code == 64
    known = {"orders": "it has billing", "none": "it has none"}[stream]
    assert f"stream {stream} has no group 'biling'; {known}" in result.err


@pytest.mark.parametrize("text", ["yesterday", "1-2-3", "-", "(5-0", ""])
def test_refuses_what_is_no_id(wakeq: Wakeq, text: str) -> None:
    result = wakeq.run("peek", "orders", f"--from={text}")
    assert result.code == 64
    assert "--from must be an id such as" in result.err


def test_says_that_the_key_is_no_stream(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().set("orders", "text")
    result = wakeq.run("peek", "orders")
    assert result.code == 78
    assert "something other than a stream" in result.err


def test_says_that_redis_is_down(wakeq: Wakeq, short_dir: Path) -> None:
    assert wakeq.run("peek", "orders", "--redis-url", f"unix://{short_dir}/none").code == 69


def test_values_that_are_json_stay_text(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xadd("orders", {"body": json.dumps({"a": 1})})
    (message,) = wakeq.run("peek", "orders", "--json").json()
    assert message["fields"]["body"] == '{"a": 1}'
