"""Points in time on the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from wakeq.cli import times

NOW_S = 1_800_000_000.0


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Live where local time is not UTC: two hours before it, all year."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "WQT-2")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22 18:00", 1_795_363_200),
        ("2026-11-22 18:00:05", 1_795_363_205),
        ("2026-11-22T18:00", 1_795_363_200),
        ("2026-11-22T18:00:00Z", 1_795_370_400),
        ("2026-11-22 18:00 UTC", 1_795_370_400),
        ("2026-11-22T18:00:00.5+01:00", 1_795_366_800.5),
        ("2026-11-22", 1_795_298_400),
        ("@1795370400", 1_795_370_400),
        ("@1795370400.25", 1_795_370_400.25),
        (" @0 ", 0),
    ],
)
def test_reads_points_in_time(text: str, seconds: float) -> None:
    assert times.time(text) == seconds
    assert times.past(text) == (seconds, False)


@pytest.mark.parametrize(("text", "clock"), [("8:05", "08:05:00"), ("18:00:07", "18:00:07")])
def test_a_time_without_a_date_is_of_today(text: str, clock: str) -> None:
    # Before and after, because midnight may pass.
    days = {f"{datetime.now():%Y-%m-%d}"}
    found = times.local(times.time(text))
    days.add(f"{datetime.now():%Y-%m-%d}")
    assert found in {f"{day} {clock}" for day in days}


def test_knows_the_words_of_systemd() -> None:
    before = time.time()
    assert before - 1 <= times.time("now") <= time.time() + 1
    assert times.time("tomorrow") - times.time("yesterday") == pytest.approx(172_800, abs=86_400)
    assert times.local(times.time("today")).endswith(" 00:00:00")


@pytest.mark.parametrize(
    ("text", "age_s"),
    [("2h", 7200), ("1h 30min", 5400), ("500ms ago", 0.5), ("90", 90), ("60d", 5_184_000)],
)
def test_a_span_is_that_long_ago(text: str, age_s: float) -> None:
    assert times.past(text).at(NOW_S) == NOW_S - age_s


def test_a_point_is_the_same_by_any_clock() -> None:
    assert times.past("@5").at(NOW_S) == 5


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-13-01", "25:00", "@", "@x", "@1e30", "@nan", "ago"]
)
def test_says_what_a_time_looks_like(text: str) -> None:
    for read in (times.time, times.past):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 2026-11-22 18:00"):
            read(text)


def test_shows_local_time_to_people_and_utc_to_programs() -> None:
    assert times.local(1_795_370_400) == "2026-11-22 20:00:00"
    assert times.iso(1_795_370_400.9) == "2026-11-22T18:00:00Z"


def test_shows_what_is_beyond_all_calendars_as_a_number() -> None:
    assert times.local(1.8e16) == times.iso(1.8e16) == "@18000000000000000"
