"""wakeq errors: print what failed at a node, and remove it once it is printed."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps, loads
from typing import Any, Protocol

from wakeq import failpoint
from wakeq.cli import times
from wakeq.cli.parser import Arguments, Subparsers, add_json, name, positive
from wakeq.cli.screen import as_json, print_json, readable
from wakeq.cli.session import Session, warn
from wakeq.errors import WakeqError

_EXAMPLES = """\
  wakeq errors jobs                        print what failed, and remove it
  wakeq errors jobs --keep                 print it and leave it there
  wakeq errors jobs --count                only say how many there are
  wakeq errors jobs --json >> failed.json  keep it in a file instead

The oldest come first, each on a line, whole. What is printed is removed when it has been written:
a full disk or a closed pipe loses nothing. Whoever wants some of them says --limit, for head(1)
takes more than it shows. On a list these are the entries of its error list, on a stream the dead
letters of the node's group.
"""
# What is read, printed and removed at once: more with each time, but no more bytes than these.
_FIRST_COUNT = 10
_MOST_COUNT = 500
_ENOUGH_BYTES = 4 * 1024 * 1024


class _Source(Protocol):
    """Where a node's errors are."""

    def count(self) -> int:
        """Return how many there are."""

    def batches(self, most: int, keep: bool) -> Iterator[list[Any]]:
        """Yield some at a time, the oldest first; what was yielded before is removed or kept."""

    def print(self, batch: list[Any], json: bool) -> None:
        """Print some."""

    def remove(self, batch: list[Any]) -> int:
        """Remove some, and return how many were there."""


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add("errors", "Print what failed at a node, and remove it.", _EXAMPLES, run)
    parser.add_argument("node", metavar="NODE", type=name, help="the node, as in nodes/NODE.toml")
    parser.add_argument("--keep", action="store_true", help="remove nothing")
    parser.add_argument("--count", action="store_true", help="only print how many there are")
    parser.add_argument("--limit", metavar="N", type=positive, help="at most so many")
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Print what failed, and remove it."""
    node = arguments.node
    settings = session.config.node(node)
    with session.explaining():
        source: _Source
        if settings.list_:
            source = _ErrorList(session, settings.list_, node, settings.error_list)
        else:
            source = _DeadLetters(session, settings.stream, settings.group)
        # What fails meanwhile is left for the next time.
        total = source.count()
        if arguments.count:
            print_json({"node": node, "errors": total} if arguments.json else total)
            return 0
        if not total:
            warn(f"{node}: there are no errors")
        most = min(total, arguments.limit or total)
        for batch in source.batches(most, arguments.keep):
            with _written():
                source.print(batch, arguments.json)
            failpoint.hit("before_drop")
            if not arguments.keep:
                source.remove(batch)
        if total > most:
            warn(f"{node}: there are {total - most:,} more")
    return 0


@contextmanager
def _written() -> Iterator[None]:
    """Have what is printed in the block written for good at its end.

    Raises:
        BrokenPipeError: its reader has gone.
        WakeqError: it could not be written.
    """
    try:
        yield
        sys.stdout.flush()
        if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
            os.fsync(sys.stdout.fileno())
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try to write the rest once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise WakeqError(
            f"errors: cannot be printed, so they stay where they are: {error.strerror}"
        ) from None


class _ErrorList:
    """The error list of a node on a list."""

    def __init__(self, session: Session, source: str, node: str, error_list: str) -> None:
        from wakeq import keys
        from wakeq.config import instance_base
        from wakeq.scripts import Script

        self._session = session
        self._key = error_list or keys.errors(source, instance_base(node))
        self._drop = Script("drop_errors")

    def count(self) -> int:
        return int(self._session.call(self._key, "LLEN", self._key))

    def batches(self, most: int, keep: bool) -> Iterator[list[bytes]]:
        count, seen = _FIRST_COUNT, 0
        while seen < most:
            # From the right end, for new ones come to the left.
            behind = seen if keep else 0
            first = -behind - min(count, most - seen)
            batch = self._session.call(self._key, "LRANGE", self._key, first, -1 - behind)
            batch.reverse()
            if not batch:
                return
            yield batch
            seen += len(batch)
            size = max(1, sum(map(len, batch)))
            count = max(1, min(_MOST_COUNT, count * 2, len(batch) * _ENOUGH_BYTES // size))

    def print(self, batch: list[bytes], json: bool) -> None:
        from wakeq.node.takers_errors import read

        for raw in batch:
            entry = read(raw)
            if not entry.error:
                # Somebody else's.
                print_json({"raw": as_json(raw)}) if json else print(readable(raw, len(raw)))
            elif json:
                print(raw.decode() if b"\n" not in raw else dumps(loads(raw)))
            else:
                _print_line(entry.at, entry.node, entry.attempts, entry.error, entry.message)

    def remove(self, batch: list[bytes]) -> int:
        names = [hashlib.sha1(raw, usedforsecurity=False).hexdigest() for raw in batch]
        return int(self._session.servers.run(self._drop, [self._key], names))


class _DeadLetters:
    """The dead letters of a node's group of a stream."""

    def __init__(self, session: Session, stream: str, group: str) -> None:
        from wakeq.cli.letters import Choice, Letters

        self._letters = Letters(session, stream, group)
        self._all = Choice()

    def count(self) -> int:
        return self._letters.count(self._all)

    def batches(self, most: int, keep: bool) -> Iterator[list[Any]]:
        for batch in self._letters.batches(self._all):
            if most and batch:
                yield batch[:most]
            most -= len(batch[:most])
            if not most:
                return

    def print(self, batch: list[Any], json: bool) -> None:
        from wakeq import message
        from wakeq.cli.letter_printer import Printer

        if json:
            Printer(self._letters, json=True).take(batch)
            return
        for letter in batch:
            at = times.iso(letter.failed_at_seconds)
            who = letter.own(message.CONSUMER)
            error = letter.own(message.ERROR)
            fields = letter.fields
            body = fields.pop(message.BODY, b"") if len(fields) < 2 else b""
            rest = b" ".join(key + b"=" + value for key, value in fields.items())
            _print_line(at, who, letter.attempts, error, body or rest)

    def remove(self, batch: list[Any]) -> int:
        return self._letters.delete([letter.id for letter in batch])


def _print_line(at: str, who: str, attempts: int, error: str, message: bytes) -> None:
    """Print an error for people: all of it, because it may be there no more after that."""
    parts = [at, who, f"{attempts}", error]
    shown = [readable(part.encode(errors="backslashreplace"), len(part) * 4) for part in parts]
    print("  ".join([*filter(None, shown), readable(message, len(message))]))
