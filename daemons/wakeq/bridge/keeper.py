"""Keeps wakeq-bridge going: its connections, its books, the way out, what systemd hears.

When Redis is lost, all that needs it is dropped and begun anew with growing pauses; what was
received by then is kept, and published when it can be. At a stop, the channels are handed over to
instances that stand by, if there are any; then nothing more is taken, and all that was received is
published.
"""

import os
import sys
import time
from collections import deque
from contextlib import suppress
from functools import partial

from wakeq.backoff import Backoff
from wakeq.bridge.channel import channels
from wakeq.bridge.crew import Crew, Supplied
from wakeq.bridge.holder import Holder
from wakeq.bridge.link import Link
from wakeq.bridge.reader import SWITCH_SECONDS, Memory
from wakeq.bridge.registrar import LIFETIME_SECONDS, Registrar
from wakeq.bridge.reporter import Reporter
from wakeq.bridge.subscription import Subscription
from wakeq.bridge.talk import Run
from wakeq.config import instance_base
from wakeq.errors import EX_UNAVAILABLE, BusyError, UnavailableError, WakeqError
from wakeq.loop import Loop, Timer
from wakeq.redis_url import RedisURL
from wakeq.service import Service
from wakeq.wire import Lost

_MIB = 1 << 20
_LOOK_SECONDS = 0.02
# How long to wait for another instance to begin, of those that have asked lately.
_HAND_OVER_SECONDS = 3.0
# A worker that has nothing in hand has ended by then.
_END_SECONDS = 10.0


