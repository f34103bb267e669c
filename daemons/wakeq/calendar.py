"""Calendar times such as `Mon..Fri 09:00` or `*-*-01 04:00 Europe/Berlin`, as systemd has them.

What an expression may say, and when it elapses, is that of systemd.time(7) and of the timers of
systemd (calendarspec.c), so `systemd-analyze calendar` explains any of them. What a zone leaves out
is left out; of an hour that comes twice only the first counts, for whoever comes from before it.
The local zone is that of TZ or of /etc/localtime.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from typing import NamedTuple

from wakeq.calendar_search import (
    DAY,
    FIRST_YEAR,
    HOUR,
    LAST_YEAR,
    MICRO,
    MINUTE,
    MOMENT,
    MONTH,
    YEAR,
    Search,
    Zone,
)

__all__ = ["Calendar"]

_SHORTHANDS = {
    "minutely": "*-*-* *:*:00",
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    **dict.fromkeys(("yearly", "annually", "anually"), "*-01-01 00:00:00"),
    "quarterly": "*-01,04,07,10-01 00:00:00",
    **dict.fromkeys(
        ("semiannually", "semi-annually", "biannually", "bi-annually"), "*-01,07-01 00:00:00"
    ),
}
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEKDAYS = re.compile(r"([a-z]+(?:(?:\.\.|-)[a-z]+)?,)*(?:[a-z]+(?:(?:\.\.|-)[a-z]+)?)?(?= |$)")
_NUMBER = r"(\d+(?:\.(?!\.)\d+)?)"
_PART = re.compile(rf"{_NUMBER}(?:\.\.{_NUMBER})?(?:/{_NUMBER})?", re.ASCII)
_DATE = re.compile(r"(?:([^-~ :]+)-)?([^-~ :]+)([-~])([^-~ :]+)(?: +|$)")
_TIME = re.compile(r"([^: ]+):([^: ]+)(?::([^: ]+))?")

# Of YEAR and so on, in their order.
_RANGES = ((FIRST_YEAR, LAST_YEAR), (1, 12), (1, 31), (0, 23), (0, 59), (0, 60 * MICRO - 1))
_NAMES = ("year", "month", "day", "hour", "minute", "second")


class _Part(NamedTuple):
    """`start`, `start..stop` or `start..stop/repeat`; of seconds in millionths.

    Without an end `stop` is -1; without a repetition `repeat` is 0.
    """

    start: int
    stop: int
    repeat: int


class Calendar:
    """The times that an expression means.

    Args:
        expression: as in systemd.time(7).

    Raises:
        ValueError: it is no such expression; the text says what is wrong with it.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self._weekdays: frozenset[int] = frozenset()
        self._parts: list[list[_Part]] = [[] for _ in _NAMES]
        self._from_month_end = False
        try:
            rest, self._zone, self._is_dst = _split_zone(expression)
            self._parse(_SHORTHANDS.get(rest.lower(), rest))
        except ValueError as error:
            raise ValueError(
                f"must be a calendar time such as 'Mon..Fri 09:00', '*:0/10' or 'hourly', not"
                f" {expression!r}: {error}"
            ) from None

    def next(self, after: float) -> float | None:
        """Return the first of these times after another one; None if there is none.

        Both are in seconds since 1970, exact to a millionth. The year 2199 is the last.
        """
        return Search(self, self._zone, self._is_dst).run(round(after * MICRO) + 1)

    # -- what the search asks ------------------------------------------------------------

    def fits_weekday(self, day: date) -> bool:
        """Tell whether a day's weekday is one that is meant."""
        return not self._weekdays or day.weekday() in self._weekdays

    def first_from(self, unit: int, least: int, month_days: int) -> int | None:
        """Return the first value of a unit, from `least` on, that fits; None if none does.

        Args:
            unit: YEAR and so on, of calendar_search.
            least: where to begin.
            month_days: how many days the month has, for those counted from its end.
        """
        parts = self._parts[unit]
        if not parts:
            return least
        best: int | None = None
        for part in parts:
            start, stop, repeat = part
            if unit == DAY and self._from_month_end:
                start, stop = month_days + 1 - start, month_days + 1 - stop if stop >= 0 else -1
                if stop > 0:
                    start, stop = stop, start
            value = start
            if start < least:
                value = start - (start - least) // repeat * repeat if repeat else -1
                if value < least or (0 <= stop < value):
                    continue
            best = value if best is None else min(best, value)
        return best

    # -- reading -------------------------------------------------------------------------

    def _parse(self, text: str) -> None:
        rest = self._parse_weekdays(text)
        if rest.startswith("@"):
            self._parse_epoch(rest)
            return
        if match := _DATE.match(rest):
            year, month, sign, day = match.groups()
            self._from_month_end = sign == "~"
            if year:
                self._parts[YEAR] = [_full_years(part) for part in _chain(year, YEAR)]
            self._parts[MONTH] = _chain(month, MONTH)
            self._parts[DAY] = _chain(day, DAY)
            rest = rest[match.end() :]
        elif rest and not _TIME.match(rest):
            raise ValueError(
                f"{rest!r} is neither a date (YEAR-MONTH-DAY) nor a time (HOUR:MINUTE)"
            )
        self._parse_time(rest)
        for unit, parts in enumerate(self._parts):
            self._parts[unit] = [_normalized(part) for part in parts]
            for part in self._parts[unit]:
                _check(part, unit, unit == DAY and self._from_month_end)

    def _parse_weekdays(self, text: str) -> str:
        """Take the weekdays, and return the rest."""
        match = _WEEKDAYS.match(text.lower())
        if not text:
            raise ValueError("there is nothing in it")
        if match is None or not match[0]:
            return text
        days: set[int] = set()
        for word in match[0].removesuffix(",").split(","):
            first, last = (*re.split(r"\.\.|-", word), word)[:2]
            low, high = _weekday(first), _weekday(last if last != word else first)
            if low > high:
                raise ValueError(f"the days of {word!r} must be in order, Monday first")
            days.update(range(low, high + 1))
        self._weekdays = frozenset(days) if len(days) < 7 else frozenset()
        return text[match.end() :].lstrip(" ")

    def _parse_time(self, text: str) -> None:
        match = _TIME.fullmatch(text or "00:00")
        if match is None:
            raise ValueError(f"{text!r} is no time (HOUR:MINUTE or HOUR:MINUTE:SECOND)")
        hour, minute, second = match.groups()
        self._parts[HOUR] = _chain(hour, HOUR)
        self._parts[MINUTE] = _chain(minute, MINUTE)
        self._parts[MOMENT] = _chain(second or "0", MOMENT)

    def _parse_epoch(self, text: str) -> None:
        if not re.fullmatch(r"@\d{1,12}", text, re.ASCII):
            raise ValueError(f"after @ there must be whole seconds since 1970, not {text[1:]!r}")
        moment = time.gmtime(int(text[1:]))
        if moment.tm_year > LAST_YEAR:
            raise ValueError(f"year must be {FIRST_YEAR} to {LAST_YEAR}, not {moment.tm_year}")
        values = (*moment[:5], moment.tm_sec * MICRO)
        self._parts = [[_Part(value, -1, 0)] for value in values]
        self._zone, self._is_dst = Zone(time.gmtime), -1


