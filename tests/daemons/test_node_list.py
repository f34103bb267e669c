"""The process of a node that takes messages of a list: what becomes of them."""

from __future__ import annotations

import base64
import json
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consumer_host import HOST, ConsumerProcess
from list_host import ERRORS, HANDLERS, LIST, NODE, STATS, SUSPECTS, ListHost
from redis_servers import Cluster, RedisServer, wait_until


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ListHost]:
    host = ListHost(short_dir, redis)
    yield host
    host.close()


def status(lease: socket.socket) -> Any:
    lease.sendall(b"status\n")
    return json.loads(lease.recv(65536))


def stop_twice(taker: ConsumerProcess, lease: socket.socket) -> None:
    """Stop a taker, and again as soon as it has heard that."""
    taker.terminate()
    wait_until(lambda: status(lease)["state"] == "draining")
    taker.terminate()
    assert taker.wait_exit() == 0


# -- handling --------------------------------------------------------------------------------


def test_handles_messages_in_their_order_and_keeps_none(host: ListHost) -> None:
    host.use("fast", workers=1)
    bodies = [str(n) for n in range(2000)]
    host.push(*bodies)
    taker = host.start()
    assert host.wait_handled(2000) == bodies
    host.push("late")
    host.wait_handled(2001)
    host.wait_finished()
    assert taker.stop() == 0
    assert host.only_keys() == set()
    assert host.redis.hgetall(STATS) == {b"handled": b"2001"}
    assert taker.count("taker stopped") == 1


def test_handles_as_many_at_once_as_there_are_workers(host: ListHost) -> None:
    host.use("gated", workers=3)
    host.push(*range(10))
    taker = host.start()
    wait_until(lambda: len(host.begun()) == 3)
    host.open_gate()
    host.wait_handled(10)
    host.wait_finished()
    assert sorted(host.handled(), key=int) == [str(n) for n in range(10)]
    assert taker.stop() == 0


def test_takes_no_more_than_it_can_begin_soon(host: ListHost) -> None:
    # So that a node that has workers free is not kept from it.
    host.use("gated", workers=3)
    host.push(*range(10))
    host.start()
    wait_until(lambda: len(host.begun()) == 3)
    assert len(host.waiting()) == 7
    host.open_gate()
    host.wait_handled(10)


def test_two_processes_share_a_list(host: ListHost) -> None:
    host.use("slow")
    takers = [host.start(), host.start(f"{NODE}:2")]
    # Each of them is given one at once.
    wait_until(lambda: sum("b" in client["flags"] for client in host.redis.client_list()) == 2)
    host.push(*range(200))
    host.wait_handled(200)
    host.wait_finished()
    assert sorted(host.handled(), key=int) == [str(n) for n in range(200)]
    assert len({line.split()[1] for line in host.records}) == 2
    assert [taker.stop() for taker in takers] == [0, 0]


@pytest.mark.parametrize(
    "code",
    [
        "async def handle(message): record(message.text())",
        "import wakeq\n@wakeq.batch(7)\ndef handle(some): [record(m.text()) for m in some]",
        "def handle(message): record(message.body.decode(), *message.fields) if 0 else"
        " record(message.text())",
    ],
    ids=["coroutine", "batch", "function"],
)
def test_calls_every_kind_of_handler(host: ListHost, code: str) -> None:
    host.use("handle", code)
    taker = host.start()
    host.push(*range(50))
    host.wait_handled(50)
    host.wait_finished()
    assert len(host.handled()) == 50
    assert taker.stop() == 0


def test_runs_a_program_for_each_message(host: ListHost) -> None:
    program = host.program(
        'body=$(cat); echo "$body $WAKEQ_STREAM $WAKEQ_GROUP $WAKEQ_ATTEMPT" >> "$RECORD"\n'
        'case $body in no) exit 65;; bad) exit 3;; esac'
    )  # fmt: skip
    host.configure(NODE, list=LIST, exec_=[program], workers=2)
    host.push("a", "no", "bad")
    host.start()
    errors = host.wait_errors(2)
    host.wait_records(3)
    assert sorted(host.records) == [f"{body} jobs jobs 1" for body in ("a", "bad", "no")]
    assert {each["message"]: each["error"] for each in errors} == {
        "no": "Reject: the program exited with 65, EX_DATAERR",
        "bad": "the program exited with 3",
    }


