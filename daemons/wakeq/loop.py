"""The one loop of a daemon: file descriptors, timers, and what a turn leaves to be sent.

It owns the selector and the monotonic clock. It knows nothing of Redis or consumers, but it is
the one place where their failures are caught: whatever a callback raises as a `WakeqError`
goes to `on_failure`.
"""

import heapq
import selectors
import time
from collections.abc import Callable

from wakeq.errors import WakeqError
from wakeq.service import NOW, RUN, Service

Callback = Callable[[], None]


class Timer:
    """A call that is due once, at a time of the monotonic clock."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Do not call; nothing if it has been called."""
        self.callback = None


class Loop:
    """Calls back when a file descriptor is readable or a time has come.

    Attributes:
        on_failure: what takes the failures of callbacks.
        on_reload: called after a SIGHUP.
        turns: called at the end of each turn, in order: they send what the turn has gathered,
            so that a hundred changes become one request.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.on_failure: Callable[[WakeqError], None] = _raise
        self.on_reload: Callback = _nothing
        self.turns: list[Callback] = []
        self._selector = selectors.DefaultSelector()
        self._readers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._ended = False

    def watch(self, fd: int, callback: Callback) -> None:
        """Call whenever a file descriptor is readable, or has ended."""
        self._selector.register(fd, selectors.EVENT_READ, callback)
        self._readers[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch a file descriptor no more; it may be closed already."""
        if self._readers.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call once, in so many seconds."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        """Run until the service is told to stop, or `end` was called."""
        self.watch(self.service.signal_fd, self.service.clear_signal)
        self._keep_watchdog()
        while self.service.stop == RUN and not self._ended:
            self._turn()

    def end(self) -> None:
        """Have `run` return after this turn."""
        self._ended = True

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Run on until a condition holds, after a stop; tell whether it did.

        It ends without that after so many seconds, and when the service is to stop at once.
        """
        deadline = time.monotonic() + seconds
        self.after(seconds, _nothing)
        while not condition():
            if self.service.stop == NOW or time.monotonic() >= deadline:
                return False
            self._turn()
        return True

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._pause()):
            # One callback may close what the next one was to read.
            reader = self._readers.get(key.fd)
            if reader is not None and reader is key.data:
                self._call(reader)
        if self.service.reload:
            self.service.reload = False
            self._call(self.on_reload)
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                self._call(callback)
        for send in self.turns:
            self._call(send)

    def _pause(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else None

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except WakeqError as error:
            self.on_failure(error)

    def _keep_watchdog(self) -> None:
        if seconds := self.service.notifier.watchdog_seconds:
            self.service.notifier.alive()
            # A turn may take half of it: that long a connect to silent servers may last.
            self.after(seconds / 3, self._keep_watchdog)


def _raise(error: WakeqError) -> None:
    raise error


def _nothing() -> None:
    pass
