"""The link to Redis: a pair of connections, and what a consumer does with new ones.

The second one is opened when it is first needed, which is after the first message has been
given to its handler.
"""

from collections.abc import Callable
from time import monotonic

from wakeq import failpoint, keys
from wakeq.consumer.hand import Member
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.pair import NEVER, Pair
from wakeq.consumer.reporter import Reporter
from wakeq.errors import BusyError, UnavailableError, WakeqError
from wakeq.scripts import Script
from wakeq.selector import Selector
from wakeq.service import Service
from wakeq.wire import TRANSIENT, Connection, Reply, ServerError, explain

# A link over which nothing was confirmed counts as found again when it has held for this long.
# What fails at once after each connect (for lack of memory to publish, say) is one outage.
_STEADY_SECONDS = 1.0
_GROUP_GONE = ("NOGROUP", "UNBLOCKED")
# What a fenced script says when Redis does not know of any owner.
FORGOTTEN = "FENCED nobody"


class Link(Pair):
    """Both connections, and what comes with them.

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
        name = f"wakeq-consumer/{member.group}@{member.consumer}"
        super().__init__(service, name, member.stream, selector, report)
        self.position: Callable[[], bytes]
        self.on_up: Callable[[bool, bool], None]
        self.steady_at = NEVER
        self._member = member
        self._start = start
        self._keeper = keeper
        self._report = report
        self._ensure_group = Script("ensure_group")
        self._sign_up = ("SADD", keys.STREAMS, member.stream)
        self._is_registered = False

    @property
    def next_at(self) -> float:
        """When there is something to do for the link."""
        return self.steady_at if self.is_up else self.reconnect_at

    def lose(self, error: Exception) -> None:
        """Give the link up because of an error, and try again later."""
        super().lose(error)
        self.steady_at = NEVER

    def refuse(self, error: ServerError) -> None:
        """Do what an error reply asks for.

        Raises:
            WakeqError: what it says does not get better by trying again.
        """
        gone = error.code in _GROUP_GONE or "no such key" in str(error)
        if gone or str(error) == FORGOTTEN:
            # Connecting makes the group again, where it was, and has it owned again.
            self.renew()
        elif error.code == "FENCED":
            raise BusyError(
                f"group {self._member.group} has another owner since, {str(error)[7:]}: this"
                " consumer was paused or cut off for longer than lease"
            )
        else:
            super().refuse(error)

    def begin(self) -> None:
        """Take the name, make the group if it is missing, and look whether anything is pending."""
        member = self._member
        position = self.position()
        # In one send: a round trip takes the time of another process's turn, too.
        (ensured, *pending), was_free = self._keeper.join(
            self.reading.connection,
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

    def explain(self, error: ServerError) -> WakeqError:
        """Return what to tell people: Redis says what is wrong, but not with which of the keys."""
        sources = " or ".join(self._member.sources)
        where = f"{self.url}, key {sources}," if error.code == "WRONGTYPE" else self.url
        return explain(error, where)

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering, and a link that holds.

        Raises:
            Lost: a reply is overdue.
        """
        super().check(now)
        if now >= self.steady_at:
            self.hold()

    def hold(self) -> None:
        """Learn that the link does its work, so that an outage is over."""
        if self.steady_at < NEVER:
            self.steady_at = NEVER
            super().hold()

    def _take_sign_up(self, reply: Reply) -> None:
        """Learn whether the stream is in the registry now; who may not add to it does without."""
        code = reply.code if isinstance(reply, ServerError) else ""
        # What passes by itself is tried again after the next connect.
        self._is_registered = code not in TRANSIENT
        if code == "MOVED":
            # On Cluster the registry is in a slot of its own.
            elsewhere = Connection(self.url, "wakeq-consumer", keys.STREAMS)
            try:
                elsewhere.connect()
                elsewhere.call(*self._sign_up)
                self._is_registered = True
            except (UnavailableError, ServerError):
                pass  # after the next connect, then
            finally:
                elsewhere.close()
