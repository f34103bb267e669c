"""Keeps wakeq-wakeup going: its connection to Redis, the re-check, a reload, what systemd hears.

Redis is lost when anything says so: a connection that ends or falls silent, a server that
cannot answer now. Then everything that needs it is dropped at once and tried again as a whole,
with growing pauses. It counts as back when it has answered a look, not when it can be
connected to: a server that is loading takes connections, too.
"""

import resource
import time

from wakeq import journal, keys
from wakeq.backoff import Backoff
from wakeq.errors import ConfigError, UnavailableError, WakeqError
from wakeq.loop import Loop, Timer
from wakeq.redis_url import RedisURL
from wakeq.sections import Wakeup
from wakeq.service import Service
from wakeq.wakeup.discoverer import Discoverer
from wakeq.wakeup.lines import Lines
from wakeq.wakeup.prober import Prober
from wakeq.wakeup.roster import Roster
from wakeq.wakeup.starter import Starter
from wakeq.wakeup.waker import Waker
from wakeq.wakeup.watcher import Watcher
from wakeq.wire import Reply, ServerError, explain

_REGISTER_MOST = 1000
# While the manager is busy (a reload of thousands of units), a message to it blocks.
_SAY_SECONDS = 1.0


class Parts:
    """The parts of wakeq-wakeup, built and connected with each other."""

    def __init__(self, service: Service, settings: Wakeup) -> None:
        self.loop = Loop(service)
        self.lines = Lines(self.loop, RedisURL(service.common.redis_url))
        self.prober = Prober(self.lines)
        self.watcher = Watcher(self.loop, self.lines)
        self.starter = Starter(self.loop, settings.starts)
        self.waker = Waker(self.loop, service.log, self.prober, self.watcher, self.starter)
        self.roster = Roster(self.loop, service.log, self.waker, service.config)
        self.discoverer = Discoverer(self.lines, self.waker, settings.discover)


class Keeper:
    """Runs the parts for as long as the service is to run."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.config.wakeup()
        self._parts = Parts(service, self._settings)
        self._redis_url = service.common.redis_url  # the one in use
        self._backoff = Backoff()
        self._deadline = 0.0  # for the start
        self._ready = False
        self._connected = False
        self._retry: Timer | None = None
        self._lost = False  # and logged
        self._said = ""
        self._said_timer: Timer | None = None

    def run(self) -> None:
        """Run until the service is told to stop.

        Raises:
            WakeqError: Redis cannot be used, at the start.
        """
        loop = self._parts.loop
        self._deadline = time.monotonic() + self._service.common.start_timeout
        loop.on_failure = self._failed
        loop.on_reload = self._reload
        loop.turns.append(self._turn)
        _allow_open_files()
        self._parts.roster.start()
        self._connect_in(0)
        loop.after(self._settings.recheck, self._recheck)
        loop.run()

    def _connect_in(self, seconds: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._parts.loop.after(seconds, self._connect)

    def _connect(self) -> None:
        self._parts.lines.to(keys.STREAMS.encode())
        self._connected = True
        self._parts.waker.back()
        self._register()
        self._parts.discoverer.start()

    def _turn(self) -> None:
        """Send what the turn has gathered."""
        parts = self._parts
        parts.starter.send()
        if not self._connected:
            return
        parts.prober.send()
        parts.watcher.send()
        if not self._ready or self._lost:
            self._see_whether_up()
        if self._ready and not self._lost and self._said_timer is None:
            self._say()

    def _say(self) -> None:
        """Tell the service manager how things are; not again within a second."""
        self._said_timer = None
        status = self._parts.waker.status
        if status != self._said and not self._lost:
            self._said = status
            self._service.notifier.status(status)
            self._said_timer = self._parts.loop.after(_SAY_SECONDS, self._say)

    def _see_whether_up(self) -> None:
        parts = self._parts
        if parts.prober.busy or parts.discoverer.busy or not parts.watcher.settled:
            return
        self._backoff.reset()
        if self._lost:
            self._lost = False
            self._service.log.info("Redis is back", event_id=journal.REDIS_BACK)
        if not self._ready:
            self._ready = True
            self._service.notifier.ready()

    def _failed(self, error: WakeqError) -> None:
        """Drop what needs Redis, and try again later."""
        if not self._ready and (
            not isinstance(error, UnavailableError) or time.monotonic() > self._deadline
        ):
            raise error
        if self._ready and not self._lost:
            self._lost = True
            self._service.log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        self._said = f"waiting for Redis, try {self._backoff.tries + 1}: {error}"
        self._service.notifier.status(self._said)
        self._disconnect()
        pause = self._backoff.next()
        if not self._ready:
            pause = min(pause, max(0.1, self._deadline - time.monotonic()))
        self._connect_in(pause)

    def _disconnect(self) -> None:
        self._connected = False
        self._parts.lines.close()
        self._parts.discoverer.forget()
        self._parts.waker.lost()

    def _recheck(self) -> None:
        self._parts.loop.after(self._settings.recheck, self._recheck)
        self._parts.roster.refresh()
        if self._connected:
            self._register()
            self._parts.waker.recheck()
            self._parts.discoverer.start()

    def _register(self) -> None:
        """Put the streams of all consumers into the registry."""
        streams = sorted(self._parts.waker.streams)
        for start in range(0, len(streams), _REGISTER_MOST):
            part = streams[start : start + _REGISTER_MOST]
            line = self._parts.lines.to(keys.STREAMS.encode())
            line.ask(("SADD", keys.STREAMS, *part), self._registered)

    def _registered(self, reply: Reply) -> None:
        # It needs no registry itself. What passes (no memory, say) is tried again at the next
        # re-check; but a server that was made a replica is not the one to talk to any more.
        if isinstance(reply, ServerError) and reply.code in ("READONLY", "NOPERM"):
            raise explain(reply, self._parts.lines.url)

    def _reload(self) -> None:
        service, parts = self._service, self._parts
        service.notifier.reloading()
        try:
            config = service.read_config()
            settings, url = config.wakeup(), RedisURL(service.common.redis_url)
        except ConfigError as error:
            service.log.error(f"nothing was reloaded: {error}")
            service.notifier.ready()
            return
        self._settings = settings
        parts.starter.starts = settings.starts or parts.starter.starts
        parts.discoverer.enabled = settings.discover
        parts.roster.reload(config)
        if service.common.redis_url != self._redis_url:
            self._redis_url = service.common.redis_url
            parts.lines.url = url
            self._disconnect()
            self._connect_in(0)
        service.notifier.ready()
        service.log.info("configuration was read again")


def _allow_open_files() -> None:
    """Take the whole of LimitNOFILE=: there is one open file for each consumer that is awake."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
