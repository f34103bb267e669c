"""Trims one stream after another, in slices that do not keep Redis from others.

What may go is decided by trim.lua, anew for each slice. A slice takes Redis a fraction of a
millisecond, unless its messages are large: the script makes it smaller for those by the size
of the first, and the trimmer by how long the last ones took.
"""

import time
from typing import Any

from wakeq.redis_client import Servers
from wakeq.scripts import Script
from wakeq.sections import Trim

# Entries: of 2000 small ones, freeing takes less than what the script does besides; counting
# makes a value in Lua of each field.
_SLICE = 2000
_COUNT_SLICE = 250
_SLICE_LEAST = 20
# What Redis may be kept by one slice, without the way there and back.
_SLICE_SECONDS = 0.004


class Trimmed:
    """What has become of a stream up to now.

    Attributes:
        name: the stream.
        kind: its type in Redis: `stream`, `none` if there is no such key, or another.
        removed: how many messages went that every group had handled.
        lost: how many more went because of max_length: from the first on that some group needed,
            those behind it that were handled included; or all, if there is no group.
        left: how many there are now.
    """

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.kind = ""
        self.removed = 0
        self.lost = 0
        self.left = 0


class Trimmer:
    """Trims streams.

    Args:
        servers: where they are.
        settings: how much of them stays.
    """

    def __init__(self, servers: Servers, settings: Trim) -> None:
        self.settings = settings
        self._servers = servers
        self._script = Script("trim")
        self._slice = _SLICE
        self._quickest = float("inf")

    def slice(self, trimmed: Trimmed) -> bool:
        """Remove one slice, note it in `trimmed`, and tell whether there is more to remove.

        Raises:
            WakeqError: Redis does not do it. If it cannot be reached, this slice may have been
                removed; the next call goes on from there.
        """
        settings = self.settings
        # Once something is lost, no more goes than that: what is free to go by it goes next time.
        # So it does not matter how large slices are, and counting beforehand gives the same.
        keep = settings.max_length if trimmed.lost else settings.keep
        arguments = (keep, settings.max_length, self._slice, "", "")
        began = time.monotonic()
        reply = self._servers.run(self._script, [trimmed.name], arguments)
        self._learn(time.monotonic() - began)
        done, _ = _add(trimmed, reply)
        return not done

    def count(self, name: bytes) -> Trimmed:
        """Return what trimming a stream now would do, without doing it.

        Raises:
            WakeqError: Redis does not answer that.
        """
        settings = self.settings
        trimmed = Trimmed(name)
        done, start = False, b"-"
        while not done:
            arguments = (
                *(settings.keep, settings.max_length, _COUNT_SLICE),
                *(trimmed.removed + trimmed.lost, start),
            )
            reply = self._servers.run(self._script, [name], arguments)
            done, start = _add(trimmed, reply)
        return trimmed

    def _learn(self, seconds: float) -> None:
        """Make slices smaller after one that took long, and larger again after others."""
        # The quickest was little more than the way to Redis and back.
        self._quickest = min(self._quickest, seconds)
        if seconds - self._quickest > _SLICE_SECONDS:
            self._slice = max(_SLICE_LEAST, self._slice // 2)
        else:
            self._slice = min(_SLICE, self._slice + _SLICE // 20)


def _add(trimmed: Trimmed, reply: Any) -> tuple[bool, bytes]:
    kind, removed, lost, left, done, start = reply
    trimmed.kind = kind.decode()
    if trimmed.lost:
        lost += removed
    else:
        trimmed.removed += removed
    trimmed.lost += lost
    trimmed.left = left
    return bool(done), start
