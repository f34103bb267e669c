"""Calendar times: what expressions mean, and that systemd means the same by them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from wakeq.calendar import Calendar

ANALYZE = shutil.which("systemd-analyze")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca",
         "Europe/Dublin", "Asia/Tokyo")  # fmt: skip
# Midnights of ordinary days, and hours about which the clocks of some of the zones change.
BASES = (1709100000, 1735680000, 1711843200, 1711846800, 1729900800, 1729987200, 1729990800,
         1728140400, 1712416800, 1730613600, 1710054000, 1743908400)  # fmt: skip


@pytest.fixture(autouse=True)
def restored_zone() -> Iterator[None]:
    yield
    set_zone("UTC")
    os.environ.pop("TZ", None)
    time.tzset()


def set_zone(name: str) -> None:
    os.environ["TZ"] = name
    time.tzset()


def at(text: str) -> float:
    """Return the seconds since 1970 of a time in UTC."""
    return datetime.fromisoformat(text + "+00:00").timestamp()


def following(expression: str, after: str, count: int = 1) -> list[str]:
    """Return the next times of an expression, in UTC."""
    calendar, moment, found = Calendar(expression), at(after), []
    for _ in range(count):
        following = calendar.next(moment)
        if following is None:
            found.append("never")
            break
        moment = following
        found.append(datetime.fromtimestamp(moment, UTC).isoformat(" ").removesuffix("+00:00"))
    return found


# -- what expressions mean -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("minutely", "2024-06-05 10:21:00"),
        ("Hourly", "2024-06-05 11:00:00"),
        ("daily", "2024-06-06 00:00:00"),
        ("weekly", "2024-06-10 00:00:00"),
        ("monthly", "2024-07-01 00:00:00"),
        ("quarterly", "2024-07-01 00:00:00"),
        ("semiannually", "2024-07-01 00:00:00"),
        ("yearly", "2025-01-01 00:00:00"),
        ("annually", "2025-01-01 00:00:00"),
        ("daily UTC", "2024-06-06 00:00:00"),
        ("daily Asia/Tokyo", "2024-06-05 15:00:00"),
        ("Fri", "2024-06-07 00:00:00"),
        ("sat,SUNDAY 3:5", "2024-06-08 03:05:00"),
        ("Mon..Wed,Fri 10:20", "2024-06-07 10:20:00"),
        ("Mon-Thu 10:20", "2024-06-06 10:20:00"),
        ("Thu, 1:0", "2024-06-06 01:00:00"),
        ("13:00", "2024-06-05 13:00:00"),
        ("*:0/15", "2024-06-05 10:30:00"),
        ("*:*:30", "2024-06-05 10:20:30"),
        ("*:*:*", "2024-06-05 10:20:01"),
        ("*:*:0/7.5", "2024-06-05 10:20:07.500000"),
        ("10:20:00.25", "2024-06-05 10:20:00.250000"),
        ("10:20:00.1..0.9/0.3", "2024-06-05 10:20:00.100000"),
        ("9..17/4:30", "2024-06-05 13:30:00"),
        ("1,11,21:0", "2024-06-05 11:00:00"),
        ("6-1", "2025-06-01 00:00:00"),
        ("*-*-6,9..11/2 1:0", "2024-06-06 01:00:00"),
        ("2030-1-1", "2030-01-01 00:00:00"),
        ("30-1-1", "2030-01-01 00:00:00"),
        ("2020/3-2-3", "2026-02-03 00:00:00"),
        ("*-*~1", "2024-06-30 00:00:00"),
        ("*-2~1", "2025-02-28 00:00:00"),
        ("*-*~7/1", "2024-06-24 00:00:00"),
        ("Mon *-5~7/1", "2025-05-26 00:00:00"),
        ("*-*~3..5", "2024-06-26 00:00:00"),
        ("*-2-29", "2028-02-29 00:00:00"),
        ("Fri *-*-13 18:00", "2024-09-13 18:00:00"),
        ("@1893456000", "2030-01-01 00:00:00"),
        ("2024-06-05 10:20:00", "never"),
        ("@100", "never"),
        ("*-2-30", "never"),
    ],
)
def test_finds_the_next_time(expression: str, expected: str) -> None:
    set_zone("UTC")
    assert following(expression, "2024-06-05 10:20:00") == [expected]


def test_is_exact_to_a_millionth_and_strictly_after() -> None:
    set_zone("UTC")
    calendar = Calendar("*:*:0/0.25")
    moments = [at("2024-06-05 10:20:00")]
    for _ in range(8):
        following = calendar.next(moments[-1])
        assert following is not None
        moments.append(following)
    assert [moment - moments[0] for moment in moments] == [n / 4 for n in range(9)]
    assert calendar.next(moments[0] - 0.000_001) == moments[0]


@pytest.mark.parametrize("zone", ["local", "named"])
def test_leaves_out_what_the_zone_leaves_out(zone: str) -> None:
    set_zone("Europe/Berlin" if zone == "local" else "UTC")
    name = " Europe/Berlin" if zone == "named" else ""
    # 02:00 to 03:00 on the 31st
    assert following("02:30" + name, "2024-03-30 00:00:00", 2) == [
        "2024-03-30 01:30:00", "2024-04-01 00:30:00",
    ]  # fmt: skip
    assert following("*:0/30" + name, "2024-03-31 00:30:00", 2) == [
        "2024-03-31 01:00:00", "2024-03-31 01:30:00",
    ]  # fmt: skip


@pytest.mark.parametrize("zone", ["local", "named"])
def test_takes_the_first_of_an_hour_that_comes_twice(zone: str) -> None:
    set_zone("Europe/Berlin" if zone == "local" else "UTC")
    name = " Europe/Berlin" if zone == "named" else ""
    # 02:00 to 03:00 on the 27th, first until 01:00 UTC
    assert following("02:30" + name, "2024-10-26 12:00:00", 2) == [
        "2024-10-27 00:30:00", "2024-10-28 01:30:00",
    ]  # fmt: skip
    assert following("*:0/30" + name, "2024-10-27 00:00:00", 3) == [
        "2024-10-27 00:30:00", "2024-10-27 02:00:00", "2024-10-27 02:30:00",
    ]  # fmt: skip
    # Who comes from the second one stays in it.
    assert following("*:0/30" + name, "2024-10-27 01:10:00", 2) == [
        "2024-10-27 01:30:00", "2024-10-27 02:00:00",
    ]  # fmt: skip


def test_goes_on_where_winter_is_what_changes_the_clock() -> None:
    assert following("Sun Europe/Dublin", "2024-03-30 00:00:00", 2) == [
        "2024-03-31 00:00:00", "2024-04-06 23:00:00",
    ]  # fmt: skip
    assert following("*:10 Europe/Dublin", "2024-03-31 00:10:00") == ["2024-03-31 01:10:00"]


def test_knows_the_names_of_the_local_zone() -> None:
    set_zone("Europe/Berlin")
    assert following("12:00 CEST", "2024-06-01 00:00:00") == ["2024-06-01 10:00:00"]
    assert following("12:00 cet", "2024-12-01 00:00:00") == ["2024-12-01 11:00:00"]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "there is nothing in it"),
        ("noon", "'noon' is no day of the week"),
        ("12", "'12' is neither a date (YEAR-MONTH-DAY) nor a time (HOUR:MINUTE)"),
        ("25:00", "hour must be 0 to 23, not 25"),
        ("1:60", "minute must be 0 to 59, not 60"),
        ("1:2:60", "second must be 0 to 59, not 60"),
        ("1:2:59.9999999", "second must be 0 to 59, not 60"),
        ("*-13-1", "month must be 1 to 12, not 13"),
        ("*-0-1", "month must be 1 to 12, not 0"),
        ("*-*-32", "day must be 1 to 31, not 32"),
        ("*-2~29", "day must be 1 to 28, not 29"),
        ("1960-1-1", "year must be 1970 to 2199, not 1960"),
        ("@99999999999", "year must be 1970 to 2199, not 5138"),
        ("@1.5", "after @ there must be whole seconds since 1970, not '1.5'"),
        ("*:*/5", "minute must be such as 5, 1..5, 0/10, 1,15 or *, not '*/5'"),
        ("1.5:00", "hour must be such as 5, 1..5, 0/10, 1,15 or *, not '1.5'"),
        ("1,:00", "hour must be such as 5, 1..5, 0/10, 1,15 or *, not ''"),
        ("+1:00", "hour must be such as 5, 1..5, 0/10, 1,15 or *, not '+1'"),
        ("1:00/0", "minute must come again after 1 or more, not 0: '00/0'"),
        ("1:00/60", "minute never comes again after so many"),
        ("3..1:0", "a range of hours must begin with the lesser: '3..1'"),
        ("1:0:0.1..0.9", "a range of less than a second must say its step: '0.1..0.9'"),
        ("Sun..Mon", "the days of 'sun..mon' must be in order, Monday first"),
        ("Mon..", "'Mon..' is neither a date"),
        ("Mo 12:00", "'mo' is no day of the week"),
        ("12:00 Europe/Nowhere", "there is no time zone 'Europe/Nowhere'"),
        ("12:00 ../zone", "'12:00 ../zone' is no time"),
        ("1:2:3:4", "'1:2:3:4' is no time"),
        (" 12:00", "' 12:00' is neither a date"),
        ("2024-1-1T12:00", "hour must be such as 5, 1..5, 0/10, 1,15 or *, not '2024-1-1T12'"),
        ("*:*:1" + "0" * 30, "second is too large"),
        ("\uff11\uff12:00", "hour must be such as"),
    ],
)
def test_says_what_is_wrong(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        Calendar(expression)
    assert f"not {expression!r}: " in str(caught.value)


def test_finds_out_in_time_that_there_is_none() -> None:
    # Every month until 2199 has to be looked at.
    assert Calendar("Mon *-02-30 UTC").next(0) is None
    assert Calendar("Mon *-12-25 00:00 UTC").next(at("2199-12-26")) is None


# -- that systemd means the same -------------------------------------------------------------


def said_by_systemd(expression: str, base: int, count: int, zone: str) -> list[int] | None:
    """Return the next times in whole seconds, as systemd has them; None: it takes none such.

    Raises:
        LookupError: it has looked for so long that it gives up, and cannot tell.
    """
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "calendar", f"--iterations={count}", f"--base-time=@{base}", expression],
        env=os.environ | {"TZ": zone, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    # It goes to and fro over a change of the clocks, and stops after so many steps.
    if "Resource deadlock avoided" in done.stderr:
        raise LookupError(done.stderr)
    if done.returncode:
        return None
    where = r"\(in UTC\)" if zone != "UTC" else r"(?:Next elapse|Iter\. #\d+|Iteration #\d+)"
    found = re.findall(rf"{where}: \w+ (.*) UTC", done.stdout)
    return [int(at(moment)) for moment in found]


def said_by_us(expression: str, base: int, count: int, zone: str) -> list[int] | None:
    set_zone(zone)
    try:
        calendar = Calendar(expression)
    except ValueError:
        return None
    moment, found = float(base), []
    for _ in range(count):
        following = calendar.next(moment)
        if following is None:
            break
        moment = following
        found.append(int(moment))
    return found


def chains(low: int, high: int, fractions: bool = False) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high).map(str)
    if fractions:
        numbers |= st.tuples(st.integers(0, 59), st.integers(0, 999)).map("{0[0]}.{0[1]}".format)
    words = st.one_of(
        numbers,
        st.tuples(numbers, numbers).map("..".join),
        st.tuples(numbers, st.integers(1, high).map(str)).map("/".join),
        st.tuples(numbers, numbers, st.integers(1, high)).map("{0[0]}..{0[1]}/{0[2]}".format),
    )
    return st.just("*") | st.lists(words, min_size=1, max_size=3).map(",".join)


_days = st.sampled_from(("Mon", "Tue", "wed", "Thursday", "FRI", "Sat", "sunday"))
WEEKDAYS = st.lists(
    _days | st.tuples(_days, st.sampled_from(("..", "-")), _days).map("".join),
    min_size=1, max_size=3,
).map(",".join)  # fmt: skip
YEARS = st.sampled_from(("", "*-", "2024-", "2024..2030-", "24/2-", "2023,2025-"))
DATES = st.tuples(
    YEARS, chains(1, 12), st.sampled_from(("-", "-", "~")), chains(1, 31) | chains(1, 28)
).map("".join)
TIMES = st.one_of(
    st.tuples(chains(0, 23), chains(0, 59)).map(":".join),
    st.tuples(chains(0, 23), chains(0, 59), chains(0, 59, True)).map(":".join),
)
_parts = st.tuples(
    st.just("") | WEEKDAYS, st.just("") | DATES, st.just("") | TIMES,
    st.sampled_from(("", "", "UTC", "Europe/Berlin", "America/New_York")),
)  # fmt: skip
EXPRESSIONS = _parts.map(lambda parts: " ".join(filter(None, parts))).filter(bool)


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@settings(
    max_examples=int(os.environ.get("WAKEQ_TEST_EXAMPLES", "150")), deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(EXPRESSIONS, st.sampled_from(BASES), st.integers(-4000, 4000), st.sampled_from(ZONES))
def test_means_what_systemd_means(expression: str, base: int, off: int, zone: str) -> None:
    try:
        theirs = said_by_systemd(expression, base + off, 5, zone)
    except LookupError:
        reject()
    ours = said_by_us(expression, base + off, 5, zone)
    # Of a list of days counted from the end of the month, systemd refuses some that there are.
    assume(not (theirs is None and re.search(r"~[^ ]*,", expression)))
    # Behind the day in 2026 on which Morocco's clocks change for good, systemd 257 finds no more.
    ends_early = theirs is not None and ours is not None and ours[: len(theirs)] == theirs
    assume(not (zone == "Africa/Casablanca" and ends_early and ours != theirs))
    assert ours == theirs


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize(
    "expression",
    [
        *("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually"),
        *("bi-annually", "anually", "yearly", "Mon", "Mon,", "Mon, ", "Mon,,Tue", "Mon..", "..Mon"),
        *("Mon 12", "12", "*", "UTC", "12:00 utc", "12:00  UTC", "12:00 ", " 12:00", "Mon  12:00"),
        *("1..1:0", "00..23/30:0", "12:0/59", "12:0/60", "*-*~3 ", "1-1", "99-1-1", "70-1-1"),
        *("@1893456000", "Tue @1893456000", "@1893456000 UTC", "@-1", "@", "2099", "*-1..~3"),
        *("12:00:0..1", "12:00:0..0.5", "12:00:0.5..0.5", "1:2:59.9999994", "1:2:59.9999995"),
        *("2012~1-3", "2012-1~3", "*-*~*", "Mon-2-3", "Mon2-3", "1:00 Mon", "MONDAYS", "1:0:"),
        *(":1", "1:", "-1-1", "1--1", "*-*-*-*", "*-* *:*", "*:*:*:*", "1:00 Europe/", "0:0 Zulu"),
    ],
)
def test_takes_and_refuses_what_systemd_does(expression: str) -> None:
    assert said_by_us(expression, 1717581600, 4, "UTC") == said_by_systemd(
        expression, 1717581600, 4, "UTC"
    )
