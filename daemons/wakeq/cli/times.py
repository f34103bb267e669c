"""Points in time, as an operator writes them on a command line."""

import argparse
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from wakeq.settings import Wrong, parse_duration

_LONGEST_SECONDS = 100 * 366 * 86400.0
_EXAMPLES = "2026-11-22 18:00, 18:00, 2026-11-22T18:00:00Z or @1795370400"


class Moment(NamedTuple):
    """A point in time, maybe told by how long ago it was.

    The clock that counts is that of Redis, which is asked when the command line has been read.
    """

    seconds: float
    is_age: bool

    def at(self, now_seconds: float) -> float:
        """Return it in seconds since 1970, by a clock that says what time it is now."""
        return now_seconds - self.seconds if self.is_age else self.seconds


def time(text: str) -> float:
    """Return the seconds since 1970 of a point in time, for argparse.

    The forms are those of systemd.time(7) that name a point: a date with or without a time, a
    time of today, ISO 8601, or `@` and the seconds. Without a zone it is local time.
    """
    try:
        return _parse(text.strip())
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"must be a time such as {_EXAMPLES}, not {text!r}"
        ) from None


def past(text: str) -> Moment:
    """Return a point in the past, for argparse: as `time`, or a time span, ago."""
    try:
        return Moment(parse_duration(text.strip().removesuffix("ago"), _LONGEST_SECONDS), True)
    except Wrong:
        pass
    try:
        return Moment(_parse(text.strip()), False)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"must be how long ago, such as 2h, or a time such as {_EXAMPLES}, not {text!r}"
        ) from None


def _parse(text: str) -> float:
    if text.startswith("@"):
        seconds = float(text[1:])
        datetime.fromtimestamp(seconds, UTC)  # refuses what is no point in time
        return seconds
    if text in ("now", "today", "yesterday", "tomorrow"):
        now = datetime.now()
        days = {"yesterday": -1, "tomorrow": 1}.get(text, 0)
        midnight = datetime(now.year, now.month, now.day) + timedelta(days=days)
        return (now if text == "now" else midnight).timestamp()
    if re.fullmatch(r"\d?\d:\d\d(:\d\d)?", text):
        text = f"{datetime.now():%Y-%m-%d} {text:0>{5 if text.count(':') == 1 else 8}}"
    return datetime.fromisoformat(re.sub(r"\s+UTC$", "+00:00", text)).timestamp()


def local(seconds: float) -> str:
    """Return a point in time for people, in local time."""
    return _formatted(seconds, None, "%Y-%m-%d %H:%M:%S")


def iso(seconds: float) -> str:
    """Return a point in time for programs."""
    return _formatted(seconds, UTC, "%Y-%m-%dT%H:%M:%SZ")


def _formatted(seconds: float, zone: tzinfo | None, form: str) -> str:
    try:
        return datetime.fromtimestamp(seconds, zone).strftime(form)
    except (ValueError, OverflowError, OSError):
        return f"@{seconds:.0f}"  # an id of somebody else's making, beyond the year 9999
