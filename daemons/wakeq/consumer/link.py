"""The link to Redis: one connection that reads and may block, one for all the rest.

The second one is opened when it is first needed, which is after the first message has been
given to its handler. Both are given up together, and what was under way is sent again over
new ones; the parts that sent it know what that means.
"""

from collections.abc import Callable
from time import monotonic

from wakeq import failpoint, keys
from wakeq.backoff import Backoff
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Member
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.reporter import Reporter
from wakeq.errors import BusyError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.selector import Selector
from wakeq.service import RUN, Service
from wakeq.wire import TRANSIENT, Connection, Reply, ServerError, explain

# A link over which nothing was confirmed counts as found again when it has held for this long.
# What fails at once after each connect (for lack of memory to publish, say) is one outage.
_STEADY_SECONDS = 1.0
_GROUP_GONE = ("NOGROUP", "UNBLOCKED")
# What a fenced script says when Redis does not know of any owner.
FORGOTTEN = "FENCED nobody"


class Link:
    """Both connections, registered with a selector for as long as they are open.

    Args:
        service: says where Redis is, and how long to try at the start.
        member: who the consumer is.
        start: where a group that never was begins.
        keeper: takes the name after each connect.
        selector: calls what is registered when there is something to receive.

    Attributes:
        position: returns up to where the stream was handled, empty if not known.
        on_up: called after each connect, with whether the stream is paused, and whether this
            consumer has messages pending.
        on_down: called when what is under way will not be answered.
        reconnect_at: when to try again, while the link is down.
        steady_at: when a link that stands will count as found again; infinite if it does already,
            or is down.
    """

    def __init__(
        self,
        service: Service,
        member: Member,
        start: str,
        keeper: Keeper,
        selector: Selector,
        report: Reporter,
    ) -> None:
        self.position: Callable[[], bytes]
        self.on_up: Callable[[bool, bool], None]
        self.on_down: Callable[[], None]
        self.reconnect_at = self.steady_at = float("inf")
        self._service = service
        self._url = RedisURL(service.common.redis_url)
        self._member = member
        self._start = start
        self._keeper = keeper
        self._selector = selector
        self._report = report
        self._backoff = Backoff()
        self._ensure_group = Script("ensure_group")
        self._sign_up = ("SADD", keys.STREAMS, member.stream)
        self._is_registered = False
        name = f"wakeq-consumer/{member.group}@{member.consumer}".replace(" ", "_")
        self.reading, self._writing = (
            Channel(Connection(self._url, name, member.stream), monotonic) for _ in range(2)
        )

    @property
    def is_up(self) -> bool:
        """Tell whether the link stands, as far as known."""
        return self.reading.connection.connected

    @property
    def next_at(self) -> float:
        """When there is something to do for the link."""
        return self.steady_at if self.is_up else self.reconnect_at

    @property
    def writing(self) -> Channel:
        """The connection that never blocks.

        Raises:
            UnavailableError: it had to be opened and could not be.
        """
        if not self._writing.connection.connected:
            self._writing.connection.connect()
            self._register(self._writing)
        return self._writing

    @property
    def answer_by(self) -> float:
        """When the server must have answered what it was asked."""
        return min(self.reading.answer_by, self._writing.answer_by)

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
                if monotonic() >= give_up_at:
                    raise
                self._report.waiting_for_redis(error, self._backoff.tries)
            self._service.pause(self._backoff.next())
        return False

    def reconnect(self) -> None:
        """Try to connect again; if that fails, try later.

        Raises:
            WakeqError: Redis refuses, or another process has the name.
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
        self.steady_at = float("inf")
        self.reconnect_at = monotonic() + self._backoff.next()

    def refuse(self, error: ServerError) -> None:
        """Do what an error reply asks for.

        Raises:
            WakeqError: what it says does not get better by trying again.
        """
        gone = error.code in _GROUP_GONE or "no such key" in str(error)
        if gone or str(error) == FORGOTTEN:
            # Connecting makes the group again, where it was, and has it owned again.
            self.close()
            self.on_down()
            self.reconnect_at = monotonic()
        elif error.code == "FENCED":
            raise BusyError(
                f"group {self._member.group} has another owner since, {str(error)[7:]}: this"
                " consumer was paused or cut off for longer than lease"
            )
        elif error.code in TRANSIENT:
            self.lose(self._explain(error))
        else:
            raise self._explain(error)

    def _connect(self) -> None:
        connection = self.reading.connection
        connection.connect()
        member = self._member
        position = self.position()
        try:
            # In one send: a round trip takes the time of another process's turn, too.
            (ensured, *pending), was_free = self._keeper.join(
                connection,
                [
                    self._ensure_group.whole(
                        [*member.sources, member.stats, member.paused],
                        [member.group, self._start, position],
                    ),
                    *(
                        ("XPENDING", source, member.group, "-", "+", 1, member.consumer)
                        for source in member.sources
                    ),
                ],
            )
            failpoint.hit("after_join")
            if isinstance(ensured, ServerError):
                raise ensured
            made, paused = ensured
            failpoint.hit("after_group")
        except ServerError as error:
            connection.close()
            raise self._explain(error) from None
        self._register(self.reading)
        self.reconnect_at = float("inf")
        self.steady_at = monotonic() + _STEADY_SECONDS
        if made and position:
            self._report.group_made_again(made.decode())
        if not self._is_registered:
            self.reading.ask(self._sign_up, self._take_sign_up)
        # An error is one of rights, with which the messages may be read all the same. And who had
        # the name until now may have read more since.
        self.on_up(bool(paused), any(pending) or not was_free)
        if paused:
            self._report.ready()  # nothing will be read, which else says so

    def _take_sign_up(self, reply: Reply) -> None:
        """Learn whether the stream is in the registry now; who may not add to it does without."""
        code = reply.code if isinstance(reply, ServerError) else ""
        # What passes by itself is tried again after the next connect.
        self._is_registered = code not in TRANSIENT
        if code == "MOVED":
            # On Cluster the registry is in a slot of its own.
            elsewhere = Connection(self._url, "wakeq-consumer", keys.STREAMS)
            try:
                elsewhere.connect()
                elsewhere.call(*self._sign_up)
                self._is_registered = True
            except (UnavailableError, ServerError):
                pass  # after the next connect, then
            finally:
                elsewhere.close()

    def _explain(self, error: ServerError) -> WakeqError:
        # Redis says what is wrong, but not with which of the keys.
        sources = " or ".join(self._member.sources)
        where = f"{self._url}, key {sources}," if error.code == "WRONGTYPE" else self._url
        return explain(error, where)

    def unblock(self) -> None:
        """End the read that blocks; without the right to it, it ends by itself, seconds later."""
        unblock = ("CLIENT", "UNBLOCK", self.reading.connection.client_id)
        self.writing.ask(unblock, lambda _reply: None)
        self.writing.flush()

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering, and a link that holds.

        Raises:
            Lost: a reply is overdue.
        """
        self.reading.check(now)
        self._writing.check(now)
        if now >= self.steady_at:
            self.hold()

    def hold(self) -> None:
        """Learn that the link does its work, so that an outage is over."""
        if self.steady_at < float("inf"):
            self.steady_at = float("inf")
            self._backoff.reset()
            self._report.back()

    def close(self) -> None:
        """Give both connections up."""
        for channel in (self.reading, self._writing):
            self._selector.forget(channel.receive)
            channel.close()

    def _register(self, channel: Channel) -> None:
        fd = channel.connection.fileno()
        self._selector.register(fd, channel.receive)
