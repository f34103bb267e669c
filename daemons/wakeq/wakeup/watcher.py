"""Watches the streams of groups whose consumers sleep, without reading anything twice.

Groups are watched in shards of up to 64. A shard is one connection, blocked in one XREAD over
both streams of each of its groups, from the ids that the last look returned: what was added
between the look and the watch ends it at once. Redis looks at every stream of an XREAD each
time it is sent, so small shards keep a wake cheap: it re-arms its own shard alone.

What it reports is a hint. It may be doubled, and it may be late: until the XREAD that a change
is waiting for has been ended by CLIENT UNBLOCK. A shard is blocked for at most a minute; one
that is silent for longer is on a dead connection, and that means that Redis is lost.

Who changes what: `watch` and `unwatch` only note what is wanted and mark the shard, `send`
brings it about at the end of a turn. A group that is not wanted any more is left in the XREAD
that is under way; at worst that ends once for nothing.

On Redis Cluster all keys of one XREAD must be in one slot, so a shard has one group there.
"""

import time
from collections.abc import Callable
from functools import partial

from wakeq import failpoint
from wakeq.errors import UnavailableError
from wakeq.loop import Loop
from wakeq.wakeup.group import ID, Group, format_id
from wakeq.wakeup.lines import Lines
from wakeq.wire import TRANSIENT, Argument, Lost, Reply, ServerError, explain

_GROUPS_MOST = 64
# At rest the only commands beside the looks: one for each shard and minute.
_BLOCK_SECONDS = 60
_SILENCE_SECONDS = _BLOCK_SECONDS + 15
# The XREAD that is to be ended may not have reached the server yet: another connection.
_UNBLOCK_AGAIN_SECONDS = 0.01

# From where in the stream, None not to watch it, and in the retry stream.
IDs = tuple[ID | None, ID]


class Watcher:
    """Tells when something is added for a group that is watched.

    Attributes:
        on_hint: called with each such group; it is not watched any more.
    """

    def __init__(self, loop: Loop, lines: Lines) -> None:
        self.on_hint: Callable[[Group], None]
        self._loop = loop
        self._lines = lines
        self._shards: list[Shard] = []
        self._changed: set[Shard] = set()

    def watch(self, group: Group, delivered: ID | None, retried: ID) -> None:
        """Watch a group from the ids up to which its streams have been delivered.

        Without the first id only the retry stream is watched.
        """
        if group.home is None:
            group.home = self._place(group)
        shard: Shard = group.home
        shard.wanted[group] = (delivered, retried)
        if not shard.covers(group):
            self._changed.add(shard)

    def unwatch(self, group: Group) -> None:
        """Watch a group no more."""
        if group.home is not None:
            group.home.wanted.pop(group, None)

    def forget(self, group: Group) -> None:
        """Give up a group's place."""
        self.unwatch(group)
        if group.home is not None:
            group.home.room += 1
            group.home = None

    @property
    def settled(self) -> bool:
        """Whether all that is wanted is being watched."""
        return all(shard.covers(group) for shard in self._shards for group in shard.wanted)

    def close(self) -> None:
        """Close all connections: Redis is lost; no group has a place any more."""
        for shard in self._shards:
            shard.close()
        self._shards.clear()
        self._changed.clear()

    def send(self) -> None:
        """Bring about what has changed: the end of a turn."""
        if self._changed:
            failpoint.hit("before_watch")
        while self._changed:
            self._changed.pop().arm()

    def _place(self, group: Group) -> "Shard":
        if not self._lines.cluster:
            for shard in reversed(self._shards):
                if shard.room > 0:
                    shard.room -= 1
                    return shard
        shard = Shard(self._loop, self._lines, group.keys[0], self._report)
        # On Cluster its connection leads to the owner of this one slot.
        shard.room = 0 if self._lines.cluster else _GROUPS_MOST - 1
        self._shards.append(shard)
        return shard

    def _report(self, shard: "Shard", groups: list[Group]) -> None:
        self._changed.add(shard)
        for group in groups:
            del shard.wanted[group]
            self.on_hint(group)


