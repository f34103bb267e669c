"""When to look at what, by the clock of Redis.

The host's clock counts for nothing: only its monotonic one, to tell how long ago Redis said what
time it is.
"""

import heapq
import time
from collections.abc import Iterator

# More entries of the heap that count no more than there are streams, and some, are swept out.
_STALE = 64


class Clock:
    """The clock of Redis, as far as known."""

    def __init__(self) -> None:
        self._ahead_ms = 0.0

    def set(self, now_us: int) -> None:
        """Take what Redis has just said that it is, in microseconds."""
        self._ahead_ms = now_us / 1000 - time.monotonic() * 1000

    def now_ms(self) -> float:
        """Return what it is now; at most as late as the reply was under way."""
        return time.monotonic() * 1000 + self._ahead_ms


class Agenda:
    """The streams, and when each is to be looked at next: once, at its earliest time."""

    def __init__(self) -> None:
        self._when: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def put(self, stream: str, when_ms: float) -> None:
        """Have a stream looked at at this time, instead of any other."""
        if self._when.get(stream) != when_ms:
            self._when[stream] = when_ms
            heapq.heappush(self._heap, (when_ms, stream))
            # A look puts a stream back to where it was; what is not at the top stays in the heap.
            if len(self._heap) > 2 * len(self._when) + _STALE:
                self._heap = [(when, name) for name, when in self._when.items()]
                heapq.heapify(self._heap)

    def hasten(self, stream: str, when_ms: float) -> None:
        """Have a stream looked at at this time, if not before."""
        if when_ms < self._when.get(stream, float("inf")):
            self.put(stream, when_ms)

    def drop(self, stream: str) -> None:
        """Do not look at a stream any more."""
        self._when.pop(stream, None)

    def clear(self) -> None:
        """Look at nothing any more."""
        self._when.clear()
        self._heap.clear()

    def next_ms(self) -> float | None:
        """Return when the first one is to be looked at."""
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_ms: float) -> Iterator[str]:
        """Take out the streams that are to be looked at now, one after another."""
        while (when := self.next_ms()) is not None and when <= now_ms:
            _, stream = heapq.heappop(self._heap)
            del self._when[stream]
            yield stream
