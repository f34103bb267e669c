"""How many messages there were in the last second."""

import time
from collections import deque
from collections.abc import Callable

_WINDOW_MS = 1000


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Meter:
    """Counts what happened in the last second, at a constant cost for each.

    A bucket for each millisecond in which there was something. One that is a second old still
    counts, an older one does not: it is dropped as a whole, and each is dropped once.

    Args:
        now_ms: the clock, in milliseconds.
    """

    def __init__(self, now_ms: Callable[[], int] = _now_ms) -> None:
        self._now_ms = now_ms
        self._buckets: deque[list[int]] = deque()  # [ms, count]
        self._total = 0

    def add(self, count: int = 1) -> None:
        """Count some now."""
        now = self._now_ms()
        if self._buckets and self._buckets[-1][0] == now:
            self._buckets[-1][1] += count
        else:
            self._expire(now)
            self._buckets.append([now, count])
        self._total += count

    def rate(self) -> int:
        """Return how many there were in the last second."""
        self._expire(self._now_ms())
        return self._total

    def _expire(self, now: int) -> None:
        while self._buckets and now - self._buckets[0][0] > _WINDOW_MS:
            self._total -= self._buckets.popleft()[1]
