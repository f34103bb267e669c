"""The wire connection against real servers: logging in, errors, requests and replies."""

from __future__ import annotations

import _socket
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from redis_servers import RedisServer, free_port, wait_until
from wakeq import wire
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, Lost, ServerError, explain

SECRET = "sesame-7"


@contextmanager
def connected(url: str, name: str = "wakeq-test", key: str = "") -> Iterator[Connection]:
    """Connect, and close in the end."""
    connection = Connection(RedisURL(url), name, key)
    try:
        connection.connect()
        yield connection
    finally:
        connection.close()


def refused(url: str) -> WakeqError:
    """Return the exception that connecting ends with; nothing stays open."""
    connection = Connection(RedisURL(url), "wakeq-test")
    try:
        connection.connect()
    except WakeqError as error:
        assert not connection.connected
        assert SECRET not in str(error)
        assert "\n" not in str(error)
        return error
    finally:
        connection.close()
    raise AssertionError("it connected")


def with_user(url: str, user: str) -> str:
    return url.replace("://", f"://{user}@", 1)


# -- connecting --------------------------------------------------------------------------------


def test_connects_over_a_socket_and_tells_its_number_and_version(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        (me,) = [c for c in redis.client().client_list() if c["name"] == "wakeq-test"]
        assert connection.client_id == int(me["id"])
        assert connection.version >= (7, 0)
        assert connection.fileno() >= 0


def test_connects_over_tcp_without_delay_and_with_keepalive(
    redis_server: Callable[..., RedisServer],
) -> None:
    port = free_port()
    redis_server("--port", str(port))
    with connected(f"redis://127.0.0.1:{port}/2") as connection:
        (me,) = [c for c in [connection.call("CLIENT", "INFO")] if b"db=2" in c]
        assert f"laddr=127.0.0.1:{port}".encode() in me
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        with sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


def test_selects_the_database(redis: RedisServer) -> None:
    with connected(f"{redis.url}?db=3") as connection:
        connection.call("SET", "k", "v")
    assert redis.client(db=3).get("k") == b"v"


def test_a_name_may_have_any_letters(redis: RedisServer) -> None:
    with connected(redis.url, "wakeq-consumer/größe 1@host\n"):
        names = [c["name"] for c in redis.client().client_list()]
    assert "wakeq-consumer/gr__e_1@host_" in names


def test_logs_in_with_user_and_password(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "app", "on", ">a @b", "~*", "+@all")
    with connected(with_user(own_redis.url, "app:a%20%40b")) as connection:
        assert connection.call("ACL", "WHOAMI") == b"app"


def test_logs_in_as_a_user_without_a_password(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all")
    with connected(with_user(own_redis.url, "app")) as connection:
        assert connection.call("ACL", "WHOAMI") == b"app"


def test_logs_in_with_a_password_alone(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server("--requirepass", SECRET)
    with connected(with_user(server.url, f":{SECRET}")) as connection:
        assert connection.call("ACL", "WHOAMI") == b"default"


def test_the_credential_goes_before_the_url(
    redis_server: Callable[..., RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_server("--requirepass", SECRET)
    (tmp_path / "wakeq.redis-password").write_text(f"{SECRET}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with connected(with_user(server.url, ":wrong")) as connection:
        assert connection.call("PING") == b"PONG"


def test_a_user_without_rights_to_be_named_or_to_ask_for_the_version_can_connect(
    own_redis: RedisServer,
) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+xadd")
    with connected(with_user(own_redis.url, "poor:pw")) as connection:
        assert (connection.client_id, connection.version) == (0, (0, 0))
        assert connection.call("XADD", "s", "*", "a", "b")


def test_connects_again_after_the_server_was_restarted(own_redis: RedisServer) -> None:
    with connected(own_redis.url) as connection:
        own_redis.restart()
        with pytest.raises(Lost):
            connection.call("PING")
        assert not connection.connected
        connection.connect()
        assert connection.call("PING") == b"PONG"


# -- what is wrong, and how it is said ---------------------------------------------------------


def test_says_that_nobody_listens(short_dir: Path) -> None:
    error = refused(f"unix://{short_dir}/none")
    assert type(error) is Lost
    assert str(error) == (
        f"Redis at unix://{short_dir}/none cannot be reached: No such file or directory"
    )


def test_says_that_the_connection_was_refused() -> None:
    port = free_port()
    error = refused(f"redis://:{SECRET}@127.0.0.1:{port}")
    assert isinstance(error, UnavailableError)
    assert str(error) == f"Redis at redis://127.0.0.1:{port} cannot be reached: Connection refused"


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
def test_says_that_a_host_name_is_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup, flags = _socket.getaddrinfo, _socket.AI_NUMERICHOST  # no name server is asked
    monkeypatch.setattr(_socket, "getaddrinfo", lambda *given: lookup(*given, 0, flags))
    error = refused(f"redis://{host}")
    assert isinstance(error, UnavailableError)
    assert f"Redis at redis://{host}:6379 cannot be reached: " in str(error)


@pytest.mark.parametrize("user", [":wrong", "app:wrong", f"nobody:{SECRET}"])
def test_says_that_the_password_is_wrong(
    redis_server: Callable[..., RedisServer], user: str
) -> None:
    server = redis_server("--requirepass", SECRET, "--user", "app", "on", f">{SECRET}")
    error = refused(with_user(server.url, user))
    assert isinstance(error, RefusedError)
    assert f"{server.url} refuses the login (WRONGPASS" in str(error)
    assert "wrong" not in str(error)
    assert "wakeq.redis-password" in str(error)


@pytest.mark.parametrize("query", ["", "?db=1"])
def test_says_that_a_password_is_missing(
    redis_server: Callable[..., RedisServer], query: str
) -> None:
    error = refused(redis_server("--requirepass", SECRET).url + query)
    assert isinstance(error, RefusedError)
    assert "refuses the login (NOAUTH" in str(error)


def test_says_that_a_password_is_not_needed(redis: RedisServer) -> None:
    error = refused(with_user(redis.url, f":{SECRET}"))
    assert isinstance(error, ConfigError)
    assert str(error) == f"Redis at {redis.url} has no password, but redis_url gives one"


def test_says_that_the_user_may_not_select_a_database(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "poor", "on", f">{SECRET}", "+xadd")
    error = refused(with_user(own_redis.url, f"poor:{SECRET}") + "?db=1")
    assert isinstance(error, RefusedError)
    assert "does not permit this user: NOPERM" in str(error)


def test_says_which_command_the_user_may_not_use(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+xadd")
    with connected(with_user(own_redis.url, "poor:pw")) as connection:
        with pytest.raises(ServerError) as caught:
            connection.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">")
        error = explain(caught.value, connection.url)
    assert isinstance(error, RefusedError)
    assert "xreadgroup" in str(error)


def test_says_that_there_is_no_such_database(redis: RedisServer) -> None:
    error = refused(f"{redis.url}?db=99")
    assert isinstance(error, ConfigError)
    assert str(error) == f"Redis at {redis.url}?db=99 has no database 99"


def test_says_that_there_are_too_many_clients(own_redis: RedisServer) -> None:
    client = own_redis.client()
    client.config_set("maxclients", 1)
    error = refused(own_redis.url)
    assert isinstance(error, UnavailableError)
    assert str(error) == (
        f"Redis at {own_redis.url} cannot answer now: ERR max number of clients reached"
    )
    client.config_set("maxclients", 10)
    with connected(own_redis.url) as connection:
        assert connection.call("PING") == b"PONG"


def test_says_that_the_server_is_loading(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server("--enable-debug-command", "local", "--rdbcompression", "no")
    client = server.client()
    # For a minute; it looks at what it is asked a thousand times meanwhile.
    client.execute_command("DEBUG", "POPULATE", 1000, "key", 1024)
    client.config_set("key-load-delay", 60_000)  # microseconds
    client.config_set("loading-process-events-interval-bytes", 1024)
    with connected(server.url) as connection:
        asked = Connection(RedisURL(server.url), "wakeq-test")
        asked.connect()
        asked.send([["DEBUG", "RELOAD"]])
        try:
            errors: list[ServerError] = []

            def is_loading() -> bool:
                (reply,) = connection.call_many([["XLEN", "s"]])
                errors.extend([reply] if isinstance(reply, ServerError) else [])
                return bool(errors)

            wait_until(is_loading)
            connection.connect()  # logging in and INFO are answered
        finally:
            asked.close()
            server.kill()
        error = explain(errors[0], connection.url)
    assert isinstance(error, UnavailableError)
    assert "cannot answer now: LOADING" in str(error)


def test_says_that_the_server_has_fallen_silent(own_redis: RedisServer) -> None:
    with FaultProxy(own_redis.url) as proxy, connected(proxy.url) as connection:
        proxy.half_open()
        started = time.monotonic()
        with pytest.raises(Lost, match="did not answer in time"):
            connection.call("PING", timeout=0.2)
        assert 0.2 <= time.monotonic() - started < 10
        assert not connection.connected
        proxy.heal()
        connection.connect()
        assert connection.call("PING") == b"PONG"


# -- requests and replies ----------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_requests(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        replies = connection.call_many([["ECHO", str(i)] for i in range(10_000)])
    assert replies == [str(i).encode() for i in range(10_000)]


def test_an_error_stands_in_its_place_among_the_replies(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        commands = [["SET", "k", "v"], ["XADD", "k", "*", "a", "b"], ["NO-SUCH"], ["GET", "k"]]
        ok, wrong, unknown, value = connection.call_many(commands)
        assert (ok, value) == (b"OK", b"v")
        assert isinstance(wrong, ServerError) and wrong.code == "WRONGTYPE"
        assert isinstance(unknown, ServerError) and unknown.code == "ERR"
        with pytest.raises(ServerError, match="WRONGTYPE"):
            connection.call("XLEN", "k")
        assert connection.call("PING") == b"PONG"


def test_an_error_reply_may_have_any_bytes(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        (error,) = connection.call_many([[b"NO\xff\xfe"]])
    assert isinstance(error, ServerError) and error.code == "ERR"


@pytest.mark.parametrize(
    "value", [b"", b"\0", b"\r\n$5\r\n", bytes(range(256)) * 4000, b"x" * 1_000_000]
)
def test_carries_any_bytes_there_and_back(redis: RedisServer, value: bytes) -> None:
    with connected(redis.url) as connection:
        entry_id = connection.call("XADD", "s", "*", value, value)
        assert connection.call("XRANGE", "s", "-", "+") == [[entry_id, [value, value]]]


def test_packs_numbers_and_text(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        connection.call("RPUSH", "l", 7, "ä", b"\xff", -1)
        assert connection.call("LRANGE", "l", 0, -1) == [b"7", "ä".encode(), b"\xff", b"-1"]


def test_many_megabytes_go_both_ways_at_once(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        value = os.urandom(1_000_000)
        replies = connection.call_many([["ECHO", value]] * 20, timeout=60)
        assert all(reply == value for reply in replies)
        assert connection.bytes_read > 20_000_000


def test_nothing_sent_is_nothing_awaited(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        assert connection.call_many([]) == []


def receive(connection: Connection, count: int) -> list[object]:
    """Receive as a loop does: when the selector says so."""
    replies: list[object] = []
    while len(replies) < count:
        assert connection.has_buffered() or select.select([connection], [], [], 60)[0]
        replies += connection.receive()
    return replies


def test_counts_what_is_outstanding(redis: RedisServer) -> None:
    with connected(redis.url) as connection:
        assert connection.outstanding == 0
        connection.send([["ECHO", "1"], ["ECHO", "2"]])
        connection.send([["BLPOP", "l", 0]])
        assert connection.outstanding == 3
        receive(connection, 2)
        assert connection.outstanding == 1
        with pytest.raises(AssertionError, match="earlier requests"):
            connection.call("PING")
        redis.client().rpush("l", "x")
        assert receive(connection, 1) == [[b"l", b"x"]]
        assert connection.outstanding == 0
        connection.send([["PING"]])
        connection.close()
        assert connection.outstanding == 0


def test_nothing_is_sent_or_received_without_a_connection(redis: RedisServer) -> None:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.close()
    for use in (lambda: connection.send([["PING"]]), connection.receive):
        with pytest.raises(Lost, match="not connected"):
            use()
    assert (connection.fileno(), connection.connected) == (-1, False)


def test_replies_that_came_before_the_connection_broke_are_received(
    own_redis: RedisServer,
) -> None:
    with connected(own_redis.url) as connection:
        connection.send([["ECHO", "1"]])
        assert select.select([connection], [], [], 60)[0]
        own_redis.kill()
        connection.send([["ECHO", "2"]])
        assert connection.receive() == [b"1"]
        assert connection.outstanding == 1
        with pytest.raises(Lost):
            connection.receive()
        assert (connection.connected, connection.outstanding) == (False, 0)


@pytest.mark.parametrize("after", [0, 1, 10])
def test_a_cut_after_some_bytes_of_a_request_is_a_loss(redis: RedisServer, after: int) -> None:
    with FaultProxy(redis.url) as proxy, connected(proxy.url) as connection:
        proxy.requests.cut_after(after)
        with pytest.raises(Lost):
            connection.call("SET", "k", "v")
        assert not connection.connected
    assert redis.client().get("k") is None


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_cut_after_some_bytes_of_a_reply_is_a_loss_though_the_request_was_carried_out(
    redis: RedisServer, after: int
) -> None:
    with FaultProxy(redis.url) as proxy, connected(proxy.url) as connection:
        proxy.replies.cut_after(after)
        with pytest.raises(Lost) as caught:
            connection.call("SET", "k", "v")
        assert caught.value.replies == []
    assert redis.client().get("k") == b"v"


def test_slow_replies_are_awaited(redis: RedisServer) -> None:
    with FaultProxy(redis.url) as proxy, connected(proxy.url) as connection:
        proxy.replies.delay_s = 0.05
        assert connection.call("ECHO", "x" * 100_000) == b"x" * 100_000


def test_lost_bytes_are_noticed(redis: RedisServer) -> None:
    with FaultProxy(redis.url) as proxy, connected(proxy.url) as connection:
        proxy.replies.drop(3)
        with pytest.raises(Lost):
            connection.call("ECHO", "x" * 100, timeout=0.5)


def test_a_server_that_accepts_nothing_any_more_is_lost(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_SEND_SECONDS", 0.2)
    with FaultProxy(own_redis.url) as proxy, connected(proxy.url) as connection:
        proxy.half_open()
        started = time.monotonic()
        with pytest.raises(Lost, match="timed out"):
            connection.send([["ECHO", "x" * 30_000_000]])
        assert time.monotonic() - started < 10
        assert not connection.connected
