"""The election: of many processes that stand under one name, one leads at a time.

Who decides: Redis, in one script (`elect.lua`). The leader has a lease there, which it renews, and
a fencing token, higher than any before. Scripts that must be the leader's alone have the fence
ahead of them (`Script(…, fenced=True)` with `Elector.fence`), which refuses any other token. So
even a leader that was paused between its last look at the clock and its request changes nothing
once there is another.

What may be believed: the leader trusts its lease for `trust` seconds from when it *sent* the
request that was granted, by CLOCK_BOOTTIME of its own machine. Redis counts the whole lease from
when it *got* that request, which is later; so the leader gives up first, by `lease - trust` at
least. `leads` looks at the clock each time, and an alarm goes off at the end, also after a
suspension. A candidate needs two clocks to agree that a lease is over, see elect.lua.

States: candidate (asks when the lease that it knows of would be over, or when it is told that the
leader has resigned), leader (renews three times in each trust), resigned.

What each failure does:
- Redis is lost, slow, or cut off: the leader connects anew and tries again, and gives up when the
  trust is over. A candidate waits. Nobody leads, until Redis answers.
- Redis has lost the key, or was restarted without it: the leader's next renewal restores it with
  the same token; a candidate does not take it for free, but waits for a whole lease, in which any
  leader would have renewed. So the very first election of all takes a lease, too.
- A replica is promoted that lacks the last writes: if that was a renewal, nothing. If it was the
  election itself, it is restored as above, unless a candidate asks in between and the replica
  knows of nobody; then the token of the old leader is refused from there on, and it ends with its
  next renewal. READONLY: connected anew, as if lost.
- The process is paused or the machine suspended: at its first instruction it is no leader any
  more if the trust is over, by the alarm and by `leads`.
- The clock of the host is set: none of this looks at it. That of Redis is set forward: leases seem
  over, and no candidate has waited for them. Set back: nobody has a lease for longer than it is.
- The leader resigns: candidates hear it by pub/sub and ask at once. A hint that is lost costs what
  is left of the lease.

This module owns the connections of the election. It does not know what a leader does.
"""

import time
from collections.abc import Callable

from wakeq import keys
from wakeq.alarm import Alarm
from wakeq.backoff import Backoff
from wakeq.errors import UnavailableError, WakeqError
from wakeq.loop import Loop, Timer
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Connection, Reply, ServerError, explain

# How long a lease is remembered that nobody wants: a month.
_KEEP_MS = 30 * 86_400_000
# At most this long nothing else is done: the leader's watchdog must be fed, its clock looked at.
_CONNECT_SECONDS = 1.0
_RESIGN_SECONDS = 1.0
# Asked this often where the rights to listen are missing, and never more often unless told to.
_POLL_SECONDS = 1.0
# That a lease is over is seen a little after it is.
_LATE_SECONDS = 0.005
# Nobody asks for what a subscription brings: as good as no limit.
_PUSHED_MOST = 1 << 60
_TOO_LATE = "it could not be renewed in time"


