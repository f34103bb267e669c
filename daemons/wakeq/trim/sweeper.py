"""Goes once over all streams and trims them, whatever befalls Redis meanwhile.

A stream that cannot be trimmed, because something else has its name or the user may not, does
not keep the others from it; the exit code tells. Redis that is lost is tried again for as long
as at the start. It is no matter if several do this at once, on whatever hosts: each slice is
decided anew.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from wakeq import failpoint, journal
from wakeq.backoff import Backoff
from wakeq.errors import EX_CONFIG, RefusedError, UnavailableError
from wakeq.redis_client import Servers
from wakeq.service import RUN, Service
from wakeq.trim.finder import Finder, readable
from wakeq.trim.trimmer import Trimmed, Trimmer

T = TypeVar("T")


class _Stopped(Exception):
    """The service was told to stop while it waited for Redis."""


class Sweeper:
    """Trims each stream that there is."""

    def __init__(
        self, service: Service, servers: Servers, finder: Finder, trimmer: Trimmer
    ) -> None:
        self._service = service
        self._servers = servers
        self._finder = finder
        self._trimmer = trimmer
        self._backoff = Backoff()
        self._deadline = 0.0
        self._answered = False  # ever
        self._lost = False
        self._removed = 0
        self._code = 0

    def run(self) -> int:
        """Trim all streams, or until the service is told to stop, and return the exit code.

        Raises:
            UnavailableError: Redis could not be reached for `start_timeout`.
            WakeqError: Redis does not let itself be used.
        """
        self._prolong()
        try:
            self._insist(self._check)
            names = self._insist(self._finder.run)
            for number, name in enumerate(names, 1):
                if self._service.stop != RUN:
                    break
                self._trim(name, f"trimming stream {number} of {len(names)}, {readable(name)}")
        except _Stopped:
            return self._code
        self._service.notifier.status(
            f"{len(names)} streams looked at, {self._removed} messages removed"
        )
        return self._code

    def _check(self) -> None:
        try:
            self._servers.check_version()
        except RefusedError:
            pass  # the user may not ask; what is needed is refused once more

    def _trim(self, name: bytes, doing: str) -> None:
        trimmed = Trimmed(name)
        try:
            more = True
            while more and self._service.stop == RUN:
                self._service.notifier.status(f"{doing}: {trimmed.removed} messages removed")
                more = self._insist(lambda: self._trimmer.slice(trimmed))
                failpoint.hit("after_slice")
        except RefusedError as error:
            self._code = max(self._code, error.exit_code)
            self._service.log.warning(
                "stream was not trimmed", stream=readable(name), error=str(error)
            )
        finally:
            self._tell(trimmed)

    def _tell(self, trimmed: Trimmed) -> None:
        log, stream = self._service.log, readable(trimmed.name)
        self._removed += trimmed.removed + trimmed.lost
        if trimmed.kind not in ("stream", "none", ""):
            self._code = max(self._code, EX_CONFIG)
            error = f"it is a {trimmed.kind}, not a stream"
            log.warning("stream was not trimmed", stream=stream, error=error)
            return
        if trimmed.removed:
            log.info(
                "stream was trimmed", stream=stream, removed=trimmed.removed, left=trimmed.left
            )
        if trimmed.lost:
            log.warning(
                "messages were removed because of max_length, handled or not",
                event_id=journal.MESSAGES_LOST,
                stream=stream,
                count=trimmed.lost,
                left=trimmed.left,
                max_length=self._trimmer.settings.max_length,
            )
        if not trimmed.removed and not trimmed.lost:
            log.debug("nothing to remove", stream=stream, left=trimmed.left)

    def _insist(self, ask: Callable[[], T]) -> T:
        """Return what Redis answers, asking again while it cannot answer."""
        while True:
            try:
                answer = ask()
            except UnavailableError as error:
                self._wait(error)
            else:
                self._came_back()
                return answer

    def _wait(self, error: UnavailableError) -> None:
        service = self._service
        pause = min(self._backoff.next(), self._deadline - time.monotonic())
        if pause <= 0:
            raise error
        if self._answered and not self._lost:
            self._lost = True
            service.log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        service.notifier.status(f"waiting for Redis, try {self._backoff.tries}: {error}")
        service.pause(pause)
        if service.stop != RUN:
            raise _Stopped

    def _came_back(self) -> None:
        if self._lost:
            self._lost = False
            self._service.log.info("Redis is back", event_id=journal.REDIS_BACK)
        self._answered = True
        self._backoff.reset()
        self._prolong()

    def _prolong(self) -> None:
        self._deadline = time.monotonic() + self._service.common.start_timeout
