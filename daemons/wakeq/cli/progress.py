"""A progress bar with a rate, drawn on stderr if that is a terminal."""

import os
import sys
import time

from wakeq.cli.screen import colours, paint

_DRAW_SECONDS = 0.1
_WIDTH = 30
# Over this time the rate that is shown is taken.
_RATE_SECONDS = 1.0


class Progress:
    """Counts what is done, and shows it.

    Args:
        total: how many there will be, 0 for no end.
        quiet: show nothing.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total = total
        self.done = 0
        self._begin = time.monotonic()
        self._end = 0.0
        self._shown = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn_at = 0.0
        self._rate = 0.0
        self._mark = (self._begin, 0)

    @property
    def complete(self) -> bool:
        """Tell whether all is done."""
        return bool(self.total) and self.done >= self.total

    @property
    def left(self) -> int:
        """How many are left; without an end, very many."""
        return self.total - self.done if self.total else sys.maxsize

    @property
    def elapsed_seconds(self) -> float:
        """How long it has been going on, or took."""
        return (self._end or time.monotonic()) - self._begin

    def advance(self, more: int) -> None:
        """Count so many more as done."""
        self.done += more
        now = time.monotonic()
        if self._shown and now - self._drawn_at >= _DRAW_SECONDS:
            self._draw(now)

    def close(self) -> None:
        """Stop the clock and leave the line with the last state."""
        self._end = time.monotonic()
        if self._shown and self._drawn_at:
            self._draw(self._end)
            print(file=sys.stderr)

    def _draw(self, now: float) -> None:
        since, done = self._mark
        if now - since >= _RATE_SECONDS or not self._rate:
            self._rate = (self.done - done) / max(now - since, 1e-6)
            self._mark = (now, self.done)
        self._drawn_at = now
        if self.total:
            filled = _WIDTH * self.done // self.total
            bar = "━" * filled + paint("━" * (_WIDTH - filled), "dim", colours(sys.stderr))
            text = f"{bar} {self.done:,} of {self.total:,}"
        else:
            text = f"{self.done:,}"
        # To the end of the line is erased: the one before may have been longer.
        print(f"\r{text}  {self._rate:,.0f}/s\x1b[K", end="", file=sys.stderr, flush=True)
