"""wakeq produce."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from redis_servers import RedisServer, wait_until
from wakeq_command import Wakeq


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


def entries(redis: RedisServer) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.client().xrange("load")]


def test_produces_a_thousand_messages_that_can_be_put_in_order(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    result = wakeq.run("produce", "load")
    assert result.code == 0
    assert re.match(r"published 1,000 messages to load in [\d.]+ s \([\d,]+/s\)$", result.lines[-1])
    assert [int(fields[b"seq"]) for fields in entries(redis)] == list(range(1000))
    assert re.fullmatch(rb"[0-9a-f]{32}", entries(redis)[0][b"key_0"])


def test_produces_as_many_fields_as_asked_for(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.run("produce", "load", "--count", "2", "--payload-keys", "3")
    assert set(entries(redis)[0]) == {b"seq", b"worker", b"key_0", b"key_1", b"key_2"}


@pytest.mark.parametrize("words", [[], ["--words"]])
def test_produces_bodies_of_a_size(wakeq: Wakeq, redis: RedisServer, words: list[str]) -> None:
    wakeq.run("produce", "load", "--count", "3", "--size", "1001", *words)
    assert [len(fields[b"body"]) for fields in entries(redis)] == [1001] * 3


def test_produces_words(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.run("produce", "load", "--count", "5", "--words")
    assert all(fields[b"key_0"].decode().isprintable() for fields in entries(redis))


def test_workers_take_turns(wakeq: Wakeq, redis: RedisServer) -> None:
    wakeq.run("produce", "load", "--count", "6", "--workers", "3")
    assert [int(fields[b"worker"]) for fields in entries(redis)] == [0, 1, 2, 0, 1, 2]


def test_keeps_the_interval_of_each_worker(wakeq: Wakeq) -> None:
    result = wakeq.run("produce", "load", "--count", "6", "--workers", "3", "--interval", "2s",
                       "--json")  # fmt: skip
    # Two rounds of three, so one interval; five, if workers had to wait for one another.
    assert 2 <= result.json()[0]["seconds"] < 10


def test_keeps_the_rate(wakeq: Wakeq) -> None:
    result = wakeq.run("produce", "load", "--count", "101", "--rate", "200", "--json")
    assert result.json()[0]["seconds"] >= 0.5


def test_produces_without_end_until_interrupted(wakeq: Wakeq, redis: RedisServer) -> None:
    client = redis.client()
    process = wakeq.start("produce", "load", "--count", "0", "--rate", "500", "--json",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen("load") > 100)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    assert b'"interrupted":true' in out


def test_the_summary_of_an_interrupted_run_counts_what_was_confirmed(
    wakeq: Wakeq, redis: RedisServer
) -> None:
    client = redis.client()
    process = wakeq.start("produce", "load", "--count", "0", stdout=subprocess.PIPE)
    wait_until(lambda: client.xlen("load") > 5000)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    counted = int(out.split()[1].replace(b",", b""))
    # At most the batch that was under way was published, but not counted.
    assert counted <= client.xlen("load") <= counted + 1000


def test_says_how_far_it_came_when_redis_goes(own_redis: RedisServer, short_dir: Path) -> None:
    wakeq, client = Wakeq(short_dir, own_redis.url), own_redis.client()
    process = wakeq.start("produce", "load", "--count", "0", stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen("load") > 2000)
    own_redis.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 69
    assert re.match(rb"published [\d,]{5,} messages", out)
    assert b"messages were published, of another" in err
    assert b"Traceback" not in err


def test_draws_a_progress_bar_on_a_terminal_only(wakeq: Wakeq) -> None:
    assert wakeq.run("produce", "load").err == ""
    ours, theirs = pty.openpty()
    process = wakeq.start("produce", "load", "--count", "300", "--rate", "500",
                          stdout=subprocess.DEVNULL, stderr=theirs)  # fmt: skip
    os.close(theirs)
    drawn = b""
    while True:
        try:
            drawn += os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
    process.wait(60)
    os.close(ours)
    assert "━".encode() in drawn
    assert b"300 of 300" in drawn
    assert b"/s" in drawn


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--count", "-1"], "--count"),
        (["--workers", "0"], "must be a number from 1 on"),
        (["--interval", "often"], "must be a time span"),
        (["--interval", "1s", "--rate", "5"], "not allowed with"),
        (["--size", "5", "--payload-keys", "5"], "not allowed with"),
        (["--size", "0"], "must be a number from 1 on"),
    ],
)
def test_explains_wrong_usage(wakeq: Wakeq, words: list[str], complaint: str) -> None:
    result = wakeq.run("produce", "load", *words)
    assert result.code == 64
    assert complaint in result.err
