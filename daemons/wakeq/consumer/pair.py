"""Two connections to Redis that live and die together: one may wait, one is for all the rest.

What was under way when they are given up is sent again over new ones; the parts that sent it know
what that means.
"""

from __future__ import annotations

from time import monotonic

from wakeq.backoff import Backoff
from wakeq.consumer.channel import Channel
from wakeq.errors import UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.selector import Selector
from wakeq.service import RUN, Service
from wakeq.wire import TRANSIENT, Connection, ServerError, explain

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Teller(Protocol):
        """Tells people of an outage."""

        def waiting_for_redis(self, error: Exception, tries: int) -> None:
            """Say that Redis does not answer yet."""

        def lost(self, error: Exception) -> None:
            """Say once that Redis is gone."""

        def back(self) -> None:
            """Say once that Redis is back."""


NEVER = float("inf")


class Pair:
    """Both connections, registered with a selector for as long as they are open.

    Args:
        service: says where Redis is, and how long to try at the start.
        name: what Redis is to call them.
        key: whose slot matters, on a Cluster.
        selector: calls what is registered when there is something to receive.
        tell: tells people.

    Attributes:
        on_down: called when what is under way will not be answered.
        reading: the connection over which a read may wait.
        url: where Redis is.
        reconnect_at: when to try again, while they are down; infinite while they stand.
    """

    def __init__(
        self, service: Service, name: str, key: str, selector: Selector, tell: Teller
    ) -> None:
        self.on_down: Callable[[], None]
        self.reconnect_at = NEVER
        self.url = RedisURL(service.common.redis_url)
        self.reading, self._writing = (
            Channel(Connection(self.url, name, key), monotonic) for _ in range(2)
        )
        self._service = service
        self._selector = selector
        self._tell = tell
        self._backoff = Backoff()

    def begin(self) -> None:
        """Do what comes first over a new connection.

        Raises:
            UnavailableError: Redis was lost meanwhile.
            ServerError: Redis refuses.
        """
        raise NotImplementedError

    @property
    def is_up(self) -> bool:
        """Tell whether they stand, as far as known."""
        return self.reading.connection.connected

    @property
    def count(self) -> int:
        """How many are open."""
        return sum(channel.connection.connected for channel in (self.reading, self._writing))

    @property
    def writing(self) -> Channel:
        """The connection that never waits, opened when it is first needed.

        Raises:
            UnavailableError: it had to be opened and could not be.
        """
        if not self._writing.connection.connected:
            self._writing.connection.connect()
            self._register(self._writing)
        return self._writing

    def connect_at_start(self) -> bool:
        """Connect, patiently; return False if the service was stopped meanwhile.

        Raises:
            WakeqError: Redis does not answer within the start time-out, or refuses.
        """
        give_up_at = monotonic() + self._service.common.start_timeout
        while self._service.stop == RUN:
            try:
                self._connect()
                return True
            except UnavailableError as error:
                self.close()
                if monotonic() >= give_up_at:
                    raise
                self._tell.waiting_for_redis(error, self._backoff.tries)
            self._service.pause(self._backoff.next())
        return False

    def reconnect(self) -> None:
        """Try to connect again; if that fails, try later.

        Raises:
            WakeqError: Redis refuses.
        """
        try:
            self._connect()
        except UnavailableError as error:
            self.lose(error)

    def renew(self) -> None:
        """Give both up for new ones, at once."""
        self.close()
        self.on_down()
        self.reconnect_at = monotonic()

    def lose(self, error: Exception) -> None:
        """Give both up because of an error, and try again later."""
        self._tell.lost(error)
        self.close()
        self.on_down()
        self.reconnect_at = monotonic() + self._backoff.next()

    def refuse(self, error: ServerError) -> None:
        """Do what an error reply asks for.

        Raises:
            WakeqError: what it says does not get better by trying again.
        """
        if error.code not in TRANSIENT:
            raise self.explain(error)
        self.lose(self.explain(error))

    def explain(self, error: ServerError) -> WakeqError:
        """Return what to tell people of an error reply."""
        return explain(error, self.url)

    def unblock(self) -> None:
        """End the read that waits; without the right to it, it ends by itself, seconds later."""
        unblock = ("CLIENT", "UNBLOCK", self.reading.connection.client_id)
        self.writing.ask(unblock, lambda _reply: None)
        self.writing.flush()

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering.

        Raises:
            Lost: a reply is overdue.
        """
        self.reading.check(now)
        self._writing.check(now)

    def hold(self) -> None:
        """Learn that they do their work, so that an outage is over."""
        self._backoff.reset()
        self._tell.back()

    def close(self) -> None:
        """Give both up."""
        for channel in (self.reading, self._writing):
            self._selector.forget(channel.receive)
            channel.close()

    def _connect(self) -> None:
        self.reading.connection.connect()
        try:
            self.begin()
        except ServerError as error:
            self.close()
            raise self.explain(error) from None
        self._register(self.reading)
        self.reconnect_at = NEVER

    def _register(self, channel: Channel) -> None:
        self._selector.register(channel.connection.fileno(), channel.receive)
