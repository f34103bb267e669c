"""Decides who is woken, when, and who is left alone. The heart of wakeq-wakeup.

What may be believed
    A hint (something was added, a lease ended, a time has come, a socket appeared) is never
    acted on; it asks for a look. A look at Redis is the truth of one moment: it is acted on
    when it arrives, and not kept. If something else happens to its group before it arrives,
    it is dropped and taken again. What has no hint, or a lost one, is found by the re-check,
    which looks at every group that has somebody asleep (60 s by default).
    Whether a consumer of this host is awake is believed of its lease alone, never of its alive
    key: that outlives a consumer that was killed. Only a consumer without a lease that has not
    just slept is taken as awake by that key: wakeq-wakeup itself was restarted, or somebody
    else woke it. Connecting to it then disturbs nobody. Consumers of other hosts are believed
    by their keys.

The states of a sleeper
    asleep       no lease. If nobody of its group is up, the group is watched.
    queued       is to be started, others are starting.
    starting     connected to; the consumer has not answered yet.
    awake        it has answered. Its lease ends: asleep, and a look.
    resting      for a second, without a word: it ended within two seconds of its start, its
                 socket was full or refused for the first time, or it was discovered, where the
                 end of a connection says nothing. Then asleep, and a look.
    backing off  it was woken and nothing changed: for 1 s, 2 s, 4 s ... 60 s. Logged when it
                 begins and when it is over, not for each try. Then asleep, and a look.
    left         nobody listens, or it is not permitted. Logged once. Its socket or file
                 changes, or the re-check comes: asleep, and a look.

A group
    has sleepers on this host and consumers elsewhere. It is watched while all its sleepers are
    asleep and there is nothing to do. When one is up it is not watched: no payload is read
    twice. While one is up and one asleep, and while others have work that they do not get done,
    it is looked at once a second, to wake one more if the lag asks for it. Two hosts that look
    at the same moment may both wake their first; the second finds nothing and sleeps again.
    In strict order one consumer at a time handles the messages, however many there are: one of
    each host is up while there is something to do, to take over (`standby = "wait"`), or one in
    all. Then, when that dies with messages in hand and another host is to take over, the re-check
    finds it at the latest.

    While its stream is paused there is nothing to do for it, whatever there is: nobody is woken,
    and only its retry stream is watched, where `wakeq resume` rings. Consumers that are up obey
    the pause themselves. A pause that is set or removed by hand is found by the re-check.

No message is lost on the way to sleep: a consumer stops reading, then its lease ends, then
comes the look, and the watch begins at the ids of that look.

What each failure does
    The consumer dies after each start, or leaves exactly what it was woken for: backing off.
    It dies with messages in hand: they are pending for it, so it is woken for them at once; if
    its socket is gone they are claimable for others later, and the look says when.
    Redis is lost: leases are kept, all else is forgotten; when it is back, a look at everything.
    This process dies: so do its leases, which consumers do not mind; see above for the rest.
"""

import errno
import time
from collections import Counter
from functools import partial

from wakeq import journal
from wakeq.config import Consumer
from wakeq.loop import Loop
from wakeq.wakeup.group import (
    ASLEEP,
    AWAKE,
    BACKING_OFF,
    LEFT,
    QUEUED,
    RESTING,
    STARTING,
    UP,
    Group,
    Look,
    Sleeper,
)
from wakeq.wakeup.prober import Prober
from wakeq.wakeup.starter import Starter
from wakeq.wakeup.watcher import Watcher

# How often to look at a group of which some are up and some asleep.
_SCALE_SECONDS = 1.0
# A hint that led to nothing is not followed again sooner: others of the group are at work.
_VAIN_SECONDS = 1.0
_REST_SECONDS = 1.0
_BACK_OFF_LONGEST_SECONDS = 60.0
# A consumer that works lives longer: its idle time-out is at least 2.5 s.
_EARLY_SECONDS = 2.0
# For so long after its lease ended a consumer's alive key may be that of a dead process.
_STALE_SECONDS = 60.0

