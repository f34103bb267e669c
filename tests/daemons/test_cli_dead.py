"""wakeq dead."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from consumer_host import ConsumerHost
from dead_letters import bury
from redis_servers import Cluster, RedisServer, free_port, wait_until
from wakeq import keys
from wakeq.message import fold
from wakeq_command import Result, Wakeq

DEAD, RETRY = keys.dead("orders", "orders"), keys.retry("orders", "orders")


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    wakeq = Wakeq(short_dir, redis.url)
    wakeq.env["TZ"] = "UTC"
    return wakeq


@pytest.fixture
def client(redis: RedisServer) -> redis_py.Redis:
    client = redis.client()
    client.xgroup_create("orders", "orders", "0", mkstream=True)
    return client


def dead_ids(client: redis_py.Redis) -> list[str]:
    """Return the first ids of the messages that are dead letters."""
    return [fields[b"wakeq.first_id"].decode() for _, fields in client.xrange(DEAD)]


def scripts_run(client: redis_py.Redis) -> int:
    """Return how many scripts the server has run."""
    calls: dict[str, Any] = client.info("commandstats")
    return sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


def retried_ids(client: redis_py.Redis) -> list[str]:
    return [fields[b"wakeq.first_id"].decode() for _, fields in client.xrange(RETRY)]


# -- list and show ---------------------------------------------------------------------------


def test_lists_what_failed_when_and_why(wakeq: Wakeq, client: redis_py.Redis) -> None:
    first = bury(client, 1, error="ValueError: no\x1b[31m", body="one\ntwo")
    bury(client, 2, error="KeyError: 'id'", body="x" * 200)
    result = wakeq.run("dead", "list", "orders")
    assert result.code == 0
    header, one, two = result.lines
    assert header.split() == ["ID", "MESSAGE", "FAILED", "ATTEMPTS", "ERROR", "BODY"]
    assert one.split() == [
        *(first, "1-1", "2023-11-14", "22:13:20", "3", "ValueError:", "no\\x1b[31m", "one\\ntwo")
    ]
    assert header.index("BODY") == two.index("xxx")
    assert "(200 bytes)" in two


def test_lists_for_programs_whole_values(wakeq: Wakeq, client: redis_py.Redis) -> None:
    letter_id = bury(client, 1, body="b" * 200, raw=b"\xff", **{"wakeq.key": "ada"})
    (letter,) = wakeq.run("dead", "list", "orders", "--json").json()
    assert letter == {
        "id": letter_id,
        "message_id": "1-1",
        "stream": "orders",
        "group": "orders",
        "failed_at": "2023-11-14T22:13:20Z",
        "first_failed_at": "2023-11-14T22:12:20Z",
        "attempts": 3,
        "error": "ValueError: no",
        "repair_error": "",
        "traceback": "Traceback (most recent call last):\n  of 1\nValueError: no",
        "consumer": "north/orders:2",
        "host": "north",
        "own_fields": {"wakeq.key": "ada"},
        "fields": {"body": "b" * 200, "raw": {"base64": "/w=="}},
    }


def test_a_message_without_a_body_is_shown_by_its_fields(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    bury(client, 1, shop="north", id=7)
    assert wakeq.run("dead", "list", "orders").lines[1].endswith("shop=north id=7")


def test_lists_a_hundred_and_says_that_there_are_more(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 251):
        bury(client, number)
    result = wakeq.run("dead", "list", "orders", "--json")
    assert [letter["message_id"] for letter in result.json()] == [f"{n}-1" for n in range(1, 101)]
    assert "there are more; --limit 0 shows all" in result.err
    everything = wakeq.run("dead", "list", "orders", "--limit", "0")
    assert (len(everything.lines), everything.err) == (251, "")
    assert len(wakeq.run("dead", "list", "orders", "--limit", "3").lines) == 4


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["--error", "Timeout"], [3]),
        (["--since", "2h"], [2, 3]),
        (["--before", "2h"], [1]),
        (["--since", "90min", "--before", "10min ago"], [2]),
        (["--before", "2001-09-09"], []),
        (["--since", "2001-09-09"], [1, 2, 3]),
        (["--since", "2h", "--error", "ValueError"], [2]),
    ],
)
def test_chooses_by_time_and_error(
    wakeq: Wakeq, client: redis_py.Redis, words: list[str], numbers: list[int]
) -> None:
    now_ms = int(time.time() * 1000)
    bury(client, 1, at_ms=now_ms - 3 * 3_600_000)
    bury(client, 2, at_ms=now_ms - 3_600_000)
    bury(client, 3, at_ms=now_ms - 1000, error="Timeout: 30 s")
    result = wakeq.run("dead", "list", "orders", "--json", *words)
    assert result.code == 0
    assert [letter["message_id"] for letter in result.json()] == [f"{n}-1" for n in numbers]
    if not numbers:
        assert "no dead letter of group orders is like that" in result.err


@pytest.mark.parametrize("seconds", ["@1700000000.002", "2023-11-14T22:13:20.002Z"])
def test_a_point_in_time_belongs_to_what_follows(
    wakeq: Wakeq, client: redis_py.Redis, seconds: str
) -> None:
    for number in (1, 2, 3):
        bury(client, number)

    def found(option: str) -> list[str]:
        result = wakeq.run("dead", "list", "orders", "--json", option, seconds)
        return [letter["message_id"] for letter in result.json()]

    assert (found("--since"), found("--before")) == (["2-1", "3-1"], ["1-1"])


def test_shows_everything_of_a_letter_by_either_id(wakeq: Wakeq, client: redis_py.Redis) -> None:
    letter_id = bury(client, 1, body="b" * 300, **{"wakeq.key": "ada"})
    bury(client, 2)
    result = wakeq.run("dead", "show", "orders", letter_id)
    assert result.code == 0
    assert wakeq.run("dead", "show", "orders", "1-1").out == result.out
    for text in (letter_id, "1-1", "orders", "2023-11-14 22:13:20, first 2023-11-14 22:12:20",
                 "north/orders:2", "ValueError: no", "ada", "b" * 300,
                 "Traceback (most recent call last):", "  of 1"):  # fmt: skip
        assert text in result.out
    assert "body 2" not in result.out
    assert "repair" not in result.out


def test_shows_why_a_letter_could_not_be_repaired(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bury(client, 1, body="x", **{"wakeq.repair_error": "KeyError: 'id'"})
    result = wakeq.run("dead", "show", "orders", "1-1")
    assert "  repair error  KeyError: 'id'" in result.lines
    assert "wakeq.repair_error" not in result.out
    (letter,) = wakeq.run("dead", "show", "orders", "1-1", "--json").json()
    assert (letter["repair_error"], letter["own_fields"]) == ("KeyError: 'id'", {})


def test_ends_without_a_word_when_its_reader_has_enough(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    for number in range(1, 20):
        bury(client, number, body="x" * 100_000)
    process = wakeq.start(
        "dead", "list", "orders", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")


def test_shows_several_as_json(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in (1, 2, 3):
        bury(client, number)
    found = wakeq.run("dead", "show", "orders", "3-1", "1-1", "--json").json()
    assert sorted(letter["message_id"] for letter in found) == ["1-1", "3-1"]


def test_unfolds_the_fields_of_a_message_of_very_many(wakeq: Wakeq, client: redis_py.Redis) -> None:
    name, folded = fold([b"shop", b"north", b"body", b"b"])
    bury(client, 1, **{name.decode(): folded})
    (letter,) = wakeq.run("dead", "show", "orders", "1-1", "--json").json()
    assert letter["fields"] == {"shop": "north", "body": "b"}
    assert letter["own_fields"] == {}


def test_shows_a_letter_that_somebody_else_wrote(wakeq: Wakeq, client: redis_py.Redis) -> None:
    own = {"wakeq.attempt": "many", "wakeq.failed_at": "9" * 5000, "wakeq.first_id": ""}
    client.xadd(DEAD, own | {b"\xff": b"\xfe"}, id="5-0")
    (letter,) = wakeq.run("dead", "list", "orders", "--json").json()
    assert (letter["message_id"], letter["attempts"], letter["error"]) == ("5-0", 1, "")
    assert wakeq.run("dead", "list", "orders").code == 0
    assert wakeq.run("dead", "show", "orders", "5-0").code == 0
    client.xadd(DEAD, {"a": "b", "wakeq.failed_at": "9" * 20}, id=f"{(1 << 64) - 1}-0")
    assert "@100000000000000000" in wakeq.run("dead", "list", "orders").out


# -- which group, which letter ---------------------------------------------------------------


def test_asks_for_the_group_only_if_several_have_dead_letters(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    for group in ("billing", "mail"):
        client.xgroup_create("orders", group)
    bury(client, 1, group="mail")
    assert wakeq.run("dead", "list", "orders", "--json").json()[0]["group"] == "mail"
    bury(client, 2, group="billing")
    bury(client, 3, group="billing")
    result = wakeq.run("dead", "list", "orders")
    assert result.code == 64
    assert "say --group: billing (2), mail (1)" in result.err
    listed = wakeq.run("dead", "list", "orders", "--group", "billing", "--json").json()
    assert [letter["message_id"] for letter in listed] == ["2-1", "3-1"]


def test_finds_the_group_of_a_stream_that_is_gone(wakeq: Wakeq, client: redis_py.Redis) -> None:
    client.delete("orders")
    wakeq.configure("orders", 'group = "mail"\nhandler = "m:f"\n')
    bury(client, 1, group="mail")
    assert wakeq.run("dead", "list", "orders", "--json").json()[0]["group"] == "mail"


@pytest.mark.parametrize(
    "words",
    [["list", "orders"], ["retry", "orders", "--all"], ["purge", "orders", "--all"],
     ["list", "orders", "--group", "orders"]],
)  # fmt: skip
def test_says_that_there_are_none(wakeq: Wakeq, client: redis_py.Redis, words: list[str]) -> None:
    result = wakeq.run("dead", *words)
    assert (result.code, result.out) == (0, "")
    assert "no dead letters" in result.err
    assert len(result.err.splitlines()) == 1


def test_knows_that_there_is_no_such_stream(wakeq: Wakeq, client: redis_py.Redis) -> None:
    client.sadd(keys.STREAMS, "orders")
    result = wakeq.run("dead", "list", "order")
    assert result.code == 66
    assert result.err == "wakeq: there is no stream 'order' (did you mean 'orders'?)\n"
    client.set("text", "x")
    assert "text is a string, not a stream" in wakeq.run("dead", "list", "text").err


@pytest.mark.parametrize("action", ["show", "retry", "purge"])
@pytest.mark.parametrize("others", [0, 2])
def test_an_unknown_id_is_one_clear_line_and_nothing_is_done(
    wakeq: Wakeq, client: redis_py.Redis, action: str, others: int
) -> None:
    for number in range(1, others + 1):
        bury(client, number)
    known = ["1-1"] * bool(others)
    result = wakeq.run("dead", action, "orders", *known, "77-0")
    assert (result.code, result.out) == (66, "")
    assert len(result.err.splitlines()) == 1
    assert "77-0" in result.err or not others
    assert client.xlen(DEAD) == others


# -- retry -----------------------------------------------------------------------------------


def test_retries_letters_by_either_id(wakeq: Wakeq, client: redis_py.Redis) -> None:
    letter_id = bury(client, 1)
    for number in (2, 3):
        bury(client, number)
    result = wakeq.run("dead", "retry", "orders", letter_id, "3-1")
    assert (result.code, result.out) == (0, "retried 2 dead letters of orders, group orders\n")
    assert (retried_ids(client), dead_ids(client)) == (["1-1", "3-1"], ["2-1"])


def test_retries_all_that_are_chosen(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 301):
        bury(client, number, error="Timeout" if number % 3 == 0 else "ValueError: no")
    result = wakeq.run("dead", "retry", "orders", "--all", "--error", "Timeout", "--yes", "--json")
    (summary,) = result.json()
    assert summary.pop("seconds") >= 0
    assert summary == {
        "stream": "orders", "group": "orders", "retried": 100, "gone": 0, "interrupted": False,
    }  # fmt: skip
    assert retried_ids(client) == [f"{n}-1" for n in range(3, 301, 3)]
    assert client.xlen(DEAD) == 200


def test_retries_no_more_than_the_limit(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 31):
        bury(client, number)
    wakeq.run("dead", "retry", "orders", "--all", "--limit", "13", "--yes")
    assert retried_ids(client) == [f"{n}-1" for n in range(1, 14)]


def test_large_letters_are_moved_a_few_at_a_time(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 31):
        bury(client, number, body=b"x" * 1_000_000)
    client.config_resetstat()
    assert wakeq.run("dead", "retry", "orders", "--all", "--yes").code == 0
    assert len(retried_ids(client)) == 30
    # At most four megabytes with each, but for the first.
    assert scripts_run(client) >= 6


@pytest.mark.parametrize("action", ["retry", "purge"])
def test_does_nothing_unasked(wakeq: Wakeq, client: redis_py.Redis, action: str) -> None:
    bury(client, 1)
    result = wakeq.run("dead", action, "orders", "--all")
    assert result.code == 64
    assert "Say --yes" in result.err
    assert "1 dead letter of orders, group orders" in result.err
    assert client.xlen(DEAD) == 1


def answered(wakeq: Wakeq, answer: bytes, *words: str) -> tuple[int, bytes]:
    """Run a command at a terminal where a question is answered; return what it ended with."""
    ours, theirs = pty.openpty()
    process = wakeq.start(*words, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, answer)
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
    code = process.wait(60)
    os.close(ours)
    return code, shown


def test_asks_at_a_terminal(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in (1, 2):
        bury(client, number)
    code, shown = answered(wakeq, b"\n", "dead", "purge", "orders", "2-1")
    assert code == 130
    assert b"Delete 1 dead letter of orders, group orders? [y/N]" in shown
    assert b"Nothing was done" in shown
    assert client.xlen(DEAD) == 2
    code, shown = answered(wakeq, b"y\n", "dead", "retry", "orders", "--all")
    assert code == 0
    assert b"Retry 2 dead letters" in shown
    assert client.xlen(RETRY) == 2


def test_keeps_the_rate(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 52):
        bury(client, number)
    words = ("dead", "retry", "orders", "--all", "--yes", "--rate", "100", "--json")
    assert wakeq.run(*words).json()[0]["seconds"] >= 0.5
    assert client.xlen(RETRY) == 51


def test_shows_its_progress_at_a_terminal(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 101):
        bury(client, number)
    ours, theirs = pty.openpty()
    process = wakeq.start("dead", "retry", "orders", "--all", "--yes", "--rate", "200",
                          stdout=subprocess.DEVNULL, stderr=theirs)  # fmt: skip
    os.close(theirs)
    drawn = b""
    while True:
        try:
            drawn += os.read(ours, 4096)
        except OSError:
            break
    assert process.wait(60) == 0
    os.close(ours)
    assert b"100 of 100" in drawn


@pytest.mark.parametrize("rate", [["--rate", "200"], []])
def test_an_interruption_leaves_each_letter_in_one_place_and_is_counted(
    wakeq: Wakeq, client: redis_py.Redis, rate: list[str]
) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(1, 5001):
        pipeline.xadd(DEAD, {"wakeq.first_id": f"{number}-1", "body": "b"}, id=f"{number}-0")
    pipeline.execute()
    process = wakeq.start("dead", "retry", "orders", "--all", "--yes", *rate,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen(RETRY) > 20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    moved = client.xlen(RETRY)
    if moved < 5000:  # else it was done before
        assert process.returncode == 130
        assert out.decode().endswith(
            f"retried {moved:,} dead letters of orders, group orders, interrupted\n"
        )
    assert err == b""
    assert moved + client.xlen(DEAD) == 5000
    assert not set(retried_ids(client)) & set(dead_ids(client))


def test_says_how_far_it_came_when_redis_goes(own_redis: RedisServer, short_dir: Path) -> None:
    client = own_redis.client()
    client.xgroup_create("orders", "orders", "0", mkstream=True)
    for number in range(1, 501):
        bury(client, number)
    wakeq = Wakeq(short_dir, own_redis.url)
    process = wakeq.start("dead", "retry", "orders", "--all", "--yes", "--rate", "20",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen(RETRY) > 5)
    own_redis.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 69
    assert out.startswith(b"retried ")
    assert b"it is not known whether they were retried" in err
    assert b"Traceback" not in err


def test_what_fails_again_meanwhile_is_not_taken_twice(
    wakeq: Wakeq, client: redis_py.Redis
) -> None:
    for number in range(1, 61):
        bury(client, number)
    process = wakeq.start("dead", "retry", "orders", "--all", "--yes", "--rate", "100",
                          stdout=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen(RETRY) > 5)
    bury(client, 100, at_ms=1_800_000_000_000)
    out, _ = process.communicate(timeout=60)
    assert out.startswith(b"retried 60 dead letters")
    assert dead_ids(client) == ["100-1"]


def test_tells_what_somebody_else_took(wakeq: Wakeq, client: redis_py.Redis) -> None:
    letters = [bury(client, number) for number in range(1, 101)]
    process = wakeq.start("dead", "retry", "orders", *letters, "--rate", "2",
                          stdout=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: client.xlen(RETRY) > 1)
    client.xtrim(DEAD, maxlen=0, approximate=False)
    before = scripts_run(client)
    wait_until(lambda: scripts_run(client) > before)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    moved = client.xlen(RETRY)
    assert f"retried {moved} dead letters" in out.decode()
    assert b" gone already, interrupted" in out


def test_says_which_letter_cannot_be_moved(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bury(client, 1, **{f"f{i}": i for i in range(4000)})
    bury(client, 2)
    result = wakeq.run("dead", "retry", "orders", "--all", "--yes")
    assert result.code == 70
    assert "retried 1 dead letter of" in result.out
    assert "1 dead letters stay, the first because it has 4001 fields" in result.err
    assert dead_ids(client) == ["1-1"]


# -- purge -----------------------------------------------------------------------------------


def test_purges_what_is_chosen(wakeq: Wakeq, client: redis_py.Redis) -> None:
    for number in range(1, 41):
        bury(client, number, error="Timeout" if number <= 30 else "ValueError")
    result = wakeq.run("dead", "purge", "orders", "--all", "--error", "Timeout", "--yes")
    assert result.out == "deleted 30 dead letters of orders, group orders\n"
    assert dead_ids(client) == [f"{n}-1" for n in range(31, 41)]
    assert client.exists(RETRY) == 0
    wakeq.run("dead", "purge", "orders", "33-1", "--yes")
    assert "33-1" not in dead_ids(client)


# -- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["retry", "orders"], "dead retry: give IDs, or --all"),
        (["purge", "orders", "1-1", "--all"], "dead purge: give IDs, or --all"),
        (["retry", "orders", "1-1", "--error", "x"], "go with --all"),
        (["purge", "orders", "1-1", "--limit", "5"], "go with --all"),
        (["show", "orders"], "ID"),
        (["show", "orders", "1"], "must be an id such as"),
        (["show", "orders", f"1-{1 << 64}"], "must be an id such as"),
        (["list", "orders", "--since", "soon"], "such as 2h"),
        (["list"], "STREAM"),
        ([], "ACTION"),
        (["lst"], "invalid choice"),
        (["retry", "orders", "--all", "--rate", "0"], "from 1 on"),
    ],
)
def test_explains_wrong_usage(wakeq: Wakeq, words: list[str], complaint: str) -> None:
    result = wakeq.run("dead", *words)
    assert result.code == 64
    assert complaint in result.err


def test_options_may_stand_anywhere(wakeq: Wakeq, client: redis_py.Redis) -> None:
    bury(client, 1)
    url = wakeq.env.pop("WAKEQ_REDIS_URL")
    for words in (["--redis-url", url, "dead", "list", "orders"],
                  ["dead", "--redis-url", url, "list", "orders"],
                  ["dead", "list", "--group", "orders", "orders", "--redis-url", url]):  # fmt: skip
        assert "1-1" in wakeq.run(*words).out


# -- together with a consumer ----------------------------------------------------------------


@pytest.fixture
def host(redis: RedisServer, short_dir: Path) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir / "h", redis)
    yield host
    host.close()


REJECTS_ONCE = """
import os
from wakeq import Reject
def handle(message):
    record(message.id, message.attempt, message.text())
    if not os.path.exists({flag!r}):
        raise Reject("not yet")
