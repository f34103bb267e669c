"""What must become of the messages of one stream, said in the plainest way, without a server.

`State` is all that Redis holds of them, and is compared with what is read from it. `Model` changes
a state as each step must, and remembers what each group is owed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

Id = tuple[int, int]
Pairs = tuple[tuple[bytes, bytes], ...]

STREAM, RETRY = 0, 1
FIRST: Id = (0, 0)


def parse(raw: bytes) -> Id:
    """Return an id that can be compared."""
    ms, _, sequence = raw.partition(b"-")
    return int(ms), int(sequence)


def text(entry_id: Id) -> str:
    """Return an id as Redis says it."""
    return f"{entry_id[0]}-{entry_id[1]}"


@dataclass(frozen=True)
class Copy:
    """A message in one of its places: all that it must bring along, and nothing else."""

    first_id: str
    pairs: Pairs
    key: bytes = b""
    attempt: int = 1
    first_failed_at: int = 0  # ms; 0: it has not failed


# What a consumer that goes leaves behind for others: no message, but an entry.
BELL = Copy("", ())


@dataclass
class Reading:
    """How far a group is in one of its streams."""

    delivered: Id = FIRST
    pending: dict[Id, tuple[str, int]] = field(default_factory=dict)  # who has it; deliveries


@dataclass
class Group:
    """What there is of one group."""

    readings: tuple[Reading, Reading] = field(default_factory=lambda: (Reading(), Reading()))
    retry: dict[Id, Copy] = field(default_factory=dict)
    dead: dict[Id, Copy] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    position: str = ""


@dataclass(frozen=True)
class Delayed:
    """A message that waits: until when (ms), and for whom; for '': for all groups."""

    due: int
    group: str
    copy: Copy


@dataclass
class State:
    """All messages of a stream, wherever they are; `others` are groups that are not wakeq's."""

    stream: dict[Id, Copy] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    others: dict[str, Reading] = field(default_factory=dict)
    delayed: dict[str, Delayed] = field(default_factory=dict)
    repairs: dict[str, Delayed] = field(default_factory=dict)

    def entries(self, group: str, source: int) -> dict[Id, Copy]:
        """Return what there is in one of the streams that a group reads."""
        return self.groups[group].retry if source == RETRY else self.stream

    def unread(self, group: str, source: int) -> list[Id]:
        """Return what a group has not read of it, in order."""
        delivered = self.groups[group].readings[source].delivered
        return sorted(each for each in self.entries(group, source) if each > delivered)