def test_publishes_what_a_handler_returns(host: ListHost) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    if message.text() == "wrong": return Publish("text", "x")
    return [Publish("out", message.text()), Publish("out", b"2", fields={"a": 1})]
""")  # fmt: skip
    host.redis.set("text", "x")
    host.push("one", "wrong")
    host.start()
    (error,) = host.wait_errors(1)
    host.wait_finished()
    assert error["error"].startswith("ServerError: WRONGTYPE text is a string")
    assert [fields for _, fields in host.redis.xrange("out")] == [
        {b"body": b"one"}, {b"body": b"2", b"a": b"1"},
    ]  # fmt: skip


def test_large_messages_do_not_pile_up(host: ListHost) -> None:
    host.use("handle", "def handle(message): record(message.body[:4].decode(), len(message.body))")
    for number in range(30):
        host.push(b"%04d" % number + b"x" * 1_000_000)
    host.start()
    assert sorted(host.wait_handled(30)) == [f"{n:04}" for n in range(30)]
    assert {line.split()[1] for line in host.records} == {"1000004"}


# -- failing ---------------------------------------------------------------------------------


def test_what_fails_goes_to_the_error_list(host: ListHost) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    body = message.body
    if body == b"reject": raise Reject("never")
    if body == b"retry": raise Retry("not now", delay=5)
    if body == b"raise": raise KeyError("id")
    if body[:1] == b"x": raise ValueError("two\\nlines \\u20ac")
    note(message)
""", workers=1)  # fmt: skip
    host.push("good", "reject", "retry", "raise", b"x\xff\x00")
    taker = host.start()
    errors = host.wait_errors(4)
    before = host.redis.time()[0]
    assert [(each["message"], each["error"]) for each in errors] == [
        ("reject", "Reject: never"),
        ("retry", "Retry: not now"),
        ("raise", "KeyError: 'id'"),
        ({"base64": base64.b64encode(b"x\xff\x00").decode()}, "ValueError: two lines €"),
    ]
    assert {(each["node"], each["attempts"]) for each in errors} == {(f"{HOST}/jobs", 1)}
    assert all(each["at"].endswith("Z") and len(each["at"]) == 24 for each in errors)
    assert abs(datetime.fromisoformat(errors[0]["at"]).timestamp() - before) < 60
    host.wait_finished()
    assert host.handled() == ["good"]
    assert host.redis.hgetall(STATS) == {b"handled": b"1", b"failed": b"4"}
    assert taker.stop() == 0  # and all that it said has been read
    assert taker.count("message went to the error list") == 4
    assert taker.count("Traceback") == 2, "of what was not said on purpose"


def test_the_error_list_may_be_another_one(host: ListHost) -> None:
    host.use("handle", "def handle(message): raise ValueError", error_list="errors")
    host.push("a")
    host.start()
    wait_until(lambda: host.redis.llen("errors") == 1)
    assert not host.redis.exists(ERRORS)


def test_a_coroutine_that_takes_too_long_has_failed(host: ListHost) -> None:
    host.use("handle", """
import asyncio
async def handle(message):
    await asyncio.sleep(60 if message.text() == "long" else 0)
    record(message.text())
""", timeout="2s")  # fmt: skip
    host.push("long", "short")
    taker = host.start()
    (error,) = host.wait_errors(1)
    assert (error["message"], error["error"]) == ("long", "took longer than timeout allows")
    host.push("more")
    host.wait_handled(2)
    assert taker.stop() == 0


def test_a_thread_that_takes_too_long_has_failed_and_the_process_ends(host: ListHost) -> None:
    host.use("handle", """
import time
def handle(message):
    if message.text() == "long": time.sleep(60)
    record(message.text())
""", timeout="2s", workers=2)  # fmt: skip
    host.push("long", "short")
    taker = host.start()
    (error,) = host.wait_errors(1)
    assert (error["message"], error["error"]) == ("long", "took longer than timeout allows")
    assert taker.wait_exit() == 75
    assert host.handled() == ["short"]
    assert not host.left()


