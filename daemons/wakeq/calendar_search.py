"""Looking for the next calendar time, unit by unit, in a zone that may save daylight.

Source: calendarspec.c of systemd, and of what is done about daylight saving mktime(3) of the GNU C
library, which resolves an hour that comes twice as it resolved the moment before. Both are followed
step by step: systemd says what is right here, and mktime(3) knows the local zone alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wakeq.calendar import Calendar

MICRO = 1_000_000
FIRST_YEAR, LAST_YEAR = 1970, 2199
# What a moment consists of, in the order in which it is looked for; seconds are in millionths.
YEAR, MONTH, DAY, HOUR, MINUTE, MOMENT = range(6)
_LEAST = (0, 1, 1, 0, 0, 0)
_EPOCH_DAYS = date(1970, 1, 1).toordinal()
# No expression needs so many steps: some for each month until the last year.
_MOST_STEPS = 20_000
# Those of mktime(3): how often it guesses, and how it looks for days with daylight saving.
_MOST_GUESSES = 6
_STRIDE_SECONDS = 601_200
_SEARCH_SECONDS = 536_454_000 // 2 + _STRIDE_SECONDS


class Zone:
    """A time zone: breaks seconds up, and puts moments together as mktime(3) does.

    Args:
        localtime: breaks seconds since 1970 up, as time.localtime.

    Attributes:
        ahead: what local time was ahead by when it was last put together, in seconds.
    """

    def __init__(self, localtime: Callable[[float], time.struct_time]) -> None:
        self._localtime = localtime
        self.ahead = 0

    def local(self, seconds: int) -> tuple[int, int]:
        """Return local time as if it were UTC, in seconds, and 1 if daylight is being saved."""
        broken = self._localtime(seconds)
        return seconds + (broken.tm_gmtoff or 0), int(broken.tm_isdst > 0)

    def seconds(self, wanted: int, is_dst: int) -> int:
        """Return the seconds of a local time.

        Args:
            wanted: the local time, as if it were UTC, in seconds.
            is_dst: whether daylight is being saved then; -1: unknown.
        """
        guess = before = before_that = wanted - self.ahead
        was_dst = 0
        for _ in range(_MOST_GUESSES):
            local, guess_dst = self.local(guess)
            error = wanted - local
            if not error:
                guess = self._with_dst(wanted, guess, is_dst) if guess_dst != is_dst else guess
                break
            # It goes to and fro over an hour that is left out: the side with daylight saving.
            if guess == before_that != before and (
                was_dst <= guess_dst if is_dst < 0 else guess_dst != is_dst
            ):
                break
            before_that, before, guess, was_dst = before, guess, guess + error, guess_dst
        self.ahead = wanted - guess
        return guess

    def _with_dst(self, wanted: int, guess: int, is_dst: int) -> int:
        """Return the seconds of a local time by the offset of the next day that saves so."""
        if is_dst < 0:
            return guess
        for distance in range(_STRIDE_SECONDS, _SEARCH_SECONDS, _STRIDE_SECONDS):
            for other in (guess - distance, guess + distance):
                local, other_dst = self.local(other)
                if other_dst == is_dst:
                    return other + wanted - local
        return guess


class Search:
    """Looks for the next time, unit by unit, the largest first, as systemd does.

    Args:
        calendar: what is looked for.
        zone: in which zone.
        is_dst: 1 if only times with daylight saving are meant, 0 if only those without, else -1.
    """

    def __init__(self, calendar: Calendar, zone: Zone, is_dst: int) -> None:
        self._zone = zone
        self._wanted_dst = self._is_dst = is_dst
        self._calendar = calendar
        self._fields = list(_LEAST)

    def run(self, micros: int) -> float | None:
        """Return the first time that is not before another one, in millionths since 1970."""
        local, self._is_dst = self._zone.local(micros // MICRO)
        self._zone.ahead = local - micros // MICRO
        self._set(_fields(local), micros % MICRO)
        for _ in range(_MOST_STEPS):
            wanted = self._local()
            local, _ = self._zone.local(self._zone.seconds(wanted, self._is_dst))
            if local < wanted:
                # In an hour that is left out where it is winter that changes the clock (Dublin).
                local += 2 * (wanted - local)
            self._set(_fields(local), self._fields[MOMENT] % MICRO)
            self._is_dst = self._wanted_dst
            if self._fields[YEAR] > LAST_YEAR:
                return None
            is_found = self._step()
            if is_found:
                found = self._zone.seconds(self._local(), self._is_dst)
                return (found * MICRO + self._fields[MOMENT] % MICRO) / MICRO
            if is_found is False:
                return None
        return None

    def _step(self) -> bool | None:
        """Go as far as it goes; return True at the end, False if there is none, else None."""
        fields = self._fields
        for unit in range(6):
            days = _month_days(fields)
            value = self._calendar.first_from(unit, fields[unit], days)
            if value is not None and value != fields[unit]:
                fields[unit] = value
                fields[unit + 1 :] = _LEAST[unit + 1 :]
            is_normal = self._normalize() if value is not None else None
            if unit == YEAR and not (value is not None and is_normal):
                return False
            if is_normal is None:
                self._advance(unit - 1)
                return None
            if not is_normal:
                return None
            if unit == DAY and not self._calendar.fits_weekday(date(*fields[:HOUR])):
                self._advance(DAY)
                return None
        return True

    def _normalize(self) -> bool | None:
        """Put the fields right, as a 31st of June or an hour that is left out has to be.

        Returns True if they were right, False if they are later now, None if they would be
        earlier.
        """
        fields = self._fields
        if fields[YEAR] > LAST_YEAR:
            return None
        local, is_dst = self._zone.local(self._zone.seconds(self._local(), self._wanted_dst))
        normal = _fields(local)
        seconds = (*fields[:MOMENT], fields[MOMENT] // MICRO)
        for unit in range(6):
            if normal[unit] == seconds[unit]:
                continue
            if normal[unit] < seconds[unit]:
                return None
            # What is below has been reset, so nothing is passed over but by this.
            if unit < MOMENT:
                normal[unit + 1] = _LEAST[unit + 1]
            self._set(normal, fields[MOMENT] % MICRO)
            self._is_dst = is_dst
            return False
        return True

    def _advance(self, unit: int) -> None:
        self._fields[unit] += 1
        self._fields[unit + 1 :] = _LEAST[unit + 1 :]

    def _set(self, fields: list[int], micros: int) -> None:
        self._fields = [*fields[:MOMENT], fields[MOMENT] * MICRO + micros]

    def _local(self) -> int:
        """Return the fields, which may be too large, as if they were UTC, in seconds."""
        year, month, day, hour, minute, moment = self._fields
        years, month = divmod(month - 1, 12)
        days = date(year + years, month + 1, 1).toordinal() - _EPOCH_DAYS + day - 1
        return days * 86400 + hour * 3600 + minute * 60 + moment // MICRO


def _fields(local: int) -> list[int]:
    """Return year, month, day, hour, minute and second of what is no zone's time."""
    days, rest = divmod(local, 86400)
    day = date.fromordinal(days + _EPOCH_DAYS)
    return [day.year, day.month, day.day, rest // 3600, rest // 60 % 60, rest % 60]


def _month_days(fields: list[int]) -> int:
    years, month = divmod(fields[MONTH], 12)
    return (date(fields[YEAR] + years, month + 1, 1) - date(fields[YEAR], fields[MONTH], 1)).days
