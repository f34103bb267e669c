"""Takers of a list that are killed, stopped, cut off: nothing is lost, little is doubled."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from list_host import ERRORS, HANDLERS, LIST, NODE, STATS, TAKERS, ListHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

WORKERS = 4
# What one process may have begun, and have done without Redis knowing, when it is killed.
MOST_REPEATS = 3 * WORKERS


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ListHost]:
    host = ListHost(short_dir, redis)
    yield host
    host.close()


def check(host: ListHost, count: int, repeats: int) -> None:
    """Fail unless so many messages were handled, with at most so many repeats, and none is left."""
    host.wait_handled(count)
    host.wait_finished()
    runs = Counter(host.handled())
    assert sorted(runs, key=int) == [str(n) for n in range(count)]
    assert runs.total() - count <= repeats
    assert not host.errors()


# -- killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "after_join:kill@1", "before_take:kill@1", "before_take:kill@5", "after_take:kill@1",
        "after_take:kill@4", "before_handle:kill@1", "before_handle:kill@20",
        "after_handle:kill@1", "after_handle:kill@20", "before_finish:kill@1",
        "before_finish:kill@5", "after_finish:kill@1", "after_finish:kill@5",
    ],
)  # fmt: skip
def test_nothing_is_lost_when_it_is_killed(host: ListHost, point: str) -> None:
    host.use("slow", workers=WORKERS)
    bodies = list(range(100))
    host.push(*bodies)
    other = host.start(f"{NODE}:2")
    host.wait_taking(other)
    killed = host.start(WAKEQ_FAILPOINT=point)

    def ended() -> bool:
        # Else the other one may leave it nothing.
        if killed.running and len(host.waiting()) < 20:
            bodies.append(len(bodies))
            host.push(bodies[-1])
        return not killed.running

    wait_until(ended, 60, host.output[-3000:])
    assert killed.wait_exit() == -signal.SIGKILL
    host.start()
    check(host, len(bodies), MOST_REPEATS)


def test_nothing_is_lost_when_it_is_killed_with_what_it_waited_for(host: ListHost) -> None:
    host.use("slow", workers=WORKERS)
    killed = host.start(WAKEQ_FAILPOINT="after_wait:kill@1")
    host.wait_taking(killed)
    wait_until(lambda: b"blmove" in {c["cmd"].encode() for c in host.redis.client_list()})
    host.push(0)
    assert killed.wait_exit() == -signal.SIGKILL
    assert host.left() == {"0": 1}
    host.start()
    check(host, 1, 0)


@pytest.mark.parametrize("point", ["after_put_back:kill@1", "after_leave:kill@1"])
def test_nothing_is_lost_when_it_is_killed_while_it_stops(host: ListHost, point: str) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    gated(message) if message.text() == "500" else note(message)
""", workers=1, drain_timeout="100ms")  # fmt: skip
    host.push(*range(1000))
    killed = host.start(WAKEQ_FAILPOINT=point)
    wait_until(host.begun)
    wait_until(lambda: len(host.left()) == 500)
    killed.terminate()
    assert killed.wait_exit() == -signal.SIGKILL
    assert sum(host.left().values()) == 500
    host.open_gate()
    host.start()
    check(host, 1000, 0)
    assert host.handled() == [str(n) for n in range(1000)]


def test_nothing_is_lost_when_it_is_killed_while_it_puts_back(host: ListHost) -> None:
    host.use("slow", workers=WORKERS)
    host.push(*range(20))
    first = host.start(WAKEQ_FAILPOINT="after_take:kill@1")
    assert first.wait_exit() == -signal.SIGKILL
    assert len(host.waiting()) < 20
    second = host.start(WAKEQ_FAILPOINT="after_return:kill@1")
    assert second.wait_exit() == -signal.SIGKILL
    assert host.waiting() == [str(n) for n in range(20)], "in the old order"
    host.start()
    check(host, 20, 0)


def test_nothing_is_lost_over_many_kills(host: ListHost) -> None:
    host.use("slow", workers=WORKERS, max_crashes=1000)
    names = [NODE, f"{NODE}:2"]
    takers = [host.start(name) for name in names]
    kills, rng = 10, random.Random(4)
    for number in range(kills):
        seen = len(set(host.handled()))
        host.push(*range(60 * number, 60 * number + 60))
        wait_until(lambda seen=seen: len(set(host.handled())) >= seen + 10, 60, "they go on")
        index = rng.randrange(2)
        takers[index].kill()
        takers[index] = host.start(names[index])
    check(host, 600, kills * MOST_REPEATS)
    assert [taker.stop() for taker in takers] == [0, 0]
    assert int(host.redis.hget(STATS, "handled")) == 600


