"""The wire connection over TLS."""

from __future__ import annotations

import select
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from redis_servers import Certificates, RedisServer, free_port
from wakeq import wire
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, Lost


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory(prefix="c") as directory:
        made = Certificates(Path(directory))
        made.make()
        yield made


def tls_server(certificates: Certificates, *options: str, clients: bool = False) -> Iterator[str]:
    """Yield the URL of a running server, without any query."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="r") as directory:
        server = RedisServer(Path(directory), *certificates.options(port, clients), *options)
        server.start()
        yield f"rediss://127.0.0.1:{port}"
        server.stop()


@pytest.fixture(scope="module")
def open_url(certificates: Certificates) -> Iterator[str]:
    """A server that any client may speak to."""
    yield from tls_server(certificates)


@pytest.fixture(scope="module", params=["TLSv1.2", "TLSv1.3"])
def closed_url(certificates: Certificates, request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that wants a certificate of its clients, which they learn late with TLS 1.3."""
    yield from tls_server(certificates, "--tls-protocols", request.param, clients=True)


@pytest.fixture
def made() -> Iterator[list[Connection]]:
    connections: list[Connection] = []
    yield connections
    for connection in connections:
        connection.close()


def refused(url: str, made: list[Connection]) -> WakeqError:
    made.append(Connection(RedisURL(url), "wakeq-test"))
    with pytest.raises(WakeqError) as caught:
        made[-1].connect()
    assert not made[-1].connected
    return caught.value


@pytest.fixture
def connection(open_url: str, certificates: Certificates, made: list[Connection]) -> Connection:
    made.append(Connection(RedisURL(f"{open_url}?ca={certificates.ca}"), "wakeq-test"))
    made[-1].connect()
    return made[-1]


def test_connects_to_a_server_that_our_authority_vouches_for(connection: Connection) -> None:
    assert connection.call("PING") == b"PONG"


def test_connects_to_anybody_if_told_so(open_url: str, made: list[Connection]) -> None:
    made.append(Connection(RedisURL(f"{open_url}?verify=no"), "wakeq-test"))
    made[-1].connect()
    assert made[-1].call("PING") == b"PONG"


def test_does_not_trust_another_authority(
    open_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    for query in (f"?ca={certificates.other_ca}", ""):
        error = refused(open_url + query, made)
        assert isinstance(error, ConfigError)
        assert f"Redis at {open_url}: its certificate is not trusted: " in str(error)


def test_does_not_trust_a_certificate_for_another_name(
    open_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    url = open_url.replace("127.0.0.1", "localhost") + f"?ca={certificates.ca}"
    error = refused(url, made)
    assert isinstance(error, ConfigError)
    assert "Hostname mismatch" in str(error)


def test_shows_its_own_certificate(
    closed_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    own = f"&cert={certificates.client}&key={certificates.client_key}"
    made.append(Connection(RedisURL(f"{closed_url}?ca={certificates.ca}{own}"), "wakeq-test"))
    made[-1].connect()
    assert made[-1].call("PING") == b"PONG"


def test_says_that_a_certificate_of_its_own_is_missing(
    closed_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    error = refused(f"{closed_url}?ca={certificates.ca}", made)
    assert isinstance(error, RefusedError)
    assert "put cert and key into redis_url" in str(error)


def test_says_that_its_own_certificate_is_not_trusted(
    closed_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    other_key = certificates.other_ca.with_suffix(".key")
    own = f"&cert={certificates.other_ca}&key={other_key}"
    error = refused(f"{closed_url}?ca={certificates.ca}{own}", made)
    assert isinstance(error, RefusedError)
    assert "refuses the client certificate" in str(error)


@pytest.mark.parametrize("query", ["ca=/none", "cert=/none", "cert={ca}", "cert={ca}&key={key}"])
def test_says_that_a_file_is_of_no_use(
    open_url: str, certificates: Certificates, made: list[Connection], query: str
) -> None:
    filled = query.format(ca=certificates.ca, key=certificates.client_key)
    error = refused(f"{open_url}?{filled}", made)
    assert isinstance(error, ConfigError)
    assert "ca, cert or key is not usable" in str(error)


def test_says_that_the_server_does_not_speak_tls(
    certificates: Certificates, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 0.3)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="r") as directory:
        server = RedisServer(Path(directory), "--port", str(port))
        server.start()
        error = refused(f"rediss://127.0.0.1:{port}?ca={certificates.ca}", made)
        server.stop()
    assert isinstance(error, UnavailableError)
    assert f"Redis at rediss://127.0.0.1:{port} cannot be reached: " in str(error)


def test_is_lost_when_the_server_wants_tls_and_it_speaks_none(
    open_url: str, made: list[Connection]
) -> None:
    assert isinstance(refused(open_url.replace("rediss", "redis"), made), Lost)


def test_carries_megabytes_both_ways(connection: Connection) -> None:
    value = bytes(range(256)) * 4000
    replies = connection.call_many([["ECHO", value]] * 10, timeout=60)
    assert all(reply == value for reply in replies)


def test_tells_what_a_selector_does_not_see(
    open_url: str, made: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_READ_BYTES", 10)
    connection = Connection(RedisURL(f"{open_url}?verify=no"), "wakeq-test")
    made.append(connection)
    connection.connect()
    assert not connection.has_buffered()
    connection.send([["ECHO", "x" * 25]])
    assert select.select([connection], [], [], 60)[0]
    assert connection.receive() == []
    assert not select.select([connection], [], [], 0)[0]
    assert connection.has_buffered()
    replies = []
    while connection.has_buffered():
        replies += connection.receive()
    assert replies == [b"x" * 25]
    assert connection.call("ECHO", "y" * 1000) == b"y" * 1000


def test_a_part_of_a_record_does_not_hold_the_loop_up(
    open_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    with FaultProxy(open_url) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ca={certificates.ca}"
        connection = Connection(RedisURL(url), "wakeq-test")
        made.append(connection)
        connection.connect()
        proxy.replies.hold_after(100)
        connection.send([["ECHO", "x" * 1000]])
        assert select.select([connection], [], [], 60)[0]
        started = time.monotonic()
        assert connection.receive() == []
        assert time.monotonic() - started < 10
        assert connection.outstanding == 1
        proxy.heal()
        while not (replies := connection.receive()):
            assert select.select([connection], [], [], 60)[0]
        assert replies == [b"x" * 1000]
        proxy.replies.hold_after(100)
        started = time.monotonic()
        with pytest.raises(Lost, match="did not answer in time"):
            connection.call("ECHO", "x" * 1000, timeout=0.2)
        assert time.monotonic() - started < 10


def test_is_lost_when_it_is_cut_in_the_middle_of_a_record(
    open_url: str, certificates: Certificates, made: list[Connection]
) -> None:
    with FaultProxy(open_url) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ca={certificates.ca}"
        connection = Connection(RedisURL(url), "wakeq-test")
        made.append(connection)
        connection.connect()
        proxy.replies.cut_after(100)
        with pytest.raises(Lost):
            connection.call("ECHO", "x" * 1000)
        connection.connect()
        assert connection.call("PING") == b"PONG"


def test_a_handshake_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, made: list[Connection]
) -> None:
    monkeypatch.setattr(wire, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        started = time.monotonic()
        error = refused(f"rediss://127.0.0.1:{port}?verify=no", made)
        assert time.monotonic() - started < 10
    assert isinstance(error, UnavailableError)
    assert "timed out" in str(error)
