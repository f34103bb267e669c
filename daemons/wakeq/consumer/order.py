"""Order: which lanes and which line there are for the order that is wanted, and who may read.

`none` and `key` need no owner: whoever reads a message has it. `strict` does, see `owner`.
"""

from __future__ import annotations

from collections.abc import Callable

from wakeq.config import Consumer
from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Hand, Member
from wakeq.consumer.handler import Handler
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.lanes import Lanes, make_lanes
from wakeq.consumer.line import Line, StrictLine
from wakeq.consumer.reporter import Reporter
from wakeq.message import Message
from wakeq.selector import Selector


class Everybody:
    """Owns nothing and may read all the same: in place of an owner where order is not strict.

    Attributes:
        is_owner: all that is pending is this consumer's, and it may read.
        next_at: when there is something to do.
        token: the fencing token, empty if this consumer has never been the owner.
        stands_by: another one is the owner, and this consumer waits.
        on_owner: called when this consumer has become the owner, or is still.
        on_forgotten: called when Redis has lost what it knew of this owner.
    """

    is_owner = True
    stands_by = False
    next_at = float("inf")
    token = b""

    def __init__(self) -> None:
        self.on_owner: Callable[[], None] = lambda: None
        self.on_forgotten: Callable[[], None] = lambda: None

    def attach(self, selector: Selector, unblock: Callable[[], None]) -> None:
        """Have the end of an owner on this machine noticed at once."""

    def restart(self) -> None:
        """Ask anew, over a new connection."""

    def tick(self, now: float, channel: Channel) -> None:
        """Ask for the lease, or for more of it, if it is time, over a flushed channel."""

    def recall(self, messages: list[Message]) -> None:
        """Have messages that held the line before go on with the attempt that they were at."""

    def record(self, channel: Channel, messages: list[Message]) -> None:
        """Have the attempts of messages that hold the line survive this process."""


def arrange(
    settings: Consumer,
    handler: Handler,
    member: Member,
    hand: Hand,
    keeper: Keeper,
    report: Reporter,
) -> tuple[Everybody, Lanes, Line]:
    """Return the owner, the lanes and the line that fit the settings."""
    if not member.is_fenced:
        lanes = make_lanes(handler, settings.concurrency, settings.order == "key")
        return Everybody(), lanes, Line(member, hand, lanes, settings.max_crashes)
    from wakeq.consumer.gate import Gate  # only strict order pays for it
    from wakeq.consumer.owner import Owner

    gate = Gate()
    lanes = make_lanes(gate.guard(handler), 1, keyed=False)
    line = StrictLine(member, hand, lanes, settings.max_crashes, gate)
    return Owner(member, settings, keeper.process, gate, report), lanes, line
