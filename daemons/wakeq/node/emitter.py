"""Emitting: what a leader publishes, when it is due, for as long as it leads.

What decides is in Redis: `emit.lua` counts the emissions and takes each number once, from the
leader alone, in one step with its messages. The emitter knows the number and the time of the last
one from the reply to each; when a reply was lost it says the same again, and Redis tells whether
it has been done. So nothing is emitted twice, and nothing by who was superseded.

States: looking (what was emitted last?), waiting (for the next time), making (the source is at it),
sending. Time is that of Redis, as it was in the last reply, and the monotonic clock since; the
script refuses what is early all the same.

What each failure does: Redis is lost, or out of memory: the same is sent again until it is done.
The fence refuses: the election is asked, which ends this if another one leads; if Redis has only
forgotten who does, it is sent again. The source fails: its time passes without a message.
"""

import time
from collections.abc import Callable, Sequence

from wakeq import failpoint, journal, keys
from wakeq.backoff import Backoff
from wakeq.election import Elector
from wakeq.errors import WakeqError
from wakeq.journal import Log
from wakeq.loop import Loop, Timer
from wakeq.node.link import Link
from wakeq.node.source import Source
from wakeq.node.timetable import MICRO, Timetable
from wakeq.scripts import Script
from wakeq.sections import Node
from wakeq.wire import Argument, Reply, ServerError, explain

# A clock of Redis that was set is noticed within this, also while nothing is due.
_LOOK_SECONDS = 30.0
# More often nobody is told of what was left out.
_TELL_SECONDS = 60.0
# What is due in so little is sent by a timer that a busy machine may call late, so not early.
_EARLY_SECONDS = 0.0005
# Fields of each message in a stream: the number of its emission, and the token of who emitted it.
SEQ = b"wakeq.seq"
TOKEN = b"wakeq.token"

Items = list[bytes]


