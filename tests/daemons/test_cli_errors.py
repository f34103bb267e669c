"""wakeq errors: what failed at a node is printed, and then removed, and never lost between."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from consumer_host import HOST
from dead_letters import bury
from redis_servers import Cluster, RedisServer, wait_until
from wakeq import keys
from wakeq.node.takers_errors import entry
from wakeq_command import Wakeq

ERRORS = keys.errors("jobs", "jobs")
AT = 1_700_000_000


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    wakeq = Wakeq(short_dir, redis.url)
    wakeq.env["TZ"] = "UTC"
    (wakeq.etc / "nodes").mkdir()
    (wakeq.etc / "nodes/jobs.toml").write_text('list = "jobs"\n')
    return wakeq


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    return redis.client()


def fail(client: Any, *bodies: str | bytes, key: str = ERRORS) -> None:
    """Have messages fail, the first one first."""
    for number, body in enumerate(bodies):
        raw = body if isinstance(body, bytes) else body.encode()
        client.lpush(key, entry(raw, f"ValueError: {number}", AT + number, f"{HOST}/jobs", 1))


def bodies_of(client: Any, key: str = ERRORS) -> list[str]:
    """Return the messages in the error list, the oldest first."""
    return [json.loads(raw)["message"] for raw in reversed(client.lrange(key, 0, -1))]


# -- of a list -------------------------------------------------------------------------------


def test_prints_the_oldest_first_and_removes_them(wakeq: Wakeq, client: redis_py.Redis) -> None:
    fail(client, "one", "two\nlines\x1b[31m", b"\xff\x00" + b"x" * 300)
    result = wakeq.run("errors", "jobs")
    assert result.code == 0
    assert result.lines == [
        f"2023-11-14T22:13:20.000Z  {HOST}/jobs  1  ValueError: 0  one",
        f"2023-11-14T22:13:21.000Z  {HOST}/jobs  1  ValueError: 1  two\\nlines\\x1b[31m",
        f"2023-11-14T22:13:22.000Z  {HOST}/jobs  1  ValueError: 2  \\xff\\x00" + "x" * 300,
    ]
    assert result.err == ""
    assert not client.exists(ERRORS)


def test_prints_json(wakeq: Wakeq, client: redis_py.Redis) -> None:
    fail(client, "one €", b"\xff")
    result = wakeq.run("errors", "jobs", "--json")
    assert result.json() == [
        {"message": "one €", "error": "ValueError: 0", "at": "2023-11-14T22:13:20.000Z",
         "node": f"{HOST}/jobs", "attempts": 1},
        {"message": {"base64": base64.b64encode(b"\xff").decode()}, "error": "ValueError: 1",
         "at": "2023-11-14T22:13:21.000Z", "node": f"{HOST}/jobs", "attempts": 1},
    ]  # fmt: skip
    assert not client.exists(ERRORS)


def test_says_so_when_there_are_none(wakeq: Wakeq) -> None:
    result = wakeq.run("errors", "jobs")
    assert (result.code, result.out, result.err) == (0, "", "wakeq: jobs: there are no errors\n")


def test_keeps_them_if_asked_to(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bodies = [str(n) for n in range(1500)]
    fail(client, *bodies)
    result = wakeq.run("errors", "jobs", "--keep", "--json")
    assert [each["message"] for each in result.json()] == bodies
    assert bodies_of(client) == bodies


def test_counts_them(wakeq: Wakeq, client: redis_py.Redis) -> None:
    assert wakeq.run("errors", "jobs", "--count").out == "0\n"
    fail(client, "one", "two")
    assert wakeq.run("errors", "jobs", "--count").out == "2\n"
    assert wakeq.run("errors", "jobs", "--count", "--json").json() == [
        {"node": "jobs", "errors": 2}
    ]
    assert bodies_of(client) == ["one", "two"]


@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_prints_no_more_than_it_is_asked_for(
    wakeq: Wakeq, client: redis_py.Redis, keep: list[str]
) -> None:
    bodies = [str(n) for n in range(40)]
    fail(client, *bodies)
    result = wakeq.run("errors", "jobs", "--limit", "25", "--json", *keep)
    assert [each["message"] for each in result.json()] == bodies[:25]
    assert result.err == "wakeq: jobs: there are 15 more\n"
    assert bodies_of(client) == (bodies if keep else bodies[25:])


def test_prints_many_in_their_order(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bodies = [str(n) for n in range(3000)]
    fail(client, *bodies)
    result = wakeq.run("errors", "jobs", "--json")
    assert [each["message"] for each in result.json()] == bodies
    assert not client.exists(ERRORS)


def test_large_ones_are_not_read_all_at_once(wakeq: Wakeq, client: redis_py.Redis) -> None:
    fail(client, *("x" * 1_000_000 for _ in range(24)))
    client.config_set("client-output-buffer-limit", "normal 16mb 16mb 0")
    try:
        result = wakeq.run("errors", "jobs")
    finally:
        client.config_set("client-output-buffer-limit", "normal 0 0 0")
    assert (result.code, len(result.lines)) == (0, 24)


def test_another_list_may_be_set_and_instances_share_it(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    (wakeq.etc / "nodes/jobs.toml").write_text('list = "jobs"\nerror_list = "errors"\n')
    fail(client, "one", key="errors")
    assert wakeq.run("errors", "jobs:2", "--count").out == "1\n"
    (wakeq.etc / "nodes/jobs.toml").write_text('list = "jobs"\n')
    fail(client, "one", "two")
    assert wakeq.run("errors", "jobs:2", "--count").out == "2\n"


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_prints_what_somebody_else_put_there(
    wakeq: Wakeq, client: redis_py.Redis, json_too: list[str]
) -> None:
    client.lpush("errors", b'm:"x" e:"Error code 5"', b"\xff\n", b'{\n"message":"a","error":"b"}',
                 b'{"message":"\\ud800","error":"b"}')  # fmt: skip
    (wakeq.etc / "nodes/jobs.toml").write_text('list = "jobs"\nerror_list = "errors"\n')
    result = wakeq.run("errors", "jobs", *json_too)
    assert result.code == 0
    assert result.lines == (
        [
            '{"raw":"m:\\"x\\" e:\\"Error code 5\\""}',
            '{"raw":{"base64":"/wo="}}',
            '{"message": "a", "error": "b"}',
            '{"raw":"{\\"message\\":\\"\\\\ud800\\",\\"error\\":\\"b\\"}"}',
        ]
        if json_too
        else [
            'm:"x" e:"Error code 5"', "\\xff\\x0a", "0  b  a",
            '{"message":"\\ud800","error":"b"}',
        ]
    )  # fmt: skip
    assert not client.exists("errors")


# -- nothing is lost -------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bodies = [str(n) for n in range(1000)]
    fail(client, *bodies)
    with open("/dev/full", "wb") as full:
        done = wakeq.start("errors", "jobs", stdout=full, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
    assert done.returncode == 70
    assert err.decode() == (
        "wakeq: errors: cannot be printed, so they stay where they are: No space left on device\n"
    )
    assert bodies_of(client) == bodies


def test_a_pipe_that_was_closed_loses_nothing(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bodies = [str(n) for n in range(1000)]
    fail(client, *bodies)
    reading, writing = os.pipe()
    os.close(reading)
    done = wakeq.start("errors", "jobs", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (141, b"")
    assert bodies_of(client) == bodies


@pytest.mark.parametrize("stream", [False, True], ids=["list", "stream"])
def test_a_reader_that_stops_reading_has_what_is_removed(
    wakeq: Wakeq, client: redis_py.Redis, stream: bool
) -> None:
    body = "x" * 1000
    if stream:
        (wakeq.etc / "nodes/jobs.toml").write_text("")
        for number in range(1, 401):
            bury(client, number, stream="jobs", group="jobs", body=f"{number} {body}")
    else:
        fail(client, *(f"{n} {body}" for n in range(1, 401)))

    def left() -> int:
        return int(client.xlen(keys.dead("jobs", "jobs")) if stream else client.llen(ERRORS))

    reading, writing = os.pipe()
    done = wakeq.start("errors", "jobs", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    # The pipe is full, and it waits with what it has read and not written.
    wait_until(lambda: 0 < left() < 400)
    seen = [left()]
    wait_until(lambda: (seen.append(left()), len(seen) > 40 and len(set(seen[-40:])) == 1)[1])
    done.send_signal(signal.SIGKILL)
    done.communicate(timeout=60)
    text = b""
    while chunk := os.read(reading, 65536):
        text += chunk
    os.close(reading)
    whole = text.decode().split("\n")[:-1]
    assert len(whole) >= 400 - left() > 0
    rest = wakeq.run("errors", "jobs").lines
    numbers = [int(line.rpartition("  ")[2].split()[0]) for line in whole + rest]
    assert set(numbers) == set(range(1, 401))


def test_interrupted_before_the_removal_it_prints_them_again(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    fail(client, "one", "two")
    wakeq.env["WAKEQ_FAILPOINT"] = "before_drop:kill@1"
    killed = wakeq.start("errors", "jobs", stdout=subprocess.PIPE)
    out, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(out.splitlines()) == 2
    del wakeq.env["WAKEQ_FAILPOINT"]
    assert len(wakeq.run("errors", "jobs").lines) == 2


def test_two_at_once_remove_only_what_one_of_them_has_printed(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    fail(client, *(str(n) for n in range(2000)))
    both = [wakeq.start("errors", "jobs", "--json", stdout=subprocess.PIPE) for _ in range(2)]
    printed = [done.communicate(timeout=60)[0].splitlines() for done in both]
    assert [done.returncode for done in both] == [0, 0]
    left = bodies_of(client)
    seen = {json.loads(line)["message"] for lines in printed for line in lines}
    assert seen | set(left) == {str(n) for n in range(2000)}


def test_what_fails_meanwhile_stays(wakeq: Wakeq, client: redis_py.Redis) -> None:
    fail(client, "one", "two")
    wakeq.env["WAKEQ_FAILPOINT"] = "before_drop:sleep=1"
    printing = wakeq.start("errors", "jobs", stdout=subprocess.PIPE)
    assert printing.stdout is not None
    printing.stdout.readline()
    fail(client, "new")
    printing.communicate(timeout=60)
    assert printing.returncode == 0
    assert bodies_of(client) == ["new"]


# -- of a stream -----------------------------------------------------------------------------


def test_on_a_stream_they_are_the_dead_letters(wakeq: Wakeq, client: redis_py.Redis) -> None:
    (wakeq.etc / "nodes/jobs.toml").write_text('stream = "orders"\ngroup = "billing"\n')
    bury(client, 1, group="billing", body="one\n")
    bury(client, 2, group="billing", error="KeyError: 'id'", a="x", b="y")
    bury(client, 3, group="other")
    assert wakeq.run("errors", "jobs", "--count").out == "2\n"
    expected = [
        "2023-11-14T22:13:20Z  north/orders:2  3  ValueError: no  one\\n",
        "2023-11-14T22:13:20Z  north/orders:2  3  KeyError: 'id'  a=x b=y",
    ]
    assert wakeq.run("errors", "jobs", "--keep").lines == expected
    letters = wakeq.run("errors", "jobs", "--keep", "--json").json()
    assert [letter["fields"] for letter in letters] == [{"body": "one\n"}, {"a": "x", "b": "y"}]
    assert wakeq.run("errors", "jobs", "--limit", "1").lines == expected[:1]
    assert wakeq.run("errors", "jobs").lines == expected[1:]
    assert not client.xlen(keys.dead("orders", "billing"))
    assert client.xlen(keys.dead("orders", "other")) == 1


def test_removes_many_dead_letters(wakeq: Wakeq, client: redis_py.Redis) -> None:
    (wakeq.etc / "nodes/jobs.toml").write_text("")
    for number in range(1, 301):
        bury(client, number, stream="jobs", group="jobs")
    assert len(wakeq.run("errors", "jobs").lines) == 300
    assert not client.xlen(keys.dead("jobs", "jobs"))


# -- surroundings ----------------------------------------------------------------------------


def test_a_node_that_is_not_configured(wakeq: Wakeq) -> None:
    result = wakeq.run("errors", "nothing")
    assert result.code == 78
    assert "nodes/nothing.toml: there is no such file" in result.err


def test_a_key_that_is_no_list(wakeq: Wakeq, client: redis_py.Redis) -> None:
    client.set(ERRORS, "x")
    result = wakeq.run("errors", "jobs")
    assert result.code != 0
    assert "WRONGTYPE" in result.err


def test_works_on_a_cluster(short_dir: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.start()
        wakeq = Wakeq(short_dir, cluster.url())
        (wakeq.etc / "nodes").mkdir()
        (wakeq.etc / "nodes/jobs.toml").write_text('list = "jobs"\n')
        owner = cluster.nodes[cluster.owner(ERRORS)].client()
        fail(owner, "one", "two")
        assert len(wakeq.run("errors", "jobs", "--keep").lines) == 2
        assert len(wakeq.run("errors", "jobs").lines) == 2
        assert not owner.exists(ERRORS)
    finally:
        cluster.stop()