def test_an_error_list_that_is_something_else_is_a_wrong_setting(host: ListHost) -> None:
    host.use("handle", "def handle(message): raise ValueError", error_list="text")
    host.redis.set("text", "x")
    host.push("a")
    taker = host.start()
    assert taker.wait_exit() == 78
    assert "one of the keys jobs and text is no list: delete or rename it" in taker.output
    host.redis.delete("text")
    host.start()
    wait_until(lambda: host.redis.llen("text") == 1)


def test_a_list_that_is_something_else_is_a_wrong_setting(host: ListHost) -> None:
    host.use()
    host.redis.set(LIST, "x")
    taker = host.start()
    assert taker.wait_exit() == 78
    assert "is no list" in taker.output
    assert "Traceback" not in taker.output


def test_needs_a_list(host: ListHost) -> None:
    host.configure(NODE, handler=host.handler(HANDLERS, function="fast"))
    taker = host.start()
    assert taker.wait_exit() == 78
    assert "node jobs: has no list to take messages of" in taker.output


# -- life ------------------------------------------------------------------------------------


def test_answers_how_it_is(host: ListHost) -> None:
    host.use("gated", workers=2)
    host.push(*range(2))
    taker = host.start(wake=host.wake_socket(NODE))
    lease = host.connect(NODE)
    wait_until(lambda: len(host.begun()) == 2)
    figures = wait_until(lambda: (f := status(lease))["busy"] == f["connections"] == 2 and f)
    assert {k: figures[k] for k in ("name", "state", "in_hand", "handled", "failed", "pid")} == {
        "name": NODE, "state": "handling", "in_hand": 2, "handled": 0, "failed": 0,
        "pid": taker.pid,
    }  # fmt: skip
    host.open_gate()
    wait_until(lambda: (f := status(lease))["state"] == "idle" and f["handled"] == 2)


