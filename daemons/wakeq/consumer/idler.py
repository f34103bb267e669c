"""Idling: when a consumer that nothing comes for goes to sleep.

Nothing came for `idle_timeout`, nothing is in hand, and a last look at both streams found
nothing: then it may end. What comes after that look is seen by wakeq-wakeup, which looks itself
when the connection to the wake socket ends.
"""

from time import monotonic

from wakeq.consumer.hand import Hand
from wakeq.consumer.link import Link
from wakeq.consumer.reader import Reader

NEVER = float("inf")


class Idler:
    """Decides when to go to sleep.

    Args:
        timeout: how long to wait for messages, in seconds; None: for ever.
        hand: the messages in hand.
        reader: asks for messages.

    Attributes:
        at: when to go to sleep if nothing comes before.
    """

    def __init__(self, timeout: float | None, hand: Hand, reader: Reader) -> None:
        self._timeout = timeout
        self._hand = hand
        self._reader = reader
        self._last_look = False
        self.at = NEVER
        self.put_off()

    def put_off(self) -> None:
        """Begin to wait anew: there was something to do."""
        self._last_look = False
        if self._timeout is not None:
            self.at = monotonic() + self._timeout

    def is_over(self, now: float, link: Link) -> bool:
        """Tell whether to go to sleep now; takes the last look first."""
        if now < self.at or self._hand.unfinished or self._reader.waiting:
            return False
        if self._last_look or self._reader.paused:
            return True
        # What is pending is looked at first, after a reconnect: that was not the last look.
        self._last_look = not self._reader.recovering
        self._reader.ask(link.reading, now, self._reader.pace.least, 0)
        link.reading.flush()
        return False
