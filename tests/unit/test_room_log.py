"""Who is given what of a room's log, and what is told to be done, when clients come and go."""

from __future__ import annotations

from typing import Any

import pytest

from wakeq.fanout.delivery import Ask, RoomMessage, Seat
from wakeq.fanout.log_reader import LogReader
from wakeq.fanout.tally import Tally

NOW = 1_700_000_000_000_000


class Log:
    """A log with out-of-band messages, their numbers as their data, and who reads it."""

    def __init__(self, **since: int) -> None:
        self.tally = Tally()
        self.seats: dict[str, Seat] = {}
        self.reader = LogReader("r", self.tally, self.seats)
        self.logged = self.known_done = 0
        self.removed = 0  # all up to there
        for client, number in since.items():
            self.join(client, number)

    def join(self, client: str, since: int, mode: str = "sync") -> None:
        self.seats[client] = Seat(mode, since, 0)
        self.reader.join(client, since)

    def ask(self) -> tuple[Ask, int | None]:
        """Return what it asks, and after which number it reads on."""
        assert self.reader.next_message() is None
        assert self.reader.has_ask
        return self.reader.ask(), self.reader.place[0]

    def reply(self, asked: tuple[Ask, int | None], rounds: int = 0, most: int = 100) -> None:
        ask, after = asked
        start = self.known_done if after is None or after > self.logged else after
        first = max(start, self.removed) + 1
        entries: list[Any] = []
        for number in range(first, min(self.logged, start + most) + 1):
            data = b"%d%05d%d" % (NOW + number, 0, number)
            entries += [number, rounds, data]
        self.reader.take(ask, [self.logged, NOW, start, entries])

    def write(self, count: int) -> None:
        self.logged += count
        self.reader.hear(self.logged)

    def hand_out(self, most: int = 10**6) -> list[str]:
        """Return who was given which number, in order; all of it is done then."""
        found: list[str] = []
        while len(found) < most and (message := self.reader.next_message()) is not None:
            found.append(message.client + message.text())
            self.reader.finish(message)
        return found

    def read(self, **how: int) -> list[str]:
        """Read on once, and hand out what there is."""
        self.reply(self.ask(), **how)
        return self.hand_out()

    def read_all(self) -> list[str]:
        """Read on as long as there is something to ask."""
        found: list[str] = []
        for _ in range(50):
            if not self.reader.has_ask:
                return found
            found += self.read()
        raise AssertionError("it asks for ever")

    @property
    def done(self) -> int | None:
        return self.reader.place[1]


def begun(**since: int) -> Log:
    """Return a log of which everybody has what there is: three messages."""
    log = Log(**since)
    log.write(3)
    log.read_all()
    return log


def test_who_was_not_known_yet_is_given_what_was_read_meanwhile_and_nobody_else() -> None:
    log = begun(a=0, b=0)
    log.join("c", 1)
    assert log.done == 1
    assert log.read_all() == ["c2", "c3"]
    assert log.done == 3
    log.write(1)
    assert log.read_all() == ["a4", "b4", "c4"]


def test_who_has_all_that_was_read_makes_nobody_go_back() -> None:
    log = begun(a=0)
    log.join("b", 3)
    assert (log.read_all(), log.done) == ([], 3)
    log.write(1)
    assert log.read_all() == ["a4", "b4"]


def test_goes_back_to_the_furthest_behind_and_gives_each_what_he_lacks() -> None:
    log = begun(a=0)
    log.join("b", 2)
    log.join("c", 1)
    log.write(1)
    assert log.read_all() == ["c2", "b3", "c3", "a4", "b4", "c4"]


def test_goes_back_in_steps_as_large_as_all_others() -> None:
    log = begun(a=0)
    log.write(5)
    log.read_all()
    log.join("b", 0)
    log.join("c", 3)
    assert log.read(most=2) == ["b1", "b2"]
    assert log.done == 2
    assert log.read(most=2) == ["b3", "b4", "c4"]
    assert log.read_all() == [client + str(n) for n in range(5, 9) for client in "bc"]
    assert log.done == 8


def test_what_was_read_is_done_before_it_goes_back_and_not_told_as_done_before() -> None:
    log = Log(a=0)
    log.write(3)
    log.reply(log.ask())
    log.join("b", 0)
    assert log.hand_out(2) == ["a1", "a2"]
    assert log.done == 0
    assert log.hand_out() == ["a3"]
    assert log.reader.place == (0, 0)
    assert log.read_all() == ["b1", "b2", "b3"]


def test_a_reply_that_was_under_way_gives_nothing_to_who_lacks_what_comes_before() -> None:
    log = begun(a=0)
    log.write(1)
    asked = log.ask()
    log.join("b", 1)
    log.reply(asked)
    assert log.hand_out() == ["a4"]
    assert log.done == 1
    assert log.read_all() == ["b2", "b3", "b4"]


@pytest.mark.parametrize("since", [0, 1, 2])
def test_who_joins_while_it_is_asked_where_the_worker_was(since: int) -> None:
    log = Log(a=0)
    log.write(3)
    log.known_done = 1
    asked = log.ask()
    log.join("b", since)  # at 0: handed over by another worker, just after that was answered
    log.reply(asked)
    given = log.hand_out() + log.read_all()
    assert [each for each in given if each[0] == "a"] == ["a2", "a3"]
    assert [each for each in given if each[0] == "b"] == [f"b{n}" for n in range(since + 1, 4)]


