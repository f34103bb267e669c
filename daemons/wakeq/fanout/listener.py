"""The thread of a worker that hears of news, pings, and keeps the times."""

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Any

from wakeq import keys
from wakeq.backoff import Backoff
from wakeq.errors import ConfigError, RefusedError, WakeqError
from wakeq.fanout.bell import Bell
from wakeq.fanout.calling import call_each, drive
from wakeq.fanout.office import Office, log
from wakeq.fanout.rooms import decoded


class Listener:
    """Hears, until it is stopped; Redis may come and go.

    Args:
        office: is told what was heard, with the lock held.
        servers: where pings go.
        lock: guards the office.
        serve: called with a room in which there may be something to do.

    Attributes:
        ready: set when it listens for the first time, or has ended.
        has_listened: it has, for the first time.
        stopping: `stop` was called.
    """

    def __init__(
        self, office: Office, servers: Any, lock: threading.RLock, serve: Callable[[str], None]
    ) -> None:
        self.ready = threading.Event()
        self.has_listened = self.stopping = False
        self._backoff = Backoff(0.1, 5.0)
        self._office = office
        self._servers = servers
        self._lock = lock
        self._serve = serve
        self._bell = Bell(servers.url, office.channel, servers.name)
        self._wake_fd = -1
        self._trouble = False
        self._refusal: WakeqError | None = None

    def run(self) -> None:
        """Listen until `stop`.

        Raises:
            ConfigError, RefusedError: it will not work by trying again.
        """
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            while not self.stopping:
                if self._refusal is not None:
                    raise self._refusal
                self._turn()
        finally:
            self.stopping = True
            self._bell.close()
            self.ready.set()

    def stop(self) -> None:
        """Have `run` return; from any thread."""
        self.stopping = True
        self.wake()

    def close(self) -> None:
        """Give up what `wake` needs."""
        wake_fd, self._wake_fd = self._wake_fd, -1
        if wake_fd >= 0:
            os.close(wake_fd)

    def _turn(self) -> None:
        try:
            if not self._bell.connected:
                self._listen()
            with self._lock:
                pause = self._office.pause
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            poll.register(self._bell.fileno(), select.POLLIN)
            ready = {fd for fd, _ in poll.poll(pause * 1000)}
            if self._wake_fd in ready:
                self._clear_wake()
            if self._bell.fileno() in ready:
                self._hear()
            self._ping()
            with self._lock:
                self._office.run_timers()
                rooms, self._office.touched = self._office.touched, set()
            for room in rooms:
                self._serve(room)
        except (ConfigError, RefusedError):
            raise
        except WakeqError as error:
            self.trouble(error)
            self._bell.close()
            self._sleep(self._backoff.next())

    def _listen(self) -> None:
        self._bell.connect()
        self._find_rooms()
        # Nothing rang while nobody listened.
        with self._lock:
            self._office.doubt()
        self._backoff.reset()
        if self._trouble:
            log.warning("Redis at %s answers again", self._servers.url)
            self._trouble = False
        self.has_listened = True
        self.ready.set()

    def _find_rooms(self) -> None:
        """Take up the rooms of the worker that others have had."""
        if self._office.is_alone:
            return
        found = self._servers.call(keys.worker_rooms(self._office.name), "SMEMBERS",
                                   keys.worker_rooms(self._office.name))  # fmt: skip
        with self._lock:
            for room in decoded(found):
                self._office.desk(room)

    def _hear(self) -> None:
        payloads = self._bell.receive()
        with self._lock:
            for payload in payloads:
                self._office.hear(payload)

    def _ping(self) -> None:
        while True:
            with self._lock:
                due = self._office.due_pings()
            if not due:
                return
            replies = drive(
                self._servers, call_each(self._servers, [request for _, request in due], tries=1)
            )
            with self._lock:
                for (desk, _), reply in zip(due, replies, strict=True):
                    self._office.take_ping(desk, reply)

    def _sleep(self, seconds: float) -> None:
        if select.select([self._wake_fd], [], [], seconds)[0]:
            self._clear_wake()

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def wake(self) -> None:
        """Have it look at the times again; from any thread."""
        if self._wake_fd >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)

    def trouble(self, error: Exception) -> None:
        """Say that Redis fails, once; if it refuses, have `run` raise that."""
        if isinstance(error, RefusedError):
            self._refusal = error
            self.wake()
            return
        if not self._trouble:
            log.warning("%s; trying again", error)
        self._trouble = True