class Emitter:
    """Emits while it is told to.

    Args:
        loop: calls it.
        link: to Redis.
        elector: says whether this process leads.
        settings: the node's.
        name: the node's.
        source: makes the messages.

    Attributes:
        messages: how many were emitted by this process.
        last: when the last emission was, by the monotonic clock; 0 if there was none.
        on_trouble: called when something keeps it from emitting, with what that is.
        on_well: called when it emits.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        elector: Elector,
        settings: Node,
        name: str,
        source: Source,
    ) -> None:
        self.messages = 0
        self.last = 0.0
        self.on_trouble: Callable[[WakeqError], None]
        self.on_well: Callable[[], None]
        self._loop = loop
        self._link = link
        self._elector = elector
        self._source = source
        self._timetable = Timetable(settings)
        self._kind = "list" if settings.list_ else "stream"
        self._key = settings.list_ or settings.stream
        self._log = Log("node")
        self._names: list[Argument] = [self._key, keys.emission(self._key, name)]
        self._emit = Script("emit", fenced=True)
        self._backoff = Backoff(0.05, 1.0)
        self._timer: Timer | None = None
        self._emits = False
        self._term = 0  # how often it was told to; what was begun before counts no more
        self._seq = 0  # of the last emission, by Redis
        self._at = b""  # the time which that was for
        self._last: int | None = None  # the time to count from: that, as a rule
        self._clock = (0, 0.0)  # of Redis, and the monotonic one when that came
        self._made: tuple[int, int, list[Items]] | None = None  # number, time, messages to send
        self._made_up = 0
        self._left_out, self._told_at = 0, 0.0
        self._counted: int | None = None  # the time after which some were found to be left out

    def begin(self) -> None:
        """Emit from now on, as the leader."""
        self._emits = True
        self._last = None
        self._term += 1
        self._made, self._made_up = None, 0
        self._backoff.reset()
        self._look()

    def end(self) -> None:
        """Emit nothing any more; what is being made is thrown away."""
        self._emits = False
        self._term += 1
        self._made = None
        self._cancel()
        self._source.cancel()

    def lost(self, error: WakeqError) -> None:
        """Try again: the connection was lost, and it is not known what has become of the rest."""
        if self._emits and not self._source.is_making:
            self._try_again(error)

    # -- looking and waiting ---------------------------------------------------------------

    def _look(self) -> None:
        """Ask for the last emission, unless one is to be sent that says so, too."""
        seq, at, messages = self._made or (0, 0, [])
        arguments: list[Argument] = [seq, at, self._kind]
        for items in messages:
            arguments += [len(items), *items]
        fence_key, token = self._elector.fence
        term = self._term
        if not self._elector.leads:
            return  # the election says so in a moment
        failpoint.hit("before_emit")

        def take(reply: Reply) -> None:
            if term == self._term:
                self._take(reply)

        self._link.run(self._emit, [*self._names, *fence_key], [*arguments, *token], take)

    def _take(self, reply: Reply) -> None:
        failpoint.hit("after_emit")
        if isinstance(reply, ServerError):
            self._take_error(reply)
            return
        seq, at, now, how = reply
        self._backoff.reset()
        self._clock = (int(now), time.monotonic())
        self._seq = seq
        if self._last is None or at != self._at or self._last > int(now):
            # Else it is counted from where it was, which may be when a clock was found set back.
            self._last = self._timetable.anchor(int(at) if at else None, int(now))
            self._at = at
        if self._made is not None and how in (b"done", b"before"):
            self.messages += len(self._made[2])
            self.last = time.monotonic()
        if how != b"early" or self._made is None or self._made[1] - int(now) > MICRO:
            self._made = None  # done, or its time is far again: the clock was set back
        self.on_well()
        self._plan()

    def _take_error(self, error: ServerError) -> None:
        if error.code == "FENCED":
            self._elector.check()
            self._in(self._backoff.next(), self._look)
        else:
            self._try_again(explain(error, self._link.url))

    def _try_again(self, error: WakeqError) -> None:
        self.on_trouble(error)
        self._in(self._backoff.next(), self._look)

    def _plan(self) -> None:
        """Wait for the next time, and longer only to look again."""
        now = self._now()
        if self._made is not None:
            self._in((self._made[1] - now) / MICRO + _EARLY_SECONDS, self._look)
            return
        plan = self._timetable.plan(self._last, now, self._made_up)
        if plan is not None:
            self._made_up = self._made_up + 1 if plan.behind else 0
            self._leave_out(plan.skipped)
        wait = (plan.at - now) / MICRO if plan is not None else _LOOK_SECONDS
        if plan is None or wait >= _LOOK_SECONDS:
            self._in(_LOOK_SECONDS, self._look)
        elif wait > 0:
            self._in(wait + _EARLY_SECONDS, self._plan)
        else:
            self._make(plan.at)

    def _now(self) -> int:
        """Return the time of Redis, or a little less."""
        then, heard = self._clock
        return then + int((time.monotonic() - heard) * MICRO)

    def _leave_out(self, count: int) -> None:
        """Tell of missed times, now and then."""
        if self._counted != self._last:
            self._counted = self._last
            self._left_out += count
        now = time.monotonic()
        if self._left_out and (not self._told_at or now - self._told_at > _TELL_SECONDS):
            self._told_at = now
            self._log.warning(
                "left out times that were missed", event_id=journal.TIMES_MISSED,
                count=self._left_out, stream=self._key,
            )  # fmt: skip
            self._left_out = 0

    def _in(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._loop.after(max(0.0, seconds), callback)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- making ----------------------------------------------------------------------------

    def _make(self, at: int) -> None:
        term, seq = self._term, self._seq + 1
        token = self._elector.token

        def take(messages: Sequence[Items]) -> None:
            if term != self._term:
                return
            if self._kind == "stream":
                messages = [[*items, SEQ, b"%d" % seq, TOKEN, token] for items in messages]
            self._made = (seq, at, list(messages))
            self._look()

        self._source.make(seq, at, self._now(), take)
