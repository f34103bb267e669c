"""wakeq delayed list, cancel and now; wakeq publish --delay and --at."""

from __future__ import annotations

import os
import pty
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from redis_servers import RedisServer, wait_until
from wakeq import Publisher, keys
from wakeq_command import Wakeq

DATA, DELAYED, REPAIRS = (
    keys.delayed_data("orders"),
    keys.delayed("orders"),
    keys.repairs("orders"),
)
MISSING = 66


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


def publish(redis: RedisServer, body: object = "x", delay: float = 3600, **options: str) -> str:
    with Publisher(redis.url) as publisher:
        return publisher.publish("orders", body, delay=delay, **options)  # type: ignore[arg-type]


def fail(redis: RedisServer, number: int = 7, due: float = 4e12, key: str = DELAYED) -> str:
    """Have a message of the group billing as if its handler had failed, and return its id."""
    script = (
        "redis.call('HSET', KEYS[2], ARGV[1], cmsgpack.pack({unpack(ARGV, 3)}))"
        " redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])"
    )
    first = f"{number}-0"
    items = ("wakeq.attempt", "3", "wakeq.error", "ValueError: no", "body", b"a\xff")
    member = f"{first}@billing"
    client = redis.client()
    client.eval(script, 2, key, DATA, member, due, "billing", first, *items)
    client.connection_pool.disconnect()  # a thousand open files are allowed, no more
    return member


# -- publish ---------------------------------------------------------------------------------


def test_publishes_with_a_delay(wakeq: Wakeq, redis: RedisServer) -> None:
    result = wakeq.run("publish", "orders", "x", "--delay", "30d")
    client = redis.client()
    ((member, due),) = client.zrange(DELAYED, 0, -1, withscores=True)
    assert (result.code, result.lines) == (0, [member.decode()])
    assert due == int(member.split(b"-")[0]) + 30 * 86_400_000
    assert client.smembers(keys.STREAMS) == {b"orders"}
    assert not client.exists("orders")


@pytest.mark.parametrize(
    "text", ["2200-11-22 18:00", "2200-11-22T18:00:00", "@7286263200", "2200-11-22T20:00:00+02:00"]
)
def test_publishes_at_a_time(wakeq: Wakeq, redis: RedisServer, text: str) -> None:
    wakeq.env["TZ"] = "UTC"
    assert wakeq.run("publish", "orders", "x", "--at", text).code == 0
    ((_, due),) = redis.client().zrange(DELAYED, 0, -1, withscores=True)
    assert due / 1000 == datetime(2200, 11, 22, 18, tzinfo=UTC).timestamp()


def test_a_time_without_a_zone_is_local(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.env["TZ"] = "XXX-2"
    assert wakeq.run("publish", "orders", "x", "--at", "2200-11-22 20:00").code == 0
    ((_, due),) = redis.client().zrange(DELAYED, 0, -1, withscores=True)
    assert due / 1000 == datetime(2200, 11, 22, 18, tzinfo=UTC).timestamp()


def test_a_span_ahead_is_by_the_clock_of_redis(wakeq: Wakeq, redis: RedisServer) -> None:
    assert wakeq.run("publish", "orders", "x", "--at", "+5min").code == 0
    ((member, due),) = redis.client().zrange(DELAYED, 0, -1, withscores=True)
    assert due == int(member.split(b"-")[0]) + 300_000


def test_each_of_several_is_delayed(wakeq: Wakeq, redis: RedisServer) -> None:
    result = wakeq.run("publish", "orders", "--lines", "--delay", "1h", stdin=b"a\nb\n")
    assert len(set(result.lines)) == 2
    result = wakeq.run("publish", "orders", "c", "--count", "3", "--delay", "1h")
    assert len(set(result.lines)) == 3
    assert redis.client().hlen(DATA) == 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--delay", "1h", "--at", "18:00"], "--delay and --at both say when; give one of them"),
        (["--delay", "soon"], "--delay: must be a time span"),
        (["--at", "soon"], "--at: must be a time such as"),
        (["--at", "+soon"], "--at: must be a time span"),
    ],
)
def test_says_what_is_wrong_about_the_time(wakeq: Wakeq, options: list[str], text: str) -> None:
    result = wakeq.run("publish", "orders", "x", *options)
    assert result.code == 64
    assert text in result.err


