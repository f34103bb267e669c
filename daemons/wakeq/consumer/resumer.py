"""Resuming: what a consumer still has after a long pause of its process.

A process that was stopped, or whose machine was suspended, has messages in hand that another
consumer may have claimed meanwhile. Those that no lane has begun are held back until Redis has
said, over a new link, which of them are still this consumer's.
"""

from collections.abc import Callable

from wakeq.consumer.hand import Hand
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.line import Line
from wakeq.consumer.link import Link
from wakeq.message import Message


class Resumer:
    """Holds messages back after a pause.

    Attributes:
        on_ours: called with messages that may be handled after all.
    """

    def __init__(self, hand: Hand, line: Line, keeper: Keeper) -> None:
        self.on_ours: Callable[[list[Message]], None]
        self._hand = hand
        self._line = line
        self._keeper = keeper
        self._unsure: list[Message] | None = None

    def begin(self) -> None:
        """Hold back what no lane has begun."""
        self._unsure = [*(self._unsure or ()), *self._line.take_back()]

    def check(self, link: Link) -> None:
        """Hold back what no lane has begun until it is known what is still this consumer's."""
        self.begin()
        self.ask(link)

    def hold_back(self, messages: list[Message]) -> bool:
        """Hold new messages back too, behind those that came before, if there are such."""
        if self._unsure is None:
            return False
        self._unsure += messages
        return True

    def ask(self, link: Link) -> None:
        """Ask over a new link what is still this consumer's, if that is not known."""
        waiting = self._unsure
        if waiting is None:
            return
        self._keeper.keep_messages(link.writing, self._hand.being_handled())
        # Redis answers in order: once this is answered, the keeper has said what is gone.
        link.writing.ask(("PING",), lambda _reply: self._release(waiting))
        link.writing.flush()

    def _release(self, messages: list[Message]) -> None:
        if messages is self._unsure:  # else there was another pause since
            self._unsure = None
            self.on_ours([message for message in messages if not message.finished])
