"""The threads of a worker that call handlers."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from wakeq.fanout.office import log


class Lanes:
    """Threads that do what they are given; a new one whenever all are busy, up to so many."""

    def __init__(self, most: int) -> None:
        if not isinstance(most, int) or not 1 <= most <= 10_000:
            raise ValueError(f"concurrency must be 1 to 10000, not {most!r}")
        self._most = most
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], None]) -> None:
        """Have something done, after what was submitted before."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name="wakeq-room-lane", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put(task)

    def close(self) -> None:
        """Wait until all is done, and end the threads."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:
                log.error("a lane failed: %s: %s", type(error).__name__, error)
            with self._lock:
                self._idle += 1
