"""Moves due messages back for delivery, at the time that they are due.

Each stream is on the agenda at the time when its earliest message is due. A look at a stream is
`deliver.lua`: it moves what is due, and says when to look next. Many streams are looked at in one
go; a stream with a backlog is looked at again at once, after the others, and what the daemon has
to see to beside. A look finds the truth, whoever has moved what in the meantime; so several
daemons do each other no harm, and a hint to look may come twice.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from wakeq import journal, keys
from wakeq.backoff import Backoff
from wakeq.delay.agenda import Agenda, Clock
from wakeq.delay.link import Link
from wakeq.delay.stream import Stream
from wakeq.errors import KeyRefusedError, UnavailableError
from wakeq.journal import Log
from wakeq.loop import Loop, Timer
from wakeq.replies import is_of_key
from wakeq.scripts import Script
from wakeq.wire import TRANSIENT, Connection, Reply, ServerError, explain

_STREAMS_MOST = 32
# All that is moved in one go: Redis serves nobody else for two to four ms.
_BATCH = 100
_PUT_OFF_MS = 60_000
_SWEEP = 100
# Messages that are due one after another are moved together: 250 looks a second, not a thousand.
_PACE_MS = 4.0
# A slot of a Cluster that is on its way to another server.
_MOVING = ("MOVED", "ASK", "TRYAGAIN")
_MOVING_MS = 100.0
_REPORTED_MOST = 10_000
# A timer that is cancelled stays with the loop until its time: not for years.
_SLEEP_SECONDS = 10.0
_EARLY_SECONDS = 0.0005
# Between two turns the watchdog is fed.
_WAITED_SECONDS = 0.5


class Promoter:
    """Looks at streams when it is time to.

    Args:
        loop: tells the time to.
        log: what is told to people.
        link: speaks to Redis.
        clock: that of Redis.
        tell: log each message that is moved.

    Attributes:
        repairs: retries wait for a repair instead of being delivered.
        on_repair: called when a stream has such ones, and when the first may be handed out (ms).
        streams: all that are known, by name.
        unregistered: those that are to be put into the registry: something was delayed there.
        moved: how many messages were moved to a stream.
    """

    def __init__(self, loop: Loop, log: Log, link: Link, clock: Clock, tell: bool) -> None:
        self.repairs = False
        self.on_repair: Callable[[Stream, float], None]
        self.streams: dict[str, Stream] = {}
        self.unregistered: set[str] = set()
        self.moved = 0
        self.tell = tell
        self._loop = loop
        self._log = log
        self._link = link
        self._clock = clock
        self._agenda = Agenda()
        self._deliver = Script("deliver")
        self._drop_strays = Script("drop_strays")
        self._unseen: set[str] = set()  # to be looked at, never mind when something is due
        self._away: dict[str, Backoff] = {}  # on servers that cannot be reached, on Cluster
        self._reported: set[tuple[str, str]] = set()
        self._stranger_looked = 0.0
        self._timer: Timer | None = None

    @property
    def settled(self) -> bool:
        """Whether every stream that was to be looked at has been."""
        return not self._unseen

    @property
    def away(self) -> int:
        """How many streams are on servers that cannot be reached now."""
        return len(self._away)

    @property
    def delayed(self) -> int:
        """How many messages are delayed, as far as known."""
        return sum(stream.delayed for stream in self.streams.values())

    def next_seconds(self) -> float | None:
        """Return in how many seconds the next message is due, as far as known."""
        when = self._agenda.next_ms()
        return None if when is None else max(0.0, when - self._clock.now_ms()) / 1000

    def look(self, names: Iterable[str]) -> None:
        """Look at streams soon: something may have become due."""
        for name in names:
            stream = self.streams.get(name)
            if stream is None:
                stream = self.streams[name] = Stream(name)
                # Strangers are forgotten once looked at: their pace is that of all of them.
                stream.looked = self._stranger_looked
            self._unseen.add(name)
            self._agenda.hasten(name, self._paced(stream))

    def look_at_all(self, registered: set[str]) -> None:
        """Look at the streams of the registry, and those beside that have something delayed."""
        for name, stream in list(self.streams.items()):
            stream.registered = name in registered
            if name not in self._unseen and name not in self._away:
                self._dismiss(stream)
        self.look({*registered, *self.streams})
        for name in registered:
            self.streams[name].registered = True

    def forget(self) -> None:
        """Plan nothing any more: Redis is lost."""
        self._agenda.clear()
        # What was rung for and not looked at yet may be in no registry.
        self._unseen.update(self._away)
        self._away.clear()
        self.unregistered.clear()

    def send(self) -> None:
        """Look at what it is time for: the end of a turn."""
        names = list(islice(self._agenda.take(self._clock.now_ms()), _STREAMS_MOST))
        # Where a connection is missing, a server may be silent: the others do not wait for that.
        known = [name for name in names if self._link.has(name)]
        self._look_at([self.streams[name] for name in known])
        self._look_at([self.streams[name] for name in names if name not in known])
        self._set_timer()

    def _look_at(self, streams: list[Stream]) -> None:
        """Look at streams; once there was a server to wait for, the next turn has the others."""
        began = time.monotonic()
        groups: dict[Connection, list[Stream]] = {}
        for stream in streams:
            if time.monotonic() - began > _WAITED_SECONDS:
                self._agenda.put(stream.name, 0.0)
                continue
            try:
                connection = self._link.connection(stream.name)
            except UnavailableError as error:
                self._unreachable([stream], error)
            except KeyRefusedError as error:
                # On Cluster, already who asks where a key is must be permitted to use it.
                self._give_up(stream, error)
            else:
                groups.setdefault(connection, []).append(stream)
        for connection, group in groups.items():
            if time.monotonic() - began > _WAITED_SECONDS:
                for stream in group:
                    self._agenda.put(stream.name, 0.0)
            else:
                self._look(connection, group)

    def _set_timer(self) -> None:
        """Have a turn when it is time for the next one."""
        seconds = self.next_seconds()
        if seconds is None:
            return
        seconds = min(seconds, _SLEEP_SECONDS)
        if self._timer is not None:
            if self._timer.when <= time.monotonic() + seconds + _EARLY_SECONDS:
                return
            self._timer.cancel()
        self._timer = self._loop.after(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None  # the end of the turn looks at what it is time for

    def _look(self, connection: Connection, streams: list[Stream]) -> None:
        batch = max(1, _BATCH // len(streams))
        options = (batch, _PUT_OFF_MS, int(self.repairs), int(self.tell))
        requests = [(s.promoting, (keys.retry(s.name, ""), *options)) for s in streams]
        try:
            replies = self._link.run(connection, self._deliver, requests)
        except UnavailableError as error:
            self._unreachable(streams, error)
            return
        failure = None
        for stream, reply in zip(streams, replies, strict=True):
            stream.looked = time.monotonic()
            if isinstance(reply, ServerError):
                failure = self._refused(stream, reply) or failure
            else:
                self._looked(stream, reply)
        if failure is not None:
            raise failure

    def _looked(self, stream: Stream, reply: list[Reply]) -> None:
        now_us, waiting, repair, stream.delayed, strays, moved, troubles, told = reply
        self._clock.set(now_us)
        self.moved += moved
        self._seen(stream)
        if repair and self.repairs:
            self.on_repair(stream, float(repair))
        times = [float(when) for when in (waiting, b"" if self.repairs else repair) if when]
        if times and (first := min(times)) != float("inf"):
            behind = first <= now_us / 1000
            when = first if behind else max(first, self._paced(stream))
            self._agenda.put(stream.name, when)
        for member, why in _in_groups(troubles, 2):
            self._report(stream, member, why)
        for first_id, group, entry in _in_groups(told, 3):
            self._log.debug(
                "message was delivered again" if group else "delayed message was delivered",
                stream=stream.name, group=group, message_id=first_id, entry=entry,
            )  # fmt: skip
        if strays > 0 and not stream.sweeping:
            stream.sweeping = True
            self._loop.after(0, partial(self._sweep, stream, b"0"))
        if not stream.registered and (stream.delayed or moved):
            stream.registered = True
            self.unregistered.add(stream.name)
        self._dismiss(stream)

    def _dismiss(self, stream: Stream) -> None:
        """Forget a stream that has nothing delayed, unless it is in the registry.

        Anybody may ring with any name, and the doorbell is that of all databases.
        """
        if not (stream.registered or stream.delayed):
            self._stranger_looked = max(self._stranger_looked, stream.looked)
            del self.streams[stream.name]
            self._agenda.drop(stream.name)
            if self._link.cluster:
                self._link.forget(stream.name)

    def _seen(self, stream: Stream) -> None:
        self._unseen.discard(stream.name)
        self._away.pop(stream.name, None)

    def _paced(self, stream: Stream) -> float:
        """Return when a stream may be looked at again."""
        since_ms = (time.monotonic() - stream.looked) * 1000
        return self._clock.now_ms() + max(0.0, _PACE_MS - since_ms)

    def _refused(self, stream: Stream, error: ServerError) -> Exception | None:
        """Take an error reply; return the failure it means, unless it is of this stream alone."""
        if error.code in _MOVING and self._link.cluster:
            self._link.forget(stream.name)
            self._agenda.put(stream.name, self._clock.now_ms() + _MOVING_MS)
            return None
        refused = error.code in ("NOPERM", "NOAUTH") and not is_of_key(error)
        if error.code in TRANSIENT or refused:
            failure = explain(error, self._link.url)
            if not (self._link.cluster and isinstance(failure, UnavailableError)):
                return failure
            # Of this node alone: it has no memory left, say.
            self._unreachable([stream], failure)
            return None
        self._give_up(stream, error)
        return None

    def _give_up(self, stream: Stream, error: Exception) -> None:
        """Leave a stream alone that cannot be looked at, until it is rung for or looked at anew."""
        self._seen(stream)
        # Of a stranger's name nothing is known but that somebody rang with it.
        if stream.registered or stream.delayed:
            self._report(stream, "", str(error))
        self._dismiss(stream)

    def _unreachable(self, streams: list[Stream], error: UnavailableError) -> None:
        """Try these again later; without Cluster, that are all."""
        if not self._link.cluster:
            raise error
        for stream in streams:
            self._link.forget(stream.name)
            self._unseen.discard(stream.name)
            pause = self._away.setdefault(stream.name, Backoff()).next()
            self._agenda.put(stream.name, self._clock.now_ms() + pause * 1000)

    def _report(self, stream: Stream, member: str, why: str) -> None:
        """Say once what is wrong with a message, or with all of a stream."""
        if (stream.name, member) in self._reported:
            return
        if len(self._reported) >= _REPORTED_MOST:
            self._reported.clear()
        self._reported.add((stream.name, member))
        first_id, _, group = member.partition("@")
        if why.startswith("dropped"):
            self._log.warning(
                "a delayed message was dropped", stream=stream.name, message_id=member, error=why
            )
        elif member:
            self._log.warning(
                "delivery was put off", event_id=journal.DELIVERY_PUT_OFF, stream=stream.name,
                group=group.partition("@")[0], message_id=first_id, error=why,
            )  # fmt: skip
        else:
            self._log.warning("a stream cannot be looked at", stream=stream.name, error=why)

    def _sweep(self, stream: Stream, cursor: bytes) -> None:
        """Drop stored messages that are in no set, some at a time."""
        request = ((stream.waiting, stream.repairs, stream.data), (cursor, _SWEEP))
        try:
            connection = self._link.connection(stream.name)
            (reply,) = self._link.run(connection, self._drop_strays, [request])
        finally:
            stream.sweeping = False
        if isinstance(reply, ServerError):
            return  # the next look at the stream says what is wrong
        for member in reply[1:]:
            self._report(stream, _text(member), "dropped: nothing says when it is due")
        if reply[0] != b"0":
            stream.sweeping = True
            self._loop.after(0, partial(self._sweep, stream, reply[0]))


def _in_groups(replies: list[bytes], size: int) -> Iterable[Any]:
    texts = [iter(map(_text, replies))] * size
    return zip(*texts, strict=True)


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
