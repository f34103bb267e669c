"""wakeq dead: look at dead letters, deliver them again, or delete them."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from wakeq.cli import times
from wakeq.cli.interrupt import held_back
from wakeq.cli.letters import Choice, Letter, Letters
from wakeq.cli.load import Pace
from wakeq.cli.parser import Arguments, Subparsers, add_json, count, name, positive
from wakeq.cli.progress import Progress
from wakeq.cli.screen import agreed, print_json
from wakeq.cli.session import Session, warn
from wakeq.errors import UnavailableError, UsageError, WakeqError

_EXAMPLES = """\
  wakeq dead list orders                          which messages failed for good, and why
  wakeq dead show orders 1700000000000-0          everything of one of them
  wakeq dead retry orders --all --error Timeout   deliver those again that failed so
  wakeq dead purge orders --all --before 30d      delete the old ones
"""
_LIST_EXAMPLES = """\
  wakeq dead list orders
  wakeq dead list orders --group billing --since 2h --error Timeout
  wakeq dead list orders --json --limit 0 | jq -r .id

ID is that of the dead letter, MESSAGE that of the message when it was published; the other
commands take either. The time of --since and --before is a span, which is that long ago, or a
time such as '2026-11-22 18:00'.
"""
_SHOW_EXAMPLES = """\
  wakeq dead show orders 1700000000000-0
  wakeq dead show orders 1700000000000-0 --json | jq -r .traceback
"""
_RETRY_EXAMPLES = """\
  wakeq dead retry orders 1700000000000-0
  wakeq dead retry orders --all
  wakeq dead retry orders --all --error Timeout --since '2026-11-22 18:00' --rate 50 --yes

They go back to the group in which they failed, and to it alone; the next attempt is their first.
"""
_PURGE_EXAMPLES = """\
  wakeq dead purge orders 1700000000000-0
  wakeq dead purge orders --all --before 30d --yes

