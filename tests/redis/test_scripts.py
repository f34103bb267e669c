"""How scripts are sent: whole at first, by hash after that, whole again when they are forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_servers import RedisServer
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, Lost, ServerError


@pytest.fixture
def connection(own_redis: RedisServer) -> Iterator[Connection]:
    made = Connection(RedisURL(own_redis.url), "wakeq-test")
    made.connect()
    yield made
    made.close()


def calls(server: RedisServer) -> dict[str, int]:
    """How often the server was asked for each command since the last time."""
    stats = server.client().info("commandstats")
    server.client().config_resetstat()
    return {
        name: int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"])
        for name in ("eval", "evalsha")
    }


def test_is_sent_whole_once_and_by_hash_after_that(
    own_redis: RedisServer, connection: Connection
) -> None:
    script = Script("join")
    for _ in range(3):
        assert script.call(connection, ["k"], ["p", "", 1000]) == b""
    assert calls(own_redis) == {"eval": 1, "evalsha": 2}


def test_is_sent_whole_again_to_a_server_that_was_restarted(
    own_redis: RedisServer, connection: Connection
) -> None:
    script = Script("join")
    script.call(connection, ["k"], ["p", "", 1000])
    own_redis.restart()
    with pytest.raises(Lost):
        script.call(connection, ["k"], ["p", "", 1000])
    connection.connect()
    assert script.call(connection, ["k"], ["p", "", 1000]) == b""
    assert calls(own_redis)["eval"] == 1
    assert script.call(connection, ["k"], ["p", "", 1000]) == b""
    assert calls(own_redis) == {"eval": 0, "evalsha": 1}


def test_an_error_of_the_script_itself_is_not_tried_again(
    own_redis: RedisServer, connection: Connection
) -> None:
    script = Script("publish_once")
    own_redis.client().set("s", "v")
    calls(own_redis)
    for _ in range(2):
        with pytest.raises(ServerError, match="WRONGTYPE"):
            script.call(connection, ["s", "k"], [1000, "x", "1"])
    assert calls(own_redis) == {"eval": 1, "evalsha": 1}


def test_hash_and_text_agree(own_redis: RedisServer, connection: Connection) -> None:
    for name in ("join", "leave"):
        script = Script(name)
        script.command([], [])
        _, sent_hash, count, *rest = script.command(["a", "b"], ["c"])
        assert connection.call("SCRIPT", "LOAD", script.text) == sent_hash
        assert (count, rest) == (2, ["a", "b", "c"])


def test_no_other_script_runs_when_memory_is_full() -> None:
    """A publish must be refused then, with an error that says why."""
    names = ("acknowledge", "backlog", "claim", "leave", "publish_and_acknowledge")
    for name in (*names, "publish_once", "set_idle"):
        assert b"allow-oom" not in Script(name).text