def test_a_successor_puts_back_at_once(host: ListHost) -> None:
    host.use("gated", workers=2)
    host.push(*range(5))
    taker = host.start()
    wait_until(lambda: len(host.begun()) == 2)
    taker.kill()
    host.open_gate()
    successor = host.start()
    assert host.wait_handled(5, 25) == [*host.handled()]  # its predecessor lives for 30 s else
    host.wait_finished()
    assert successor.stop() == 0
    assert successor.count("put messages back that a dead process had taken") == 1


def leave_behind(host: ListHost, taker: str, *bodies: str, last_ms: int) -> None:
    """Have a taker of another machine hold messages, and be believed to live until then."""
    mapping = dict(enumerate(bodies, 1))
    host.redis.hset(keys.taken(LIST, taker), mapping=mapping)  # type: ignore[arg-type]
    host.redis.zadd(TAKERS, {taker: last_ms})


def test_puts_back_what_another_machine_had_once_its_time_is_over(host: ListHost) -> None:
    host.use("fast", workers=1)
    far_ms = (host.redis.time()[0] + 3600) * 1000
    leave_behind(host, "dead/1/1/1/1", "0", "1", "2", last_ms=1)
    leave_behind(host, "living/1/1/1/1", "9", last_ms=far_ms)
    host.push("3", "4")
    host.start()
    assert host.wait_handled(5) in (["0", "1", "2", "3", "4"], ["3", "4", "0", "1", "2"],
                                    ["3", "0", "1", "2", "4"])  # fmt: skip
    wait_until(lambda: host.left() == {"9": 1})
    assert host.redis.zscore(TAKERS, "~dead/1/1/1/1")


def test_one_that_lives_puts_back_what_another_had(host: ListHost) -> None:
    host.use("fast")
    taker = host.start()
    host.wait_taking(taker)
    host.push("first")
    host.wait_handled(1)
    leave_behind(host, "dead/1/1/1/1", "0", last_ms=1)
    # It says that it lives every ten seconds.
    host.wait_handled(2)
    wait_until(lambda: taker.count("put messages back that a dead process had taken") == 1)
    host.wait_finished()


# -- paused ----------------------------------------------------------------------------------


def test_who_was_taken_for_dead_does_nothing_with_what_it_had(host: ListHost) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    gated(message)
    raise ValueError(message.text())
""", workers=3)  # fmt: skip
    host.push(*range(3))
    paused = host.start()
    wait_until(lambda: len(host.begun()) == 3)
    name = host.taker_of(paused)
    paused.send(signal.SIGSTOP)
    host.forget(name)
    other = host.start(f"{NODE}:2")
    wait_until(lambda: len(host.begun()) == 6)
    host.open_gate()
    host.wait_errors(3)
    paused.send(signal.SIGCONT)
    wait_until(lambda: len(host.handled()) == 6)
    host.push("more")
    wait_until(lambda: paused.count("message went to the error list") >= 3)
    host.wait_errors(4)
    host.wait_finished()
    # It takes part again, under another name.
    process = f"{name.rpartition('/')[0]}/"
    wait_until(
        lambda: any(
            taker.startswith(process.encode()) and taker != name.encode()
            for taker in host.redis.zrange(TAKERS, 0, -1)
        )
    )
    assert host.redis.zscore(TAKERS, name) is None
    assert sorted(each["message"] for each in host.errors()) == ["0", "1", "2", "more"]
    assert int(host.redis.hget(STATS, "failed")) == 4
    assert [taker.stop() for taker in (paused, other)] == [0, 0]


def test_who_was_taken_for_dead_begins_nothing_of_what_it_had(host: ListHost) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    gated(message) if message.text() == "1000" else note(message)
""", workers=1)  # fmt: skip
    host.push(*range(2000))
    first = host.start()
    wait_until(host.begun)
    wait_until(lambda: len(host.left()) == 1000, message="what was handled is out of hand")
    assert len(host.waiting()) < 999, "there is more in hand than is begun"
    name = host.taker_of(first)
    host.forget(name)
    host.start(f"{NODE}:2")

    def is_given_up() -> bool:
        # It may have said that it lives before the other one has looked.
        host.redis.zadd(TAKERS, {name: 1}, xx=True)
        return host.redis.zscore(TAKERS, f"~{name}") is not None

    wait_until(is_given_up)
    # It says that it lives every ten seconds, and hears then that it does not.
    first.wait_log("lost messages to another process")
    host.open_gate()
    host.wait_handled(2000)
    host.wait_finished()
    twice = [body for body, count in Counter(host.handled()).items() if count > 1]
    assert twice == ["1000"]


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "with another"])
def test_who_was_paused_for_long_begins_nothing_unasked(host: ListHost, is_alone: bool) -> None:
    host.use("handle", HANDLERS + """
def handle(message):
    gated(message) if message.text() == "1000" else note(message)
""", workers=1)  # fmt: skip
    host.push(*range(2000))
    short = (
        "from wakeq.node.takers_keeper import Keeper; Keeper.__init__.__defaults__ = (2.0,);"
        " from wakeq.node.takers import main; main()"
    )
    paused = host.run([host.interpreter, "-c", short, NODE])
    wait_until(host.begun)
    wait_until(lambda: len(host.left()) == 1000, message="what was handled is out of hand")
    name = host.taker_of(paused)
    paused.send(signal.SIGSTOP)
    wait_until(lambda: host.redis.zscore(TAKERS, name) < host.redis.time()[0] * 1000)
    host.open_gate()
    if not is_alone:
        host.start(f"{NODE}:2")
        host.wait_handled(2000)
    paused.send(signal.SIGCONT)
    host.wait_handled(2000)
    host.wait_finished()
    wait_until(lambda: len(host.handled()) == 2000 + (not is_alone))
    twice = [body for body, count in Counter(host.handled()).items() if count > 1]
    assert twice == ([] if is_alone else ["1000"])
    host.push("more")
    host.wait_handled(2001)
    assert paused.running


