"""What `wakeq produce` publishes, and when."""

import os
import random
import time
from collections.abc import Callable, Iterator

from wakeq.message import Publish

_BATCH = 1000
_DIGITS = 32
_DICTIONARY = "/usr/share/dict/words"
# For machines without a dictionary.
_WORDS = """
anchor apple arrow autumn basket beacon bridge candle canyon cedar circle cloud copper crystal
dawn desert ember falcon feather forest garden glacier granite harbour hazel island ivory jasmine
juniper kettle lantern lemon maple marble meadow mirror nectar oasis ocean olive orchard pebble
pepper prairie quartz raven ribbon river saddle salmon shadow silver spruce summit thistle thunder
timber tulip valley velvet walnut willow winter zephyr
"""


class Load:
    """Makes messages that can be told apart and put in order.

    Args:
        stream: where they go.
        workers: how many producers they seem to come from, in turn.
        payload_keys: how many fields `key_0` ... of 32 characters each has one.
        size: make one body of so many bytes instead.
        words: make values of words instead of hexadecimal digits.
    """

    def __init__(
        self, stream: str, workers: int, payload_keys: int, size: int | None, words: bool
    ) -> None:
        self.stream = stream
        self.workers = workers
        self._seq = 0
        self._names = [b"key_%d" % i for i in range(payload_keys)] if size is None else [b"body"]
        self._size = size or _DIGITS
        self._value: Callable[[], str] = self._words() if words else self._hex

    def messages(self, most: int) -> Iterator[Publish]:
        """Yield the next so many messages."""
        for _ in range(most):
            fields: dict[str | bytes, bytes | str | int | float] = {
                b"seq": b"%d" % self._seq,
                b"worker": b"%d" % (self._seq % self.workers),
            }
            for name in self._names:
                fields[name] = self._value()
            yield Publish(self.stream, fields=fields)
            self._seq += 1

    def _hex(self) -> str:
        return os.urandom((self._size + 1) // 2).hex()[: self._size]

    def _words(self) -> Callable[[], str]:
        try:
            with open(_DICTIONARY, encoding="utf-8") as file:
                words = (file.read() or _WORDS).split()
        except (OSError, UnicodeDecodeError):
            words = _WORDS.split()

        def value() -> str:
            if self._size == _DIGITS:
                return random.choice(words)
            # A word and its space are some six characters.
            text = " ".join(random.choices(words, k=self._size // 6 + 1))
            return (text * (self._size // len(text) + 1))[: self._size]

        return value


class Pace:
    """Says how many messages are due.

    Args:
        interval_seconds: from one message to the next, over all workers; 0 for no pause.
        together: so many are due at the same time, once in so many intervals.
    """

    def __init__(self, interval_seconds: float, together: int) -> None:
        self._interval = interval_seconds
        self._together = together
        self._begin = 0.0
        self._given = 0

    def wait(self, most: int) -> int:
        """Wait until messages are due, and return how many, at most `most` and a batch."""
        if not self._interval:
            return min(most, _BATCH)
        now = time.monotonic()
        if not self._given:
            self._begin = now
        # The next round: all workers at once, then a pause.
        due_at = self._begin + self._given * self._interval
        if due_at > now:
            time.sleep(due_at - now)  # the rate that was asked for
            now = due_at
        rounds = int((now - self._begin) / (self._interval * self._together)) + 1
        due = rounds * self._together - self._given
        due = min(max(1, due), most, _BATCH)
        self._given += due
        return due