class Model:
    """Changes a state, and keeps account.

    Methods return what the script or command that they stand for must answer; those that make an
    entry are told the id that Redis chose.

    Attributes:
        state: what Redis must hold.
        last: the highest id that there ever was in the stream.
        owed: what each group must have handled in the end, by first id.
        handled: what each group has handled.
        excused: what somebody took away from a group.
        moved: groups that somebody set back or forth, which may have a message twice.
        first_ids: of each entry that there ever was, by group ('' for the stream).
    """

    def __init__(self) -> None:
        self.state = State()
        self.last = FIRST
        self.owed: dict[str, set[str]] = {}
        self.handled: dict[str, set[str]] = {}
        self.excused: dict[str, set[str]] = {}
        self.moved: set[str] = set()
        self.first_ids: dict[tuple[str, Id], str] = {}

    # -- groups and entries ------------------------------------------------------------------

    def make_group(self, group: str, start: str) -> None:
        """Make a group at '0' or '$'."""
        made = self.state.groups[group] = Group()
        made.readings[STREAM].delivered = self.last if start == "$" else FIRST
        unread = self.state.unread(group, STREAM)
        waiting = {each.copy.first_id for each in self.state.delayed.values() if not each.group}
        self.owed[group] = waiting | {self.state.stream[each].first_id for each in unread}
        self.handled[group] = set()
        self.excused[group] = set()

    def move(self, group: str, start: str) -> None:
        """Set a group back to '0', or forth to '$'."""
        if start == "$":
            unread = self.state.unread(group, STREAM)
            self.excused[group] |= {self.state.stream[each].first_id for each in unread}
        self.state.groups[group].readings[STREAM].delivered = self.last if start == "$" else FIRST
        self.moved.add(group)

    def add(self, entry_id: Id, copy: Copy, group: str = "") -> None:
        """Have an entry in the stream, or in the retry stream of a group."""
        if group:
            self.state.groups[group].retry[entry_id] = copy
        else:
            assert entry_id > self.last
            self.last = entry_id
            self.state.stream[entry_id] = copy
            for owed in self.owed.values():
                owed.add(copy.first_id)
        self.first_ids[group, entry_id] = copy.first_id

    def first_id(self, group: str, source: int, entry_id: Id) -> str:
        """Return the first id of an entry, also if it is no more."""
        return self.first_ids[group if source == RETRY else "", entry_id]

    def delete(self, ids: Iterable[Id], group: str = "") -> None:
        """Delete entries as others do: nobody need handle them any more."""
        source = RETRY if group else STREAM
        for name in [group] if group else self.state.groups:
            reading = self.state.groups[name].readings[source]
            for entry_id in ids:
                if entry_id > reading.delivered or entry_id in reading.pending:
                    self.excused[name].add(self.first_id(group, source, entry_id))
        entries = self.state.entries(group, source) if group else self.state.stream
        for entry_id in ids:
            del entries[entry_id]

    # -- reading -----------------------------------------------------------------------------

    def read(self, group: str, consumer: str, source: int, count: int) -> list[Id]:
        """Read what nobody had yet."""
        unread = self.state.unread(group, source)[:count]
        _deliver(self.state.groups[group].readings[source], consumer, unread)
        return unread

    def read_again(self, group: str, consumer: str, source: int) -> list[Id]:
        """Read what is pending for a consumer; what was deleted is not counted as delivered."""
        pending = self.state.groups[group].readings[source].pending
        own = sorted(each for each, (name, _) in pending.items() if name == consumer)
        for entry_id in own:
            if entry_id in self.state.entries(group, source):
                pending[entry_id] = (consumer, pending[entry_id][1] + 1)
        return own

    def take_over(
        self, group: str, consumer: str, source: int, gone: list[str], count: int
    ) -> list[Id]:
        """Claim what is pending for consumers that are gone, one after the other."""
        pending = self.state.groups[group].readings[source].pending
        claimed = []
        for name in gone:
            of_one = sorted(each for each, (who, _) in pending.items() if who == name)[:count]
            count -= len(of_one)
            for entry_id in of_one:
                deliveries = pending[entry_id][1]
                if entry_id in self.state.entries(group, source):
                    pending[entry_id] = (consumer, deliveries + 1)
                    claimed.append(entry_id)
                else:
                    del pending[entry_id]
        return claimed

    def keep(
        self, group: str, consumer: str, source: int, ids: list[Id], deliveries: int | None = None
    ) -> list[Id]:
        """Say how long messages have been idle, and how often delivered if that is not None.

        Returns those that are another consumer's.
        """
        pending = self.state.groups[group].readings[source].pending
        gone = []
        for entry_id in ids:
            if pending.get(entry_id, ("", 0))[0] != consumer:
                gone.append(entry_id)
            elif entry_id not in self.state.entries(group, source):
                del pending[entry_id]
            elif deliveries is not None:
                pending[entry_id] = (consumer, deliveries)
        return gone

    # -- what becomes of a message -------------------------------------------------------------

    def acknowledge(self, group: str, source: int, ids: Iterable[Id], counted: bool = True) -> int:
        """Be done with entries: returns how many were pending."""
        of = self.state.groups[group]
        acknowledged = [each for each in ids if of.readings[source].pending.pop(each, None)]
        if source == RETRY:
            for entry_id in ids:
                of.retry.pop(entry_id, None)
        if counted:
            self.handled[group] |= {self.first_id(group, source, each) for each in acknowledged}
            of.counters["handled"] += len(acknowledged)
        return len(acknowledged)

    def has(self, group: str, consumer: str, source: int, entry_id: Id) -> bool:
        """Tell whether an entry is pending for a consumer; '': for any."""
        pending = self.state.groups[group].readings[source].pending
        return entry_id in pending and consumer in ("", pending[entry_id][0])

    def delay(self, group: str, source: int, entry_id: Id, due: int, copy: Copy) -> None:
        """Have a message that failed wait for another try."""
        self._failed(group, source, entry_id)
        member = f"{copy.first_id}@{group}"
        number = 1
        while member in self.state.delayed or member in self.state.repairs:
            number += 1
            member = f"{copy.first_id}@{group}@{number}"
        self.state.delayed[member] = Delayed(due, group, copy)

    def bury(self, group: str, source: int, entry_id: Id, letter_id: Id, copy: Copy) -> None:
        """Have a message that failed among the dead letters."""
        self._failed(group, source, entry_id)
        self.state.groups[group].dead[letter_id] = copy
        self.state.groups[group].counters["dead"] += 1

    def _failed(self, group: str, source: int, entry_id: Id) -> None:
        self.acknowledge(group, source, [entry_id], counted=False)
        self.state.groups[group].counters["failed"] += 1

    def redrive(self, group: str, letter_id: Id, entry_id: Id) -> None:
        """Have a dead letter delivered again, as if it had never failed."""
        copy = self.state.groups[group].dead.pop(letter_id)
        self.add(entry_id, replace(copy, attempt=1, first_failed_at=0), group)

    # -- delayed messages --------------------------------------------------------------------

    def schedule(self, member: str, due: int, copy: Copy) -> None:
        """Have a message wait until it goes to the stream."""
        self.state.delayed[member] = Delayed(due, "", copy)
        for owed in self.owed.values():
            owed.add(copy.first_id)

    def due(self, now: int, batch: int, repair: bool) -> list[str]:
        """Return what must be moved now, in order."""
        waits = [self.state.delayed] if repair else [self.state.repairs, self.state.delayed]
        return [member for some in waits for member in _in_order(some, now)][:batch]

    def deliver(self, member: str, entry_id: Id) -> None:
        """Move a message that is due to where it is read."""
        delayed = self.state.delayed.pop(member, None) or self.state.repairs.pop(member)
        self.add(entry_id, delayed.copy, delayed.group)

    def await_repair(self, member: str) -> None:
        """Have a message that is due wait for its repair."""
        self.state.repairs[member] = self.state.delayed.pop(member)

    def hand_out(self, now: int, lease: int) -> str:
        """Return which message is to be repaired now, if there is one, and keep it from others."""
        member = next(_in_order(self.state.repairs, now), "")
        if member:
            waiting = self.state.repairs[member]
            self.state.repairs[member] = replace(waiting, due=now + lease)
        return member

    def cancel(self, member: str) -> None:
        """Drop a delayed message."""
        gone = self.state.delayed.pop(member, None) or self.state.repairs.pop(member)
        for group in [gone.group] if gone.group else self.state.groups:
            self.excused[group].add(gone.copy.first_id)

    # -- trimming and what is promised ---------------------------------------------------------

    def trim(self, keep: int) -> int:
        """Remove what every group has handled: returns how much."""
        readings = [group.readings[STREAM] for group in self.state.groups.values()]
        readings += self.state.others.values()
        entries = sorted(self.state.stream)
        removed = 0
        while readings and removed < len(entries) - keep:
            entry_id = entries[removed]
            if any(entry_id > of.delivered or entry_id in of.pending for of in readings):
                break
            del self.state.stream[entry_id]
            removed += 1
        return removed

    def missing(self, group: str, places: Iterable[str]) -> set[str]:
        """Return what a group was owed and has not handled, and that is nowhere else."""
        return self.owed[group] - self.handled[group] - self.excused[group] - set(places)

    def places(self, state: State, group: str) -> list[str]:
        """Return the first id of each place where there is something for a group to handle."""
        of = state.groups[group]
        found = [each.copy.first_id for each in state.delayed.values() if each.group in ("", group)]
        found += [each.copy.first_id for each in state.repairs.values() if each.group == group]
        found += [letter.first_id for letter in of.dead.values()]
        for source in (STREAM, RETRY):
            ids = [*state.unread(group, source), *of.readings[source].pending]
            found += [self.first_id(group, source, each) for each in ids]
        return [first_id for first_id in found if first_id != BELL.first_id]


def changed(pairs: Pairs, changes: Mapping[bytes, bytes]) -> Pairs:
    """Return fields of which some were given another value."""
    return (*(pair for pair in pairs if pair[0] not in changes), *changes.items())


def _deliver(reading: Reading, consumer: str, ids: list[Id]) -> None:
    for entry_id in ids:
        reading.delivered = entry_id
        reading.pending[entry_id] = (consumer, 1)


def _in_order(waiting: dict[str, Delayed], now: int) -> Iterator[str]:
    due = [(each.due, member) for member, each in waiting.items() if each.due <= now]
    return (member for _, member in sorted(due))
