"""Draining: how a taker ends, for a stop or a stuck handler.

The order, and why: first no take is under way any more, so that nothing more comes in hand, and
nothing newer stands ahead of what is put back; what no lane has begun is put back, so that others
have it at once; what is being handled may be finished; then what is left is put back.
"""

from time import monotonic

from wakeq import failpoint
from wakeq.consumer.lanes import Lanes
from wakeq.message import Message
from wakeq.node.takers_finisher import Finisher
from wakeq.node.takers_hand import Hand, Line
from wakeq.node.takers_keeper import Keeper
from wakeq.node.takers_link import Link
from wakeq.scripts import Script
from wakeq.service import NOW, Service
from wakeq.wire import Argument, Reply, ServerError

NEVER = float("inf")
_UNBLOCK_SECONDS = 0.1
# After a second signal: what is not put back by then is put back by others.
_HURRY_SECONDS = 1.0


class Drainer:
    """Sees a taker to its end.

    Args:
        source: the list.
        hand: the messages in hand.
        line: where messages wait for a lane.
        lanes: where handlers run.
        keeper: says under which name messages are in hand.

    Attributes:
        timeout: for how long handlers may go on, in seconds.
        draining: the end has begun.
        put_back: how many messages were put back.
        next_at: when to look again.
    """

    def __init__(self, source: str, hand: Hand, line: Line, lanes: Lanes, keeper: Keeper) -> None:
        self.timeout = 0.0
        self.draining = False
        self.put_back = 0
        self.next_at = NEVER
        self._source = source
        self._hand = hand
        self._line = line
        self._lanes = lanes
        self._keeper = keeper
        self._put_back = Script("put_back")
        self._drain_by = self._unblock_at = self._end_by = NEVER
        self._rest: list[Message] = []
        self._is_cut_short = False

    def begin(self) -> None:
        """Take no more, and have no lane begin anything."""
        now = monotonic()
        self.draining = True
        self.next_at = self._unblock_at = now
        self._drain_by = now + self.timeout
        self.give_up(self._line.take_back())

    def give_up(self, messages: list[Message]) -> None:
        """Put messages back instead of handling them."""
        for message in messages:
            if not message.finished:
                self._hand.finish(message)
                self._rest.append(message)

    def tick(self, now: float, link: Link, waits: bool, service: Service) -> None:
        """Put back what was given up; when time is up, give up what is being handled."""
        if service.stop >= NOW and self._end_by == NEVER:
            self._end_by = now + _HURRY_SECONDS
        if now >= self._drain_by or service.stop >= NOW:
            self._drain_by = NEVER
            if not self._is_cut_short:
                self._is_cut_short = True
                if self._lanes.handler.stop is not None:
                    self._lanes.handler.stop()
                self.give_up(self._hand.being_handled)
        if not waits:
            self._unblock_at = NEVER
            if self._rest and link.is_up:
                self._send(link)
        elif link.is_up and now >= self._unblock_at:
            # Asked again until it works: the server may see to this connection first and get the
            # wait after it.
            self._unblock_at = now + _UNBLOCK_SECONDS
            link.unblock()
        self.next_at = min(self._unblock_at, self._drain_by, self._end_by)

    def is_over(self, now: float, link: Link, finisher: Finisher, waits: bool) -> bool:
        """Tell whether nothing is left to wait for."""
        if now >= self._end_by:
            return True
        if self._hand.unfinished:
            return False
        if not link.is_up:
            # What is unsaid then is found out by others: it is in hand of this taker yet.
            return finisher.is_settled or self._is_cut_short
        return finisher.is_settled and not self._rest and not waits and link.writing.idle

    def leave(self, link: Link) -> None:
        """Put all back that is left, and leave the takers."""
        self.put_back += self._keeper.leave(link.reading.connection)

    def _send(self, link: Link) -> None:
        rest, self._rest = self._rest, []
        numbers = sorted((message.place for message in rest), reverse=True)

        def take(reply: Reply) -> None:
            if isinstance(reply, ServerError):
                raise reply
            self.put_back += reply
            self._hand.drop(numbers)

        names: list[Argument] = [self._source, self._keeper.taken]
        link.writing.run(self._put_back, names, list[Argument](numbers), take)
        link.writing.flush()
        failpoint.hit("after_put_back")
