"""wakeq status."""

from __future__ import annotations

import os
import pty
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from dead_letters import bury
from redis_servers import RedisServer
from wakeq import keys
from wakeq_command import Wakeq

HOST = os.uname().nodename


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


def status_of(wakeq: Wakeq, stream: str = "orders") -> dict[str, Any]:
    result = wakeq.run("status", "--json")
    assert result.code == 0, result
    (report,) = result.json()
    (found,) = [entry for entry in report["streams"] if entry["stream"] == stream]
    return dict(found)


def group_of(wakeq: Wakeq, stream: str = "orders") -> dict[str, Any]:
    (group,) = status_of(wakeq, stream)["groups"]
    return dict(group)


def fill(redis: RedisServer, count: int, delivered: int = 0) -> None:
    """Add messages 1-0, 2-0 …, of which the group billing has the first ones."""
    client = redis.client()
    client.sadd(keys.STREAMS, "orders")
    for i in range(1, count + 1):
        client.xadd("orders", {"body": i}, id=f"{i}-0")
    client.xgroup_create("orders", "billing", "0")
    if delivered:
        client.xreadgroup("billing", "elsewhere/orders", {"orders": ">"}, count=delivered)


def test_says_that_there_is_nothing_yet(wakeq: Wakeq) -> None:
    result = wakeq.run("status")
    assert result.code == 0
    assert "No streams yet" in result.out


def test_shows_registered_streams(wakeq: Wakeq) -> None:
    wakeq.run("publish", "orders", "--count", "3", "x")
    report = status_of(wakeq)
    assert report == {
        "stream": "orders", "length": 3, "delayed": 0, "overdue": 0, "overdue_seconds": None,
        "paused": None, "groups": [],
    }  # fmt: skip


def test_counts_unread_and_pending_messages(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 10, delivered=4)
    redis.client().xack("orders", "billing", "1-0")
    redis.client().hset(keys.stats("orders", "billing"), mapping={"handled": 1, "failed": 2})
    group = group_of(wakeq)
    assert (group["unread"], group["unread_exact"], group["pending"]) == (6, True, 3)
    assert (group["handled"], group["failed"]) == (1, 2)


def test_ages_are_by_the_clock_of_redis(wakeq: Wakeq, redis: RedisServer) -> None:
    now_ms = int(time.time() * 1000)
    client = redis.client()
    client.sadd(keys.STREAMS, "orders")
    client.xgroup_create("orders", "billing", "0", mkstream=True)
    client.xadd("orders", {"body": 1}, id=f"{now_ms - 60_000}-0")
    client.xadd("orders", {"body": 2}, id=f"{now_ms - 30_000}-0")
    client.xreadgroup("billing", "elsewhere/orders", {"orders": ">"}, count=1)
    group = group_of(wakeq)
    assert 60 <= group["oldest_pending_seconds"] < 90
    assert 30 <= group["oldest_unread_seconds"] < 60


@pytest.mark.parametrize(
    ("spoil", "unread"),
    [
        # Redis's own figure is then missing, or too high.
        (["XDEL", "orders", "8-0"], 5),
        (["XTRIM", "orders", "MAXLEN", "1"], 1),
        (["XTRIM", "orders", "MAXLEN", "0"], 0),
        (["XGROUP", "SETID", "orders", "billing", "7-0"], 3),
        (["XDEL", "orders", "5-0", "6-0", "7-0", "8-0", "9-0", "10-0"], 0),
    ],
)
def test_counts_unread_messages_where_the_lag_of_redis_is_wrong(
    wakeq: Wakeq, redis: RedisServer, spoil: list[str], unread: int
) -> None:
    fill(redis, 10, delivered=4)
    redis.client().execute_command(*spoil)
    group = group_of(wakeq)
    assert (group["unread"], group["unread_exact"]) == (unread, True)


def test_says_that_there_are_more_unread_messages_than_it_counts(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    wakeq.run("produce", "orders", "--count", "1500")
    client = redis.client()
    client.xgroup_create("orders", "billing", "0")
    client.xreadgroup("billing", "elsewhere/orders", {"orders": ">"}, count=1)
    middle = client.xrange("orders", count=20)[-1][0]
    client.xdel("orders", middle)  # so that Redis has no figure
    group = group_of(wakeq)
    assert (group["unread"], group["unread_exact"]) == (1000, False)
    assert "≥1,000" in wakeq.run("status").out


def test_tells_awake_from_asleep_and_absent(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 3)
    client = redis.client()
    client.xgroup_createconsumer("orders", "billing", "other/orders")
    for name in ("orders", "orders:2"):
        wakeq.socket_path(name).touch()
    wakeq.configure("orders", 'group = "billing"\nhandler = "m:f"\n')
    client.set(keys.alive("orders", "billing", f"{HOST}/orders:2"), "1")
    group = group_of(wakeq)
    assert {consumer["name"]: consumer["state"] for consumer in group["consumers"]} == {
        f"{HOST}/orders": "asleep",
        f"{HOST}/orders:2": "awake",
        "other/orders": "absent",
    }
    assert "1 awake, 1 asleep, 1 absent" in wakeq.run("status").out


def test_never_connects_to_a_wake_socket(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'handler = "m:f"\n')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(wakeq.socket_path("orders")))
        listener.listen()
        listener.setblocking(False)
        assert wakeq.run("status").code == 0
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(("start", "unread"), [("0", 2), ("$", 0)])
def test_shows_a_configured_group_that_is_not_made_yet(
    wakeq: Wakeq, redis: RedisServer, start: str, unread: int
) -> None:
    redis.client().xadd("orders", {"body": 1})
    redis.client().xadd("orders", {"body": 2})
    wakeq.configure("orders", f'handler = "m:f"\nstart = "{start}"\n')
    group = group_of(wakeq)
    assert (group["group"], group["unread"], group["consumers"]) == ("orders", unread, [])