def test_a_delayed_publish_with_a_deduplication_key_is_taken_once(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    words = ("publish", "orders", "x", "--delay", "1h", "--dedup", "k")
    assert wakeq.run(*words).out == wakeq.run(*words).out
    assert redis.client().hlen(DATA) == 1


# -- list ------------------------------------------------------------------------------------


def test_lists_what_is_due_next_first(wakeq: Wakeq, redis: RedisServer) -> None:
    last = publish(redis, "later", 7200)
    first = publish(redis, "x" * 300, 3600.9)
    failed = fail(redis, 7, time.time() * 1000 + 5_000_000)
    waiting = fail(redis, 8, 1, REPAIRS)
    lines = wakeq.run("delayed", "list", "orders").lines
    assert lines[0].split() == ["ID", "DUE", "IN", "TO", "ATTEMPT", "ERROR", "BODY"]
    assert [line.split()[0] for line in lines[1:]] == [waiting, first, failed, last]
    assert lines[1].split()[1] == "repair"
    assert lines[2].endswith("x… (300 bytes)")
    assert "group billing        3  ValueError: no  a\\xff" in lines[3]
    assert lines[4].split()[-3:] == ["stream", "1", "later"]
    assert lines[4].split()[1] in ("1h", "2h")


def test_lists_as_json(wakeq: Wakeq, redis: RedisServer) -> None:
    message_id = publish(redis, "x" * 300)
    failed = fail(redis)
    first, second = wakeq.run("delayed", "list", "orders", "--json").json()
    assert 3500 < first.pop("due_in_seconds") <= 3600
    assert first.pop("due").endswith("Z")
    assert first == {"id": message_id, "waits_for_repair": False, "message": message_id,
                     "group": None, "attempt": 1, "error": None, "body": "x" * 300}  # fmt: skip
    assert (second["id"], second["group"], second["attempt"]) == (failed, "billing", 3)
    assert second["body"] == {"base64": "Yf8="}
    assert second["due"] == "2096-10-02T07:06:40Z"


def test_lists_all_of_many_in_pages(wakeq: Wakeq, redis: RedisServer) -> None:
    ids = [fail(redis, number, 4e12 + number) for number in range(250)]
    result = wakeq.run("delayed", "list", "orders")
    assert len(result.lines) == 101
    assert "250 are delayed; --limit 0 shows all" in result.err
    found = wakeq.run("delayed", "list", "orders", "--limit", "0", "--json").json()
    assert [each["id"] for each in found] == ids


def test_lists_what_cannot_be_read(wakeq: Wakeq, redis: RedisServer) -> None:
    client = redis.client()
    far = {"2-0": float("inf"), "4-0": float("-inf")}
    client.zadd(DELAYED, {b"\xff": 1, "3-0": -5, **far})
    client.hset(DATA, "2-0", b"garbage")
    result = wakeq.run("delayed", "list", "orders")
    assert result.code == 0
    assert [line.split()[1] for line in result.lines[1:]] == [*["overdue"] * 3, "never"]
    assert len(wakeq.run("delayed", "list", "orders", "--json").json()) == 4


def test_says_what_is_overdue(wakeq: Wakeq, redis: RedisServer) -> None:
    seconds, _ = redis.client().time()
    fail(redis, 7, seconds * 1000 - 125_000)
    fail(redis, 8, seconds * 1000 - 60_000, REPAIRS)
    result = wakeq.run("delayed", "list", "orders")
    assert "overdue 2min" in result.lines[2]
    assert "wakeq: orders: 2 delayed messages are overdue, the first by 2min" in result.err
    assert "systemctl status wakeq-delay" in result.err


def test_what_is_late_by_a_moment_is_not_overdue(wakeq: Wakeq, redis: RedisServer) -> None:
    seconds, _ = redis.client().time()
    fail(redis, 7, (seconds + 60) * 1000)
    assert wakeq.run("delayed", "list", "orders").err == ""


def test_nothing_is_delayed(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().xadd("orders", {"a": "b"})
    result = wakeq.run("delayed", "list", "orders")
    assert (result.code, result.err) == (0, "wakeq: orders: nothing is delayed\n")
    result = wakeq.run("delayed", "list", "order")
    assert result.code == MISSING
    assert "there is no stream 'order'" in result.err


# -- cancel and now --------------------------------------------------------------------------


def test_cancels_by_id(wakeq: Wakeq, redis: RedisServer) -> None:
    message_id, failed, kept = publish(redis), fail(redis), fail(redis, 8)
    result = wakeq.run("delayed", "cancel", "orders", message_id, failed)
    assert (result.code, result.lines) == (0, ["cancelled 2 messages of orders"])
    assert redis.client().hkeys(DATA) == redis.client().zrange(DELAYED, 0, -1) == [kept.encode()]


def test_makes_due_by_id(wakeq: Wakeq, redis: RedisServer) -> None:
    message_id, kept = publish(redis), publish(redis)
    result = wakeq.run("delayed", "now", "orders", message_id)
    assert (result.code, result.lines) == (0, ["made due 1 message of orders"])
    client = redis.client()
    assert client.zscore(DELAYED, message_id) <= time.time() * 1000
    assert client.zscore(DELAYED, kept) > time.time() * 1000


@pytest.mark.parametrize("action", ["cancel", "now"])
def test_names_ids_that_there_are_none_of_and_does_the_others(
    wakeq: Wakeq, redis: RedisServer, action: str
) -> None:
    message_id = publish(redis)
    result = wakeq.run("delayed", action, "orders", "1-1", message_id, "1-2", "1-3", "1-4")
    assert result.code == MISSING
    assert result.lines[0].endswith(" 1 message of orders")
    (line,) = result.err.splitlines()
    assert line == "wakeq: orders: not among the delayed messages: 1-1, 1-2, 1-3 and 1 more"


@pytest.mark.parametrize(("action", "left"), [("cancel", 0), ("now", 1100)])
def test_all_of_a_stream(wakeq: Wakeq, redis: RedisServer, action: str, left: int) -> None:
    for number in range(1100):
        fail(redis, number)
    result = wakeq.run("delayed", action, "orders", "--all", "--yes", "--json")
    word = {"cancel": "cancelled", "now": "made_due"}[action]
    assert result.json() == [{"stream": "orders", word: 1100, "missing": []}]
    client = redis.client()
    assert client.hlen(DATA) == left
    assert client.zcount(DELAYED, "-inf", time.time() * 1000) == left
    assert client.zcount(DELAYED, time.time() * 1000, "+inf") == 0


@pytest.mark.parametrize("action", ["cancel", "now"])
def test_all_asks_first(wakeq: Wakeq, redis: RedisServer, action: str) -> None:
    publish(redis)
    result = wakeq.run("delayed", action, "orders", "--all")
    assert result.code == 64
    assert "1 delayed message of orders? Say --yes" in result.err
    for answer, code in ((b"n\n", 130), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        process = wakeq.start("delayed", action, "orders", "--all", stdin=theirs, stdout=-3,
                              stderr=-3)  # fmt: skip
        os.write(ours, answer)
        assert process.wait(60) == code
        os.close(ours)
        os.close(theirs)
    client = redis.client()
    wait_until(lambda: client.zcount(DELAYED, time.time() * 1000, "+inf") == 0)


@pytest.mark.parametrize("words", [["cancel", "orders"], ["now", "orders", "1-1", "--all"]])
def test_wants_ids_or_all(wakeq: Wakeq, words: list[str]) -> None:
    result = wakeq.run("delayed", *words)
    assert result.code == 64
    assert "give IDs, or --all" in result.err