class Shard:
    """One XREAD over the streams of a few groups.

    Attributes:
        wanted: what is to be watched, and from where.
        room: how many more groups it takes.
    """

    def __init__(
        self,
        loop: Loop,
        lines: Lines,
        key: bytes,
        report: "Callable[[Shard, list[Group]], None]",
    ) -> None:
        self.wanted: dict[Group, IDs] = {}
        self.room = 0
        self._loop = loop
        self._line = partial(lines.to, key)
        self._connection = lines.connection(key)
        self._report = report
        self._fd = -1
        self._armed: dict[bytes, ID] = {}  # what the XREAD under way covers
        self._serial = 0  # tells one XREAD from the next
        self._unblocking = False
        self._deadline = 0.0  # when the XREAD under way must have ended
        self._checking = False

    def covers(self, group: Group) -> bool:
        """Tell whether the XREAD under way ends when something is added for a group.

        One that began further back covers it too: it has not ended, so nothing was added.
        """
        ids = zip(group.keys, self.wanted[group], strict=False)
        return all(
            wanted is None or (key in self._armed and self._armed[key] <= wanted)
            for key, wanted in ids
        )

    def close(self) -> None:
        """Close the connection; it is opened again when there is something to watch."""
        self._loop.forget(self._fd)
        self._fd = -1  # the number may be another file's by the next time
        self._connection.close()
        self._armed = {}
        self._serial += 1
        self._unblocking = False

    def arm(self) -> None:
        """Send the XREAD for what is wanted, after ending one that does not cover it."""
        if self._connection.outstanding:
            if not self._unblocking and not all(map(self.covers, self.wanted)):
                self._unblock()
            return
        if not self.wanted:
            return
        if not self._connection.connected:
            self._connection.connect()
            self._fd = self._connection.fileno()
            self._loop.watch(self._fd, self._read)
        self._armed = {}
        for group, ids in self.wanted.items():
            for key, wanted in zip(group.keys, ids, strict=False):
                if wanted is None:
                    continue
                # Several groups may read one stream: from where the first of them is.
                self._armed[key] = min(wanted, self._armed.get(key, wanted))
        command: list[Argument] = [b"XREAD", b"COUNT", 1, b"BLOCK", _BLOCK_SECONDS * 1000]
        command += (b"STREAMS", *self._armed, *map(format_id, self._armed.values()))
        self._serial += 1
        self._unblocking = False
        self._connection.send([command])
        self._deadline = time.monotonic() + _SILENCE_SECONDS
        if not self._checking:
            self._check()

    def _read(self) -> None:
        try:
            replies = self._connection.receive()
        except Lost:
            if self._armed:
                raise
            self.close()  # idle, and closed for that by the server
            return
        for reply in replies:
            self._armed = {}
            self._ended(reply)
        while self._connection.has_buffered():
            self._read()

    def _ended(self, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            if reply.code in TRANSIENT:
                raise explain(reply, self._connection.url)
            # One of the streams cannot be read; the looks tell which.
            self._report(self, list(self.wanted))
            return
        added = {key for key, _ in reply or ()}
        # A group that was asked for after the XREAD was sent is told too: a hint too many.
        self._report(self, [g for g in self.wanted if not added.isdisjoint(g.keys[:2])])

    def _unblock(self) -> None:
        self._unblocking = True
        command = (b"CLIENT", b"UNBLOCK", self._connection.client_id)
        self._line().ask(command, partial(self._unblocked, self._serial))

    def _unblocked(self, serial: int, reply: Reply) -> None:
        if serial != self._serial:
            return  # it had ended by itself
        if isinstance(reply, ServerError):
            # The user may not do that; a new connection does as well.
            self.close()
            self.arm()
        elif reply == 0:
            self._loop.after(_UNBLOCK_AGAIN_SECONDS, partial(self._unblock_again, serial))

    def _unblock_again(self, serial: int) -> None:
        if serial == self._serial and self._connection.outstanding:
            self._unblock()

    def _check(self) -> None:
        self._checking = bool(self._connection.outstanding)
        if not self._checking:
            return
        rest = self._deadline - time.monotonic()
        if rest <= 0:
            raise UnavailableError(f"Redis at {self._connection.url} has fallen silent")
        self._loop.after(rest, self._check)