def _split_zone(expression: str) -> tuple[str, Zone, int]:
    """Return an expression without its zone; the zone; and its daylight saving, -1 if any."""
    rest, space, word = expression.rpartition(" ")
    if space and word.lower() == "utc":
        return rest, Zone(time.gmtime), -1
    time.tzset()
    if space:
        for is_dst, name in enumerate(time.tzname):
            if name and word.lower() == name.lower():
                return rest, Zone(time.localtime), is_dst
    if space and word[:1].isalpha() and _weekday_or_none(word) is None:
        return rest, Zone(_named(word)), -1
    return expression, Zone(time.localtime), -1


def _named(name: str) -> Callable[[float], time.struct_time]:
    """Return what breaks seconds up in a zone of the IANA database."""
    from zoneinfo import ZoneInfo  # only who names one pays for it

    try:
        zone: tzinfo = ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}") from None

    def localtime(seconds: float) -> time.struct_time:
        moment = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
        offset = moment.utcoffset()
        assert offset is not None
        fields = moment.timetuple()
        extra = {"tm_gmtoff": int(offset.total_seconds()), "tm_zone": ""}
        return time.struct_time(tuple(fields), extra)

    return localtime


def _weekday_or_none(word: str) -> int | None:
    for number, name in enumerate(_DAYS):
        if word.lower() in (name, name[:3]):
            return number
    return None


