"""What a worker's process decides about one room, told replies in orders that are rare."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from redis_servers import wait_until
from wakeq.fanout.core import Core
from wakeq.fanout.delivery import Ask, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.gateway import Gateway
from wakeq.fanout.office import FanoutTerms, Office
from wakeq.fanout.records import read_message
from wakeq.fanout.rooms import Rooms, encode, failures, refused
from wakeq.fanout.tally import Tally

NOW = 1_700_000_000_000_000
V = 7  # version of the list of clients


def raw(number: int, data: bytes = b"x", producer: bytes = b"") -> bytes:
    """Return a message as Redis holds it; it was sent so many µs before now."""
    return b"%d%05d%b%b" % (NOW - 1000 + number, len(producer), producer, data)


def look(rounds: int = 0, message: Any = None, waiting: Any = (), members: Any = (),
         version: int = V, logged: int = 0, elsewhere: int = 0) -> list[Any]:  # fmt: skip
    """Return a reply of room_look.lua."""
    rows = [part for name in members for part in (name, b"sync", 0, 0)]
    return [elsewhere, version, rows, rounds, message, list(waiting), logged, 0, [], -1, NOW, 0]


def acked(version: int = V, rounds: int = 1, message: Any = None, failed: Any = ()) -> list[Any]:
    """Return a reply of room_acknowledge.lua."""
    return [list(failed), version, rounds, 0, 0, message, NOW]


def read(logged: int, after: int = 0, *entries: Any) -> list[Any]:
    """Return a reply of room_read.lua."""
    return [logged, NOW, after, list(entries), V, [], 0]


def next_read(desk: Desk) -> Ask:
    step = desk.next_read()
    assert isinstance(step, Ask)
    return step


def take_read(desk: Desk, logged: int, after: int = 0, *entries: Any) -> None:
    """Have a desk read on in the log."""
    desk.take_read(next_read(desk), read(logged, after, *entries))


@pytest.fixture
def desk() -> Desk:
    """A desk with the clients a and b, and nothing to do."""
    desk = Desk("r", Tally(), reports=False)
    desk.take_look(next_ask(desk), look(members=[b"a", b"b"]))
    take_read(desk, 0)
    assert not desk.has_step
    assert not desk.has_read
    return desk


def next_ask(desk: Desk) -> Ask:
    step = desk.next_step()
    assert isinstance(step, Ask)
    return step


def handed_out(desk: Desk) -> list[RoomMessage]:
    """Return what is to be handed out now."""
    found: list[RoomMessage] = []
    while desk.has_step:
        step = desk.next_step()
        if not isinstance(step, RoomMessage):
            break
        found.append(step)
    return found


def begin_round(desk: Desk, rounds: int = 1) -> list[RoomMessage]:
    desk.hear(rounds, 0, 0, V)
    desk.take_look(next_ask(desk), look(rounds, raw(rounds), [b"a", b"b"]))
    return handed_out(desk)


def test_a_ring_while_the_log_is_read_is_not_forgotten(desk: Desk) -> None:
    desk.hear(0, 1, 0, V)
    ask = next_read(desk)
    desk.hear(0, 2, 0, V)
    desk.take_read(ask, read(1, 0, 1, 0, raw(1)))
    for _ in "ab":
        step = desk.next_read()
        assert isinstance(step, RoomMessage)
        desk.finish(step)
    assert next_read(desk).what == "read"
    assert desk.read_from == (1, 1)


def test_a_ring_while_a_look_is_under_way_is_not_forgotten(desk: Desk) -> None:
    desk.hear(1, 0, 0, V)
    ask = next_ask(desk)
    desk.hear(2, 0, 0, V)
    desk.take_look(ask, look(1))
    assert next_ask(desk).what == "look"


def test_a_message_is_handed_out_once_however_often_it_is_seen(desk: Desk) -> None:
    assert [message.client for message in begin_round(desk)] == ["a", "b"]
    desk.doubt_look()
    desk.take_look(next_ask(desk), look(1, raw(1), [b"a", b"b"]))
    assert handed_out(desk) == []


def test_what_redis_has_forgotten_is_acknowledged_again(desk: Desk) -> None:
    for message in begin_round(desk):
        desk.acknowledge(message.client, message.id)
    ask = next_ask(desk)
    assert (ask.what, ask.clients) == ("ack", ["a", "b"])
    desk.take_ack(ask, acked())
    desk.doubt_look()
    desk.take_look(next_ask(desk), look(1, raw(1), [b"a"]))  # a replica that lacks it
    ask = next_ask(desk)
    assert (ask.what, ask.clients) == ("ack", ["a"])
    assert ask.message_id == read_message(raw(1)).id


@pytest.mark.parametrize(
    ("code", "repeated", "counted"),
    [(b"not-outstanding", False, False), (b"not-waited-for", True, False),
     (b"not-outstanding", True, True), (b"doubled", False, True)],
)  # fmt: skip
def test_what_was_acknowledged_in_vain_is_handed_out_again(
    desk: Desk, code: bytes, repeated: bool, counted: bool
) -> None:
    for message in begin_round(desk):
        desk.acknowledge(message.client, message.id)
    desk.take_ack(next_ask(desk), acked(failed=[b"a", code]), repeated)
    desk.doubt_look()
    desk.take_look(next_ask(desk), look(1, raw(1), [b"a", b"b"]))
    steps = [desk.next_step() for _ in iter(lambda: desk.has_step, False)]
    given = [step.client for step in steps if isinstance(step, RoomMessage)]
    asked = [step.clients for step in steps if isinstance(step, Ask)]
    assert (given, asked) == (([], [["a", "b"]]) if counted else (["a"], [["b"]]))


def test_the_reply_to_the_last_acknowledgement_carries_the_next_message(desk: Desk) -> None:
    first, second = begin_round(desk)
    desk.acknowledge(first.client, first.id)
    desk.take_ack(next_ask(desk), acked())
    desk.acknowledge(second.client, second.id)
    desk.take_ack(next_ask(desk), acked(rounds=2, message=raw(2)))
    assert [message.client for message in handed_out(desk)] == ["a", "b"]
    assert not desk.has_step


def test_who_joined_during_a_round_is_not_given_it(desk: Desk) -> None:
    messages = begin_round(desk)
    desk.take_joined("c", "sync", [0, V + 1, 0, 1])
    for message in messages:
        desk.acknowledge(message.client, message.id)
    desk.take_ack(next_ask(desk), acked(V + 1, 1, raw(1)))
    assert "c" not in {message.client for message in handed_out(desk)}
    desk.take_ack(Ask("ack", "0" * 16, ()), acked(V + 1, 2, raw(2)))
    assert "c" in {message.client for message in handed_out(desk)}


def test_who_was_subscribed_by_others_is_seen_when_somebody_joins_here_again(desk: Desk) -> None:
    desk.take_joined("a", "sync", [0, V + 1, 0, 0])  # by now there is c, which is what V + 1 says
    # Redis names the clients to who does not know them: in that version.
    assert desk.version == -1
    desk.take_look(next_ask(desk), look(version=V + 1, members=[b"a", b"b", b"c"]))
    assert set(desk.seats) == {"a", "b", "c"}


def test_a_look_from_before_somebody_joined_here_removes_nobody(desk: Desk) -> None:
    desk.doubt_look()
    ask = next_ask(desk)
    desk.take_joined("c", "sync", [0, V + 1, 0, 0])
    desk.take_look(ask, look(version=V - 1, members=[b"a"]))
    assert set(desk.seats) == {"a", "b", "c"}
    assert desk.ejected == []
    assert next_ask(desk).what == "look"


def test_a_look_from_before_somebody_left_here_brings_nobody_back(desk: Desk) -> None:
    desk.begin_leave("a")
    desk.doubt_look()
    ask = next_ask(desk)
    desk.take_look(ask, look(1, raw(1), [b"a", b"b"], [b"a", b"b"], version=V + 1))
    assert [message.client for message in handed_out(desk)] == ["b"]
    desk.end_leave("a")
    desk.take_look(next_ask(desk), look(1, raw(1), [b"b"], [b"b"], version=V + 2))
    assert (set(desk.seats), desk.ejected) == ({"b"}, [])


def test_who_is_missing_was_ejected_for_the_reason_that_is_known(desk: Desk) -> None:
    desk.take_failures([b"a", b"timed-out"])
    desk.take_look(next_ask(desk), look(members=[], version=V + 1))
    assert sorted(desk.ejected) == [("a", "timed-out"), ("b", "")]


def test_begins_nothing_that_another_process_has(desk: Desk) -> None:
    desk.hear(1, 0, 0, V)
    desk.take_look(next_ask(desk), look(1, raw(1), [b"a", b"b"]))
    desk.hear(1, 0, 0, -1)
    assert next_ask(desk).what == "look"  # and nothing is handed out before
    desk.take_look(Ask("look"), look(elsewhere=2000))
    assert (desk.is_ours, desk.check_in) == (False, pytest.approx(2.0, abs=0.1))
    desk.hear(2, 1, 0, V + 1)
    assert not desk.has_step
    assert not desk.has_read
    desk.hear(2, 1, 0, V + 1, is_free=True)
    desk.take_look(next_ask(desk), look(1, raw(1), [b"a"], [b"a"], version=V + 1))
    assert [message.client for message in handed_out(desk)] == ["a"]


def test_what_got_no_reply_is_asked_again(desk: Desk) -> None:
    for message in begin_round(desk):
        desk.acknowledge(message.client, message.id)
    ask = next_ask(desk)
    desk.put_back(ask)
    again = next_ask(desk)
    assert (again.message_id, again.clients) == (ask.message_id, ask.clients)


def test_a_read_that_failed_is_not_asked_again_before_it_is_put_back(desk: Desk) -> None:
    desk.hear(0, 1, 0, V)
    take_read(desk, 1, 0, 1, 0, raw(1))
    while isinstance(step := desk.next_read(), RoomMessage):
        desk.finish(step)
    assert isinstance(step, Ask)  # which also says that these are done
    assert not desk.has_read
    assert desk.next_read() is None
    desk.put_back(step)
    take_read(desk, 1, 1)
    assert not desk.has_read


def test_a_room_without_clients_is_kept_until_their_acknowledgements_are_answered(
    desk: Desk,
) -> None:
    for message in begin_round(desk):
        desk.acknowledge(message.client, message.id)
    ask = next_ask(desk)
    desk.hear(1, 0, 0, V + 1)
    desk.take_look(next_ask(desk), look(1, version=V + 1))
    desk.ejected.clear()
    assert not (desk.seats or desk.is_idle)
    desk.put_back(ask)
    assert not desk.is_idle
    failed = [b"a", b"not-subscribed", b"b", b"not-subscribed"]
    desk.take_ack(next_ask(desk), acked(V + 1, failed=failed))
    assert desk.is_idle


def test_a_failed_message_is_not_handed_out_again_to_who_has_left(desk: Desk) -> None:
    first, second = begin_round(desk)
    desk.fail(first, 1.0)
    desk.fail(second, None)
    assert desk.retries[0][1] == 1.0
    desk.begin_leave("a")
    for message, _ in desk.retries:
        desk.again(message)
    (message,) = handed_out(desk)
    assert (message.client, message.attempt) == ("b", 2)


def test_what_was_removed_from_the_log_is_counted_as_missed(desk: Desk) -> None:
    tally = desk._tally
    desk.hear(0, 10, 0, V)
    take_read(desk, 10, 0, 8, 0, raw(8))
    assert tally.missed == 7 * 2
    while isinstance(step := desk.next_read(), RoomMessage):
        desk.finish(step)
    assert step is not None
    desk.take_read(step, read(10, 8))
    assert tally.missed == 9 * 2


def given_from_log(desk: Desk) -> list[tuple[str, str]]:
    """Hand out what waits of the log; who got what."""
    found = []
    while isinstance(step := desk.next_read(), RoomMessage):
        found.append((step.client, step.id))
        desk.finish(step)
    assert isinstance(step, Ask)  # which also says that all of it is done
    return found


def test_what_waits_of_the_log_is_not_given_to_who_has_left(desk: Desk) -> None:
    desk.hear(0, 2, 0, V)
    take_read(desk, 2, 0, 1, 0, raw(1), 2, 0, raw(2))
    first = desk.next_read()
    assert isinstance(first, RoomMessage)
    desk.begin_leave("b")
    desk.end_leave("b")
    desk.finish(first)
    assert (first.client, given_from_log(desk)) == ("a", [("a", read_message(raw(2)).id)])
    assert desk.read_from == (2, 2)


def test_what_a_late_look_says_is_not_given_to_who_has_joined_anew(desk: Desk) -> None:
    desk.hear(1, 0, 0, V)
    ask = next_ask(desk)
    reply = look(1, raw(1), [b"a", b"b"], members=[b"a", b"b"])
    desk.begin_leave("b")  # with its acknowledgement
    desk.end_leave("b")
    desk.take_joined("b", "sync", [0, V + 2, 0, 1])
    desk.take_look(ask, reply)
    step = desk.next_step()
    assert isinstance(step, RoomMessage)
    assert step.client == "a"
    assert isinstance(desk.next_step(), Ask)


def test_what_waits_of_the_log_is_not_given_to_who_was_timed_out(desk: Desk) -> None:
    desk.hear(0, 2, 0, V)
    take_read(desk, 2, 0, 1, 0, raw(1), 2, 0, raw(2))
    desk.take_failures([b"b", b"timed-out"])
    desk.take_look(next_ask(desk), look(version=V + 1, logged=2, members=[b"a"]))
    assert desk.ejected == [("b", "timed-out")]
    assert given_from_log(desk) == [("a", read_message(raw(number)).id) for number in (1, 2)]


def test_what_waits_of_the_log_is_given_to_who_could_not_leave(desk: Desk) -> None:
    desk.hear(0, 2, 0, V)
    take_read(desk, 2, 0, 1, 0, raw(1), 2, 0, raw(2))
    desk.begin_leave("b")
    desk.end_leave("b", has_left=False)
    ids = [read_message(raw(number)).id for number in (1, 2)]
    assert given_from_log(desk) == [(client, each) for each in ids for client in "ab"]


def test_what_waits_of_the_log_is_left_to_the_worker_that_has_the_client_now(desk: Desk) -> None:
    desk.hear(0, 2, 0, V)
    take_read(desk, 2, 0, 1, 0, raw(1), 2, 0, raw(2))
    desk.doubt_look()
    desk.take_look(next_ask(desk), look(version=V + 1, logged=2, members=[b"a"]))
    assert desk.ejected == [("b", "")]
    ids = [read_message(raw(number)).id for number in (1, 2)]
    assert given_from_log(desk) == [("a", each) for each in ids]


@pytest.mark.parametrize("mode", [b"sync", b"async"])
def test_what_waits_of_the_log_is_not_given_to_who_has_joined_anew(mode: bytes) -> None:
    desk = Desk("r", Tally(), reports=False)
    members = look(logged=3)
    members[2] = [b"a", b"async", 0, 0, b"b", b"async", 0, 0]
    desk.take_look(next_ask(desk), members)
    take_read(desk, 3, 0, 1, 1, raw(1), 2, 2, raw(2), 3, 3, raw(3))
    # It left, and came again behind the second one.
    anew = look(version=V + 1, logged=3)
    anew[2] = [b"a", mode, 2, 2, b"b", b"async", 0, 0]
    desk.doubt_look()
    desk.take_look(next_ask(desk), anew)
    given = given_from_log(desk)
    ids = [read_message(raw(number)).id for number in (1, 2, 3)]
    assert [message_id for client, message_id in given if client == "b"] == ids
    expected = ids[2:] if mode == b"async" else []
    assert [message_id for client, message_id in given if client == "a"] == expected


def joined(version: int, logged: int, after: int, *entries: Any) -> list[Any]:
    """Return a reply of room_read.lua that tells of a third client, which joined at number 1."""
    members = [part for name in (b"a", b"b", b"c") for part in (name, b"sync", 0, 0)]
    members[-2] = 1
    return [logged, NOW, after, list(entries), version, members, 0]


def test_who_has_joined_is_known_with_what_was_read(desk: Desk) -> None:
    desk.hear(0, 2, 0, V + 1)
    desk.take_read(next_read(desk), joined(V + 1, 2, 0, 1, 0, raw(1), 2, 0, raw(2)))
    given = [client + message_id[-1] for client, message_id in given_from_log(desk)]
    ids = [read_message(raw(number)).id[-1] for number in (1, 2)]
    assert given == ["a" + ids[0], "b" + ids[0], *(client + ids[1] for client in "abc")]
    assert desk.listed == V + 1
    assert next_ask(desk).what == "look"  # who has left is not told


def test_who_has_left_here_since_the_log_was_asked_for_does_not_come_back(desk: Desk) -> None:
    desk.take_joined("c", "sync", [0, V + 1, 1, 0])
    ask = next_read(desk)
    desk.begin_leave("c")
    desk.end_leave("c")
    desk.take_read(ask, joined(V + 1, 2, 0, 1, 0, raw(1), 2, 0, raw(2)))
    assert "c" not in desk.seats
    assert desk.listed == V + 1


def test_who_has_joined_by_an_older_reply_than_the_last_look_is_not_believed(desk: Desk) -> None:
    desk.hear(0, 2, 0, V + 1)
    ask = next_read(desk)
    desk.take_look(next_ask(desk), look(version=V + 2, members=[b"a", b"b"], logged=2))
    desk.take_read(ask, joined(V + 1, 2, 0, 1, 0, raw(1), 2, 0, raw(2)))
    assert "c" not in desk.seats


def test_what_was_read_before_a_look_that_found_nobody_brings_nobody_back(desk: Desk) -> None:
    desk.hear(0, 2, 0, 0)
    ask = next_read(desk)
    desk.take_look(next_ask(desk), look(version=0, logged=2))
    assert not desk.seats
    desk.take_read(ask, joined(V + 1, 2, 0, 1, 0, raw(1), 2, 0, raw(2)))
    assert not desk.seats
    # A list that is made anew later has a version that is later than that look.
    desk.take_joined("a", "sync", [0, NOW + 7, 2, 0])
    desk.take_read(
        next_read(desk), [2, NOW, 2, [], NOW + 8, [b"a", b"sync", 2, 0, b"b", b"sync", 2, 0], 2]
    )
    assert sorted(desk.seats) == ["a", "b"]


def test_whose_read_is_refused_looks_who_is_there_though_the_version_is_known(desk: Desk) -> None:
    desk.hear(0, 1, 0, V)
    desk.take_read(next_read(desk), [-1, NOW, 0, [], 0, [], 0])
    desk.take_look(next_ask(desk), look(logged=1))
    assert not desk.seats
    assert not desk.has_read


def test_knows_nobody_for_sure_once_the_version_has_gone_back(desk: Desk) -> None:
    assert desk.listed == V
    desk.hear(0, 0, 0, V - 1)  # a replica that lacked the last steps
    assert desk.listed == -1


def test_hands_out_what_a_refused_read_would_have_brought(desk: Desk) -> None:
    desk.hear(0, 1, 0, V)
    ask = next_read(desk)
    desk.take_read(ask, [-1, NOW, 0, [], 0, [], 0])  # another process had it, which has ended
    desk.take_look(next_ask(desk), look(logged=1, members=[b"a", b"b"]))
    assert next_read(desk).what == "read"


def test_who_could_not_leave_lacks_nothing(desk: Desk) -> None:
    desk.begin_leave("b")
    desk.hear(0, 1, 0, V)
    take_read(desk, 1, 0, 1, 0, raw(1))
    message = desk.next_read()
    assert isinstance(message, RoomMessage)
    desk.finish(message)
    assert (message.client, desk.next_read(), desk.read_from) == ("a", None, (1, 0))
    desk.end_leave("b", has_left=False)
    desk.take_look(next_ask(desk), look(members=[b"a", b"b"], logged=1))
    take_read(desk, 1, 0, 1, 0, raw(1))
    assert [client for client, _ in given_from_log(desk)] == ["b"]


def test_garbage_is_counted_and_passed_over(desk: Desk) -> None:
    desk.hear(1, 1, 0, V)
    desk.take_look(next_ask(desk), look(1, b"garbage", [b"a"]))
    take_read(desk, 1, 0, 1, 0, b"\xff" * 30)
    assert desk._tally.invalid == 2
    assert desk._tally.received == 0
    assert not desk.has_step


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\0\xff", b"\0\xff"), ("ü", "ü".encode()), ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'.encode()),
     (None, b"null"), (memoryview(b"m"), b"m")],
)  # fmt: skip
def test_data_is_sent_as_it_is_or_as_json(data: object, expected: bytes) -> None:
    assert encode(data) == expected


class Server:
    """What an office asks for its address."""

    url = ""


def test_one_look_is_due_however_many_say_so() -> None:
    office = Office(Core(Server(), 30.0, 0), FanoutTerms(), reports=False)
    desk = office.desk("r")
    for number in range(1000):
        desk.doubt_look()
        ask = next_ask(desk)
        reply = look(members=[b"a"])
        reply[9] = 60_000 - number % 10
        news = office.take(desk, ask, office.request(desk, ask), reply)
        assert news == (number == 0)
    assert len(office._timers) == 1
    assert not desk.has_step

    reply[9] = 1  # as soon as that
    desk.doubt_look()
    assert office.take(desk, next_ask(desk), office.request(desk, ask), reply)
    wait_until(lambda: office.run_timers() or desk.has_step)
    assert (next_ask(desk).what, len(office._timers)) == ("look", 1)


def test_what_fails_for_good_is_asked_ever_less_often_while_all_else_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    office = Office(Core(Server(), 30.0, 0), FanoutTerms(), reports=False)
    desk = office.desk("r")
    pauses: list[float] = []

    def note(seconds: float, _desk: Desk, callback: Callable[[], None]) -> None:
        pauses.append(seconds)
        callback()

    monkeypatch.setattr(office, "after", note)
    monkeypatch.setattr("random.uniform", lambda _least, most: most)
    for _ in range(8):
        ask = next_ask(desk)
        office.take(desk, ask, office.request(desk, ask), look(members=[b"a"]))
        office.put_back(desk, next_read(desk))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])

    ask = next_read(desk)
    office.take(desk, ask, office.request(desk, ask), read(0))
    office.put_back(desk, ask)
    assert pauses[-1] == pytest.approx(0.1)


def test_data_that_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode(object())


def test_a_message_is_read_as_room_lua_packs_it() -> None:
    found = read_message(raw(0, b"\0data", "prödücer::".encode()), b"-5")
    assert (found.data, found.producer, found.priority) == (b"\0data", "prödücer::", -5)
    for garbage in (b"", b"1" * 20, raw(0)[:20] + b"9" + b"x", b"x" * 16 + b"00000"):
        with pytest.raises(ValueError, match="no message"):
            read_message(garbage)


def test_an_error_names_client_room_and_code() -> None:
    error = refused("r", [b"a", b"timed-out", b"b", b"doubled"])
    assert error is not None
    assert (error.code, error.failed) == ("timed-out", {"a": "timed-out", "b": "doubled"})
    assert "client a of room r was timed out" in str(error)
    assert refused("r", []) is None
    assert list(failures([b"a", b"doubled"])) == [("a", "doubled")]


def test_a_script_is_sent_whole_once_and_again_when_it_is_missing() -> None:
    rooms = Rooms()
    assert rooms.state("r", False).command[0] == b"EVAL"
    request = rooms.state("r", False)
    assert request.command[0] == b"EVALSHA"
    assert request.send_whole()
    assert request.command[0] == b"EVAL"
    assert not request.send_whole()


def test_a_gateway_passes_over_what_waits_for_who_has_hung_up() -> None:
    desk = Desk("r", Tally(), reports=False)
    desk.take_look(next_ask(desk), look(members=[b"b"], logged=1))
    take_read(desk, 1, 0, 1, 0, raw(1))
    desk.begin_leave("b")
    left: list[object] = []
    gateway: Any = object.__new__(Gateway)
    gateway.office = SimpleNamespace(desks={"r": desk})
    gateway._members, gateway._door = {}, SimpleNamespace(behind=[])
    gateway.leaver = SimpleNamespace(is_about=lambda _room: True)
    gateway.leave = lambda *who: left.append(who)
    gateway._ask = lambda *_: None
    gateway._serve("r")
    # A second leave would take it out again if it comes back meanwhile.
    assert (left, desk.has_read) == ([], False)
