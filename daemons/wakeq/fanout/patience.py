"""Sees which connections have been silent for as long as they said they would not be.

What it remembers is of those that are there: nothing holds a connection that has gone.
"""

import heapq
import time
from collections.abc import Callable

from wakeq.fanout.peer import Peer
from wakeq.loop import Loop, Timer

# A timer that is not needed any more stays with the loop until then.
_LOOK_SECONDS = 30.0
_SPARE = 64


class Patience:
    """Knows who must not be silent in which room.

    Args:
        loop: says when to look.
        silent: called with a connection and a room, once, when it has been.
    """

    def __init__(self, loop: Loop, silent: Callable[[Peer, str], None]) -> None:
        self._loop = loop
        self._silent = silent
        self._waits: dict[tuple[Peer, str], tuple[int, float]] = {}
        # When, the number that tells it from what was forgotten since, and of whom.
        self._due: list[tuple[float, int, Peer, str]] = []
        self._count = 0
        self._timer: Timer | None = None

    def expect(self, peer: Peer, room: str, timeout: float) -> None:
        """Hear that a connection must not be silent for so many seconds."""
        self._count += 1
        self._waits[peer, room] = self._count, timeout
        heapq.heappush(self._due, (time.monotonic() + timeout, self._count, peer, room))
        self._look_when_due()

    def forget(self, peer: Peer, room: str) -> None:
        """Hear that it may be, from now on."""
        if self._waits.pop((peer, room), None) is None:
            return
        if len(self._due) > 2 * len(self._waits) + _SPARE:
            self._due = [each for each in self._due if self._is_waited_for(each)]
            heapq.heapify(self._due)

    def _is_waited_for(self, due: tuple[float, int, Peer, str]) -> bool:
        _, number, peer, room = due
        return self._waits.get((peer, room), (0, 0.0))[0] == number

    def _look_when_due(self) -> None:
        pause = min(max(0.0, self._due[0][0] - time.monotonic()), _LOOK_SECONDS)
        if self._timer is not None:
            if self._timer.when <= time.monotonic() + pause:
                return
            self._timer.cancel()
        self._timer = self._loop.after(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._due and (self._due[0][0] <= now or not self._is_waited_for(self._due[0])):
            due = heapq.heappop(self._due)
            if not self._is_waited_for(due):
                continue
            _, number, peer, room = due
            again = peer.heard_at + self._waits[peer, room][1]
            if again > now:
                heapq.heappush(self._due, (again, number, peer, room))
            else:
                del self._waits[peer, room]
                self._silent(peer, room)
        if self._due:
            self._look_when_due()
