"""Draining: how a consumer ends before it is idle, for a stop, a reload or a stuck handler.

The order, and why: no further read, so that nothing more comes in hand; what no lane has begun
is handed back, so that another consumer need not wait for `claim_after`; what is being handled may
be finished, because half a handler's work is the worst of all; then acknowledgements; then the
name, last, because as long as it stands nobody takes what is still pending.
"""

from time import monotonic

from wakeq import failpoint
from wakeq.consumer.acknowledger import Acknowledger
from wakeq.consumer.hand import Hand
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.lanes import Lanes
from wakeq.consumer.line import Line
from wakeq.consumer.link import Link
from wakeq.consumer.reader import Reader
from wakeq.message import Message
from wakeq.service import NOW, Service

# Asked for again and again while draining, so that TimeoutStopSec= does not cut it off.
_EXTEND_SECONDS = 5.0
_UNBLOCK_SECONDS = 0.1
NEVER = float("inf")


class Drainer:
    """Sees a consumer to its end.

    Attributes:
        draining: the end has begun.
        handed_back: how many messages were handed back.
        next_at: when to look again.
    """

    def __init__(
        self, hand: Hand, lanes: Lanes, line: Line, keeper: Keeper, drain_timeout: float
    ) -> None:
        self.draining = False
        self.handed_back = 0
        self.next_at = NEVER
        self._hand = hand
        self._lanes = lanes
        self._line = line
        self._keeper = keeper
        self._timeout = drain_timeout
        self._drain_by = self._extend_at = self._unblock_at = NEVER
        self._to_hand_back: list[Message] = []
        self._cut_short: list[Message] = []

    def begin(self) -> None:
        """Take no more, and give up what no lane has begun."""
        now = monotonic()
        self.draining = True
        self.next_at = self._extend_at = self._unblock_at = now
        self._drain_by = now + self._timeout
        self.give_up(self._line.close())

    def give_up(self, messages: list[Message]) -> None:
        """Hand messages back that no lane is at, instead of handling them."""
        self._hand.finish(messages)
        self._to_hand_back += messages

    def tick(self, now: float, link: Link, reader: Reader, service: Service) -> None:
        """Hand back what was given up; when time is up, give up what is being handled."""
        if now >= self._drain_by or service.stop >= NOW:
            stop = self._lanes.handler.stop
            if stop is not None:
                stop()
            begun = self._hand.being_handled()
            self._hand.finish(begun)
            self._cut_short += begun
            self._drain_by = NEVER
        if self._has_more and link.is_up:
            self.handed_back += len(self._to_hand_back) + len(self._cut_short)
            self._keeper.hand_back(link.writing, self._to_hand_back, self._cut_short)
            link.writing.flush()
            failpoint.hit("after_hand_back")
            self._to_hand_back, self._cut_short = [], []
        if now >= self._extend_at:
            service.notifier.extend(2 * _EXTEND_SECONDS)
            self._extend_at = now + _EXTEND_SECONDS
        if not reader.waiting:
            self._unblock_at = NEVER
        elif now >= self._unblock_at and link.is_up:
            # Asked again until it works: the server may see to this connection first and get
            # the read after it.
            self._unblock_at = now + _UNBLOCK_SECONDS
            link.unblock()
        self.next_at = min(self._extend_at, self._unblock_at, self._drain_by)

    @property
    def _has_more(self) -> bool:
        """Tell whether something is still to be handed back."""
        return bool(self._to_hand_back or self._cut_short)

    def is_over(self, acknowledger: Acknowledger, reader: Reader, link: Link) -> bool:
        """Tell whether nothing is left to wait for."""
        if self._hand.unfinished:
            return False
        if not link.is_up:
            # What is unsaid then is said by the successor: it is still pending here.
            return acknowledger.is_settled or self._drain_by == NEVER
        return (
            acknowledger.is_settled
            and not self._has_more
            and not reader.waiting
            and link.writing.idle
        )
