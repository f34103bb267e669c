"""Remembers what of Redis does not answer, and logs once that it was lost, and that it is back."""

from wakeq import journal
from wakeq.journal import Log

BELL = "bell"


class Trouble:
    """What is in trouble: the bell, a connection, a room. Each says so by itself.

    Args:
        log: where to say it.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._sources: set[str] = set()

    def __bool__(self) -> bool:
        """Tell whether anything is."""
        return bool(self._sources)

    def __contains__(self, source: str) -> bool:
        """Tell whether this is."""
        return source in self._sources

    def begin(self, source: str, error: Exception) -> None:
        """Hear that something does not answer, as far as known for the first time."""
        if not self._sources:
            self._log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        self._sources.add(source)

    def end(self, source: str) -> None:
        """Hear that it does, or that nobody asks it any more."""
        if source in self._sources:
            self._sources.remove(source)
            if not self._sources:
                self._log.info("Redis is back", event_id=journal.REDIS_BACK)