def _weekday(word: str) -> int:
    number = _weekday_or_none(word)
    if number is None:
        raise ValueError(f"{word!r} is no day of the week (Mon, Tue, Wed, Thu, Fri, Sat, Sun)")
    return number


def _chain(text: str, unit: int) -> list[_Part]:
    """Return the parts of one unit, none for `*`."""
    if text == "*":
        return [_Part(0, -1, MICRO)] if unit == MOMENT else []
    return [_part(word, unit) for word in text.split(",")]


def _part(word: str, unit: int) -> _Part:
    name = _NAMES[unit]
    match = _PART.fullmatch(word)
    if match is None or (unit != MOMENT and "." in word.replace("..", "")):
        raise ValueError(f"{name} must be such as 5, 1..5, 0/10, 1,15 or *, not {word!r}")
    start, stop, repeat = (-1 if n is None else _value(n, unit) for n in match.groups())
    if repeat == 0:
        raise ValueError(f"{name} must come again after 1 or more, not 0: {word!r}")
    if 0 <= stop < start:
        raise ValueError(f"a range of {name}s must begin with the lesser: {word!r}")
    if repeat < 0:
        # Without a step it is one; of seconds a whole one, so less than that is no range.
        repeat = 0 if stop < 0 else MICRO if unit == MOMENT else 1
        if unit == MOMENT and 0 <= stop < start + repeat:
            raise ValueError(f"a range of less than a second must say its step: {word!r}")
    return _Part(start, stop, repeat)


def _value(number: str, unit: int) -> int:
    """Return a number in the unit's own terms, seconds in millionths."""
    whole, _, fraction = number.partition(".")
    if len(whole) > 20:
        raise ValueError(f"{_NAMES[unit]} is too large")
    if unit != MOMENT:
        return int(whole)
    rounds_up = fraction[6:7] >= "5"
    return int(whole) * MICRO + int(fraction[:6].ljust(6, "0")) + rounds_up


def _full_years(part: _Part) -> _Part:
    """Return a part of years in which those of two digits are complete: 69 is 2069, 70 1970."""

    def full(year: int) -> int:
        return year + (2000 if year < 70 else 1900) if 0 <= year < 100 else year

    return _Part(full(part.start), full(part.stop), part.repeat)


def _normalized(part: _Part) -> _Part:
    start, stop, repeat = part
    if stop > start and repeat:
        stop -= (stop - start) % repeat
    return _Part(start, -1, 0) if start == stop else _Part(start, stop, repeat)


def _check(part: _Part, unit: int, from_month_end: bool) -> None:
    """Raise if a part means a value that the unit never has."""
    low, high = _RANGES[unit]
    high -= 3 * from_month_end  # the shortest month has so many
    for value in (part.start, part.stop if part.stop >= 0 else part.start):
        if not low <= value <= high:
            scale = MICRO if unit == MOMENT else 1
            raise ValueError(
                f"{_NAMES[unit]} must be {low} to {high // scale}, not {value / scale:g}"
            )
    last = part.start
    if part.stop < 0:
        last += -part.repeat if from_month_end else part.repeat
    if part.repeat > high - low or not low <= last <= high:
        raise ValueError(f"{_NAMES[unit]} never comes again after so many")