# -- cut off ---------------------------------------------------------------------------------


def test_nothing_is_lost_when_connections_break(host: ListHost) -> None:
    host.use("slow", workers=WORKERS)
    taker = host.start()
    for number in range(10):
        seen = len(host.records)
        host.push(*range(30 * number, 30 * number + 30))
        wait_until(lambda seen=seen: len(host.records) >= seen + 10, 60, "it goes on")
        host.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    check(host, 300, 0)
    assert taker.stop() == 0
    assert taker.count("lost Redis") >= 1
    assert taker.count("found Redis again") >= 1
    assert int(host.redis.hget(STATS, "handled")) == 300


def test_what_was_taken_and_never_arrived_is_handled(host: ListHost) -> None:
    host.use()
    taker = host.start()
    name = host.wait_taking(taker)
    host.push("first")
    host.wait_handled(1)
    host.wait_finished()
    # As if the reply had been lost.
    lost = {number: f"m{number}" for number in range(50_000, 50_250)}
    host.redis.hset(keys.taken(LIST, name), mapping=lost)  # type: ignore[arg-type]
    host.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    host.wait_handled(251)
    host.wait_finished()
    assert sorted(host.handled()) == sorted(["first", *lost.values()])
    assert taker.stop() == 0


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_nothing_is_lost_when_redis_restarts(
    short_dir: Path, redis_server: Callable[..., RedisServer], how: str
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = ListHost(short_dir, server)
    try:
        host.use("slow", workers=WORKERS)
        takers = [host.start(), host.start(f"{NODE}:2")]
        for number in range(3):
            seen = len(host.records)
            host.push(*range(100 * number, 100 * number + 100))
            wait_until(lambda seen=seen: len(host.records) >= seen + 30, 60, "they go on")
            if how == "kill":
                server.kill()
                server.start()
            else:
                server.restart()
        host.redis = server.client()
        check(host, 300, 0 if how == "restart" else MOST_REPEATS)
        host.push("late")
        host.wait_handled(301)
        assert [taker.stop() for taker in takers] == [0, 0]
    finally:
        host.close()


def test_goes_on_when_redis_has_lost_everything(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server()
    host = ListHost(short_dir, server)
    try:
        host.use("gated", workers=2)
        host.push(*range(2))
        taker = host.start()
        wait_until(lambda: len(host.begun()) == 2)
        server.restart()
        host.redis = server.client()
        host.push("new")
        host.open_gate()
        host.wait_handled(3)
        host.wait_finished()
        assert not host.redis.exists(ERRORS)
        assert taker.stop() == 0
    finally:
        host.close()


def test_stops_while_redis_is_gone(
    short_dir: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    host = ListHost(short_dir, server)
    try:
        host.use("gated", workers=2, drain_timeout="500ms")
        host.push(*range(4))
        taker = host.start()
        wait_until(lambda: len(host.begun()) == 2)
        server.stop()
        taker.wait_log("lost Redis")
        assert taker.stop() == 0
        server.start()
        host.redis = server.client()
        assert sum(host.left().values()) == 4
        host.open_gate()
        host.start()
        host.wait_handled(4)
        host.wait_finished()
    finally:
        host.close()


def test_what_goes_to_a_connection_that_only_redis_has_yet_is_handled_all_the_same(
    short_dir: Path, own_redis: RedisServer
) -> None:
    with FaultProxy(own_redis.url) as proxy:
        host = ListHost(short_dir, own_redis)
        try:
            host.use("fast")
            host.env["WAKEQ_REDIS_URL"] = proxy.url
            taker = host.start()
            host.push(0)
            host.wait_handled(1)

            def waits() -> bool:
                flags = [client["flags"] for client in host.redis.client_list()]
                return any("b" in each for each in flags)

            wait_until(waits)
            proxy.cut_unheard()
            taker.wait_log("found Redis again")
            host.push(1)  # the wait that began earlier is answered first
            wait_until(lambda: host.redis.llen(LIST) == 0)
            check(host, 2, 0)
            assert taker.stop() == 0
        finally:
            host.close()