"""


@pytest.mark.parametrize("spoil", [[], [RETRY], ["orders", RETRY, keys.stats("orders", "orders")]])
def test_a_consumer_gets_what_is_retried_as_if_it_had_never_failed(
    wakeq: Wakeq, host: ConsumerHost, tmp_path: Path, spoil: list[str]
) -> None:
    flag = tmp_path / "flag"
    host.configure(handler=host.handler(REJECTS_ONCE.format(flag=str(flag))))
    consumer = host.start()
    (message_id,) = host.publish("hello")
    wait_until(lambda: host.redis.xlen(DEAD) == 1)
    consumer.stop()
    (letter,) = wakeq.run("dead", "list", "orders", "--group", "orders", "--json").json()
    assert letter["message_id"] == message_id.decode()
    assert "not yet" in letter["error"]
    # Also when there is no retry stream, or nothing at all any more.
    if spoil:
        host.redis.delete(*spoil)
    flag.touch()
    result = wakeq.run("dead", "retry", "orders", "--group", "orders", message_id.decode())
    assert result.code == 0
    host.start()
    again = f"{message_id.decode()} 1 hello"
    assert host.wait_records(2) == [again, again]
    wait_until(lambda: host.redis.xlen(RETRY) == 0)


# -- Redis Cluster ---------------------------------------------------------------------------


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    cluster = Cluster(short_dir)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_works_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    # Entered by a node that has none of it.
    owners = {i: cluster.owner(keys.dead(f"orders{i}", "g")) for i in range(20)}
    stream, owner = next((f"orders{i}", owner) for i, owner in owners.items() if owner == 2)
    wakeq = Wakeq(tmp_path, cluster.url(0))
    client = cluster.nodes[owner].client()
    client.xgroup_create(stream, "g", "0", mkstream=True)
    for number in range(1, 151):
        bury(client, number, stream=stream, group="g")
    assert len(wakeq.run("dead", "list", stream, "--limit", "0").lines) == 151

    def run(*words: str) -> Result:
        result = wakeq.run("dead", *words)
        assert result.code == 0, result
        return result

    # The first host that is named need not be up.
    wakeq.env["WAKEQ_REDIS_URL"] = (
        f"redis+cluster://127.0.0.1:{free_port()},{cluster.url(0)[len('redis+cluster://') :]}"
    )
    assert "1-1" in run("show", stream, "1-1").out
    assert "retried 99 dead" in run("retry", stream, "--all", "--limit", "99", "--yes").out
    assert "deleted 51 dead" in run("purge", stream, "--all", "--yes").out
    retried: Any = client.xlen(keys.retry(stream, "g"))
    assert (retried, client.xlen(keys.dead(stream, "g"))) == (99, 0)
