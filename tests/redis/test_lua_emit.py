"""The scripts of a node: emit, behind its fence, and report_node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from redis_servers import RedisServer
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

S, NAME, TOKEN = "clock", "node", b"7"
LEASE, STATE = keys.lease(NAME, S), keys.emission(S, NAME)
MESSAGE = (2, "body", "x")


class Emitter:
    """Runs the script as a leader with a token."""

    def __init__(self, server: RedisServer, connection: Connection) -> None:
        self.client = server.client()
        self.connection = connection
        self.client.hset(LEASE, mapping={"holder": "me", "token": TOKEN})

    def emit(
        self,
        seq: int,
        *messages: Any,
        at: int | None = None,
        kind: str = "stream",
        token: bytes = TOKEN,
        connection: Connection | None = None,
    ) -> list[Any]:
        arguments: list[Any] = [seq, self.now() if at is None else at, kind]
        for message in messages:
            arguments += message
        return list(
            Script("emit", fenced=True).call(
                connection or self.connection, [S, STATE, LEASE], [*arguments, token]
            )
        )

    def now(self) -> int:
        seconds, micro = self.client.time()
        return int(seconds * 1_000_000 + micro)


@pytest.fixture
def leader(redis: RedisServer) -> Iterator[Emitter]:
    connection = Connection(RedisURL(redis.url), "test")
    connection.connect()
    yield Emitter(redis, connection)
    connection.close()


def test_an_emission_is_in_the_stream_with_its_number_and_time(leader: Emitter) -> None:
    at = leader.now()
    seq, said, now, how = leader.emit(1, MESSAGE, at=at)
    assert (seq, said, how) == (1, b"%d" % at, b"done")
    assert int(now) >= at
    ((_, fields),) = leader.client.xrange(S)
    assert fields == {b"body": b"x"}
    assert leader.client.hgetall(STATE) == {
        b"seq": b"1", b"at": b"%d" % at, b"messages": b"1"
    }  # fmt: skip


def test_who_only_looks_learns_the_last_one_and_emits_nothing(leader: Emitter) -> None:
    assert leader.emit(0)[:2] == [0, b""]
    leader.emit(1, MESSAGE, at=5)
    assert leader.emit(0, MESSAGE)[:2] == [1, b"5"]
    assert leader.emit(0, MESSAGE)[3] == b""
    assert leader.client.xlen(S) == 1


def test_the_same_emission_again_is_not_emitted_again(leader: Emitter) -> None:
    leader.emit(1, MESSAGE, at=5)
    seq, at, _, how = leader.emit(1, MESSAGE, at=5)
    assert (seq, at, how) == (1, b"5", b"before")
    assert leader.client.xlen(S) == 1


@pytest.mark.parametrize("seq", [3, 1])
def test_an_emission_out_of_turn_is_not_emitted(leader: Emitter, seq: int) -> None:
    leader.emit(1, MESSAGE)
    leader.emit(2, MESSAGE) if seq == 1 else None
    before = leader.client.xlen(S)
    assert leader.emit(seq, MESSAGE)[3] == b""
    assert leader.client.xlen(S) == before


def test_who_is_early_waits(leader: Emitter) -> None:
    assert leader.emit(1, MESSAGE, at=leader.now() + 60_000_000)[3] == b"early"
    assert leader.client.exists(S, STATE) == 0


@pytest.mark.parametrize("token", [b"6", b"8", b""])
def test_who_does_not_lead_emits_nothing_and_learns_nothing(leader: Emitter, token: bytes) -> None:
    with pytest.raises(ServerError, match="FENCED"):
        leader.emit(1, MESSAGE, token=token)
    assert leader.client.exists(S, STATE) == 0


def test_who_resigned_emits_nothing_that_comes_late(leader: Emitter) -> None:
    Script("resign").call(leader.connection, [LEASE], [TOKEN, keys.vacancy(NAME, S)])
    with pytest.raises(ServerError, match="FENCED"):
        leader.emit(1, MESSAGE)


def test_several_messages_are_one_emission_in_their_order(leader: Emitter) -> None:
    leader.emit(1, (2, "body", "a"), (4, "body", "b", "k", "v"), (2, "body", "c"))
    assert [fields[b"body"] for _, fields in leader.client.xrange(S)] == [b"a", b"b", b"c"]
    assert leader.client.hget(STATE, "messages") == b"3"


def test_an_emission_without_a_message_counts(leader: Emitter) -> None:
    assert leader.emit(1, at=9)[:2] == [1, b"9"]
    assert leader.client.exists(S) == 0
    assert leader.emit(2, MESSAGE)[0] == 2


def test_a_list_is_fed_at_its_left_end(leader: Emitter) -> None:
    leader.emit(1, (1, "a"), (1, b"b\xff"), kind="list")
    leader.emit(2, (1, "4"), kind="list")
    assert leader.client.lrange(S, 0, -1) == [b"4", b"b\xff", b"a"]


@pytest.mark.parametrize("kind", ["stream", "list"])
def test_a_key_of_another_type_changes_nothing(leader: Emitter, kind: str) -> None:
    leader.client.set(S, "text")
    message = MESSAGE if kind == "stream" else (1, "x")
    with pytest.raises(ServerError, match="WRONGTYPE"):
        leader.emit(1, message, kind=kind)
    assert leader.client.exists(STATE) == 0


def test_without_memory_nothing_is_counted(own_redis: RedisServer) -> None:
    connection = Connection(RedisURL(own_redis.url), "test")
    connection.connect()
    leader = Emitter(own_redis, connection)
    leader.emit(0)
    own_redis.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(ServerError, match="OOM"):
        leader.emit(1, MESSAGE)
    own_redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert leader.emit(1, MESSAGE)[3] == b"done"
    connection.close()


def test_of_many_at_once_with_one_number_one_is_emitted(
    leader: Emitter, redis: RedisServer
) -> None:
    together = threading.Barrier(16)
    at = leader.now()

    def emit(_number: int) -> Any:
        connection = Connection(RedisURL(redis.url), "test")
        connection.connect()
        together.wait()
        try:
            return leader.emit(1, MESSAGE, at=at, connection=connection)[3]
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(emit, range(16)))
    assert sorted(said) == [b"before"] * 15 + [b"done"]
    assert leader.client.xlen(S) == 1


# -- report_node -----------------------------------------------------------------------------


def report(leader: Emitter, process: str, lifetime_ms: int, *fields: Any) -> Any:
    names: list[Any] = [keys.node_process(S, NAME, process), keys.node_processes(S, NAME)]
    return Script("report_node").call(leader.connection, names, [process, lifetime_ms, *fields])


def test_a_process_stands_among_all_with_what_it_says(leader: Emitter) -> None:
    report(leader, "h/1", 60_000, "role", "follower", "busy", 3)
    report(leader, "h/2", 60_000, "role", "leader")
    assert set(leader.client.zrange(keys.node_processes(S, NAME), 0, -1)) == {b"h/1", b"h/2"}
    key = keys.node_process(S, NAME, "h/1")
    assert leader.client.hgetall(key) == {b"role": b"follower", b"busy": b"3"}
    assert 0 < leader.client.pttl(key) <= 60_000
    report(leader, "h/1", 60_000, "role", "leader")
    assert leader.client.hgetall(key) == {b"role": b"leader"}


def test_a_process_that_ends_or_is_gone_is_forgotten(leader: Emitter) -> None:
    report(leader, "h/1", 60_000, "role", "follower")
    report(leader, "h/2", 60_000, "role", "follower")
    leader.client.zadd(keys.node_processes(S, NAME), {"h/2": 1})
    report(leader, "h/3", 60_000, "role", "follower")
    report(leader, "h/1", 0)
    assert leader.client.zrange(keys.node_processes(S, NAME), 0, -1) == [b"h/3"]
    assert leader.client.exists(keys.node_process(S, NAME, "h/1")) == 0
