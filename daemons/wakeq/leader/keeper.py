"""Keeps wakeq-leader going: what the election brings, and what systemd hears of it.

A candidate says nothing but STATUS=, so that systemd takes it for starting. READY=1 is said when
it is elected, and what is bound to the target starts. When the lease is lost the process ends: that
is what systemd stops the rest for, and restarts it as a candidate.
"""

import os
import time

from wakeq import journal
from wakeq.config import instance_base
from wakeq.consumer.process import describe_self
from wakeq.election import Elector
from wakeq.errors import EX_TEMPFAIL, UnavailableError, UsageError, WakeqError
from wakeq.leader.terms import trust_seconds
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.service import DRAIN, Service


class Keeper:
    """Stands for election for as long as the service is to run."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._log = service.log
        self._settings = service.config.leader()
        self._loop = Loop(service)
        self._deadline = 0.0  # for the start
        self._has_answered = False
        self._trouble = ""
        self._said = ""
        self._code = 0

    def run(self) -> int:
        """Stand for election, and lead, until the service is told to stop or the lease is lost.

        Returns the exit code.

        Raises:
            WakeqError: the settings are wrong, or Redis cannot be used at the start.
        """
        name, settings = self._service.name, self._settings
        if instance_base(name) != name:
            raise UsageError(f"what is led has no number, as in NAME:NUMBER, not {name!r}")
        watchdog = self._service.notifier.watchdog_seconds
        trust = trust_seconds(settings.lease, watchdog, settings.stop_timeout)
        url = RedisURL(self._service.common.redis_url)
        identity = (describe_self(), f"{os.uname().nodename}/{os.getpid()}")
        elector = Elector(self._loop, url, name, identity, (settings.lease, trust))
        elector.on_elected, elector.on_lost = self._lead, self._lose
        elector.on_leader, elector.on_trouble = self._follow, self._note_trouble
        elector.on_answer = self._note_answer
        self._elector = elector
        self._deadline = time.monotonic() + self._service.common.start_timeout
        self._say("candidate")
        try:
            elector.start()
            self._loop.run()
            self._service.notifier.stopping()
        finally:
            elector.resign()
        return self._code

    def _lead(self, token: bytes) -> None:
        number = token.decode()
        self._say(f"leads, token {number}")
        self._log.info(
            "elected", event_id=journal.LEADER_ELECTED, name=self._service.name, token=number
        )
        self._service.notifier.ready()

    def _lose(self, why: str) -> None:
        # First of all: there is no time to lose.
        self._elector.close()
        self._service.stop = max(self._service.stop, DRAIN)
        self._code = EX_TEMPFAIL
        self._log.warning(
            "the lease was lost", event_id=journal.LEADER_LOST, name=self._service.name, error=why
        )

    def _follow(self, who: str) -> None:
        if who:
            self._say(f"candidate, {who} leads")
        else:
            self._say("candidate, waiting for a lease to run out that Redis has forgotten")

    def _say(self, said: str) -> None:
        self._said = said
        self._service.notifier.status(said)

    def _note_trouble(self, error: WakeqError) -> None:
        if not self._has_answered and (
            not isinstance(error, UnavailableError) or time.monotonic() > self._deadline
        ):
            raise error
        if self._has_answered and not self._trouble:
            self._log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        self._trouble = str(error)
        self._service.notifier.status(f"{self._said}; waiting for Redis: {error}")

    def _note_answer(self) -> None:
        if self._trouble and self._has_answered:
            self._log.info("Redis is back", event_id=journal.REDIS_BACK)
        self._trouble, self._has_answered = "", True
        self._service.notifier.status(self._said)
