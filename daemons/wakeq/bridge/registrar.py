"""Keeps an instance's name, the ids of its workers, and what others need to know of the bridge.

The name is the host's and the instance's, as that of a consumer: one process at a time has it. The
ids of the workers stand in a list (`consumer:ids`) while they live; those of instances that are
gone are removed when they have not been kept for a while, those of this instance's predecessor at
once.
"""

import json

from wakeq import keys
from wakeq.bridge.channel import describe
from wakeq.bridge.link import Link, Request
from wakeq.bridge.maker import CHANNEL
from wakeq.bridge.talk import Run
from wakeq.consumer import process
from wakeq.errors import BusyError, ConfigError, WakeqError
from wakeq.message import BODY
from wakeq.scripts import Script
from wakeq.sections import Bridge
from wakeq.wire import Argument

# Longer than any pause of a process that lives; a crash is known by then all the same.
LIFETIME_SECONDS = 30.0
_RETRIES = 100
_LIFETIME_MS = int(LIFETIME_SECONDS * 1000)


class Registrar:
    """Keeps them.

    Args:
        link: asks Redis.
        settings: the bridge's.
        bridge: its name.
        instance: the name of the instance, HOST/NAME.

    Attributes:
        process: what describes this process.
    """

    def __init__(self, link: Link, settings: Bridge, bridge: str, instance: str) -> None:
        self.process = process.describe_self()
        self._link = link
        self._settings = settings
        self._bridge = bridge
        self._instance = instance
        group = keys.bridge_group(bridge)
        self._alive = keys.alive(settings.stream, group, instance)
        self._retry = keys.retry(settings.stream, group)
        self._owner = keys.owner(settings.stream, group)
        self._turn = keys.turn(settings.stream, group)
        self._enlisted: list[str] = []
        self._join, self._leave = Script("join"), Script("leave")
        self._enlist, self._return = Script("bridge_enlist"), Script("bridge_return")
        self._requeue = Script("bridge_requeue")

    def begin(self) -> None:
        """Take the name, and see that all is as it should be.

        Raises:
            BusyError: another process has the name.
            ConfigError: a key holds something other than it should.
            WakeqError: Redis cannot be asked.
        """
        self.keep_name()
        settings = self._settings
        self._check_keys()
        wanted = [(settings.stream, "stream", "stream"), (settings.ids, "list", "ids")]
        if settings.list_:
            wanted.append((settings.list_, "list", "list"))
        for key, kind, setting in wanted:
            found = self._link.call(key, "TYPE", key)
            if found not in (kind, b"none", kind.encode()):
                raise ConfigError(f"{setting}: {key} is a {found.decode()} in Redis, not a {kind}")
        if settings.list_ and self._link.cluster:
            slots = {self._link.call(k, "CLUSTER", "KEYSLOT", k) for k, _, _ in wanted[::2]}
            if len(slots) > 1:
                raise ConfigError(
                    f"list and stream must be in one slot of the Cluster: give them the same hash"
                    f" tag, as in {{jobs}}:in and {{jobs}}:out, not {settings.list_} and"
                    f" {settings.stream}"
                )
        known = self._link.call(settings.ids, "ZRANGE", keys.enlisted(settings.ids), 0, -1)
        self._enlisted = [
            found for raw in known
            if (found := raw.decode(errors="replace")).rpartition("/")[0] == self._instance
        ]  # fmt: skip

    def register(self) -> None:
        """Have others know of the bridge and its stream; nothing is written that is there.

        Raises:
            WakeqError: Redis cannot be asked, or has no memory left.
        """
        settings = self._settings
        if not self._link.call(keys.STREAMS, "SISMEMBER", keys.STREAMS, settings.stream):
            self._link.call(keys.STREAMS, "SADD", keys.STREAMS, settings.stream)
        told = {"source": describe(settings), "stream": settings.stream, "ids": settings.ids}
        raw = json.dumps(told).encode()
        if self._link.call(keys.BRIDGES, "HGET", keys.BRIDGES, self._bridge) != raw:
            self._link.call(keys.BRIDGES, "HSET", keys.BRIDGES, self._bridge, raw)

    def _check_keys(self) -> None:
        """See that no key is to be two things: none of them need exist yet."""
        names = {"stream": self._settings.stream, "ids": self._settings.ids}
        if self._settings.list_:
            names["list"] = self._settings.list_
        known: dict[str, str] = {}
        for setting, key in names.items():
            if key in known:
                raise ConfigError(f"{known[key]} and {setting} must not be the same key, {key}")
            known[key] = setting

    def keep_name(self) -> None:
        """Take or keep the name.

        Raises:
            BusyError: another process has it.
            WakeqError: Redis cannot be asked.
        """
        dead = ""
        while True:
            arguments: list[Argument] = [self.process, dead, _LIFETIME_MS]
            (holder,) = self._link.run([Request(self._join, [self._alive], arguments)])
            if not holder:
                return
            dead = holder.decode()
            if not process.is_gone(dead):
                raise BusyError(
                    f"bridge {self._instance} runs already, as process {process.pid_of(dead)}:"
                    " stop it first, or start another instance (NAME:2)"
                )

    def keep_ids(self, ids: list[str]) -> None:
        """Have these ids stand in the list, and no others of this instance.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        gone = [known for known in self._enlisted if known not in ids]
        names: list[Argument] = [self._settings.ids, keys.enlisted(self._settings.ids)]
        arguments: list[Argument] = [_LIFETIME_MS, len(gone), *gone, *ids]
        self._link.run([Request(self._enlist, names, arguments)])
        self._enlisted = list(ids)

    def put_back(self, ids: list[str]) -> int:
        """Put back what workers had taken from the list that are gone; return how much that was.

        Args:
            ids: the workers that this instance has.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        settings, bridge = self._settings, self._bridge
        takers_key = keys.bridge_takers(settings.list_, bridge)
        count = 0
        for raw in self._link.call(settings.list_, "SMEMBERS", takers_key):
            worker = raw.decode(errors="replace")
            if worker in ids:
                continue
            names: list[Argument] = [
                settings.list_,
                keys.bridge_taken(settings.list_, bridge, worker),
                takers_key,
                keys.bridge_batch(settings.stream, bridge, worker),
                keys.alive(settings.stream, keys.bridge_group(bridge), worker.rpartition("/")[0]),
            ]
            arguments: list[Argument] = [worker, settings.list_end.upper(), self.process]
            (returned,) = self._link.run([Request(self._return, names, arguments)])
            count += max(0, returned)
        return count

    def retries(self) -> list[tuple[bytes, Run]]:
        """Return dead letters that are to be tried again: their ids, and what they were.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        entries = self._link.call(self._retry, "XRANGE", self._retry, "-", "+", "COUNT", _RETRIES)
        found: list[tuple[bytes, Run]] = []
        for entry, items in entries:
            fields = dict(zip(items[::2], items[1::2], strict=True))
            found.append((entry, (fields.get(CHANNEL, b""), [fields.get(BODY, b"")])))
        return found

    def requeue(self) -> None:
        """Put dead letters that are to be tried again back into the list.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        names: list[Argument] = [self._retry, self._settings.list_]
        arguments: list[Argument] = [self._settings.list_end.upper(), _RETRIES]
        self._link.run([Request(self._requeue, names, arguments)])

    def end(self, ids: list[str]) -> None:
        """Give up the name and the ids, as far as Redis can be asked.

        Args:
            ids: the workers that this instance had: what they have published is not sent again.
        """
        try:
            self.keep_ids([])
            names: list[Argument] = [self._alive, self._retry, self._owner, self._turn]
            self._link.run([Request(self._leave, names, [self.process, "", ""])])
            stream = self._settings.stream
            batches = [keys.bridge_batch(stream, self._bridge, f"{self.process}/{n}") for n in ids]
            self._link.call(stream, "UNLINK", *batches)
        except WakeqError:
            pass  # they run out by themselves