class Keeper:
    """Runs the parts for as long as the service is to run."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._log = service.log
        self._bridge = instance_base(service.name)
        self._settings = settings = service.config.bridge(service.name)
        self._loop = Loop(service)
        self._link = Link(RedisURL(service.common.redis_url))
        self._instance = f"{os.uname().nodename}/{service.name}"
        self._registrar = Registrar(self._link, settings, self._bridge, self._instance)
        self._memory = Memory(settings.memory_mib * _MIB)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        identity = (self._instance, self._registrar.process)
        self._holder = Holder(
            self._link, channels(settings, self._bridge, self._link.url.db), identity,
            settings.lease, self._subscribe,
        )  # fmt: skip
        self._crew = Crew(self._loop, service.log, settings.workers, self._told(), self._supply)
        self._reporter = Reporter(self._loop, service, settings, self._crew, self._holder)
        # The name and the ids are to be kept as well, however long the lease.
        self._beat_seconds = min(settings.lease, LIFETIME_SECONDS) / 3
        self._backoff = Backoff()
        self._deadline = 0.0  # for the start
        self._connected = False
        self._stops = False
        self._timer: Timer | None = None  # the next beat, or the next try
        self._marks: Timer | None = None  # when to try again to send marks
        self._handed_over = False
        self._retries: deque[tuple[bytes, Run]] = deque()

    def run(self) -> int:
        """Run until the service is told to stop; return the exit code.

        Raises:
            WakeqError: the settings are wrong, or Redis cannot be used, at the start.
        """
        self._deadline = time.monotonic() + self._service.common.start_timeout
        sys.setswitchinterval(SWITCH_SECONDS)
        self._loop.on_failure = self._failed
        self._loop.turns.append(self._turn)
        self._loop.watch(self._bell, self._clear_bell)
        self._holder.on_hint = lambda: self._beat_in(0)
        self._holder.on_subscribed = lambda: self._begin_in(0, _LOOK_SECONDS)
        self._crew.on_change = lambda: self._beat_in(0)
        try:
            self._crew.start()
            self._in(0)
            self._loop.run()
            self._service.notifier.stopping()
            return 0 if self._drain() else EX_UNAVAILABLE
        finally:
            self._crew.end()
            self._holder.disconnect()
            self._registrar.end(self._crew.all_ids)
            self._link.close()
            os.close(self._bell)

    def _told(self) -> dict[str, object]:
        """Return what a worker's process needs to know."""
        table = self._settings.table.values()
        return {
            "bridge": self._bridge,
            "instance": self._instance,
            "process": self._registrar.process,
            "url": self._service.common.redis_url,
            "log_level": self._service.common.log_level,
            "max_crashes": self._settings.max_crashes,
            "settings": {setting.name: getattr(self._settings, setting.name) for setting in table},
        }

    # -- the connection --------------------------------------------------------------------

    def _in(self, seconds: float) -> None:
        """Have the next beat, or the next try to connect, in so many seconds."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.after(seconds, self._beat)

    def _beat_in(self, seconds: float) -> None:
        if self._connected:
            self._in(seconds)

    def _beat(self) -> None:
        """Connect if that is to be done, and keep the books."""
        if self._stops:
            return
        if not self._connected:
            self._registrar.begin()
            self._holder.connect()
            self._connected = True
            self._reporter.note_server(self._link)
        self._registrar.keep_name()
        if self._holder.channels:
            self._holder.ask()
            self._begin_in(0, _LOOK_SECONDS)
        self._registrar.keep_ids(self._crew.ids)
        self._registrar.register()
        self._reporter.count_cuts(self._link)
        if self._holder.channels:
            self._take_retries()
        elif self._crew.ready:
            self._registrar.put_back(self._crew.all_ids)
            self._registrar.requeue()
        self._in(self._beat_seconds)
        self._backoff.reset()
        self._reporter.back()

    def _begin_in(self, seconds: float, pause: float) -> None:
        if self._marks is not None:
            self._marks.cancel()
        self._marks = self._loop.after(seconds, partial(self._begin, pause))

    def _begin(self, pause: float) -> None:
        """Send the marks that are due, as soon as Redis has subscribed to what was asked for."""
        if self._connected and not self._stops and self._holder.begin():
            self._begin_in(pause, min(2 * pause, self._settings.lease / 3))

    def _take_retries(self) -> None:
        """Take dead letters that are to be tried again, on the instance that takes messages."""
        if not self._retries and self._holder.taken:
            known = self._crew.entries
            self._retries.extend(r for r in self._registrar.retries() if r[0] not in known)

    def _subscribe(self, key: str) -> Subscription:
        return Subscription(self._link.url, key, self._memory, self._bell)

    def _clear_bell(self) -> None:
        os.eventfd_read(self._bell)

    def _turn(self) -> None:
        """See what has come, and give it to the workers."""
        self._crew.pump()
        self._holder.discard()
        self._memory.handed = self._crew.size
        self._memory.look()
        current = {c.subscription for c in self._holder.channels if c.subscription is not None}
        for subscription in current:
            # At a stop nothing is taken up again, and what is read yet may tell that all has come.
            if subscription.lost and (subscription.empty or not self._stops):
                self._cut(subscription)
                break
        if self._connected and self._crew.ready and self._holder.settled:
            self._reporter.ready()
        self._reporter.look()

    def _cut(self, subscription: Subscription) -> None:
        """Take up a subscription again that is lost."""
        failure = subscription.failure
        if self._stops:
            if self._holder.is_missing and self._holder.disconnect():
                self._reporter.cut(failure)
                self._reporter.log_cut()
            self._holder.disconnect()
            return
        if self._holder.disconnect():
            self._reporter.cut(failure)
        self._connected = False
        if not isinstance(failure, Lost):
            raise failure
        self._in(0)

    def _failed(self, error: WakeqError) -> None:
        """Drop what needs Redis, and try again later."""
        passes = isinstance(error, UnavailableError)
        if isinstance(error, BusyError) or (
            not self._reporter.is_ready and (not passes or time.monotonic() > self._deadline)
        ):
            raise error
        if self._stops:
            return  # what was received can be published without
        self._reporter.lost(error, self._backoff.tries + 1)
        pause = self._backoff.next()
        if self._connected and self._link.connected:
            # Redis answers, although with an error: messages come still, and are kept.
            pause = min(pause, self._beat_seconds)
        else:
            if self._holder.disconnect():
                self._reporter.cut(error)
            self._link.close()
            self._connected = False
        if not self._reporter.is_ready:
            pause = min(pause, max(0.1, self._deadline - time.monotonic()))
        self._in(pause)

    def _supply(self, most: int, most_bytes: int) -> Supplied:
        """Return messages that were received, the oldest connection's first."""
        if self._retries:
            entry, run = self._retries.popleft()
            return [run], entry
        for subscription in list(self._holder.subscriptions):
            if runs := subscription.take(most, most_bytes):
                return runs, b""
        return [], b""

    # -- the way out -----------------------------------------------------------------------

    def _drain(self) -> bool:
        """Publish all that is received; tell whether that was possible and nothing is missing."""
        self._stops = True
        cuts = self._reporter.cuts
        self._retries.clear()  # they stay where they are
        self._service.notifier.extend(self._settings.drain_timeout + 15)
        self._reporter.say("handing over")
        with suppress(WakeqError):
            if self._holder.has_any and self._connected and self._holder.leave():
                self._look_for_successor()
                self._loop.run_until(lambda: self._handed_over, _HAND_OVER_SECONDS)
        self._holder.unsubscribe()
        self._reporter.say("publishing what was received")
        drained = self._loop.run_until(self._has_drained, self._settings.drain_timeout)
        if drained:
            self._crew.finish()
            # Those of a list have taken something themselves.
            seconds = self._settings.drain_timeout if self._settings.list_ else _END_SECONDS
            drained = self._loop.run_until(lambda: self._crew.ended, seconds)
        self._crew.end()
        if self._settings.list_:
            drained = self._put_back(drained)
        elif not drained:
            self._reporter.left_over()
        with suppress(WakeqError):
            self._reporter.count_cuts(self._link)
        return drained and self._reporter.cuts == cuts

    def _put_back(self, drained: bool) -> bool:
        """Put back what was taken from the list; tell whether nothing of it stays taken."""
        try:
            count = self._registrar.put_back([])
        except WakeqError as error:
            if not drained:
                self._reporter.left_taken(error)
            return drained
        if not drained:
            self._reporter.put_back(count)
        return True

    def _look_for_successor(self) -> None:
        self._handed_over = self._holder.taken_over()
        if not self._handed_over:
            self._loop.after(_LOOK_SECONDS, self._look_for_successor)

    def _has_drained(self) -> bool:
        gone = self._holder.unsubscribed and all(s.empty for s in self._holder.subscriptions)
        return gone and self._crew.idle
