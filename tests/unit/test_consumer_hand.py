"""What a consumer has in hand, how much it asks for, and up to where it has come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.config import Consumer as Settings
from wakeq.consumer.hand import RETRY, STREAM, Hand, Member, before, parse_id
from wakeq.consumer.reader import Pace
from wakeq.message import Message


def message(entry_id: bytes, source: int = STREAM) -> Message:
    return Message("orders", source, entry_id, [b"body", b"x"])


def pace(prefetch: int = 512, concurrency: int = 1) -> Pace:
    settings = Settings()
    settings.prefetch, settings.concurrency = prefetch, concurrency
    return Pace(settings)


# -- the hand ---------------------------------------------------------------------------------


def test_takes_each_message_once() -> None:
    hand = Hand()
    first, again = message(b"1-0"), message(b"1-0")
    assert hand.take([first]) == [first]
    assert hand.take([again, message(b"2-0")])[0].entry_id == b"2-0"
    assert hand.unfinished == 2
    assert hand.holds(first)
    assert not hand.holds(again)


def test_the_same_id_in_the_other_stream_is_another_message() -> None:
    hand = Hand()
    hand.take([message(b"1-0")])
    assert len(hand.take([message(b"1-0", RETRY)])) == 1
    assert hand.unfinished == 2


def test_counts_each_message_once_however_often_it_is_finished() -> None:
    hand = Hand()
    first, second = messages = [message(b"1-0"), message(b"2-0")]
    hand.take(messages)
    hand.finish([first])
    hand.finish([first])
    assert hand.unfinished == 1
    assert hand.being_handled() == [second]
    hand.finish(messages)
    hand.drop(messages)
    hand.drop(messages)
    assert hand.unfinished == 0
    assert not hand.holds(first)


def test_a_message_that_was_dropped_may_come_again() -> None:
    hand = Hand()
    first = message(b"1-0")
    hand.take([first])
    hand.finish([first])
    hand.drop([first])
    assert len(hand.take([message(b"1-0")])) == 1
    assert hand.unfinished == 1


def test_the_position_is_before_the_first_message_that_is_not_handled() -> None:
    hand = Hand()
    messages = [message(b"5-0"), message(b"5-1"), message(b"7-0")]
    hand.take(messages)
    assert hand.position(b"7-0") == b"4-18446744073709551615"
    hand.finish(messages[:1])
    assert hand.position(b"7-0") == b"5-0"
    hand.finish(messages)
    assert hand.position(b"7-0") == b"7-0"


def test_the_position_is_never_after_what_was_read() -> None:
    hand = Hand()
    hand.take([message(b"9-0")])  # claimed, and newer than what was read
    assert hand.position(b"3-0") == b"3-0"


def test_messages_of_the_groups_own_stream_do_not_move_the_position() -> None:
    hand = Hand()
    hand.take([message(b"1-0", RETRY)])
    assert hand.position(b"7-0") == b"7-0"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_id_before_another_is_the_greatest_that_is_less(ms: int, sequence: int) -> None:
    entry_id = b"%d-%d" % (ms, sequence)
    earlier = parse_id(before(entry_id))
    if (ms, sequence) == (0, 0):
        assert earlier == (0, 0)
    elif sequence:
        assert earlier == (ms, sequence - 1)
    else:
        assert earlier == (ms - 1, 2**64 - 1)


def test_an_id_may_be_without_its_second_number() -> None:
    assert parse_id(b"17") == (17, 0)
    assert parse_id(b"10-2") > parse_id(b"9-30")


def test_a_member_knows_the_keys_of_others_whatever_their_names() -> None:
    member = Member("orders", "billing", "host/orders")
    assert member.alive == "wakeq:{orders}:alive:billing:host/orders"
    assert member.alive_of(b"host/orders") == member.alive.encode()
    assert member.alive_of(b"\xff") == b"wakeq:{orders}:alive:billing:\xff"
    assert member.sources == ("orders", "wakeq:{orders}:retry:billing")


# -- the pace ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefetch", "concurrency"), [(1, 2), (1, 4), (1, 1000), (2, 7)])
def test_no_lane_is_left_without_while_others_last(prefetch: int, concurrency: int) -> None:
    some = pace(prefetch, concurrency)
    assert some.room(concurrency - 1) >= 1
    assert some.room(some.most) == 0
    assert some.room(0) == some.target


def test_large_messages_leave_no_lane_without_but_never_are_more_than_enough() -> None:
    size = 900 * 1024
    enough = 8 * 1024 * 1024 // size
    for concurrency in (8, 100):
        some = pace(prefetch=512, concurrency=concurrency)
        some.learn_size(1, size)
        for unfinished in range(min(concurrency, enough)):
            assert some.room(unfinished) == enough - unfinished
        for unfinished in range(enough, concurrency):
            assert some.room(unfinished) == 0, "8 MB are enough, however many lanes there are"


def test_begins_with_two_for_each_lane() -> None:
    assert pace(concurrency=5).room(0) == 10
    assert pace(prefetch=1, concurrency=5).room(0) == 5


def test_asks_for_more_when_half_of_it_is_handled() -> None:
    some = pace(prefetch=10, concurrency=1)
    some.target = 10
    assert some.room(10) == 0
    assert some.room(6) == 0
    assert some.room(5) == 5
    assert some.room(0) == 10


def test_one_at_a_time_is_one_at_a_time() -> None:
    one = pace(prefetch=1)
    assert one.room(0) == 1
    assert one.room(1) == 0


def test_asks_for_four_times_as_many_when_all_were_handled_meanwhile() -> None:
    some = pace(prefetch=100)
    now = 0.0
    targets = []
    for _ in range(5):
        some.asked(now, 0, full=True)
        now += 0.001
        targets.append(some.target)
    assert targets == [8, 32, 100, 100, 100]


def test_does_not_ask_for_more_because_little_came() -> None:
    some = pace(prefetch=100)
    some.asked(0.0, 0, full=False)
    assert some.target == 2


def test_asks_for_half_as_many_when_they_last_too_long() -> None:
    some = pace(prefetch=512)
    some.target = 512
    targets = []
    for now in (1.0, 2.0, 2.05, 3.0):
        some.asked(now, 256, full=True)
        targets.append(some.target)
    assert targets == [256, 128, 128, 64]
    for now in range(4, 20):
        some.asked(float(now), 10, full=False)
    assert some.target == 2


def test_large_messages_are_asked_for_one_after_another_but_at_least_one() -> None:
    some = pace(prefetch=512)
    some.target = 512
    some.learn_size(10, 10 * 1024 * 1024)
    assert some.room(0) == 8
    some.learn_size(1, 500 * 1024 * 1024)
    assert some.room(0) == 1
    for _ in range(200):
        some.learn_size(100, 100 * 100)
    assert some.room(0) == 512


@given(
    st.integers(1, 1000),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100), st.booleans()), max_size=50),
)
def test_never_wants_more_in_hand_than_the_settings_allow(
    prefetch: int, concurrency: int, story: list[tuple[float, int, bool]]
) -> None:
    some = pace(prefetch, concurrency)
    unfinished = 0
    now = 0.0
    for passed, percent, full in story:
        now += passed
        unfinished = unfinished * percent // 100
        room = some.room(unfinished)
        assert room >= 0
        if room:
            some.asked(now, unfinished, full)
            unfinished += room
        assert unfinished <= prefetch * concurrency
    assert some.room(0) >= 1


@pytest.mark.parametrize("concurrency", [1, 7, 1000])
def test_an_empty_hand_always_asks(concurrency: int) -> None:
    some = pace(1, concurrency)
    for now in range(10):
        assert some.room(0) >= 1
        some.asked(float(now), concurrency, full=False)
