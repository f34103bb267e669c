"""The parts of wakeq-fanout that need no server: its lines, and what a connection does."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_servers import wait_until
from wakeq.fanout import protocol
from wakeq.fanout.clerk import Clerk
from wakeq.fanout.door import Door
from wakeq.fanout.patience import Patience
from wakeq.fanout.peer import Limits, Peer
from wakeq.fanout.records import Queued
from wakeq.loop import Timer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip
LIMITS = Limits(line=100, unread=1000)


@pytest.fixture
def pair() -> Iterator[tuple[Peer, socket.socket]]:
    """A connection, and its other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    peer = Peer(ours, "client", LIMITS)
    yield peer, theirs
    peer.close()
    theirs.close()


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_line_is_a_request_or_an_error_with_a_text(line: bytes) -> None:
    try:
        asked = protocol.read(line)
    except protocol.BadRequest as error:
        assert error.code in ("bad-line", "bad-request")
        assert 0 < len(str(error)) < 300
        json.loads(protocol.refused(error.ref, error.code, str(error)))
    else:
        assert asked.op


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_a_line_may_be_nested_a_hundred_times_and_no_further() -> None:
    line = b'{"op":"send","room":"r","data":%b}'
    assert protocol.read(line % nested(100)).fields["data"]
    assert protocol.read(line % (b"[" + b",".join([nested(99)] * 200) + b"]"))
    for depth in (101, *range(960, 1000), 100_000):
        with pytest.raises(protocol.BadRequest, match="nested too deeply"):
            protocol.read(line % nested(depth))


def test_what_others_sent_and_is_nested_further_is_text() -> None:
    for depth in (200, *range(960, 1000), 100_000):
        message = Queued("1" * 16, nested(depth), "p", 1)
        event = json.loads(protocol.delivery("r", message, oob=False))
        assert event["data"] == nested(depth).decode()
        found = protocol.granted(None, {"messages": [protocol.queued(message)]})
        assert json.loads(found)["messages"][0]["data"] == nested(depth).decode()


@given(JSON, JSON)
def test_data_and_refs_come_back_as_they_were(data: object, ref: object) -> None:
    line = json.dumps({"op": "send", "room": "r", "data": data, "ref": ref}).encode()
    asked = protocol.read(line)
    message = Queued("1" * 16, protocol.as_json(asked.fields["data"]), "p", 1)
    event = protocol.delivery("r", message, oob=False)
    assert event.count(b"\n") == 1
    assert json.loads(event)["data"] == data
    assert protocol.queued(message)["data"] == data
    assert json.loads(protocol.granted(asked.ref))["ref"] == ref


