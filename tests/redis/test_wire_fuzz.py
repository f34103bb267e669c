"""The wire connection against servers that are old, broken, or out of their mind."""

from __future__ import annotations

import _socket
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_server import GREETING, FakeServer
from wakeq import tcp
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, Lost, ServerError

bounded = settings(
    max_examples=150,
    deadline=None,
    # The server is the same for all examples; each has a connection of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Replies, as they are said and as they are understood.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)
REPLIES = st.recursive(
    st.one_of(
        st.binary(max_size=60),
        st.integers(-(2**63), 2**63 - 1),
        st.none(),
        WORDS.map(ServerError),
        WORDS.map(lambda text: SimpleNamespace(simple=text.encode())),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def nesting(reply: object) -> int:
    return 1 + max(map(nesting, reply), default=0) if isinstance(reply, list) else 0


# hiredis before 1.1 reads no deeper; what a consumer asks for is nested four times.
STREAMS = st.lists(REPLIES.filter(lambda reply: nesting(reply) < 7), min_size=1, max_size=8)


def said(reply: object) -> bytes:
    """Return a reply as a server says it."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, ServerError):
        return f"-{reply}\r\n".encode()
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(said, reply))
    return b"+%b\r\n" % reply.simple


def plain(reply: object) -> object:
    """Return a reply such that it equals what was understood."""
    if isinstance(reply, ServerError):
        return ("error", str(reply), reply.code)
    if isinstance(reply, SimpleNamespace):
        return reply.simple
    return [plain(each) for each in reply] if isinstance(reply, list) else reply


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """A server that greets, and then says what the test says."""
    with FakeServer() as fake:
        yield fake


@contextmanager
def connected(server: FakeServer) -> Iterator[SimpleNamespace]:
    """Connect; `.here` is the connection, `.there` the server's end of it."""
    connection = Connection(RedisURL(server.url), "wakeq-test")
    connection.connect()
    with server.accept() as there:
        try:
            yield SimpleNamespace(here=connection, there=there)
        finally:
            connection.close()


def receive_all(connection: Connection) -> list[object]:
    """Receive until the connection is lost."""
    replies: list[object] = []
    with suppress(Lost):
        while True:
            replies += connection.receive()
    assert not connection.connected
    assert connection.outstanding == 0
    return replies


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


@bounded
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=20))
def test_replies_are_the_same_in_whatever_pieces_they_come(
    server: FakeServer, replies: list[object], cuts: list[int]
) -> None:
    with connected(server) as two:
        two.here.send([["X"]] * len(replies))
        understood: list[object] = []
        sent = two.here.bytes_read
        for piece in pieces(b"".join(map(said, replies)), cuts):
            two.there.sendall(piece)
            sent += len(piece)
            while two.here.bytes_read < sent:
                understood += two.here.receive()
        assert plain(understood) == plain(replies)
        assert two.here.outstanding == 0


def test_replies_are_the_same_byte_by_byte(server: FakeServer) -> None:
    replies = [
        [[b"s", [[b"1-0", [b"body", b"\r\n$1\r\n\0\xff"]]]]],
        None,
        7,
        ServerError("NOGROUP x"),
    ]
    with connected(server) as two:
        two.here.send([["X"]] * len(replies))
        understood: list[object] = []
        for byte in b"".join(map(said, replies)):
            two.there.sendall(bytes([byte]))
            understood += two.here.receive()
        assert plain(understood) == plain(replies)


@settings(bounded, max_examples=20)
@given(STREAMS)
def test_a_stream_that_is_cut_gives_the_replies_that_were_whole(
    server: FakeServer, replies: list[object]
) -> None:
    parts = [said(reply) for reply in replies]
    stream = b"".join(parts)
    for length in range(0, len(stream), max(1, len(stream) // 10)):
        whole = 0
        while sum(map(len, parts[: whole + 1])) <= length:
            whole += 1
        with connected(server) as two:
            two.here.send([["X"]] * len(replies))
            two.there.sendall(stream[:length])
            two.there.close()
            assert plain(receive_all(two.here)) == plain(replies[:whole])


ABSURD = st.sampled_from(
    [
        *(b"*4294967295\r\n", b"*-2\r\n", b"$-2\r\n"),
        *(b"$2147483647\r\n", b"$99999999999999999999\r\n", b":99999999999999999999999\r\n"),
        *(b"*1\r\n" * 1000, b"*1000000\r\n" * 3, b"*\r\n", b"$\r\n", b":x\r\n", b"_\r\n"),
        # Of RESP3, which is not spoken here.
        *(b"%1\r\n*0\r\n+a\r\n", b"#t\r\n", b",nan\r\n", b">1\r\n+a\r\n", b"~1\r\n*0\r\n"),
        *(b"\0" * 100, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ]
)


@st.composite
def garbled(draw: st.DrawFn, stream: bytes) -> bytes:
    """Return a stream with some bytes flipped, inserted or deleted, or with nonsense in it."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(stream)))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "absurd"]))
        if kind == "insert":
            stream = stream[:at] + draw(st.binary(min_size=1, max_size=5)) + stream[at:]
        elif kind == "delete":
            stream = stream[:at] + stream[at + draw(st.integers(1, 10)) :]
        elif kind == "absurd":
            stream = stream[:at] + draw(ABSURD) + stream[at:]
        elif at < len(stream):
            flipped = bytes([stream[at] ^ (1 << draw(st.integers(0, 7)))])
            stream = stream[:at] + flipped + stream[at + 1 :]
    return stream


def memory_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@bounded
@given(st.data())
def test_garbage_gives_replies_or_is_a_loss(server: FakeServer, data: st.DataObject) -> None:
    replies = data.draw(STREAMS)
    stream = data.draw(garbled(b"".join(map(said, replies))))
    before, started = memory_mib(), time.monotonic()
    with connected(server) as two:
        two.here.send([["X"]] * len(replies))
        two.there.sendall(stream)
        two.there.close()
        assert len(receive_all(two.here)) <= len(replies)
        two.here.connect()  # it starts afresh
        server.accept().close()
    assert memory_mib() - before < 100
    assert time.monotonic() - started < 120


@settings(bounded, max_examples=40)
@given(st.data())
def test_a_call_is_answered_or_late_or_lost_in_time(
    server: FakeServer, data: st.DataObject
) -> None:
    replies = data.draw(STREAMS)
    stream = data.draw(garbled(b"".join(map(said, replies))))
    started = time.monotonic()
    with connected(server) as two:
        # Said before it is asked for; the socket is left open.
        two.there.sendall(stream)
        try:
            assert len(two.here.call_many([["X"]] * len(replies), timeout=0.05)) == len(replies)
        except Lost:
            assert not two.here.connected
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("length", [b"2147483647", b"99999999999"])
def test_an_absurd_length_takes_no_memory(server: FakeServer, length: bytes) -> None:
    before, started = memory_mib(), time.monotonic()
    with connected(server) as two:
        two.there.sendall(b"*%b\r\n+x\r\n" % length)
        with pytest.raises(Lost):
            two.here.call("X", timeout=0.1)
        assert time.monotonic() - started < 60
        # hiredis makes a list of that length, of pages that nobody has written to, and here
        # goes through it to free it: seconds, and nothing can be done about them.
        two.here.connect()
        server.accept().close()
    assert memory_mib() - before < 100


def test_more_replies_than_requests_are_a_loss(server: FakeServer) -> None:
    with connected(server) as two:
        two.there.sendall(b"+a\r\n+b\r\n")
        with pytest.raises(Lost, match="more replies than there were requests"):
            two.here.call("X")
        assert not two.here.connected


def test_a_reply_that_never_ends_is_late_all_the_same(server: FakeServer) -> None:
    with connected(server) as two:
        stop = threading.Event()

        def trickle() -> None:
            two.there.sendall(b"$100000000\r\n")
            with suppress(OSError):
                while not stop.wait(0.001):
                    two.there.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        with pytest.raises(Lost, match="did not answer in time"):
            two.here.call("X", timeout=0.2)
        assert time.monotonic() - started < 60
        stop.set()
        thread.join()


# -- greeting ----------------------------------------------------------------------------------


def refused(
    answer: bytes, url: str = "redis://:geheim@127.0.0.1:{}/1", key: str = ""
) -> WakeqError:
    """Return what connecting to a server that answers so ends with."""
    with FakeServer(lambda _request: answer) as fake:
        connection = Connection(RedisURL(url.format(fake.port)), "wakeq-test", key)
        try:
            connection.connect()
        except WakeqError as error:
            assert not connection.connected
            assert "geheim" not in str(error)
            return error
        finally:
            connection.close()
    raise AssertionError("it connected")


def info(version: str) -> bytes:
    text = f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"
    return f"${len(text)}\r\n{text}\r\n".encode()


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "5.0.3", "2.8.19"])
def test_says_that_the_server_is_too_old(version: str) -> None:
    error = refused(b"+OK\r\n:7\r\n" + info(version), "redis://127.0.0.1:{}")
    assert isinstance(error, ConfigError)
    assert f"is version {version.rpartition('.')[0]}; wakeq needs Redis 7.0 or" in str(error)


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "255.255.255", "10.0", "8", "unstable", ""])
def test_a_server_that_is_new_enough_or_does_not_say_is_welcome(version: str) -> None:
    with FakeServer(lambda _request: b"+OK\r\n:7\r\n" + info(version)) as fake:
        connection = Connection(RedisURL(fake.url), "wakeq-test")
        connection.connect()
        assert connection.client_id == 7
        connection.close()


def test_says_why_a_server_in_protected_mode_hangs_up() -> None:
    answer = b"-DENIED Redis is running in protected mode\r\n"
    with FakeServer(lambda _request: answer, hangs_up=True) as fake:
        connection = Connection(RedisURL(fake.url), "wakeq-test")
        with pytest.raises(RefusedError, match="does not permit this user: DENIED"):
            connection.connect()
        assert not connection.connected


def test_never_shows_a_password_that_the_server_repeats() -> None:
    answer = (
        b"-ERR unknown command 'AUTH', with args beginning with: 'geheim' \r\n" + b"-ERR x\r\n" * 4
    )
    error = refused(answer)
    assert "ERR unknown command 'AUTH'" in str(error)


@pytest.mark.parametrize(
    "moved", ["MOVED", "MOVED 1 x", "MOVED 1 x:y", "MOVED 1 127.0.0.1:99999", "MOVED 1 a..b:1"]
)
def test_a_redirection_to_nowhere_is_a_loss(moved: str) -> None:
    answer = b"".join(GREETING) + f"-{moved}\r\n".encode()
    assert isinstance(refused(answer, "redis+cluster://127.0.0.1:{}", "k"), Lost)


def test_gives_up_a_key_that_is_moved_around() -> None:
    port = 0
    with FakeServer(
        lambda _request: b"".join(GREETING) + b"-MOVED 1 127.0.0.1:%d\r\n" % port
    ) as fake:
        port = fake.port
        connection = Connection(RedisURL(f"redis+cluster://127.0.0.1:{port}"), "t", "k")
        with pytest.raises(UnavailableError, match="moves the key around: MOVED 1"):
            connection.connect()


def test_a_redirection_without_a_host_means_the_one_that_was_asked() -> None:
    answers = iter([b"".join(GREETING) + b"-MOVED 1 :%d\r\n", b"".join(GREETING) + b":1\r\n"])
    with FakeServer(lambda _request: next(answers).replace(b"%d", str(fake.port).encode())) as fake:
        connection = Connection(RedisURL(f"redis+cluster://127.0.0.1:{fake.port}"), "t", "k")
        connection.connect()
        assert connection.call_many([]) == []
        connection.close()


lookup = _socket.getaddrinfo


def only_here(host: str | bytes, port: int, *more: int) -> list[tuple[Any, ...]]:
    """Find the addresses of a name that a redirection may give: no server is asked for them."""
    found = lookup(host, port, *more, 0, _socket.AI_NUMERICHOST)
    if any(not address[4][0].startswith("127.") for address in found):
        raise OSError(f"{host!r} is elsewhere")
    return found


@settings(bounded, max_examples=100)
@given(st.data())
def test_a_garbled_greeting_connects_or_says_what_is_wrong(
    data: st.DataObject,
) -> None:
    scheme, last = data.draw(
        st.sampled_from([("redis", b""), ("redis+cluster", b":0\r\n"),
                         ("redis+cluster", b"-MOVED 1 127.0.0.1:1\r\n")])
    )  # fmt: skip
    answer = data.draw(garbled(b"".join(GREETING) + last))
    started = time.monotonic()

    with (
        FakeServer(lambda _request: answer, hangs_up=True) as fake,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tcp._socket, "getaddrinfo", only_here)
        connection = Connection(RedisURL(f"{scheme}://127.0.0.1:{fake.port}"), "t", "k")
        try:
            connection.connect()
        except WakeqError:
            assert not connection.connected
        connection.close()
    assert time.monotonic() - started < 60
