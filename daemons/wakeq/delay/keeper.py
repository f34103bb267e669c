"""Keeps wakeq-delay going: its connections, the re-check, a reload, what systemd hears.

First the doorbell is listened to, then all streams of the registry are looked at: a message that
is added in between is found by the look, or rings, or both. A ring may be lost all the same (who
adds may not be permitted to publish), so everything is looked at again at each re-check. When
Redis is lost in whatever way, everything is dropped at once and begun anew with growing pauses.
"""

import time

from wakeq import journal, keys
from wakeq.backoff import Backoff
from wakeq.delay.agenda import Clock
from wakeq.delay.link import Link
from wakeq.delay.promoter import Promoter
from wakeq.delay.repairer import Repairer, has_repair
from wakeq.errors import ConfigError, UnavailableError, WakeqError
from wakeq.loop import Loop, Timer
from wakeq.redis_url import RedisURL
from wakeq.service import Service
from wakeq.settings import format_duration
from wakeq.wire import ServerError, explain

_PAGE = 1000
_REGISTER_MOST = 1000
_SAY_SECONDS = 1.0
# While something is delayed, so that "next due in" is not far from the truth.
_SAY_AGAIN_SECONDS = 10.0


class Keeper:
    """Runs the parts for as long as the service is to run."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._log = service.log
        self._settings = service.config.delay()
        self._loop = Loop(service)
        self._link = Link(self._loop, RedisURL(service.common.redis_url))
        clock = Clock()
        tell = service.common.log_level == "debug"
        self._promoter = Promoter(self._loop, service.log, self._link, clock, tell)
        self._repairer = Repairer(self._loop, service, self._link, clock)
        self._backoff = Backoff()
        self._deadline = 0.0  # for the start
        self._ready = False
        self._connected = False
        self._lost = False  # and logged
        self._retry: Timer | None = None
        self._rung: set[bytes] = set()
        self._said_at = self._said_moved = 0.0
        self._said_figures: tuple[object, ...] = ()
        self._said_timer: Timer | None = None

    def run(self) -> None:
        """Run until the service is told to stop.

        Raises:
            WakeqError: Redis or the repair cannot be used, at the start.
        """
        self._deadline = time.monotonic() + self._service.common.start_timeout
        self._loop.on_failure = self._failed
        self._loop.on_reload = self._reload
        self._loop.turns.append(self._turn)
        self._link.on_ring = self._rung.add
        self._promoter.on_repair = self._repairer.note
        self._promoter.repairs = has_repair(self._settings)
        try:
            self._repairer.configure(self._settings)
            self._connect_in(0)
            self._loop.after(self._settings.recheck, self._recheck)
            self._loop.run()
            self._service.notifier.stopping()
            self._finish()
        finally:
            self._repairer.close()
            self._link.close()

    def _finish(self) -> None:
        try:
            self._repairer.drain()
        except WakeqError as error:
            # What was handed out is repaired again, by whoever comes next.
            self._log.warning("a repair could not be finished", error=str(error))

    # -- the connection --------------------------------------------------------------------

    def _connect_in(self, seconds: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._loop.after(seconds, self._connect)

    def _connect(self) -> None:
        self._link.listen()
        self._connected = True
        self._scan()

    def _scan(self) -> None:
        """Look at all streams."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            reply = self._link.call(keys.STREAMS, "SSCAN", keys.STREAMS, cursor, "COUNT", _PAGE)
            if isinstance(reply, ServerError):
                if reply.code == "MOVED" and self._link.cluster:
                    self._link.forget(keys.STREAMS)
                raise explain(reply, self._link.url)
            cursor, names = reply
            found.update(filter(None, map(self._name, names)))
            if cursor == b"0":
                break
        self._promoter.look_at_all(found)

    def _name(self, raw: bytes) -> str:
        """Return a stream's name; empty, if it cannot be one."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return ""

    def _answer_bell(self) -> None:
        names = set(filter(None, map(self._name, self._rung)))
        self._rung.clear()
        self._promoter.look(names)

    def _register(self) -> None:
        """Put streams into the registry, so that they are found without a ring, too."""
        names = sorted(self._promoter.unregistered)
        self._promoter.unregistered.clear()
        for start in range(0, len(names), _REGISTER_MOST):
            part = names[start : start + _REGISTER_MOST]
            reply = self._link.call(keys.STREAMS, "SADD", keys.STREAMS, *part)
            # What is refused or passes is tried again at the next re-check.
            if isinstance(reply, ServerError) and reply.code == "READONLY":
                raise explain(reply, self._link.url)

    def _turn(self) -> None:
        """Do what the turn has gathered."""
        if not self._connected:
            return
        if self._rung:
            self._answer_bell()
        self._promoter.send()
        self._repairer.send()
        if self._promoter.unregistered:
            self._register()
        self._see_whether_up()
        figures = (self._promoter.moved, self._promoter.delayed, *self._repairer.figures())
        if figures != self._said_figures:
            self._said_figures = figures
            self._say_in(max(0.0, self._said_at + _SAY_SECONDS - time.monotonic()))

    def _see_whether_up(self) -> None:
        if self._promoter.away:
            why = f"{self._promoter.away} streams are on servers that cannot be reached"
            if not self._ready and time.monotonic() > self._deadline:
                raise UnavailableError(f"Redis at {self._link.url}: {why}")
            if self._ready and not self._lost:
                self._say_lost(why)
            self._service.notifier.status(f"waiting for Redis: {why}")
        if not self._promoter.settled or self._promoter.away:
            return
        self._backoff.reset()
        if self._lost:
            self._lost = False
            self._log.info("Redis is back", event_id=journal.REDIS_BACK)
        if not self._ready and self._repairer.ready:
            self._ready = True
            self._service.notifier.ready()

    def _failed(self, error: WakeqError) -> None:
        """Drop what needs Redis, and try again later."""
        if not self._ready and (
            not isinstance(error, UnavailableError) or time.monotonic() > self._deadline
        ):
            raise error
        if self._ready and not self._lost:
            self._say_lost(str(error))
        self._service.notifier.status(f"waiting for Redis, try {self._backoff.tries + 1}: {error}")
        self._disconnect()
        pause = self._backoff.next()
        if not self._ready:
            pause = min(pause, max(0.1, self._deadline - time.monotonic()))
        self._connect_in(pause)

    def _say_lost(self, why: str) -> None:
        self._lost = True
        self._log.warning("Redis was lost, trying again", event_id=journal.REDIS_LOST, error=why)

    def _disconnect(self) -> None:
        self._connected = False
        self._link.close()
        self._promoter.forget()
        self._repairer.forget()

    def _recheck(self) -> None:
        self._loop.after(self._settings.recheck, self._recheck)
        if self._connected:
            self._scan()

    # -- what systemd hears ----------------------------------------------------------------

    def _say_in(self, seconds: float) -> None:
        if self._said_timer is not None:
            self._said_timer.cancel()
        self._said_timer = self._loop.after(seconds, self._say)

    def _say(self) -> None:
        """Tell the service manager how things are."""
        if not self._ready or self._lost:
            self._said_figures = ()  # to be said when that is over
            return
        now, moved, delayed = time.monotonic(), self._promoter.moved, self._promoter.delayed
        rate = (moved - self._said_moved) / max(_SAY_SECONDS, now - self._said_at)
        parts = [f"{delayed:,} delayed in {len(self._promoter.streams):,} streams"]
        due = self._promoter.next_seconds()
        if due is not None:
            parts.append(f"next due in {format_duration(round(due, 1))}" if due else "some are due")
        parts += [f"{moved:,} moved", f"{rate:,.0f}/s", *self._repairer.figures()]
        self._service.notifier.status(", ".join(parts))
        self._said_at, self._said_moved = now, moved
        if rate or delayed:
            self._say_in(_SAY_SECONDS if rate else _SAY_AGAIN_SECONDS)

    # -- a reload --------------------------------------------------------------------------

    def _reload(self) -> None:
        service = self._service
        service.notifier.reloading()
        before = service.common.redis_url
        try:
            settings, url = service.read_config().delay(), RedisURL(service.common.redis_url)
        except ConfigError as error:
            service.log.error(f"nothing was reloaded: {error}")
            service.notifier.ready()
            return
        journal.set_level(service.common.log_level)
        self._promoter.tell = service.common.log_level == "debug"
        self._settings = settings
        self._repairer.configure(settings)
        if self._promoter.repairs != has_repair(settings):
            self._promoter.repairs = has_repair(settings)
            self._promoter.look(list(self._promoter.streams))
        if service.common.redis_url != before:
            self._link.url = url
            self._disconnect()
            self._connect_in(0)
        service.notifier.ready()
        service.log.info("configuration was read again")
