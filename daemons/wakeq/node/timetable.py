"""When a leader emits: at regular times, or at calendar times, and what becomes of missed ones.

All times are those of Redis, in microseconds since 1970. The last time that was emitted for is
kept in Redis, so that the next leader goes on from there. It knows no clock and does nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from wakeq.calendar import Calendar
from wakeq.errors import ConfigError
from wakeq.sections import Node

MICRO = 1_000_000
# So many missed times are made up for in one go, and so many are counted of those that are not: a
# calendar takes a while for each, and nothing else is done meanwhile.
MOST = 1000
COUNTED = 2000


class Plan(NamedTuple):
    """What is to be done next.

    Attributes:
        at: the time to emit for; it may have come.
        behind: the next one has come, too, and will be made up for.
        skipped: how many were left out, COUNTED at most.
    """

    at: int
    behind: bool = False
    skipped: int = 0


class Timetable:
    """Says which time is next.

    Args:
        settings: the node's.

    Raises:
        ConfigError: `calendar` is no calendar time.
    """

    def __init__(self, settings: Node) -> None:
        self._interval = round(settings.interval * MICRO)
        self._missed = settings.missed
        self._tolerance = round(2 * settings.lease * MICRO)
        self._calendar: Calendar | None = None
        if settings.calendar:
            try:
                self._calendar = Calendar(settings.calendar)
            except ValueError as error:
                raise ConfigError(f"calendar: {error}") from None

    def anchor(self, last: int | None, now: int) -> int | None:
        """Return the time to count from; None: the next one is now.

        Args:
            last: the time that was emitted for last, if there was one.
            now: the time, when that was learned.
        """
        if last is None:
            # An interval begins at once, a calendar with its next time.
            return None if self._calendar is None else now
        if last > now and (self._calendar is None or last - now > self._tolerance):
            # The clock was set back. Calendar times that were emitted for moments ago are not
            # emitted for twice; what lies further ahead would stop everything for long.
            return now
        return last

    def plan(self, last: int | None, now: int, made_up: int = 0) -> Plan | None:
        """Return what is next; None if no time ever comes again.

        Args:
            last: the time to count from, see `anchor`.
            now: the time.
            made_up: how many missed times have been made up for in one go.
        """
        if last is None:
            return Plan(now)
        following = self._after(last)
        if following is None or following > now:
            return _planned(following)
        if self._missed == "all" and made_up < MOST:
            further = self._after(following)
            return Plan(following, behind=further is not None and further <= now)
        latest = self._latest(following, now)
        skipped = self._count(following, now)
        if self._is_made_up_for(latest, now):
            return Plan(latest, skipped=skipped - 1)
        coming = self._after(latest)
        return None if coming is None else Plan(coming, skipped=skipped)

    def _is_made_up_for(self, latest: int, now: int) -> bool:
        if self._missed == "skip" and self._calendar is not None:
            return now - latest <= self._tolerance
        return True

    def _after(self, moment: int) -> int | None:
        if self._calendar is None:
            return moment + self._interval
        found = self._calendar.next(moment / MICRO)
        return None if found is None else round(found * MICRO)

    def _latest(self, first: int, now: int) -> int:
        """Return the last time that has come, if `first` has."""
        if self._calendar is None:
            return first + (now - first) // self._interval * self._interval
        # There is no way back in a calendar, so it is looked for by halves.
        low, high, latest = first, now, first
        while high - low > 1:
            middle = (low + high) // 2
            found = self._after(middle)
            if found is not None and found <= now:
                low = latest = found
            else:
                high = middle
        return latest

    def _count(self, first: int, now: int) -> int:
        """Return how many times have come from `first` on, at most COUNTED."""
        if self._calendar is None:
            return min(COUNTED, (now - first) // self._interval + 1)
        count, moment = 0, first
        while count < COUNTED and moment <= now:
            count += 1
            following = self._after(moment)
            if following is None:
                break
            moment = following
        return count


def _planned(at: int | None) -> Plan | None:
    return None if at is None else Plan(at)
