"""Keeps wakeq-fanout going: its life from the first connection to the last, and what systemd hears.

It is started by its socket. When nobody has been connected for `idle_timeout` it ends without
accepting anybody on the way out: who connects in that moment waits in the queue of the socket, and
systemd starts the next one for it. So Redis need not answer at the start: who has connected is told
that it does not.
"""

import resource
import socket
import time

from wakeq.failpoint import hit
from wakeq.fanout.clerk import Clerk
from wakeq.fanout.door import Door
from wakeq.fanout.gateway import Gateway
from wakeq.fanout.link import Link
from wakeq.fanout.peer import Limits
from wakeq.fanout.trouble import Trouble
from wakeq.loop import Loop, Timer
from wakeq.redis_url import RedisURL
from wakeq.service import Service

_SAY_SECONDS = 1.0
# At the end: until all are told and out of their rooms; whoever is not is timed out.
_LEAVE_SECONDS = 5.0
# Open files besides the connections of clients.
_FILES = 64


class Keeper:
    """Runs the parts for as long as somebody is connected, or may be."""

    def __init__(self, service: Service, listeners: list[socket.socket]) -> None:
        self._service = service
        self._log = service.log
        self._settings = settings = service.config.fanout()
        self._loop = Loop(service)
        self._trouble = Trouble(self._log)
        self._link = Link(self._loop, RedisURL(service.common.redis_url), self._trouble)
        most = _allow_connections(settings.connections)
        self._door = Door(self._loop, listeners, most, settings.slow_timeout)
        self._gateway = Gateway(
            self._loop, self._link, self._door, settings.timeout, settings.queue_limit
        )
        limits = Limits(settings.line_kib * 1024, settings.unread_kib * 1024)
        self._door.host = Clerk(self._log, self._door, self._gateway, self._link, limits)
        self._idle_timer: Timer | None = None
        self._said: tuple[int, int, bool] | None = None
        self._said_timer: Timer | None = None

    def run(self) -> None:
        """Serve until the service is told to stop, or has nothing to do."""
        self._loop.turns += [self._turn, self._see_whether_done]
        self._link.start()
        self._door.open()
        self._service.notifier.ready()
        self._gateway.listen()
        try:
            self._loop.run()
            self._service.notifier.stopping()
            self._end()
        finally:
            self._door.close()
            self._gateway.close()
            self._link.close()

    def _turn(self) -> None:
        self._door.go_on()
        self._gateway.turn()
        self._door.flush()
        self._link.send()
        # What was sent may have said that somebody has gone.
        if self._gateway.has_work or self._door.has_work:
            self._loop.after(0, _nothing)
        if self._figures != self._said and self._said_timer is None:
            self._say()

    def _see_whether_done(self) -> None:
        """End when there has been nobody for long enough; look again when that may be."""
        if self._door.peers or self._gateway.leaver.is_busy:
            return
        rest = self._door.empty_since + self._settings.idle_timeout - time.monotonic()
        if rest <= 0:
            hit("before_idle_exit")
            self._loop.end()
        elif self._idle_timer is None:
            self._idle_timer = self._loop.after(rest, self._look_at_idle)

    def _look_at_idle(self) -> None:
        self._idle_timer = None

    def _end(self) -> None:
        """Have everybody leave, and hear why."""
        self._door.quiet()
        for peer in list(self._door.peers.values()):
            self._gateway.eject(peer, "stopping")
        self._turn()
        if not self._loop.run_until(self._is_done, _LEAVE_SECONDS):
            self._log.warning("not all clients could leave their rooms; they will be timed out")

    def _is_done(self) -> bool:
        return not (self._gateway.leaver.is_busy or any(p.busy for p in self._door.peers.values()))

    # -- what systemd and the log hear -------------------------------------------------------

    @property
    def _figures(self) -> tuple[int, int, bool]:
        return len(self._door.peers), self._gateway.clients, bool(self._trouble)

    def _say(self) -> None:
        """Tell the service manager how things are; not again within a second."""
        self._said_timer = None
        if self._figures != self._said:
            self._said = connections, clients, lost = self._figures
            text = f"{connections} connections, {clients} clients in rooms"
            self._service.notifier.status(f"waiting for Redis; {text}" if lost else text)
            self._said_timer = self._loop.after(_SAY_SECONDS, self._say)


def _allow_connections(most: int) -> int:
    """Take the whole of LimitNOFILE=; return how many connections fit in there."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    return max(1, min(most, files - _FILES)) if files != resource.RLIM_INFINITY else most


def _nothing() -> None:
    pass
