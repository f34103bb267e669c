"""The dead letters of one group: reads them, moves them back for delivery, deletes them."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from wakeq import keys, message
from wakeq.cli.session import Session
from wakeq.errors import MissingError
from wakeq.scripts import Script

# What is read, and moved, at once: more with each time, but no more bytes than these.
_FIRST_COUNT = 10
_MOST_COUNT = 100
_ENOUGH_BYTES = 4 * 1024 * 1024


class Letter(NamedTuple):
    """One dead letter: the id of its entry, and all its fields."""

    id: str
    items: dict[bytes, bytes]

    def own(self, name: bytes) -> str:
        """Return one of the fields that are ours, empty if it is missing."""
        return self.items.get(name, b"").decode(errors="backslashreplace")

    @property
    def message_id(self) -> str:
        """The id that the message was first published with."""
        return self.own(message.FIRST_ID) or self.id

    @property
    def failed_at_seconds(self) -> float:
        """When it failed the last time, by the clock of Redis."""
        return self._time(message.FAILED_AT) or int(self.id.partition("-")[0]) / 1000

    @property
    def first_failed_at_seconds(self) -> float:
        """When it failed the first time, by the clock of Redis."""
        return self._time(message.FIRST_FAILED_AT) or self.failed_at_seconds

    def _time(self, name: bytes) -> float:
        return self._number(name, 0) / 1000

    def _number(self, name: bytes, default: int) -> int:
        # Whoever has written it: nothing too long for int() or float().
        value = self.items.get(name, b"")
        return int(value) if value.isdigit() and len(value) <= 20 else default

    @property
    def attempts(self) -> int:
        """How often its handler was tried."""
        return self._number(message.ATTEMPT, 1)

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The fields that are the user's."""
        return {k: v for k, v in self.items.items() if not k.startswith(message.OWN_PREFIX)}


class Choice(NamedTuple):
    """Which letters are meant: all, or those that failed in a time, or with an error."""

    since_ms: int | None = None
    before_ms: int | None = None
    error: str = ""

    @property
    def is_all(self) -> bool:
        """Tell whether no letter is left out."""
        return self == Choice()

    def takes(self, letter: Letter) -> bool:
        """Tell whether a letter of the time is meant."""
        return self.error in letter.own(message.ERROR)


class Letters:
    """The dead letters of one group of a stream.

    Its methods raise redis.exceptions.RedisError, see `Session.explaining`, unless they say
    otherwise.
    """

    def __init__(self, session: Session, stream: str, group: str) -> None:
        self.stream = stream
        self.group = group
        self._session = session
        self._key = keys.dead(stream, group)
        self._retry = keys.retry(stream, group)
        self._redrive = Script("redrive")

    def last_id(self) -> str:
        """Return the id of the newest one; what fails later is beyond it. Empty: there is none."""
        newest = self._session.call(self._key, "XREVRANGE", self._key, "+", "-", "COUNT", 1)
        return newest[0][0].decode() if newest else ""

    def count(self, choice: Choice) -> int:
        """Return how many are meant."""
        if choice.is_all:
            return int(self._session.call(self._key, "XLEN", self._key))
        return sum(map(len, self.batches(choice)))

    def batches(self, choice: Choice, last: str = "+") -> Iterator[list[Letter]]:
        """Yield those that are meant, the oldest first and up to an id, some at a time."""
        # The entry was added in the moment in which the message failed.
        first = "-" if choice.since_ms is None else str(max(0, choice.since_ms))
        if choice.before_ms is not None:
            # The smaller of two ids, of which only the time can differ.
            before = max(0, choice.before_ms - 1)
            last = str(before) if last == "+" or before < int(last.partition("-")[0]) else last
        count = _FIRST_COUNT
        while True:
            entries = self._session.call(
                self._key, "XRANGE", self._key, first, last, "COUNT", count
            )
            letters = [Letter(entry_id.decode(), _unfolded(items)) for entry_id, items in entries]
            yield [letter for letter in letters if choice.takes(letter)]
            if len(entries) < count:
                return
            first = f"({letters[-1].id}"
            size = sum(len(k) + len(v) for letter in letters for k, v in letter.items.items())
            count = max(1, min(_MOST_COUNT, count * 2, count * _ENOUGH_BYTES // max(1, size)))

    def find(self, ids: Iterable[str]) -> list[Letter]:
        """Return the letters with these ids: their own, or those of their messages.

        Raises:
            MissingError: there is none with one of them.
        """
        found: dict[str, Letter] = {}
        wanted = dict.fromkeys(ids)
        for letter_id in wanted:
            for entry_id, items in self._session.call(
                self._key, "XRANGE", self._key, letter_id, letter_id
            ):
                found[letter_id] = Letter(entry_id.decode(), _unfolded(items))
        letters = {letter.id: letter for letter in found.values()}
        missing = [letter_id for letter_id in wanted if letter_id not in found]
        if missing:
            some = set(missing)
            for letter in chain.from_iterable(self.batches(Choice())):
                if letter.message_id in some:
                    letters[letter.id] = letter
            known = {letter.message_id for letter in letters.values()}
            missing = [letter_id for letter_id in missing if letter_id not in known]
        if missing:
            raise MissingError(
                f"{self.stream}: group {self.group} has no dead letter {', '.join(missing)}"
            )
        return list(letters.values())

    def redrive(self, ids: list[str]) -> list[str]:
        """Move letters back for delivery; see redrive.lua for what is returned.

        Raises:
            UnavailableError: the connection broke; some, all or none of them were moved.
            WakeqError: the server answered with an error.
        """
        results = self._session.servers.run(self._redrive, [self._key, self._retry], ids)
        return [result.decode() for result in results]

    def delete(self, ids: list[str]) -> int:
        """Delete letters for good; return how many were there. Raises as `redrive`."""
        return int(self._session.servers.call(self._key, "XDEL", self._key, *ids))


def _unfolded(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    items = message.unfold([part for pair in fields.items() for part in pair])
    return dict(zip(items[::2], items[1::2], strict=True))