def test_a_stop_finishes_what_was_begun_and_puts_the_rest_back_in_order(host: ListHost) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    gated(message) if message.text() == "1500" else note(message)
""", workers=1)  # fmt: skip
    bodies = [str(n) for n in range(3000)]
    host.push(*bodies)
    taker = host.start()
    wait_until(host.begun)
    wait_until(lambda: len(host.left()) == 1500, message="what was handled is out of hand")
    assert len(host.waiting()) < 1499, "there is more in hand than is begun"
    taker.terminate()
    wait_until(lambda: len(host.waiting()) == 1499)
    assert host.waiting() == bodies[1501:]
    assert taker.running, "what was begun is being handled"
    host.push("new")
    host.open_gate()
    assert taker.wait_exit() == 0
    assert host.handled() == bodies[:1501]
    assert host.waiting() == [*bodies[1501:], "new"]
    assert host.only_keys() == {LIST}


def test_a_stop_at_rest_is_quick_and_leaves_nothing(host: ListHost) -> None:
    host.use()
    taker = host.start()
    host.wait_taking(taker)
    assert taker.stop(8) == 0  # it had begun to wait for ten seconds
    assert host.only_keys() == set()


def test_a_stop_puts_back_what_takes_longer_than_drain_timeout(host: ListHost) -> None:
    host.use("gated", workers=2, drain_timeout="200ms")
    host.push(*range(5))
    taker = host.start()
    wait_until(lambda: len(host.begun()) == 2)
    assert taker.stop() == 0
    assert host.waiting() == [str(n) for n in range(5)]
    assert host.only_keys() == {LIST}
    assert "put_back=2" in taker.output


def test_a_second_signal_ends_it_at_once(host: ListHost) -> None:
    host.use("gated", workers=2, drain_timeout="60s")
    host.push(*range(5))
    taker = host.start(wake=host.wake_socket(NODE))
    lease = host.connect(NODE)
    wait_until(lambda: len(host.begun()) == 2)
    stop_twice(taker, lease)
    assert host.waiting() == [str(n) for n in range(5)]


def test_a_program_is_ended_by_a_second_signal(host: ListHost) -> None:
    program = host.program('echo "$$" >> "$RECORD"; exec sleep 60')
    host.configure(NODE, list=LIST, exec_=[program], workers=2)
    host.push("a")
    taker = host.start(wake=host.wake_socket(NODE))
    lease = host.connect(NODE)
    host.wait_records(1)
    stop_twice(taker, lease)
    assert host.waiting() == ["a"]


def test_ignores_what_is_meant_for_the_node(host: ListHost) -> None:
    host.use()
    taker = host.start()
    host.wait_taking(taker)
    taker.send(signal.SIGINT)
    taker.send(signal.SIGHUP)
    host.push("a")
    host.wait_handled(1)
    assert taker.stop() == 0


def test_says_so_when_redis_cannot_be_reached(host: ListHost) -> None:
    host.use()
    host.env["WAKEQ_REDIS_URL"] = f"unix://{host.directory}/nothing"
    taker = host.start(NODE, "--start-timeout=3s")
    assert taker.wait_exit() == 69
    assert "waiting for Redis" in taker.output


# -- messages that end processes --------------------------------------------------------------


def ended_or_blamed(host: ListHost, taker: ConsumerProcess) -> bool:
    return not taker.running or bool(host.redis.llen(ERRORS))


@pytest.mark.parametrize("max_crashes", [1, 3])
def test_a_message_that_ends_processes_goes_to_the_error_list(
    host: ListHost, max_crashes: int
) -> None:
    host.use("deadly", workers=4, max_crashes=max_crashes)
    bodies = [str(n) for n in range(8)]
    host.push(*bodies[:3], "deadly", *bodies[3:])
    starts = 0
    taker = host.start()
    while True:
        wait_until(partial(ended_or_blamed, host, taker))
        if taker.running:
            break
        taker.wait_exit()
        starts += 1
        assert starts < 10, host.output[-3000:]
        taker = host.start()
    assert starts == max(2, max_crashes)
    (error,) = host.errors()
    assert error["message"] == "deadly"
    why = f"ended the process that handled it, and was in hand of {starts} that ended"
    assert error["error"] == why
    assert error["attempts"] == starts + 1
    host.wait_finished()
    assert set(host.handled()) - {"deadly"} == set(bodies)
    assert taker.stop() == 0
    assert not host.redis.exists(SUSPECTS)


def test_messages_beside_it_are_not_blamed(host: ListHost) -> None:
    # Killed from outside, again and again, with all in hand and none of them to blame.
    host.use("gated", workers=4, max_crashes=3)
    bodies = [str(n) for n in range(4)]
    host.push(*bodies)
    for attempt in range(1, 3):
        taker = host.start()
        wait_until(lambda count=4 * attempt: len(host.begun()) >= count)
        taker.kill()
    host.open_gate()
    taker = host.start()
    host.wait_handled(4)
    host.wait_finished()
    assert not host.errors()
    assert taker.stop() == 0


# -- surroundings ----------------------------------------------------------------------------


def test_goes_on_when_redis_is_full(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server()
    host = ListHost(short_dir, server)
    try:
        host.use("handle", HANDLERS + "\ndef handle(m):\n    note(m)\n    raise ValueError\n")
        host.push(*range(20))
        server.ask("CONFIG", "SET", "maxmemory", "1")
        host.start()
        host.wait_handled(20)
        host.wait_errors(20)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        host.push("more")
        host.wait_handled(21)
    finally:
        host.close()


def test_works_on_a_cluster(short_dir: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    host = None
    try:
        cluster.start()
        owner = cluster.nodes[cluster.owner(LIST)]
        host = ListHost(short_dir, owner)
        host.env["WAKEQ_REDIS_URL"] = cluster.url()
        host.use("handle", HANDLERS + """
def handle(message):
    note(message)
    if message.text() == "bad": raise ValueError
    if message.text() == "far": return Publish("elsewhere", "x")
    if message.text() == "near": return Publish("{jobs}out", "x")
""")  # fmt: skip
        host.push("good", "bad", "far", "near")
        taker = host.start()
        errors = {each["message"]: each["error"] for each in host.wait_errors(2)}
        host.wait_finished()
        assert errors["bad"] == "ValueError"
        assert "slot" in errors["far"]
        assert owner.ask("XLEN", "{jobs}out") == 1
        assert taker.stop() == 0
        host.use("handle", "def handle(message): raise ValueError", error_list="elsewhere")
        host.push("bad")
        taker = host.start()
        assert taker.wait_exit() == 78
        assert "leave error_list out, or give both the same {hash tag}" in taker.output
        assert list(host.left()) == ["bad"]
    finally:
        if host is not None:
            host.close()
        cluster.stop()
