"""The wire connection with Sentinel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis as redis_py

from fake_server import FakeServer
from fault_proxy import FaultProxy
from redis_servers import RedisServer, Sentinels, free_port, wait_until
from wakeq import wire
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, Lost


@pytest.fixture(scope="module")
def calm() -> Iterator[Sentinels]:
    """Servers of which nobody is stopped."""
    yield from started()


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    """Servers of this test alone."""
    yield from started()


def started() -> Iterator[Sentinels]:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        group = Sentinels(Path(directory))
        try:
            group.start()
            yield group
        finally:
            group.stop()


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    connection = Connection(RedisURL(url), "wakeq-test")
    try:
        connection.connect()
        yield connection
    finally:
        connection.close()


def refused(url: str) -> WakeqError:
    with pytest.raises(WakeqError) as caught, connected(url):
        pass
    return caught.value


def port_of(connection: Connection) -> int:
    ports = connection.call("CONFIG", "GET", "port")
    return int(ports[1])


def connects_to(connection: Connection, port: int) -> bool:
    """Try once; tell whether the server at a port was found."""
    try:
        connection.connect()
    except UnavailableError:
        return False
    return port_of(connection) == port


def is_replica(server: RedisServer) -> bool:
    """Ask once; a server that is just made one hangs up on its clients."""
    try:
        return bool(server.client().execute_command("ROLE")[0] == b"slave")
    except redis_py.ConnectionError:
        return False


def test_finds_the_master(calm: Sentinels) -> None:
    with connected(f"{calm.url}/3") as connection:
        assert port_of(connection) == calm.master_port
        assert b"db=3" in connection.call("CLIENT", "INFO")
        connection.call("SET", "k", "v")


def test_asks_the_next_sentinel_when_one_is_down(calm: Sentinels) -> None:
    url = calm.url.replace("://", f"://127.0.0.1:{free_port()},")
    with connected(url) as connection:
        assert port_of(connection) == calm.master_port


def test_asks_the_next_sentinel_when_one_is_mute(
    calm: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 2.0)
    with FaultProxy(f"redis://127.0.0.1:{calm.sentinels[0].port}") as proxy:
        proxy.half_open()
        with connected(calm.url.replace("://", f"://127.0.0.1:{proxy.port},")) as connection:
            assert port_of(connection) == calm.master_port


def test_a_mute_sentinel_holds_up_only_the_first_of_many_connections(
    calm: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long may the others be silent too, on a busy machine.
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 3.0)
    with FaultProxy(f"redis://127.0.0.1:{calm.sentinels[0].port}") as proxy:
        proxy.half_open()
        url = RedisURL(calm.url.replace("://", f"://127.0.0.1:{proxy.port},"))
        for _ in range(3):
            connection = Connection(url, "wakeq-test")
            connection.connect()
            connection.close()
        assert url.likely[-1] == ("127.0.0.1", proxy.port)
        assert str(url).startswith(f"redis+sentinel://127.0.0.1:{proxy.port},")


def test_gives_up_in_time_and_begins_with_the_others_when_most_sentinels_are_mute(
    calm: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(wire, "_CONNECT_ALL_SECONDS", 1.5)
    with ExitStack() as stack:
        mute = [
            stack.enter_context(FaultProxy(f"redis://127.0.0.1:{calm.sentinels[0].port}"))
            for _ in range(3)
        ]
        for proxy in mute:
            proxy.half_open()
        url = RedisURL(
            calm.url.replace("://", "://" + "".join(f"127.0.0.1:{each.port}," for each in mute))
        )
        connection = Connection(url, "wakeq-test")
        with pytest.raises(UnavailableError):
            connection.connect()
        # Two at most, and on a busy machine maybe one alone.
        places = [("127.0.0.1", proxy.port) for proxy in mute]
        asked = places.index(url.likely[0])
        assert asked in (1, 2)
        assert url.likely[-asked:] == places[:asked]
        wait_until(lambda: connects_to(connection, calm.master_port))
        connection.close()


def test_asks_the_next_sentinel_when_one_does_not_know_the_master(
    calm: Sentinels,
) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        stranger = Sentinels(Path(directory), "another")
        try:
            stranger.start()
            port = stranger.sentinels[0].port
            with connected(calm.url.replace("://", f"://127.0.0.1:{port},")) as connection:
                assert port_of(connection) == calm.master_port
        finally:
            stranger.stop()


def test_says_that_no_sentinel_knows_the_master(calm: Sentinels) -> None:
    error = refused(calm.url.replace("mymaster", "nobody"))
    assert isinstance(error, ConfigError)
    assert str(error) == "redis_url: Sentinel knows no master 'nobody'"


def test_says_that_no_sentinel_answers() -> None:
    error = refused(f"redis+sentinel://:geheim@127.0.0.1:{free_port()}/mymaster")
    assert isinstance(error, UnavailableError)
    assert str(error).endswith("/mymaster: no Sentinel answers")
    assert "geheim" not in str(error)


def test_says_that_what_was_asked_is_no_sentinel(calm: Sentinels) -> None:
    error = refused(f"redis+sentinel://127.0.0.1:{calm.master_port}/mymaster")
    assert isinstance(error, ConfigError)
    assert f"redis_url: 127.0.0.1:{calm.master_port} is no Sentinel: ERR unknown" in str(error)


def test_says_that_a_sentinel_wants_a_login(calm: Sentinels) -> None:
    with FakeServer(lambda _request: b"-NOAUTH Authentication required.\r\n") as closed:
        error = refused(f"redis+sentinel://127.0.0.1:{closed.port}/mymaster")
    assert isinstance(error, RefusedError)
    assert f"127.0.0.1:{closed.port}, asked as a Sentinel, refuses the login" in str(error)


def test_a_user_without_rights_to_role_can_connect(calm: Sentinels) -> None:
    calm.master.client().execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+xlen")
    with connected(calm.url.replace("://", "://poor:pw@")) as connection:
        assert connection.call("XLEN", "s") == 0


def test_says_that_the_master_refuses_the_login(calm: Sentinels) -> None:
    error = refused(calm.url.replace("://", "://nobody:geheim@"))
    assert isinstance(error, RefusedError)
    assert "geheim" not in str(error)


def test_follows_a_failover_when_it_connects_again(sentinels: Sentinels) -> None:
    with connected(sentinels.url) as connection:
        before = port_of(connection)
        old = sentinels.master
        old.kill()
        with pytest.raises(Lost):
            connection.call("PING")
        sentinels.await_failover(before)
        wait_until(lambda: connects_to(connection, sentinels.master_port))
        connection.call("SET", "k", "v")
        # The old master comes back as one, until it is told better.
        old.start()
        wait_until(lambda: is_replica(old), 120)
        wait_until(lambda: connects_to(connection, sentinels.master_port))
        assert connection.call("ROLE")[0] == b"master"


def test_does_not_stay_with_a_server_that_is_no_master(calm: Sentinels) -> None:
    replica = next(server for server in calm.servers if server is not calm.master)
    port = int(replica.client().config_get("port")["port"])
    # Sentinels that are behind the times: they take a replica for the master.
    answer = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)
    with FakeServer(lambda _request: answer) as behind:
        error = refused(f"redis+sentinel://127.0.0.1:{behind.port}/mymaster")
    assert isinstance(error, UnavailableError)
    assert "the master is being changed" in str(error)


@pytest.mark.parametrize("answer", [b"*0\r\n", b":1\r\n", b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", b"?"])
def test_asks_the_next_sentinel_when_one_talks_nonsense(calm: Sentinels, answer: bytes) -> None:
    with (
        FakeServer(lambda _request: answer) as mad,
        connected(calm.url.replace("://", f"://127.0.0.1:{mad.port},")) as connection,
    ):
        assert port_of(connection) == calm.master_port
