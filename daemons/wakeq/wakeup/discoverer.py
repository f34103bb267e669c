"""Finds groups whose name is the path of a socket: they are woken without a configuration.

That is the convention of consumers that take the path of the socket they were started with as
the name of their group. Redis does not tell when a group is made, so all streams are asked
for, at the start and at each re-check.
"""

import os
import stat
from functools import partial

from wakeq.config import Consumer as Settings
from wakeq.errors import ConfigError
from wakeq.wakeup.group import Sleeper
from wakeq.wakeup.lines import Lines
from wakeq.wakeup.waker import Waker
from wakeq.wire import Reply, ServerError, explain

_SCAN_COUNT = 1000


class Discoverer:
    """Tells the waker of each such group that appears or goes away.

    Attributes:
        enabled: the setting `discover`.
        busy: it is going through the streams.
    """

    def __init__(self, lines: Lines, waker: Waker, enabled: bool) -> None:
        self.enabled = enabled
        self.busy = False
        self._lines = lines
        self._waker = waker
        self._sleepers: dict[tuple[str, str], Sleeper] = {}
        self._found: set[tuple[str, str]] = set()
        self._asked = 0

    def start(self) -> None:
        """Go through all streams, unless that is being done or is not wanted.

        Raises:
            ConfigError: the server is a Redis Cluster, of which one node is not everything.
        """
        if self.busy or not (self.enabled or self._sleepers):
            return
        if not self.enabled:
            self._found.clear()
            self._finish()
            return
        if self._lines.cluster:
            raise ConfigError("discover does not work on Redis Cluster: it must be off")
        self.busy = True
        self._found.clear()
        self._asked = 0
        self._scan(b"0")

    def forget(self) -> None:
        """Give up what is under way: Redis is lost."""
        self.busy = False

    def _scan(self, cursor: bytes) -> None:
        self._asked += 1
        command = (b"SCAN", cursor, b"COUNT", _SCAN_COUNT, b"TYPE", b"stream")
        self._lines.to(b"").ask(command, self._scanned)

    def _scanned(self, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise explain(reply, self._lines.url)
        cursor, streams = reply
        for stream in streams:
            self._asked += 1
            command = (b"XINFO", b"GROUPS", stream)
            self._lines.to(b"").ask(command, partial(self._told, stream))
        if cursor != b"0":
            self._scan(cursor)
        self._done_one()

    def _told(self, stream: bytes, reply: Reply) -> None:
        # An error: the stream is gone since, or something else has its name.
        for group in () if isinstance(reply, ServerError) else reply:
            name = group[group.index(b"name") + 1]
            if _is_socket(name):
                self._found.add((os.fsdecode(stream), os.fsdecode(name)))
        self._done_one()

    def _done_one(self) -> None:
        self._asked -= 1
        if not self._asked:
            self._finish()

    def _finish(self) -> None:
        self.busy = False
        for key in self._sleepers.keys() - self._found:
            self._waker.remove(self._sleepers.pop(key))
        for stream, path in self._found - self._sleepers.keys():
            settings = Settings()
            # Without `start`: if the group is missing, it is not one any more.
            settings.stream, settings.group, settings.start = stream, path, ""
            sleeper = self._sleepers[stream, path] = Sleeper(path, path, b"")
            self._waker.add(sleeper, settings)


def _is_socket(path: bytes) -> bool:
    try:
        return path.startswith(b"/") and stat.S_ISSOCK(os.stat(path).st_mode)
    except (OSError, ValueError):  # nothing of that name, or it cannot be one
        return False
