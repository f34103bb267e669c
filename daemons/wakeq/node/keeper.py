"""Keeps wakeq-node going: what the election brings, who emits and who consumes.

A process of the node stands for election and waits for nothing: what could hold it up is done by
others, by the consuming process (`child`) and by the one that makes messages (`source`). So a
handler that hangs costs no lease, and a follower takes over whatever its handlers do.

Elected: it emits at once, and the consuming process is told to finish what it has and to end,
unless `leader_consumes`. Lost: it emits no more, which the fence makes sure of, and consumes again.
A stop: the lease is handed over first, so that another one emits without a pause; then the
consuming process finishes.
"""

import os
import time

from wakeq import journal
from wakeq.config import instance_base
from wakeq.consumer.process import describe_self
from wakeq.election import Elector
from wakeq.errors import UnavailableError, WakeqError
from wakeq.loop import Loop
from wakeq.node.child import Child
from wakeq.node.emitter import Emitter
from wakeq.node.link import Link
from wakeq.node.registry import sign_up
from wakeq.node.reporter import Figures, Reporter
from wakeq.node.source import Source
from wakeq.redis_url import RedisURL
from wakeq.service import Service

# Of the lease. The fence makes sure that nothing is emitted by who was superseded, so that it is
# enough that a leader gives up before the next one begins; clocks differ by far less.
_TRUST = 0.8


class Keeper:
    """Runs one process of a node."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._log = service.log
        self._settings = settings = service.config.node(service.name)
        self._name = instance_base(service.name)
        self._loop = loop = Loop(service)
        self._url = url = RedisURL(service.common.redis_url)
        self._source_key = settings.list_ or settings.stream
        self._link = Link(loop, url, self._source_key)
        identity = (describe_self(), f"{os.uname().nodename}/{os.getpid()}")
        terms = (settings.lease, settings.lease * _TRUST)
        self._elector = Elector(loop, url, self._name, identity, terms, self._source_key)
        self._source = Source(loop, settings, self._name)
        self._emitter = Emitter(loop, self._link, self._elector, settings, self._name, self._source)
        self._child = Child(loop, service, settings)
        self._reporter = Reporter(loop, service, settings, self._link)
        self._consumes = bool(settings.handler or settings.exec_)
        self._leader = ""  # who leads, as far as this one knows
        self._deadline = 0.0  # for the start
        self._has_answered = False
        self._is_ready = False
        self._troubles: dict[str, str] = {}  # of the election, of emitting

    def run(self) -> None:
        """Consume, stand for election and lead, until the service is told to stop.

        Raises:
            WakeqError: the settings are wrong, or Redis cannot be used at the start.
        """
        self._put_together()
        self._deadline = time.monotonic() + self._service.common.start_timeout
        try:
            self._source.start()
            self._balance()
            self._reporter.start()
            self._elector.start()
            self._loop.run()
        finally:
            self._end()

    def _put_together(self) -> None:
        self._elector.on_elected, self._elector.on_lost = self._lead, self._lose
        self._elector.on_leader = self._follow
        self._elector.on_trouble = self._note_trouble
        self._elector.on_answer = self._note_answer
        self._link.on_lost = self._emitter.lost
        self._emitter.on_trouble = lambda error: self._trouble("emitting", error)
        self._emitter.on_well = lambda: self._well("emitting")
        self._child.on_figures = self._look_at_child
        self._reporter.words, self._reporter.figures = self._words, self._figures

    def _end(self) -> None:
        """End in the order in which others wait for it."""
        self._emitter.end()
        self._elector.resign()
        self._service.notifier.stopping()
        self._reporter.end()
        self._source.close()
        if self._service.stop:
            self._child.drain()
        self._child.close()
        self._link.close()

    # -- what the election brings ----------------------------------------------------------

    def _lead(self, token: bytes) -> None:
        self._emitter.begin()
        self._balance()
        self._log.info(
            "elected", event_id=journal.NODE_ELECTED, name=self._name, token=token.decode()
        )
        self._reporter.say_now()

    def _lose(self, why: str) -> None:
        self._emitter.end()
        self._well("emitting")
        self._balance()
        self._leader = ""
        self._log.warning(
            "the lease was lost", event_id=journal.NODE_LOST, name=self._name, error=why
        )

    def _balance(self) -> None:
        """Consume, or not."""
        if not self._consumes:
            return
        # Whoever leads from the beginning starts it all the same, to see that it can be.
        if not self._elector.token or self._settings.leader_consumes or not self._child.was_ready:
            self._child.start()
        else:
            self._child.stop()

    def _follow(self, who: str) -> None:
        self._leader = who

    def _note_answer(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._reporter.allow()
            sign_up(self._url, self._settings.stream)
            self._see_whether_ready()
        self._well("election")

    def _look_at_child(self) -> None:
        self._balance()
        self._see_whether_ready()

    def _see_whether_ready(self) -> None:
        if self._is_ready or not self._has_answered:
            return
        if self._source.ready and (not self._consumes or self._child.was_ready):
            self._is_ready = True
            self._reporter.say_now()
            self._service.notifier.ready()

    # -- what goes wrong -------------------------------------------------------------------

    def _note_trouble(self, error: WakeqError) -> None:
        if not self._has_answered and (
            not isinstance(error, UnavailableError) or time.monotonic() > self._deadline
        ):
            raise error
        self._trouble("election", error)

    def _trouble(self, of: str, error: WakeqError) -> None:
        """Tell of a trouble once, until there is none any more."""
        if self._has_answered and not self._troubles:
            self._log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        self._troubles[of] = str(error)
        self._reporter.say_now()

    def _well(self, of: str) -> None:
        if self._troubles.pop(of, None) is not None and self._has_answered and not self._troubles:
            self._log.info("Redis is back", event_id=journal.REDIS_BACK)
            self._reporter.say_now()

    # -- how things are --------------------------------------------------------------------

    def _words(self) -> str:
        elector = self._elector
        if elector.leads:
            said = [f"leads, token {elector.token.decode()}", self._emitted()]
        elif self._leader:
            said = [f"follower, {self._leader} leads"]
        else:
            said = ["follower, nobody is known to lead"]
        said.append(self._consuming())
        troubles = [f"waiting for Redis: {trouble}" for trouble in self._troubles.values()][:1]
        return "; ".join(part for part in (*said, *troubles) if part)

    def _emitted(self) -> str:
        if not self._emitter.last:
            return "emitted nothing yet"
        ago = time.monotonic() - self._emitter.last
        return f"emitted {self._emitter.messages:,}, last {ago:.1f} s ago"

    def _consuming(self) -> str:
        connections = self._elector.connections + self._link.connected + self._child.connections
        counted = f"{connections} connections"
        if not self._consumes:
            return f"without a handler; {counted}"
        if not self._child.figures:
            return counted
        failed = self._child.total("failed")
        parts = [f"{self._child.busy} of {self._settings.workers} workers busy"]
        parts += [f"{failed:,} failed"] if failed else []
        return ", ".join([*parts, counted])

    def _figures(self) -> Figures:
        leads = self._elector.leads
        return {
            "role": "leader" if leads else "follower",
            "token": self._elector.token.decode() if leads else "",
            "emitted": self._emitter.messages,
            "handled": self._child.total("handled"),
            "failed": self._child.total("failed"),
            "busy": self._child.busy,
            "workers": self._settings.workers if self._consumes else 0,
        }