class Elector:
    """Stands for election under a name, and leads when elected.

    Args:
        loop: calls it.
        url: the Redis.
        name: what is led.
        identity: the process, as nobody else ever describes itself, and its name for people.
        terms: the lease, as Redis counts it, and the trust, which is less; in seconds.
        source: the stream or list whose node is led, in whose slot the lease is to be.

    Attributes:
        on_elected: called with the token when it leads.
        on_lost: called with the reason when it does not any more; it is a candidate again.
        on_leader: called as a candidate with the name of who leads, empty if nobody is known to.
        on_trouble: called when Redis cannot be used; it is tried again after that, unless this
            raises.
        on_answer: called at each answer of Redis.
        token: the fencing token, empty as a candidate.
    """

    def __init__(
        self,
        loop: Loop,
        url: RedisURL,
        name: str,
        identity: tuple[str, str],
        terms: tuple[float, float],
        source: str = "",
    ) -> None:
        self.on_elected: Callable[[bytes], None]
        self.on_lost: Callable[[str], None]
        self.on_leader: Callable[[str], None] = _nothing
        self.on_trouble: Callable[[WakeqError], None] = _nothing
        self.on_answer: Callable[[], None] = _no_news
        self.token = b""
        self._loop = loop
        self._url = url
        self._key, self._channel = keys.lease(name, source), keys.vacancy(name, source)
        self._identity = identity
        self._lease, self._trust = terms
        self._alarm = Alarm()
        self._until = 0.0  # by the alarm's clock
        self._elect, self._resign = Script("elect"), Script("resign")
        self._line = Connection(url, f"wakeq-lease-{name}", self._key)
        self._bell = Connection(url, f"wakeq-lease-{name}", self._key)
        self._watched: dict[Connection, int] = {}
        self._hears = False  # when the leader resigns
        self._is_over = False
        self._sent_at: float | None = None  # of the request that is outstanding
        self._again = False  # ask once more when that is answered
        self._term, self._over_at = b"", 0.0  # the lease that is watched as a candidate
        self._backoff = Backoff(0.05, 1.0)
        self._timer: Timer | None = None

    @property
    def leads(self) -> bool:
        """Tell whether this process may believe now that it leads."""
        return bool(self.token) and self._alarm.clock() < self._until

    @property
    def fence(self) -> tuple[list[Argument], list[Argument]]:
        """Return the key and the argument that a fenced script takes last."""
        return [self._key], [self.token]

    @property
    def connections(self) -> int:
        """How many are open: one, and as a candidate another one, which hears of a vacancy."""
        return self._line.connected + self._bell.connected

    def check(self) -> None:
        """Ask now whether this process still leads, not only when it has to renew."""
        if self.token and self._line.connected:
            self._ask()

    def start(self) -> None:
        """Stand for election from now on."""
        self._loop.watch(self._alarm.fd, self._expire)
        self._in(0, self._connect)

    def resign(self) -> None:
        """Hand the lease over at once, if it can be, and stand no more."""
        if self.leads and not self._is_over:
            self._tell_resigned()
        self.close()

    def close(self) -> None:
        """Stand no more; a lease is left to run out."""
        if self._is_over:
            return
        self._is_over, self.token = True, b""
        self._cancel()
        self._disconnect()
        self._loop.forget(self._alarm.fd)
        self._alarm.close()

    # -- connections -----------------------------------------------------------------------

    def _connect(self) -> None:
        self._disconnect()
        if not self.token:  # who leads waits for nobody to resign
            self._listen()
        self._line.connect(_CONNECT_SECONDS)
        self._watch(self._line, self._receive)
        self._ask()

    def _listen(self) -> None:
        self._bell.connect(_CONNECT_SECONDS)
        try:
            self._bell.call("SUBSCRIBE", self._channel, timeout=_CONNECT_SECONDS)
        except ServerError as error:
            if error.code != "NOPERM":
                raise
            self._bell.close()  # so it is asked more often instead
            return
        self._hears = True
        self._bell.outstanding = _PUSHED_MOST
        self._watch(self._bell, self._hear)

    def _watch(self, connection: Connection, callback: Callable[[], None]) -> None:
        # Kept, because a connection that breaks has no descriptor any more to be forgotten by.
        self._watched[connection] = connection.fileno()
        self._loop.watch(connection.fileno(), self._guarded(callback))

    def _drop(self, connection: Connection) -> None:
        self._loop.forget(self._watched.pop(connection, -1))
        connection.close()

    def _disconnect(self) -> None:
        self._drop(self._line)
        self._drop(self._bell)
        self._hears = False
        self._sent_at, self._again = None, False

    def _guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Return a callback whose failure means that Redis is lost."""

        def call() -> None:
            try:
                callback()
            except ServerError as error:
                self._fail(explain(error, self._url))
            except WakeqError as error:
                self._fail(error)

        return call

    def _fail(self, error: WakeqError) -> None:
        self._disconnect()
        # Whatever it was, a lease is not prolonged by it.
        if self.token and not self.leads:
            self._lose(f"{_TOO_LATE}: {error}")
        if not self._is_over:
            self.on_trouble(error)
        self._in(self._backoff.next(), self._connect)

    def _in(self, seconds: float, callback: Callable[[], None]) -> None:
        """Do something next, and nothing else before."""
        self._cancel()
        if self._is_over:
            return
        self._timer = self._loop.after(seconds, self._guarded(callback))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- asking ----------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for the lease, or for more of it."""
        if self._sent_at is not None:
            self._again = True
            return
        self._send(whole=False)
        # Redis is slow, or is gone without a word.
        self._in(self._trust / 3, self._miss)

    def _send(self, whole: bool) -> None:
        holder, who = self._identity
        watched = self._term if time.monotonic() >= self._over_at else b""
        names: list[Argument] = [self._key]
        arguments: list[Argument] = [holder, who, int(self._lease * 1000)]
        arguments += [self.token, watched, _KEEP_MS]
        make = self._elect.whole if whole else self._elect.command
        self._sent_at = self._alarm.clock()
        self._line.send([make(names, arguments)])

    def _miss(self) -> None:
        raise UnavailableError(f"Redis at {self._url} did not answer in time")

    def _receive(self) -> None:
        for reply in self._line.receive():
            if not isinstance(reply, ServerError):
                self._take(reply)
            elif reply.code == "NOSCRIPT":
                self._send(whole=True)
            else:
                raise reply

    def _take(self, reply: list[Reply]) -> None:
        assert self._sent_at is not None
        sent_at, self._sent_at = self._sent_at, None
        self._backoff.reset()
        self.on_answer()
        if reply[0]:
            self._take_lease(reply[0], sent_at + self._trust)
        elif self.token:
            who = reply[1].decode(errors="replace")
            self._lose(f"{who} leads now" if who else "it was given up, or given to another")
        else:
            self._follow(*reply[1:])
        if self._again:
            self._again = False
            self._ask()

    def _take_lease(self, token: bytes, until: float) -> None:
        if self.token and not self.leads:
            self._lose(_TOO_LATE)
            return
        if self._alarm.clock() >= until:
            self._in(0, self._ask)  # it was paused, and what it was given is over
            return
        is_new, self.token, self._until = token != self.token, token, until
        self._alarm.set(until)
        self._in(self._trust / 3, self._ask)
        if is_new:
            self._drop(self._bell)
            self.on_elected(token)

    def _follow(self, who: bytes, left_ms: int, term: bytes) -> None:
        """Wait as a candidate for the lease to run out."""
        now, left = time.monotonic(), left_ms / 1000 + _LATE_SECONDS
        if term != self._term:
            self._term, self._over_at = term, now + left
        pause = self._over_at - now if self._over_at > now else left
        self.on_leader(who.decode(errors="replace"))
        self._in(pause if self._hears else min(pause, _POLL_SECONDS), self._ask)

    def _hear(self) -> None:
        rung = bool(self._bell.receive())
        while self._bell.has_buffered():
            rung = bool(self._bell.receive()) or rung
        if rung:
            self._ask()

    # -- the end of it ---------------------------------------------------------------------

    def _expire(self) -> None:
        self._alarm.clear()
        if self.token and not self.leads:
            self._lose(_TOO_LATE)

    def _lose(self, why: str) -> None:
        """Be a candidate again."""
        self.token, self._until = b"", 0.0
        self._term, self._over_at = b"", 0.0
        self._alarm.set(0)
        # What is under way was asked for as the leader.
        self._disconnect()
        self._in(0, self._connect)
        self.on_lost(why)

    def _tell_resigned(self) -> None:
        names: list[Argument] = [self._key]
        try:
            if not self._line.connected or self._sent_at is not None:
                self._line.connect(_RESIGN_SECONDS)
            arguments: list[Argument] = [self.token, self._channel]
            self._line.call(*self._resign.whole(names, arguments), timeout=_RESIGN_SECONDS)
        except (WakeqError, ServerError):
            pass  # it runs out by itself


def _nothing(_what: object) -> None:
    pass


def _no_news() -> None:
    pass