def test_shows_a_configured_stream_that_is_not_there_yet(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'handler = "m:f"\n')
    report = status_of(wakeq)
    assert report["length"] == 0
    assert report["groups"][0]["oldest_unread_seconds"] is None


def test_goes_on_after_a_wrong_configuration(wakeq: Wakeq) -> None:
    wakeq.configure("bad", 'handlr = "m:f"\n')
    wakeq.run("publish", "orders", "x")
    result = wakeq.run("status")
    assert result.code == 0
    assert "orders" in result.out
    assert "unknown setting 'handlr'" in result.err


def test_shows_a_key_that_is_no_stream(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().sadd(keys.STREAMS, "text", "orders")
    redis.client().set("text", "x")
    redis.client().xadd("orders", {"body": 1})
    result = wakeq.run("status")
    assert result.code == 0
    assert "is a string, not a stream" in result.out
    assert "orders" in result.out


def test_says_that_it_may_not_see_the_groups_rather_than_that_there_are_none(
    wakeq: Wakeq, own_redis: RedisServer
) -> None:
    client = own_redis.client()
    client.sadd(keys.STREAMS, "orders")
    client.xgroup_create("orders", "billing", "0", mkstream=True)
    client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-xinfo")
    wakeq.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://poor:pw@")
    result = wakeq.run("status")
    assert result.code == 77
    assert "xinfo" in result.err
    assert not result.out


def test_shows_the_others_if_it_may_not_read_a_stream(wakeq: Wakeq, own_redis: RedisServer) -> None:
    client = own_redis.client()
    client.sadd(keys.STREAMS, "orders", "secret")
    for stream in ("orders", "secret"):
        client.xgroup_create(stream, "billing", "0", mkstream=True)
    client.xadd("orders", {"body": 1})
    poor = ("ACL", "SETUSER", "poor", "on", ">pw", "+@all", "~wakeq:*")
    client.execute_command(*poor, "~orders")
    wakeq.env["WAKEQ_REDIS_URL"] = own_redis.url.replace("unix://", "unix://poor:pw@")
    result = wakeq.run("status")
    assert result.code == 0
    assert result.err.startswith("wakeq: secret cannot be read: NOPERM ")
    _, orders, secret = result.lines
    assert orders.split()[:5] == ["orders", "1", "0", "billing", "1"]
    assert secret.split("  ")[0] == "secret"
    assert "cannot be read" in secret
    assert group_of(wakeq)["unread"] == 1
    assert status_of(wakeq, "secret")["problem"] == "cannot be read"
    # If there is none that it may read, nothing is worth being shown.
    client.execute_command(*poor, "resetkeys", "~wakeq:*")
    result = wakeq.run("status")
    assert (result.code, result.out) == (77, "")
    assert "does not permit this user" in result.err


def test_survives_names_that_are_no_text(wakeq: Wakeq, redis: RedisServer) -> None:
    client = redis.client()
    client.sadd(keys.STREAMS, b"\xff\x1b[31m", "orders")
    client.xgroup_create("orders", b"g\xff\n", "0", mkstream=True)
    result = wakeq.run("status")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert len(result.lines) == 3


def test_aligns_its_columns(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 12)
    wakeq.run("publish", "a-much-longer-name", "x")
    header, longer, orders = wakeq.run("status").lines
    assert header.index("LENGTH") + len("LENGTH") == longer.index(" 1 ") + 2
    assert header.index("GROUP") == orders.index("billing")


def colours_on_a_terminal(wakeq: Wakeq) -> bool:
    ours, theirs = pty.openpty()
    process = wakeq.start("status", stdout=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
    process.wait(60)
    os.close(ours)
    return b"\x1b[" in shown


def test_colours_only_a_terminal_and_not_with_no_color(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 1)
    assert "\x1b" not in wakeq.run("status").out
    assert colours_on_a_terminal(wakeq)
    wakeq.env["NO_COLOR"] = "1"
    assert not colours_on_a_terminal(wakeq)


def test_says_that_redis_is_down(wakeq: Wakeq, short_dir: Path) -> None:
    result = wakeq.run("status", "--redis-url", f"unix://{short_dir}/none")
    assert result.code == 69
    assert "cannot be reached" in result.err


def test_says_what_is_not_permitted(wakeq: Wakeq, own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+info")
    url = own_redis.url.replace("unix://", "unix://poor:pw@")
    result = wakeq.run("status", "--redis-url", url)
    assert result.code == 77
    assert "does not permit this user" in result.err


def test_counts_what_is_delayed_retried_and_dead(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 2, delivered=2)
    client = redis.client()
    client.zadd(keys.delayed("orders"), {"1-0@billing": 1, "9-0": 2})
    retry = keys.retry("orders", "billing")
    client.xgroup_create(retry, "billing", "0", mkstream=True)
    for number in range(3):
        client.xadd(retry, {"body": number})
    client.xreadgroup("billing", "elsewhere/orders", {retry: ">"}, count=1)
    for number in range(1, 5):
        bury(client, number, group="billing")
    assert status_of(wakeq)["delayed"] == 2
    group = group_of(wakeq)
    assert (group["retry"], group["pending"], group["dead"]) == (2, 3, 4)
    header, row, _ = wakeq.run("status").lines
    assert dict(zip(header.split(), row.split(), strict=False))["DELAYED"] == "2"
    for column, count in (("RETRY", "2"), ("DEAD", "4")):
        assert row[: header.index(column) + len(column)].endswith(f" {count}")


def test_says_that_messages_are_overdue(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 1)
    client = redis.client()
    seconds, _ = client.time()
    client.zadd(keys.delayed("orders"), {"9-0": (seconds + 3600) * 1000})
    assert (status_of(wakeq)["delayed"], status_of(wakeq)["overdue"]) == (1, 0)
    assert len(wakeq.run("status").lines) == 2
    seconds, _ = client.time()
    client.zadd(keys.delayed("orders"), {"1-0@billing": (seconds - 3660) * 1000})
    client.zadd(keys.repairs("orders"), {"2-0@billing": (seconds - 60) * 1000})
    report = status_of(wakeq)
    assert (report["delayed"], report["overdue"]) == (3, 2)
    assert 3660 <= report["overdue_seconds"] < 3720
    told = wakeq.run("status").lines[-1]
    assert told.startswith("orders: 2 delayed messages are overdue, the first by 1h 1min")
    assert told.endswith("does wakeq-delay run? systemctl status wakeq-delay")


def test_counts_what_waits_for_a_group_that_is_not_made_yet(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    wakeq.configure("orders", 'handler = "m:f"\n')
    redis.client().xadd(keys.retry("orders", "orders"), {"body": 1})
    bury(redis.client(), 1)
    group = group_of(wakeq)
    assert (group["retry"], group["pending"], group["dead"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("value", "told", "found"),
    [
        ('{"since":1700000000000,"by":"ada@north","reason":"new release"}',
         "orders is paused since 2023-11-14 22:13:20 by ada@north: new release",
         {"since": 1700000000000, "by": "ada@north", "reason": "new release"}),
        ('{"since":1700000000000,"by":"ada@north","reason":""}',
         "orders is paused since 2023-11-14 22:13:20 by ada@north",
         {"since": 1700000000000, "by": "ada@north", "reason": ""}),
        ("by hand\n", "orders is paused: by hand\\n",
         {"since": None, "by": "", "reason": "by hand\n"}),
        ("1", "orders is paused: 1", {"since": None, "by": "", "reason": "1"}),
        ("", "orders is paused", {"since": None, "by": "", "reason": ""}),
    ],
)  # fmt: skip
def test_says_which_streams_are_paused(
    wakeq: Wakeq, redis: RedisServer, value: str, told: str, found: dict[str, Any]
) -> None:
    wakeq.env["TZ"] = "UTC"
    fill(redis, 1)
    redis.client().set(keys.paused("orders"), value)
    assert wakeq.run("status").lines[-1] == told
    assert status_of(wakeq)["paused"] == found


def test_tells_the_owner_from_who_stands_by(wakeq: Wakeq, redis: RedisServer) -> None:
    fill(redis, 2)
    client = redis.client()
    for name in ("one/orders", "two/orders"):
        client.xgroup_createconsumer("orders", "billing", name)
        client.set(keys.alive("orders", "billing", name), "some process")
    assert group_of(wakeq)["owner"] is None
    owner = keys.owner("orders", "billing")
    client.hset(owner, mapping={"process": "some process", "consumer": "two/orders"})
    group = group_of(wakeq)
    assert group["owner"] == "two/orders"
    assert {each["name"]: each["state"] for each in group["consumers"]} == {
        "one/orders": "standing by",
        "two/orders": "awake",
    }
    assert "1 awake, 1 standing by" in wakeq.run("status").out
    client.hdel(owner, "process")  # it has left
    assert group_of(wakeq)["owner"] is None
