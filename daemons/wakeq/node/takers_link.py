"""The link of a taker to Redis: one connection that takes and may wait, one for all the rest.

Both are given up together. What was under way is sent again over new ones, by the parts that sent
it; each script may be sent twice.
"""

from collections.abc import Callable
from time import monotonic

from wakeq.backoff import Backoff
from wakeq.consumer.channel import Channel
from wakeq.errors import ConfigError, UnavailableError, WakeqError
from wakeq.node.takers_keeper import GONE
from wakeq.node.takers_reporter import Reporter
from wakeq.redis_url import RedisURL
from wakeq.selector import Selector
from wakeq.service import RUN, Service
from wakeq.wire import TRANSIENT, Connection, ServerError, explain

NEVER = float("inf")


class Link:
    """Both connections, registered with a selector for as long as they are open.

    Args:
        service: says where Redis is, and how long to try at the start.
        names: the list and the error list; the first one says which slot matters.
        selector: calls what is registered when there is something to receive.
        report: tells people.

    Attributes:
        on_up: called after each connect, over connections with nothing outstanding.
        on_down: called when what is under way will not be answered.
        next_at: when to try again, while the link is down.
    """

    def __init__(
        self,
        service: Service,
        names: tuple[str, str],
        selector: Selector,
        report: Reporter,
    ) -> None:
        self.on_up: Callable[[], None]
        self.on_down: Callable[[], None]
        self.next_at = NEVER
        self._service = service
        self._names = names
        self._url = RedisURL(service.common.redis_url)
        self._selector = selector
        self._report = report
        self._backoff = Backoff()
        name = f"wakeq-node/{service.name}"
        self.taking, self.writing = (
            Channel(Connection(self._url, name, names[0]), monotonic) for _ in range(2)
        )

    @property
    def is_up(self) -> bool:
        """Tell whether the link stands, as far as known."""
        return self.taking.connection.connected

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(channel.connection.connected for channel in (self.taking, self.writing))

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
                self._report.waiting_for_redis(error, self._backoff.tries)
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

    def lose(self, error: Exception) -> None:
        """Give the link up because of an error, and try again later."""
        self._report.lost(error)
        self.close()
        self.on_down()
        self.next_at = monotonic() + self._backoff.next()

    def refuse(self, error: ServerError) -> None:
        """Do what an error reply asks for.

        Raises:
            WakeqError: what it says does not get better by trying again.
        """
        if error.code == GONE:
            # Connecting joins under another name.
            self.close()
            self.on_down()
            self.next_at = monotonic()
        elif error.code in TRANSIENT:
            self.lose(self._explain(error))
        else:
            raise self._explain(error)

    def hold(self) -> None:
        """Learn that the link does its work, so that an outage is over."""
        self._backoff.reset()
        self._report.back()

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering.

        Raises:
            Lost: a reply is overdue.
        """
        self.taking.check(now)
        self.writing.check(now)

    def unblock(self) -> None:
        """End the wait for a message; without the right to it, it ends by itself, seconds later."""
        unblock = ("CLIENT", "UNBLOCK", self.taking.connection.client_id)
        self.writing.ask(unblock, lambda _reply: None)
        self.writing.flush()

    def close(self) -> None:
        """Give both connections up."""
        for channel in (self.taking, self.writing):
            self._selector.forget(channel.receive)
            channel.close()

    def _connect(self) -> None:
        for channel in (self.taking, self.writing):
            channel.connection.connect()
        try:
            self.on_up()
        except ServerError as error:
            raise self._explain(error) from None
        for channel in (self.taking, self.writing):
            fd = channel.connection.fileno()
            self._selector.register(fd, channel.receive)
        self.next_at = NEVER

    def _explain(self, error: ServerError) -> WakeqError:
        if error.code == "WRONGTYPE":
            return ConfigError(
                f"Redis at {self._url}: one of the keys {' and '.join(self._names)} is no list:"
                " delete or rename it, or name another one"
            )
        if error.code == "CROSSSLOT":
            return ConfigError(
                f"Redis at {self._url} is a Cluster that has the keys {' and '.join(self._names)}"
                " in different slots: leave error_list out, or give both the same {hash tag}"
            )
        return explain(error, self._url)
