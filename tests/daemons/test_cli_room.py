"""wakeq room list, show, send, peek and listen."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_servers import RedisServer, wait_until
from wakeq import FanoutClient, keys
from wakeq_command import Wakeq

MISSING, USAGE, UNAVAILABLE, NOPERM = 66, 64, 69, 77


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


@pytest.fixture
def rooms(redis: RedisServer) -> Iterator[FanoutClient]:
    with FanoutClient(redis.url) as client:
        yield client


class Listening:
    """A running `wakeq room listen`."""

    def __init__(self, wakeq: Wakeq, rooms: FanoutClient, *words: str, clients: int = 1) -> None:
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = wakeq.start("room", "listen", *words, stderr=subprocess.PIPE, **options)
        wait_until(lambda: rooms.room_metrics(words[0]).clients == clients)

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def press_enter(self) -> None:
        """Press Enter."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self, number: signal.Signals | None = signal.SIGINT) -> int:
        """End it, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        assert b"Traceback" not in errors, errors.decode()
        return self.process.returncode


# -- list ------------------------------------------------------------------------------------


def test_lists_rooms_with_the_longest_backlog_first(wakeq: Wakeq, rooms: FanoutClient) -> None:
    for number in range(3):
        for _ in range(number + 1):
            rooms.send(f"room {number}", "x")
    rooms.subscribe("room 0", "ada", "w")

    result = wakeq.run("room", "list")

    assert result.code == 0
    head, *rows = result.lines
    assert head.split()[:3] == ["ROOM", "CLIENTS", "BACKLOG"]
    assert [row.split()[1] for row in rows] == ["2", "1", "0"]
    assert rows[2].split()[2:5] == ["1", "0", "1"]


def test_lists_some_and_says_that_there_are_more(wakeq: Wakeq, rooms: FanoutClient) -> None:
    for number in range(5):
        rooms.send(f"r{number}", "x")
    result = wakeq.run("room", "list", "--limit", "2")
    assert len(result.lines) == 3
    assert "5 rooms" in result.err
    assert len(wakeq.run("room", "list", "--limit", "0").lines) == 6


def test_lists_as_json_by_something_else(wakeq: Wakeq, rooms: FanoutClient) -> None:
    rooms.send("a", "x")
    rooms.subscribe("b", "ada", "w")
    (found,) = wakeq.run("room", "list", "--by", "clients", "--json").json()
    assert (found["rooms"], found["clients"], found["backlog"]) == (2, 1, 1)
    assert [room["room"] for room in found["top"]] == ["b", "a"]


def test_lists_nothing(wakeq: Wakeq) -> None:
    result = wakeq.run("room", "list")
    assert (result.code, result.lines) == (0, ["No rooms: nobody is in one, and nothing waits."])


def test_what_is_no_figure_is_wrong_usage(wakeq: Wakeq) -> None:
    assert wakeq.run("room", "list", "--by", "beauty").code == USAGE


# -- show ------------------------------------------------------------------------------------


def test_shows_who_is_there_and_who_is_waited_for(wakeq: Wakeq, rooms: FanoutClient) -> None:
    for client in ("ada", "bob"):
        rooms.subscribe("r", client, "w")
    rooms.subscribe("r", "eve", "w", mode="observer")
    message_id = rooms.send("r", '{"bid": 1}', producer="shop")
    rooms.send("r", "next")
    rooms.ack("r", "ada", message_id)

    result = wakeq.run("room", "show", "r")

    assert result.code == 0
    assert f'{message_id}  shop  {{"bid": 1}}' in result.out
    assert "waits for 1 of 2" in result.out
    assert "backlog      1, the oldest since" in result.out
    rows = {line.split()[0]: line.split() for line in result.lines[-3:]}
    assert rows["bob"][1:3] == ["sync", "yes"]
    assert rows["ada"][1] == "sync"
    assert rows["ada"][2] != "yes"
    assert rows["eve"][1] == "observer"


def test_shows_as_json(wakeq: Wakeq, rooms: FanoutClient) -> None:
    rooms.subscribe("r", "ada", "w")
    message_id = rooms.send("r", b"\xff")
    (found,) = wakeq.run("room", "show", "r", "--json").json()
    assert found["message"] == {"id": message_id, "data": {"base64": "/w=="}, "producer": ""}
    assert found["clients"]["ada"]["waiting"] is True
    assert found["metrics"]["clients"] == 1


def test_a_room_that_was_never_used_is_missing(wakeq: Wakeq) -> None:
    assert wakeq.run("room", "show", "r").code == MISSING


def test_names_with_odd_characters_are_shown_safely(wakeq: Wakeq, rooms: FanoutClient) -> None:
    name = "a::b *\x1b[31m ü"
    rooms.subscribe(name, name, name)
    for words in (["list"], ["show", name]):
        result = wakeq.run("room", *words)
        assert "a::b *\\x1b[31m ü" in result.out
        assert "\x1b" not in result.out


# -- send and peek ---------------------------------------------------------------------------


def test_sends_and_peeks_in_the_order_of_delivery(wakeq: Wakeq, rooms: FanoutClient) -> None:
    late = wakeq.run("room", "send", "r", "late", "--priority", "5", "--producer", "ada")
    early = wakeq.run("room", "send", "r", "--priority=-1", stdin=b"early\n\xff")

    result = wakeq.run("room", "peek", "r", "--json")

    assert result.json() == [
        {"id": early.lines[0], "data": {"base64": "ZWFybHkK/w=="}, "producer": "", "priority": -1},
        {"id": late.lines[0], "data": "late", "producer": "ada", "priority": 5},
    ]
    (line,) = wakeq.run("room", "peek", "r", "--offset", "1").lines
    assert line == f"{late.lines[0]}  ada  late  priority 5"
    assert wakeq.run("room", "send", "r", "x", "--json").json()[0]["room"] == "r"


def test_peeks_at_all_or_nothing(wakeq: Wakeq, rooms: FanoutClient) -> None:
    for number in range(12):
        rooms.send("r", str(number))
    assert len(wakeq.run("room", "peek", "r").lines) == 10
    assert len(wakeq.run("room", "peek", "r", "--limit", "0").lines) == 12
    result = wakeq.run("room", "peek", "r", "--offset", "12")
    assert (result.code, result.lines) == (0, [])
    assert "nothing waits from there on" in result.err


@pytest.mark.parametrize(
    "words",
    [
        ["send", "r", "x", "--priority", "high"],
        ["send", "r", "x", "--priority", str(2**53 + 1)],
        ["peek", "r", "--offset", str(2**53 + 1)],
        ["peek", "r", "--limit", str(2**53 + 1)],
        ["send", "r", "x", "--oob", "--priority", "1"],
        ["send", "", "x"],
        ["send", "x" * 1001, "x"],
        ["peek"],
        ["listen", "r", "--ack", "--by-hand"],
        ["shout", "r"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_wrong_usage_is_said_in_one_line(wakeq: Wakeq, words: list[str]) -> None:
    result = wakeq.run("room", *words)
    assert result.code == USAGE
    assert len(result.err.splitlines()) == 2


def test_a_room_where_somebody_else_has_written_is_left_out_of_the_list(
    wakeq: Wakeq, rooms: FanoutClient, redis: RedisServer
) -> None:
    for name in ("fine", "broken"):
        rooms.send(name, "x")
    redis.client().set(keys.room("broken")[2], "x")
    result = wakeq.run("room", "list")
    assert (result.code, len(result.lines)) == (0, 2)
    assert result.lines[1].startswith("fine")
    assert "room broken is left out" in result.err


def test_says_that_redis_is_away(short_dir: Path) -> None:
    away = Wakeq(short_dir, f"unix://{short_dir}/none.sock")
    for words in (["list"], ["send", "r", "x"]):
        assert away.run("room", *words).code == UNAVAILABLE


# -- listen ----------------------------------------------------------------------------------


def test_listens_without_being_waited_for(wakeq: Wakeq, rooms: FanoutClient) -> None:
    rooms.subscribe("r", "ada", "w")
    listening = Listening(wakeq, rooms, "r", clients=2)
    first = rooms.send("r", "one", producer="shop")
    second = rooms.send("r", "two")
    assert listening.line() == f"{first}  shop  one"
    rooms.ack("r", "ada", first)
    assert listening.line() == f"{second}  two"
    oob = rooms.send_out_of_band("r", "now")
    assert listening.line() == f"{oob}  now  out of band"
    assert listening.end() == 130
    assert list(rooms.room_state("r").clients) == ["ada"]


def test_an_observer_takes_nothing_from_a_room_where_nobody_is(
    wakeq: Wakeq, rooms: FanoutClient
) -> None:
    rooms.send("r", "waits")
    listening = Listening(wakeq, rooms, "r")
    rooms.send("r", "waits, too")
    assert rooms.room_metrics("r").backlog == 2
    assert listening.end() == 130


def test_takes_part_and_acknowledges(wakeq: Wakeq, rooms: FanoutClient) -> None:
    ids = [rooms.send("r", {"n": number}) for number in range(3)]
    result = wakeq.run("room", "listen", "r", "--ack", "--count", "3", "--json")
    assert result.code == 0
    found = result.json()
    assert [message["id"] for message in found] == ids
    assert json.loads(found[0]["data"]) == {"n": 0}
    assert (found[0]["room"], found[0]["oob"]) == ("r", False)
    metrics = rooms.room_metrics("r")
    assert (metrics.acknowledged, metrics.backlog, metrics.clients) == (3, 0, 0)


def test_acknowledges_by_hand(wakeq: Wakeq, rooms: FanoutClient) -> None:
    first, second = rooms.send("r", "one"), rooms.send("r", "two")
    listening = Listening(wakeq, rooms, "r", "--by-hand")
    assert listening.line() == f"{first}  one"
    assert rooms.room_metrics("r").waiting == 1
    listening.press_enter()
    assert listening.line() == f"{second}  two"
    # Nobody can press Enter any more: it leaves without.
    assert listening.end(None) == 0
    metrics = rooms.room_metrics("r")
    assert (metrics.acknowledged, metrics.clients) == (1, 0)


def test_ends_when_redis_refuses_it(short_dir: Path, own_redis: RedisServer) -> None:
    wakeq = Wakeq(short_dir, own_redis.url)
    with FanoutClient(own_redis.url) as rooms:
        listening = Listening(wakeq, rooms, "r")
        admin = own_redis.client()
        admin.config_set("requirepass", "secret")
        admin.execute_command("CLIENT KILL TYPE pubsub")
        assert listening.end(None) == NOPERM


def test_asks_at_a_terminal(wakeq: Wakeq, rooms: FanoutClient) -> None:
    rooms.send("r", "one")
    ours, theirs = pty.openpty()
    try:
        process = wakeq.start(
            "room", "listen", "r", "--by-hand", "--count", "1",
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(lambda: rooms.room_metrics("r").waiting == 1)
        os.write(ours, b"\n")
        _, errors = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert b"Enter acknowledges" in errors
    assert rooms.room_metrics("r").acknowledged == 1


def test_says_that_it_was_unsubscribed(wakeq: Wakeq, rooms: FanoutClient) -> None:
    listening = Listening(wakeq, rooms, "r")
    (client,) = rooms.room_state("r").clients
    rooms.unsubscribe("r", client)
    assert listening.end(None) == UNAVAILABLE
