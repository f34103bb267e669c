"""Finds the streams to be trimmed: those of the registry, and those that patterns name."""

from wakeq import keys
from wakeq.redis_client import Servers, errors_explained
from wakeq.sections import Trim

_SCAN_COUNT = 1000


class Finder:
    """Finds streams; keys of our own are none, whoever named them.

    Args:
        servers: where they are.
        settings: its `streams` are names and patterns besides the registry.
    """

    def __init__(self, servers: Servers, settings: Trim) -> None:
        self._servers = servers
        self._patterns = settings.streams

    def run(self) -> list[bytes]:
        """Return the names, in order; some may be gone, or be no streams.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        found = set(self._servers.call(keys.STREAMS, "SMEMBERS", keys.STREAMS))
        for pattern in self._patterns:
            if set("*?[\\") & set(pattern):
                found |= self._matching(pattern)
            else:
                found.add(pattern.encode())
        return sorted(name for name in found if not is_own(name))

    def _matching(self, pattern: str) -> set[bytes]:
        found: set[bytes] = set()
        for client in self._servers.masters():
            with errors_explained(self._servers.url):
                found.update(client.scan_iter(pattern, count=_SCAN_COUNT, _type="stream"))
        return found


def is_own(name: bytes) -> bool:
    """Tell whether a key is one of wakeq's own, which are never trimmed."""
    return name.startswith(keys.OWN.encode())


def readable(name: bytes) -> str:
    """Return a stream's name as text."""
    return name.decode(errors="backslashreplace")
