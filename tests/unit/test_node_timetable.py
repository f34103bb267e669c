"""When a leader emits, and what becomes of times that were missed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from wakeq.errors import ConfigError
from wakeq.node.source import timestamp
from wakeq.node.timetable import COUNTED, MICRO, MOST, Plan, Timetable
from wakeq.sections import Node

HOUR = 3600 * MICRO


def at(text: str) -> int:
    """Return a time of a day in microseconds."""
    when = datetime.fromisoformat(f"2026-03-10T{text}").replace(tzinfo=UTC)
    return round(when.timestamp() * MICRO)


def timetable(**values: Any) -> Timetable:
    settings = Node()
    for key, value in values.items():
        setattr(settings, key, value)
    return Timetable(settings)


HOURLY = {"calendar": "*:00:00 UTC", "lease": 10.0}


# -- intervals -------------------------------------------------------------------------------


def test_the_first_emission_of_all_is_at_once() -> None:
    assert timetable().plan(timetable().anchor(None, 999), 1000) == Plan(1000)


def test_an_interval_after_the_last_one_comes_the_next() -> None:
    assert timetable(interval=0.5).plan(at("12:00"), at("12:00") + 1) == Plan(at("12:00:00.5"))


def test_what_is_a_little_late_keeps_the_rhythm() -> None:
    table = timetable(interval=0.5)
    assert table.plan(at("12:00"), at("12:00:00.9")) == Plan(at("12:00:00.5"))


@pytest.mark.parametrize("missed", ["skip", "once"])
def test_of_missed_times_the_last_one_is_emitted_for_at_once(missed: str) -> None:
    table = timetable(interval=0.5, missed=missed)
    assert table.plan(at("12:00"), at("12:00:10.2")) == Plan(at("12:00:10"), skipped=19)


def test_all_missed_times_are_made_up_for_one_after_another() -> None:
    table = timetable(interval=0.5, missed="all")
    now, last = at("12:00:01.7"), at("12:00")
    plans = []
    while (plan := table.plan(last, now)) is not None and plan.at <= now:
        plans.append(plan)
        last = plan.at
    assert [plan.at for plan in plans] == [at(f"12:00:0{x}") for x in ("0.5", "1.0", "1.5")]
    assert [plan.behind for plan in plans] == [True, True, False]


def test_more_missed_times_than_that_are_left_out() -> None:
    table = timetable(interval=1, missed="all")
    plan = table.plan(at("12:00"), at("12:30"), made_up=MOST)
    assert plan == Plan(at("12:30"), skipped=1799)
    assert table.plan(at("00:00"), at("12:00"), made_up=MOST) == Plan(at("12:00"), False, 1999)
    assert COUNTED == 2000


def test_a_clock_that_was_set_back_costs_one_interval() -> None:
    table = timetable(interval=0.5)
    last = table.anchor(at("13:00"), at("12:00"))
    assert table.plan(last, at("12:00")) == Plan(at("12:00:00.5"))
    assert table.plan(last, at("12:00:00.6")) == Plan(at("12:00:00.5"))


# -- calendars -------------------------------------------------------------------------------


def test_a_calendar_begins_with_its_next_time() -> None:
    table = timetable(**HOURLY)
    began = table.anchor(None, at("12:00:01"))
    assert table.plan(began, at("12:00:01")) == Plan(at("13:00"))
    assert table.plan(began, at("13:00:00.1")) == Plan(at("13:00"))
    assert timetable(**HOURLY).plan(at("12:00"), at("12:59:59")) == Plan(at("13:00"))


def test_a_change_of_the_leader_loses_no_time() -> None:
    assert timetable(**HOURLY).plan(at("12:00"), at("13:00:19")) == Plan(at("13:00"))


def test_a_missed_time_is_skipped() -> None:
    assert timetable(**HOURLY).plan(at("12:00"), at("13:00:21")) == Plan(at("14:00"), skipped=1)
    assert timetable(**HOURLY).plan(at("02:00"), at("13:59")) == Plan(at("14:00"), skipped=11)


def test_missed_times_are_made_up_for_once() -> None:
    table = timetable(**HOURLY, missed="once")
    assert table.plan(at("02:00"), at("13:59")) == Plan(at("13:00"), skipped=10)


def test_missed_times_are_all_made_up_for() -> None:
    table = timetable(**HOURLY, missed="all")
    assert table.plan(at("02:00"), at("13:59")) == Plan(at("03:00"), behind=True)
    assert table.plan(at("12:00"), at("13:59")) == Plan(at("13:00"))


def test_calendar_times_of_fractions_of_seconds_come_once_each() -> None:
    table = timetable(calendar="*:*:0/0.1 UTC")
    last, seen = at("12:00"), []
    for _ in range(100):
        plan = table.plan(last, last)
        assert plan is not None
        seen.append(plan.at - last)
        last = plan.at
    assert set(seen) == {MICRO // 10}


def test_a_clock_that_was_set_back_a_little_repeats_no_calendar_time() -> None:
    last = timetable(**HOURLY).anchor(at("13:00"), at("12:59:59.9"))
    assert timetable(**HOURLY).plan(last, at("12:59:59.9")) == Plan(at("14:00"))


def test_a_clock_that_was_set_back_far_does_not_stop_a_calendar_for_long() -> None:
    last = timetable(**HOURLY).anchor(at("23:00"), at("12:30"))
    assert timetable(**HOURLY).plan(last, at("12:30")) == Plan(at("13:00"))


def test_a_calendar_may_come_to_an_end() -> None:
    table = timetable(calendar="2026-03-10 12:00:00 UTC", missed="once")
    assert table.plan(at("11:00"), at("12:30")) == Plan(at("12:00"))
    assert table.plan(at("12:00"), at("12:30")) is None
    assert table.plan(table.anchor(None, at("12:30")), at("12:30")) is None


def test_long_missed_calendar_times_are_found_at_once() -> None:
    # Each second of a year: what looks at them one by one takes minutes.
    table = timetable(calendar="*:*:* UTC")
    now = at("12:00:00.5")
    assert table.plan(now - 365 * 24 * HOUR, now) == Plan(at("12:00:00"), skipped=1999)


def test_a_wrong_calendar_is_refused() -> None:
    with pytest.raises(ConfigError, match="calendar: must be a calendar time"):
        timetable(calendar="tomorrowish")


def test_a_time_is_written_exact_to_the_millisecond() -> None:
    assert timestamp(at("12:34:56.789123")) == "2026-03-10T12:34:56.789Z"
    assert timestamp(at("12:34:56.0009")) == "2026-03-10T12:34:56.000Z"
