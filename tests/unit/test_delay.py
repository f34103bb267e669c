"""wakeq-delay's parts that need no server: its agenda, its clock, what its repair is told."""

from __future__ import annotations

import tracemalloc

import pytest

from wakeq.delay import agenda as module
from wakeq.delay.agenda import Agenda, Clock
from wakeq.delay.failed import FailedMessage
from wakeq.delay.repair import answer
from wakeq.replies import ServerError, is_of_key
from wakeq.worker import Inbox, packed


def test_the_agenda_gives_each_stream_once_at_its_last_given_time() -> None:
    agenda = Agenda()
    agenda.put("a", 5)
    agenda.put("b", 3)
    agenda.put("a", 1)
    agenda.put("a", 7)
    assert agenda.next_ms() == 3
    assert list(agenda.take(6)) == ["b"]
    assert agenda.next_ms() == 7
    assert list(agenda.take(7)) == ["a"]
    assert agenda.next_ms() is None


def test_hastening_never_makes_it_later() -> None:
    agenda = Agenda()
    agenda.hasten("a", 5)
    agenda.hasten("a", 7)
    assert agenda.next_ms() == 5
    agenda.hasten("a", 2)
    assert agenda.next_ms() == 2


def test_looks_that_find_the_same_time_again_leave_nothing_behind() -> None:
    agenda = Agenda()
    agenda.put("first", 1e9)
    agenda.put("orders", 2e9)
    agenda.put("mail", 3e9)
    tracemalloc.start()
    try:
        for now in range(10_000):
            agenda.hasten("orders", now)
            assert list(agenda.take(now)) == ["orders"]
            agenda.put("orders", 2e9)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert list(agenda.take(4e9)) == ["first", "orders", "mail"]


def test_what_is_dropped_from_the_agenda_does_not_come() -> None:
    agenda = Agenda()
    agenda.put("a", 1)
    agenda.drop("a")
    agenda.drop("b")
    assert list(agenda.take(9)) == []
    agenda.put("a", 1)
    agenda.clear()
    assert agenda.next_ms() is None


def test_what_is_put_back_while_it_is_taken_comes_again() -> None:
    agenda = Agenda()
    agenda.put("a", 1)
    taken = []
    for stream in agenda.take(9):
        taken.append(stream)
        if len(taken) < 3:
            agenda.put(stream, 2)
    assert taken == ["a"] * 3


def test_the_clock_goes_on_by_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    clock = Clock()
    clock.set(5_000_000_250)
    assert clock.now_ms() == pytest.approx(5_000_000.25)
    now_s = 101.5
    assert clock.now_ms() == pytest.approx(5_001_500.25)
    clock.set(1_000_000)  # the server's clock was set back
    assert clock.now_ms() == pytest.approx(1000)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_said_arrives_whole_in_whatever_pieces(size: int) -> None:
    said = ("orders", "g", b"7-0", [b"body", b"x" * 5000])
    raw = packed(said)
    inbox = Inbox()
    answers = [inbox.take(raw[i : i + size]) for i in range(0, len(raw), size)]
    assert answers == [None] * (len(answers) - 1) + [said]


def test_a_repair_sees_why_and_how_often_a_message_failed() -> None:
    items = [b"wakeq.attempt", b"3", b"wakeq.first_id", b"7-0", b"wakeq.error", b"E: no"]
    message = FailedMessage("orders", "g", b"7-0", [*items, b"body", b"x"])
    assert (message.id, message.group, message.attempt, message.failures) == ("7-0", "g", 3, 2)
    assert (message.error, message.fields) == ("E: no", {b"body": b"x"})
    bare = FailedMessage("orders", "g", b"7-0", [b"body", b"x"])
    assert (bare.error, bare.failures) == ("", 0)


def test_an_error_of_a_repair_is_told_in_one_line() -> None:
    def repair(_message: FailedMessage) -> dict[bytes, bytes]:
        raise ValueError("two\nlines " + "x" * 5000)

    kind, text, trace = answer(repair, ["orders", "g", b"7-0", [b"body", b"x"]])
    assert kind == "failed"
    assert text.startswith("ValueError: two lines xxx")
    assert len(text) == 1000
    assert "test_delay.py" in trace


@pytest.mark.parametrize(
    ("text", "of_key"),
    [
        # Redis 7.0; 7.2 and Valkey.
        ("NOPERM this user has no permissions to access one of the keys used as arguments", True),
        ("NOPERM No permissions to access a key", True),
        ("NOPERM User clerk has no permissions to run the 'evalsha' command", False),
        ("NOPERM No permissions to access a channel", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_tells_a_key_that_is_not_permitted_from_all_else(text: str, of_key: bool) -> None:
    assert is_of_key(ServerError(text)) == of_key