What is deleted is gone for good.
"""
_LIST_LIMIT = 100
_DECLINED = 130  # as if it had been answered with Ctrl+C


def add(subparsers: Subparsers) -> None:
    """Add the subcommands."""
    family = subparsers.add_family(
        "dead", "Look at dead letters, deliver them again or delete them.", _EXAMPLES
    )
    lister = family.add("list", "List dead letters, the oldest first.", _LIST_EXAMPLES, run_list)
    shower = family.add("show", "Show everything of dead letters.", _SHOW_EXAMPLES, run_show)
    retrier = family.add(
        "retry", "Deliver dead letters again to their group.", _RETRY_EXAMPLES, run_retry
    )
    purger = family.add("purge", "Delete dead letters.", _PURGE_EXAMPLES, run_purge)
    for parser, ids in ((lister, ""), (shower, "+"), (retrier, "*"), (purger, "*")):
        parser.add_argument("stream", metavar="STREAM", type=name)
        if ids:
            parser.add_argument("ids", metavar="ID", type=_entry_id, nargs=ids,
                                help="of the dead letter, or of its message")  # fmt: skip
        parser.add_argument("--group", metavar="G", type=name,
                            help="whose they are (default: the one that has some)")  # fmt: skip
    for parser in (retrier, purger):
        parser.add_argument("--all", action="store_true",
                            help="all of the group, or all that the following leave")  # fmt: skip
    for parser in (lister, retrier, purger):
        parser.add_argument("--since", metavar="T", type=times.past,
                            help="those that failed since then")  # fmt: skip
        parser.add_argument("--before", metavar="T", type=times.past,
                            help="those that failed before then")  # fmt: skip
        parser.add_argument("--error", metavar="TEXT", type=name,
                            help="those whose error has this text in it")  # fmt: skip
    lister.add_argument("--limit", metavar="N", type=count, default=_LIST_LIMIT,
                        help="at most so many, 0 for all (default: 100)")  # fmt: skip
    for parser in (retrier, purger):
        parser.add_argument("--limit", metavar="N", type=positive, help="at most so many")
    retrier.add_argument("--rate", metavar="N", type=positive, help="so many a second")
    for parser in (retrier, purger):
        parser.add_argument("--yes", action="store_true", help="do not ask")
    for parser in (lister, shower, retrier, purger):
        add_json(parser)


def _entry_id(text: str) -> str:
    parts = text.split("-")
    if not re.fullmatch(r"\d{1,20}-\d{1,20}", text, re.ASCII) or max(map(int, parts)) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"must be an id such as 1700000000000-0, not {text!r}")
    return "-".join(str(int(part)) for part in parts)


def run_list(session: Session, arguments: Arguments) -> int:
    """Print a line for each letter."""
    from wakeq.cli import letter_printer

    with session.explaining():
        letters = _letters(session, arguments)
        if letters is None:
            return 0
        limit = arguments.limit or sys.maxsize
        found = chain.from_iterable(letters.batches(_choice(session, arguments)))
        shown = 0
        printer = letter_printer.Printer(letters, arguments.json)
        while some := list(islice(found, min(limit - shown, _LIST_LIMIT))):
            printer.take(some)
            shown += len(some)
        if next(found, None) is not None:
            warn(f"{letters.stream}: there are more; --limit 0 shows all")
    if not shown:
        warn(f"{letters.stream}: no dead letter of group {letters.group} is like that")
    return 0


def run_show(session: Session, arguments: Arguments) -> int:
    """Print everything of some letters."""
    from wakeq.cli import letter_printer

    with session.explaining():
        letters = _letters(session, arguments)
        if letters is not None:
            for letter in letters.find(arguments.ids):
                letter_printer.show(letters, letter, arguments.json)
    return 0


def run_retry(session: Session, arguments: Arguments) -> int:
    """Move letters back for delivery."""
    return _Work(session, arguments, "retried").run(ask=arguments.all)


def run_purge(session: Session, arguments: Arguments) -> int:
    """Delete letters."""
    return _Work(session, arguments, "deleted").run(ask=True)


def _letters(session: Session, arguments: Arguments) -> Letters | None:
    """Return the letters of the group that is meant; None, after saying so: there are none.

    Raises:
        MissingError: there is no such stream, or a letter is asked for and there is none.
        UsageError: several groups have some.
    """
    from wakeq import keys
    from wakeq.cli import streams
    from wakeq.errors import MissingError

    stream = arguments.stream
    names = [arguments.group] if arguments.group else streams.groups(session, stream)
    dead = [keys.dead(stream, group) for group in names]
    lengths = session.call_many(dead[0], [("XLEN", key) for key in dead]) if dead else []
    having = {group: length for group, length in zip(names, lengths, strict=True) if length}
    if len(having) > 1:
        known = ", ".join(f"{group} ({length:,})" for group, length in having.items())
        raise UsageError(
            f"dead {arguments.action}: {stream} has dead letters of several groups;"
            f" say --group: {known}"
        )
    if having:
        return Letters(session, stream, next(iter(having)))
    streams.require(session, stream)
    nothing = (
        f"{stream}: {f'group {arguments.group} has ' if arguments.group else ''}no dead letters"
    )
    if getattr(arguments, "ids", None):
        raise MissingError(nothing)
    warn(nothing)
    return None


def _choice(session: Session, arguments: Arguments) -> Choice:
    seconds, microseconds = session.call(arguments.stream, "TIME")
    now_s = seconds + microseconds / 1e6
    since, before = (
        None if moment is None else int(moment.at(now_s) * 1000)
        for moment in (arguments.since, arguments.before)
    )
    return Choice(since, before, arguments.error or "")


class _Work:
    """Retries or deletes letters, and tells how far it came."""

    def __init__(self, session: Session, arguments: Arguments, done_word: str) -> None:
        self._session = session
        self._arguments = arguments
        self._word = done_word
        self._done = 0
        self._gone = 0
        self._refused: list[str] = []

    def run(self, ask: bool) -> int:
        """Find out what is meant, ask, and do it.

        Raises:
            UsageError: it is not clear what is meant, or cannot be asked.
            WakeqError: not all of it could be done.
        """
        arguments = self._arguments
        chosen = (arguments.since, arguments.before, arguments.error, arguments.limit)
        if bool(arguments.ids) == arguments.all:
            raise UsageError(f"dead {arguments.action}: give IDs, or --all")
        if arguments.ids and chosen != (None,) * len(chosen):
            raise UsageError(
                f"dead {arguments.action}: --since, --before, --error and --limit go with --all"
            )
        with self._session.explaining():
            letters = _letters(self._session, arguments)
            if letters is None:
                return 0
            total, batches = self._meant(letters)
            if not total:
                warn(f"{letters.stream}: no dead letter of group {letters.group} is like that")
                return 0
            if ask and not arguments.yes and not self._asked(letters, total):
                return _DECLINED
            return self._go(letters, total, batches)

    def _meant(self, letters: Letters) -> tuple[int, Iterator[list[str]]]:
        """Return how many letters are meant, and their ids, some at a time."""
        if self._arguments.ids:
            ids = [letter.id for letter in letters.find(self._arguments.ids)]
            return len(ids), (ids[i : i + 100] for i in range(0, len(ids), 100))
        choice = _choice(self._session, self._arguments)
        # What fails again meanwhile is not taken a second time.
        last = letters.last_id()
        total = letters.count(choice)
        if self._arguments.limit:
            total = min(total, self._arguments.limit)
        return total, _ids(letters.batches(choice, last), total)

    def _asked(self, letters: Letters, total: int) -> bool:
        what = (
            f"{total:,} dead letter{'s' * (total != 1)} of {letters.stream}, group {letters.group}"
        )
        verb = {"retried": "Retry", "deleted": "Delete"}[self._word]
        return agreed(f"dead {self._arguments.action}", f"{verb} {what}")

    def _go(self, letters: Letters, total: int, batches: Iterator[list[str]]) -> int:
        rate = getattr(self._arguments, "rate", None)
        pace = Pace(1 / rate if rate else 0.0, 1)
        step = {"retried": self._retry, "deleted": self._delete}[self._word]
        progress = Progress(total)
        interrupted = False
        try:
            for batch in batches:
                ids = batch
                while ids:
                    due = pace.wait(len(ids))
                    with held_back():
                        self._step(step, letters, ids[:due])
                        progress.advance(due)
                    ids = ids[due:]
        except KeyboardInterrupt:
            interrupted = True
        finally:
            # Also after a lost connection: how far it came.
            progress.close()
            self._summarise(letters, progress.elapsed_seconds, interrupted)
        if self._refused:
            raise WakeqError(f"{letters.stream}: {len(self._refused)} dead letters stay, "
                             f"the first because {self._refused[0]}")  # fmt: skip
        return 130 if interrupted else 0

    def _step(
        self, step: Callable[[Letters, list[str]], None], letters: Letters, ids: list[str]
    ) -> None:
        try:
            step(letters, ids)
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}; of {len(ids)} dead letters it is not known whether they were"
                f" {self._word}"
            ) from None

    def _retry(self, letters: Letters, ids: list[str]) -> None:
        results = letters.redrive(ids)
        refused = [result.removeprefix("ERR ") for result in results if result.startswith("ERR ")]
        gone = results.count("")
        self._refused += refused
        self._gone += gone
        self._done += len(results) - len(refused) - gone

    def _delete(self, letters: Letters, ids: list[str]) -> None:
        deleted = letters.delete(ids)
        self._done += deleted
        self._gone += len(ids) - deleted

    def _summarise(self, letters: Letters, elapsed_s: float, interrupted: bool) -> None:
        if self._arguments.json:
            summary: dict[str, Any] = {
                "stream": letters.stream, "group": letters.group, self._word: self._done,
                "gone": self._gone, "seconds": round(elapsed_s, 3), "interrupted": interrupted,
            }  # fmt: skip
            print_json(summary)
            return
        text = f"{self._word} {self._done:,} dead letter{'s' * (self._done != 1)}"
        text += f" of {letters.stream}, group {letters.group}"
        if self._gone:
            text += f"; {self._gone:,} were gone already"
        print(f"{text}{', interrupted' if interrupted else ''}", flush=True)


def _ids(batches: Iterator[list[Letter]], most: int) -> Iterator[list[str]]:
    """Yield the ids of at most so many letters, in their batches."""
    for batch in batches:
        ids = [letter.id for letter in batch[:most]]
        most -= len(ids)
        yield ids
        if not most:
            return