def test_who_was_there_before_is_given_what_the_worker_has_not_done() -> None:
    log = Log(a=0, b=0)
    log.write(3)
    log.known_done = 2
    assert log.read_all() == ["a3", "b3"]


def test_a_reply_that_comes_after_a_doubt_counts_for_nothing() -> None:
    log = begun(a=0)
    log.write(1)
    asked = log.ask()
    log.reader.doubt()
    log.reply(asked)
    assert log.hand_out() == []
    assert log.read_all() == ["a4"]


def test_what_was_in_hand_when_another_process_took_over_does_not_say_what_is_done() -> None:
    log = Log(a=0)
    log.write(3)
    log.reply(log.ask())
    message = log.reader.next_message()
    assert isinstance(message, RoomMessage)
    log.reader.let_go()
    log.reader.finish(message)
    assert log.reader.place == (None, None)
    assert log.read_all() == ["a1", "a2", "a3"]


def test_who_was_behind_and_has_left_holds_up_nothing() -> None:
    log = begun(a=0)
    log.join("b", 1)
    del log.seats["b"]
    log.reader.begin_leave("b")
    log.reader.leave("b")
    assert (log.read_all(), log.done) == ([], 3)


def test_who_could_not_leave_is_given_nothing_twice_and_lacks_nothing() -> None:
    log = begun(a=0, b=0)
    log.write(1)
    log.reply(log.ask())
    del log.seats["b"]
    log.reader.begin_leave("b")
    log.write(1)
    assert log.hand_out() == ["a4", "b4"]
    assert log.read() == ["a5"]
    log.join("b", 0)
    assert log.read_all() == ["b5"]


def test_who_listens_to_all_now_is_given_the_rounds_that_were_passed_over() -> None:
    log = Log(a=0)
    log.write(2)
    assert log.read(rounds=1) == []
    log.join("a", 1, "async")
    assert log.read(rounds=1) == ["a2"]


def test_what_redis_has_lost_is_given_again_under_its_new_numbers() -> None:
    log = begun(a=0)
    log.logged = log.known_done = 1
    log.reader.hear(1)
    log.read_all()
    log.write(2)
    assert log.read_all() == ["a2", "a3"]


def test_only_who_lacks_it_has_missed_what_was_removed() -> None:
    log = begun(a=0, b=0)
    log.join("c", 1)
    log.write(2)
    log.removed = 4
    assert log.read_all() == ["a5", "b5", "c5"]
    assert log.tally.missed == 1 + 1 + 3


def test_what_nobody_has_any_more_is_missed_once() -> None:
    log = Log(a=0)
    log.write(3)
    log.removed = 3
    assert (log.read_all(), log.tally.missed, log.done) == ([], 3, 3)
    log.join("b", 1)
    assert (log.read_all(), log.tally.missed, log.done) == ([], 5, 3)


def test_what_redis_has_lost_is_given_again_also_while_somebody_is_behind() -> None:
    log = begun(a=0)
    log.write(5)
    log.read_all()
    log.join("b", 2)
    log.logged = log.known_done = 3
    log.reader.hear(3)
    log.read_all()
    log.write(3)
    given = log.read_all()
    assert [each for each in given if each[0] == "a"] == ["a4", "a5", "a6"]


def test_what_is_to_be_read_again_for_somebody_is_not_handed_out_before() -> None:
    log = Log(a=0, b=0)
    log.write(3)
    log.reply(log.ask())
    assert log.hand_out(2) == ["a1", "b1"]
    seat = log.seats.pop("a")  # another worker has him, and this one again
    log.reader.leave("a")
    log.seats["a"] = seat
    log.reader.join("a", 1)
    assert log.hand_out() + log.read_all() == ["b2", "b3", "a2", "a3"]


def test_a_refused_read_makes_whatever_is_heard_next_news() -> None:
    log = begun(a=0)
    log.write(1)
    ask, _ = log.ask()
    log.reader.take(ask, [-1, NOW, 0, []])
    assert not log.reader.has_ask
    log.reader.hear(4)
    assert log.read_all() == ["a4"]


def test_nothing_is_told_as_done_past_who_may_stay() -> None:
    log = begun(a=0, b=0)
    del log.seats["b"]
    log.reader.begin_leave("b")
    log.write(2)
    assert log.read_all() == ["a4", "a5"]
    assert log.done == 3
    log.reader.keep_leaving(["b"])
    assert log.done == 3
    log.reader.keep_leaving([])
    assert (log.read_all(), log.done) == ([], 5)


def test_who_came_after_what_was_removed_has_missed_nothing() -> None:
    log = begun(a=0)
    log.logged = log.removed = 10
    log.join("b", 10)
    del log.seats["a"]
    log.reader.hear(10)
    assert (log.read_all(), log.tally.missed) == ([], 0)


def test_looks_for_who_is_behind_once_for_each_number(monkeypatch: pytest.MonkeyPatch) -> None:
    log = begun(a=0)
    for number in range(500):
        log.join(f"b{number}", 2)
    settled: list[None] = []
    settle = log.reader._settle
    monkeypatch.setattr(log.reader, "_settle", lambda: (settled.append(None), settle()))
    assert len(log.read_all()) == 500
    assert len(settled) < 10