@given(st.binary())
def test_whatever_was_sent_by_others_is_an_event_of_one_line(raw: bytes) -> None:
    event = protocol.delivery("r\n", Queued("1" * 16, raw, "p\n", 1), oob=True)
    assert event.count(b"\n") == 1
    assert event.endswith(b"\n")
    assert json.loads(event)["event"] == "message"
    protocol.as_json(protocol.queued(Queued("1" * 16, raw, "p", 1)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_lines_are_the_same_in_whatever_pieces_they_come(
    pair: tuple[Peer, socket.socket], size: int
) -> None:
    peer, theirs = pair
    raw = b"one\n\n  \r\n" + b"x" * 100 + b"\n" + b"y" * 101 + b"\n" + b"z" * 250 + b"\ntwo\nlast"
    for start in range(0, len(raw), size):
        theirs.sendall(raw[start : start + size])
        peer.receive()
    theirs.close()
    while not peer.ended:
        peer.receive()
    lines = [peer.next_line() for _ in iter(lambda: peer.has_line, False)]
    assert lines == [b"one", b"x" * 100, None, None, b"two", b"last"]


def test_more_is_wanted_only_while_not_too_much_waits(pair: tuple[Peer, socket.socket]) -> None:
    peer, theirs = pair
    assert peer.wants_more
    theirs.setblocking(False)
    while peer.wants_more:
        theirs.send(b"x\n" * 100)
        peer.receive()
    while peer.has_line:
        peer.next_line()
    assert peer.wants_more
    peer.put(b"x" * 501)
    assert not peer.wants_more
    assert not peer.has_room(500)
    assert peer.has_room(499)


def test_what_waits_is_dropped_behind_the_line_that_was_begun(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    long = b"x" * 2_000_000 + b"\n"
    peer.put(long)
    peer.put(b"dropped\n")
    peer.put(b"kept\n")
    peer.send()
    assert 0 < peer.unsent < len(long) + 13
    peer.put(b"dropped, too\n")
    peer.put(b"kept, too\n")

    peer.drop_unsent(b"dropped")
    peer.put(b"last\n")

    received = b""
    while peer.unsent:
        received += theirs.recv(1_000_000)
        peer.send()
    theirs.settimeout(10)
    while not received.endswith(b"last\n"):
        received += theirs.recv(1_000_000)
    assert received == long + b"kept\nkept, too\nlast\n"


def test_who_hangs_up_is_read_to_the_end_and_written_to_no_more(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    theirs.sendall(b"one\ntwo\n")
    theirs.close()
    peer.put(b"answer\n")
    peer.send()
    assert (peer.is_deaf, peer.unsent) == (True, 0)
    while not peer.ended:
        peer.receive()
    assert [peer.next_line(), peer.next_line()] == [b"one", b"two"]


def test_a_connection_that_has_gone_is_held_by_nothing_that_waits_for_it(
    pair: tuple[Peer, socket.socket],
) -> None:
    silent: list[str] = []
    loop = Times()
    patience = Patience(loop, lambda _, room: silent.append(room))  # type: ignore[arg-type]
    for number in range(1000):
        theirs = socket.socket()
        gone = Peer(theirs, "client", LIMITS)
        theirs.close()
        patience.expect(gone, "r", 86_400.0 + number % 7)
        patience.forget(gone, "r")
    assert len(loop.timers) < 10
    assert len(patience._due) < 100
    held = [each for each in gc.get_objects() if isinstance(each, Peer) and each is not pair[0]]
    assert len(held) < 100


def test_who_is_silent_for_long_enough_is_told_of_once(pair: tuple[Peer, socket.socket]) -> None:
    peer, theirs = pair
    silent: list[str] = []
    loop = Times()
    patience = Patience(loop, lambda _, room: silent.append(room))  # type: ignore[arg-type]
    patience.expect(peer, "long", 1000.0)
    patience.expect(peer, "short", 0.0)
    patience.expect(peer, "forgotten", 0.0)
    patience.forget(peer, "forgotten")
    loop.run()
    assert silent == ["short"]
    peer.heard_at -= 1000.0  # it has been
    patience.expect(peer, "again", 0.0)
    patience.expect(peer, "again", 999.0)
    loop.run()
    assert silent == ["short"]
    theirs.close()


class Times:
    """A loop that has time pass when it is told to."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(time.monotonic() + seconds, callback))
        return self.timers[-1]

    def run(self) -> None:
        """Call what is due."""
        due = [timer for timer in self.timers if timer.when <= time.monotonic()]
        for timer in due:
            self.timers.remove(timer)
            if timer.callback is not None:
                timer.callback()


@pytest.mark.parametrize("begun", [False, True], ids=["before", "busy"])
def test_a_fault_of_ours_is_an_answer_and_logged_and_ends_at_most_that_connection(
    pair: tuple[Peer, socket.socket], begun: bool
) -> None:
    def fault(*_: object) -> Any:
        raise KeyError("of ours")

    peer, _ = pair
    logged: list[tuple[str, str]] = []
    log: Any = SimpleNamespace(error=lambda event, detail: logged.append((event, detail)))
    door: Any = SimpleNamespace(put=lambda peer, line: peer.put(line))
    core = SimpleNamespace(metrics=(lambda *_: None) if begun else fault)
    gateway: Any = SimpleNamespace(core=core)
    link: Any = SimpleNamespace(run=fault)
    clerk = Clerk(log, door, gateway, link, LIMITS)

    clerk.take(peer, b'{"op":"metrics","ref":5}')

    answer = json.loads(peer._out[0])
    assert (answer["ref"], answer["ok"], answer["error"]) == (5, False, "failed")
    (event, detail) = logged[0]
    assert event == "failed to carry out a request"
    assert "KeyError: 'of ours'" in detail
    assert peer.closed == begun


@pytest.mark.parametrize("why", ["busy", "quiet"])
def test_what_comes_from_who_must_wait_is_received_and_its_end_noticed_once(why: str) -> None:
    taken: list[bytes | None] = []
    loop: Any = SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None)
    host: Any = SimpleNamespace(
        greet=lambda sock: Peer(sock, "client", LIMITS),
        take=lambda peer, line: taken.append(line),
        part=lambda peer: None,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    door = Door(loop, [listener], 10, 1.0)
    door.host = host
    door.open()
    theirs = socket.create_connection(listener.getsockname())
    wait_until(lambda: turned(door) and bool(door.peers))
    (peer,) = door.peers.values()
    if why == "quiet":
        door.quiet()
    peer.busy = why == "busy"
    before = peer.heard_at

    theirs.sendall(b"one\n")
    wait_until(lambda: turned(door) and peer.has_line)
    theirs.close()
    wait_until(lambda: turned(door) and peer.ended)

    assert peer.heard_at > before
    assert door._epoll.poll(0) == []
    assert taken == []
    door.close()
    listener.close()


def turned(door: Door) -> bool:
    """Do what a turn of the loop does."""
    door._poll()
    door.flush()
    return True