_JUST_ASLEEP = frozenset((ASLEEP,))


class Waker:
    """Keeps the state of every sleeper.

    Attributes:
        wakes: how often a consumer was woken.
    """

    def __init__(
        self, loop: Loop, log: journal.Log, prober: Prober, watcher: Watcher, starter: Starter
    ) -> None:
        self.wakes = 0
        self._loop = loop
        self._log = log
        self._prober = prober
        self._watcher = watcher
        self._starter = starter
        self._groups: dict[tuple[str, str], Group] = {}
        self._count: Counter[str] = Counter()
        prober.on_look = self._looked
        watcher.on_hint = self._hinted
        starter.on_state = self._started
        starter.on_end = self._ended
        starter.on_refusal = self._refused

    @property
    def status(self) -> str:
        """Say in words how many consumers there are in which state."""
        count = self._count
        text = (
            f"watching {count.total()} consumers:"
            f" {count[ASLEEP] + count[QUEUED] + count[RESTING]} asleep,"
            f" {count[STARTING] + count[AWAKE]} awake, {count[BACKING_OFF]} backing off"
        )
        if count[LEFT]:
            text += f", {count[LEFT]} left alone"
        return f"{text}; {self.wakes} wakes"

    @property
    def streams(self) -> set[str]:
        """The streams of all configured consumers."""
        return {
            group.stream
            for group in self._groups.values()
            if not all(sleeper.discovered for sleeper in group.sleepers)
        }

    def add(self, sleeper: Sleeper, settings: Consumer) -> None:
        """Take care of a sleeper from now on."""
        key = (settings.stream, settings.group)
        group = self._groups.setdefault(key, Group(settings))
        group.configure(settings)
        sleeper.group = group
        group.sleepers.append(sleeper)
        group.sleepers.sort(key=lambda each: each.order)
        self._count[sleeper.state] += 1
        self._prober.ask(group, hinted=False)

    def remove(self, sleeper: Sleeper) -> None:
        """Take care of a sleeper no more: its socket or its configuration is gone."""
        self._starter.drop(sleeper)
        self._wait(sleeper, ASLEEP)
        self._count[ASLEEP] -= 1
        group = sleeper.group
        group.sleepers.remove(sleeper)
        if group.sleepers:
            self._prober.ask(group, hinted=False)
        else:
            self._watcher.forget(group)
            self._look_in(group, None)
            del self._groups[group.stream, group.name]

    def revive(self, sleeper: Sleeper) -> None:
        """Try a sleeper again that could not be connected to: something has changed."""
        if sleeper.state == LEFT or (sleeper.state == RESTING and sleeper.refused):
            self._wake_up_call(sleeper)

    def recheck(self) -> None:
        """Look at all groups of which somebody sleeps."""
        for group in self._groups.values():
            for sleeper in group.sleepers:
                if sleeper.state == LEFT:
                    self._wait(sleeper, ASLEEP)
            if group.any(_JUST_ASLEEP):
                self._prober.ask(group, hinted=False)

    def lost(self) -> None:
        """Forget what needs Redis."""
        self._prober.forget()
        self._watcher.close()
        for group in self._groups.values():
            group.looking = group.again = group.hinted = False
            group.home = None
            self._look_in(group, None)

    def back(self) -> None:
        """Find out everything anew: Redis can be asked."""
        self.lost()  # what was noted while it could not
        self.recheck()

    def _hinted(self, group: Group) -> None:
        wait = group.in_vain_at + _VAIN_SECONDS - time.monotonic()
        if group.in_vain_at and wait > 0:
            self._look_in(group, wait, hinted=True)
        else:
            group.hinted = True
            self._prober.ask(group, hinted=True)

    def _looked(self, group: Group, look: Look) -> None:
        hinted, group.hinted = group.hinted, False
        self._look_in(group, None)
        if look.error:
            self._watcher.unwatch(group)
            self._report_error(group, look.error)
            return
        group.error = ""
        if look.paused != group.paused:
            self._note_pause(group, look.paused)
        if look.paused:
            self._leave_paused(group, look, hinted)
            return
        for sleeper in group.sleepers:
            if sleeper.state == ASLEEP and not sleeper.judged:
                self._judge(sleeper, look)
        woken = self._wake(group, look)
        group.in_vain_at = time.monotonic() if hinted and not woken else 0.0
        if group.any(UP) or not group.any(_JUST_ASLEEP):
            self._watcher.unwatch(group)
            if group.any(UP) and group.any(_JUST_ASLEEP) and not group.is_strict:
                self._look_in(group, _SCALE_SECONDS)
        elif look.work:  # others are up, elsewhere
            self._watcher.unwatch(group)
            self._look_in(group, _SCALE_SECONDS)
        else:
            self._watcher.watch(group, look.delivered, look.retried)
            self._look_in(group, look.claimable)

    def _leave_paused(self, group: Group, look: Look, hinted: bool) -> None:
        """Wake nobody, and wait for the ring that ends the pause."""
        for sleeper in group.sleepers:
            # What it has left was not for it to do.
            sleeper.judged |= sleeper.state == ASLEEP
        # Retries that become due meanwhile are hints, too: one look a second is enough.
        group.in_vain_at = time.monotonic() if hinted else 0.0
        self._watcher.watch(group, None, look.retried)

    def _note_pause(self, group: Group, paused: bool) -> None:
        group.paused = paused
        text = "stream is paused, nobody is woken for it" if paused else "stream is resumed"
        self._log.info(text, stream=group.stream, group=group.name)

    def _judge(self, sleeper: Sleeper, look: Look) -> None:
        """Find out whether a sleeper that was awake has done anything."""
        sleeper.judged = True
        left = look.work or look.own_pending(sleeper) > 0
        early = 0 < sleeper.slept_at - sleeper.woken_at < _EARLY_SECONDS
        before, after = sleeper.mark, look.mark(sleeper)
        # Who has just read messages and died has done nothing yet.
        progress = before is None or (before != after and not (early and after[3] > before[3]))
        if left and not progress:
            if not sleeper.rest:
                self._log.warning(
                    "consumer is backed off: it was woken and left everything as it was",
                    event_id=journal.CONSUMER_BACKED_OFF,
                    **_fields(sleeper),
                )
            sleeper.rest = min(_BACK_OFF_LONGEST_SECONDS, sleeper.rest * 2 or _REST_SECONDS)
            self._wait(sleeper, BACKING_OFF, sleeper.rest)
            return
        if sleeper.rest and before is not None and before != after:
            self._log.info(
                "consumer recovered", event_id=journal.CONSUMER_RECOVERED, **_fields(sleeper)
            )
            sleeper.rest = 0.0
        if left and early:
            self._wait(sleeper, RESTING, _REST_SECONDS)

    def _wake(self, group: Group, look: Look) -> bool:
        """Start whom a look asks for; tell whether there was anybody."""
        woken = False
        now = time.monotonic()
        for sleeper in group.sleepers:
            if sleeper.state != ASLEEP:
                continue
            pending, alive = look.own.get(sleeper, (0, False))
            if alive and not 0 < now - sleeper.slept_at < _STALE_SECONDS:
                # It is awake already.
                sleeper.mark = None
                sleeper.woken_at = 0.0
                self._queue(sleeper)
                woken = True
            elif pending and not (group.is_strict and group.any(UP)):
                self._start(sleeper, look, "it has messages pending")
                woken = True
        for sleeper in group.sleepers:
            if sleeper.state != ASLEEP:
                continue
            if not group.wants_more(look):
                break
            self._start(sleeper, look, _reason(group, look))
            woken = True
        return woken

    def _start(self, sleeper: Sleeper, look: Look, reason: str) -> None:
        sleeper.mark = look.mark(sleeper)
        sleeper.woken_at = time.monotonic()
        self._queue(sleeper)
        self._log.debug("waking a consumer", reason=reason, **_fields(sleeper))

    def _queue(self, sleeper: Sleeper) -> None:
        self._set(sleeper, QUEUED)
        self._starter.start(sleeper)

    def _started(self, sleeper: Sleeper, state: str) -> None:
        if state == STARTING:
            if sleeper.refused > 1:
                self._log.info("consumer can be woken again", **_fields(sleeper))
            sleeper.refused = 0
            if sleeper.mark is not None:
                self.wakes += 1
                sleeper.woken_at = time.monotonic()
        self._set(sleeper, state)

    def _ended(self, sleeper: Sleeper) -> None:
        sleeper.slept_at = time.monotonic()
        sleeper.judged = False
        if sleeper.discovered:
            # Such a consumer closes each connection at once, and has not read anything yet.
            self._wait(sleeper, RESTING, _REST_SECONDS)
        else:
            self._wake_up_call(sleeper)

    def _refused(self, sleeper: Sleeper, error: OSError) -> None:
        if error.errno == errno.EAGAIN:
            # More are waiting to wake it than its socket takes: it is being woken.
            self._wait(sleeper, RESTING, _REST_SECONDS)
            return
        sleeper.refused += 1
        if sleeper.refused == 1 and error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            # The socket may be just being made.
            self._wait(sleeper, RESTING, _REST_SECONDS)
        else:
            if sleeper.refused <= 2:
                self._log.warning(
                    f"consumer cannot be woken: {sleeper.path}: {error.strerror or error}",
                    **_fields(sleeper),
                )
            sleeper.refused = max(sleeper.refused, 2)
            self._wait(sleeper, LEFT)
        self._prober.ask(sleeper.group, hinted=True)  # another one may be there

    def _wake_up_call(self, sleeper: Sleeper) -> None:
        self._wait(sleeper, ASLEEP)
        self._prober.ask(sleeper.group, hinted=True)

    def _wait(self, sleeper: Sleeper, state: str, seconds: float = 0.0) -> None:
        """Put a sleeper into a state, asleep again after so many seconds if that is not 0."""
        if sleeper.timer is not None:
            sleeper.timer.cancel()
            sleeper.timer = None
        self._set(sleeper, state)
        if seconds:
            sleeper.timer = self._loop.after(seconds, partial(self._wake_up_call, sleeper))

    def _set(self, sleeper: Sleeper, state: str) -> None:
        self._count[sleeper.state] -= 1
        self._count[state] += 1
        sleeper.state = state

    def _look_in(self, group: Group, seconds: float | None, hinted: bool = False) -> None:
        """Look at a group in so many seconds instead of when it was to be; None: never."""
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        if seconds is not None:
            group.timer = self._loop.after(seconds, partial(self._look_now, group, hinted))

    def _look_now(self, group: Group, hinted: bool) -> None:
        group.timer = None
        group.hinted |= hinted
        self._prober.ask(group, hinted=True)

    def _report_error(self, group: Group, error: str) -> None:
        # A discovered group that is gone is found missing by the discoverer, too.
        if error.startswith("NOGROUP") or error == group.error:
            return
        group.error = error
        self._log.warning(
            "stream cannot be watched, looked at again now and then",
            stream=group.stream,
            group=group.name,
            error=error,
        )


def _reason(group: Group, look: Look) -> str:
    if not look.work:
        return "another host handles messages, it stands by"
    if look.others or group.any(UP):
        return f"{look.lag} messages are unread"
    return "messages are unread" if look.unread else "messages are claimable"


def _fields(sleeper: Sleeper) -> dict[str, str]:
    return {
        "consumer": sleeper.name,
        "stream": sleeper.group.stream,
        "group": sleeper.group.name,
    }
