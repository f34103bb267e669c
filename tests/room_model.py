"""What must become of a room, said in the plainest way, without a server.

Each method does what one step must do, and returns what it must answer. `State` is what Redis must
hold afterwards, and is compared with what is read from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Member:
    """A client: who delivers to it, how, and what it is after."""

    worker: str
    mode: str
    since: int
    joined: int


@dataclass
class State:
    """All that Redis holds of a room. A message is its id; the line is sorted."""

    line: list[tuple[int, str]] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    outstanding: str = ""
    waiting: set[str] = field(default_factory=set)
    round: int = 0
    logged: int = 0
    log: dict[int, tuple[int, str]] = field(default_factory=dict)
    ejected: set[str] = field(default_factory=set)
    reports: list[str] = field(default_factory=list)
    drops: bool = False
    counters: Counter[str] = field(default_factory=Counter)

    def having(self, mode: str) -> set[str]:
        """Return the clients of a mode."""
        return {name for name, of in self.members.items() if of.mode == mode}


class Model:
    """Changes a state, and keeps account.

    Attributes:
        overdue: clients whose time is over; the next step finds them.
        begun: the messages of the rounds, in order.
        positions: how far each worker was done with the log, as far as Redis knows.
    """

    def __init__(self) -> None:
        self.state = State()
        self.overdue: set[str] = set()
        self.begun: list[str] = []
        self.positions: dict[str, int] = {}
        self._priority = 0
        self._is_acknowledged = False

    # -- what every step does ----------------------------------------------------------------

    def reap(self) -> None:
        """Remove who is overdue, in no matter which order."""
        for client in sorted(self.overdue & self.state.members.keys()):
            self._remove(client)
            self.state.ejected.add(client)
            self.state.reports.append(client)
            self.state.counters["timeouts"] += 1
        self.overdue.clear()

    def settle(self) -> None:
        """End the round that waits for nobody, and begin the next one if somebody is there."""
        state = self.state
        if state.outstanding and not state.waiting:
            if not self._is_acknowledged:
                state.line = sorted([*state.line, (self._priority, state.outstanding)])
            state.outstanding = ""
        if not state.outstanding and state.having("sync"):
            if state.line:
                self._begin()
                state.waiting = state.having("sync")
        elif not state.outstanding and state.having("async"):
            while state.line:
                self._begin()
                state.outstanding = ""
        elif not state.outstanding and state.drops:
            state.counters["dropped"] += len(state.line)
            state.line.clear()
        if not state.members:
            state.log.clear()

    def _begin(self) -> None:
        state = self.state
        self._priority, state.outstanding = state.line.pop(0)
        self._is_acknowledged = False
        state.round += 1
        self.begun.append(state.outstanding)
        if len(state.having("sync")) < len(state.members):
            self._note(state.outstanding, state.round)

    def _note(self, message: str, rounds: int) -> None:
        self.state.logged += 1
        self.state.log[self.state.logged] = rounds, message

    def _remove(self, client: str) -> None:
        worker = self.state.members.pop(client).worker
        self.state.waiting.discard(client)
        self._recount(worker)

    def _recount(self, worker: str) -> None:
        if not any(of.worker == worker for of in self.state.members.values()):
            self.positions.pop(worker, None)

    # -- the steps ---------------------------------------------------------------------------

    def join(self, client: str, worker: str, mode: str, drop: bool) -> tuple[int, int, int]:
        """Return whether it was there, and what it is after."""
        state, resumed, place = self.state, 0, 0
        since, joined = state.logged, state.round
        old = state.members.get(client)
        if old is not None and old.mode == mode:
            resumed, since, joined = 1, old.since, old.joined
            place = max(since, self.positions[old.worker])
            if old.worker != worker:
                since = place
                self.positions[worker] = min(self.positions.get(worker, since), since)
        elif old is not None:
            self._remove(client)
        self.positions.setdefault(worker, state.logged)
        state.members[client] = Member(worker, mode, since, joined)
        if resumed and old is not None:
            self._recount(old.worker)
        state.ejected.discard(client)
        if mode != "observer":
            state.drops = drop
        return resumed, place if resumed else since, joined

    def leave(self, caller: str, client: str) -> list[tuple[str, str]]:
        """Return who could not, and why."""
        why = self._why_not(caller, client)
        if not why:
            self._remove(client)
        return [(client, why)] if why else []

    def send(self, message: str, priority: int) -> None:
        """Take the id that Redis gave a message."""
        self.state.line = sorted([*self.state.line, (priority, message)])
        self.state.counters["sent"] += 1

    def send_out_of_band(self, message: str) -> int:
        """Return how many are there."""
        self.state.counters["oob"] += 1
        if self.state.members:
            self._note(message, 0)
        return len(self.state.members)

    def acknowledge(
        self, caller: str, message: str, clients: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Return whose does not count, and why."""
        state, failed, taken = self.state, [], set()
        for client in clients:
            member = state.members.get(client)
            if why := self._why_not(caller, client):
                failed.append((client, why))
            elif member is None or member.mode != "sync":
                failed.append((client, "not-waited-for"))
            elif message != state.outstanding:
                failed.append((client, "not-outstanding"))
            elif client not in state.waiting or client in taken:
                late = member.joined >= state.round
                failed.append((client, "not-waited-for" if late else "doubled"))
            else:
                taken.add(client)
        state.waiting -= taken
        self._is_acknowledged = self._is_acknowledged or bool(taken)
        state.counters["acknowledged"] += len(taken)
        return failed

    def ping(self, caller: str, client: str) -> list[tuple[str, str]]:
        """Return whose does not count, and why."""
        why = self._why_not(caller, client)
        return [(client, why)] if why else []

    def read(self, worker: str, after: int | None, done: int | None) -> list[tuple[int, int, str]]:
        """Return what is new in the log."""
        if done is not None and done > self.positions[worker]:
            self.positions[worker] = done
            least = min(self.positions.values())
            for number in [number for number in self.state.log if number <= least]:
                del self.state.log[number]
        start = self.positions[worker] if after is None else after
        return [(n, *of) for n, of in self.state.log.items() if n > start]

    def _why_not(self, caller: str, client: str) -> str:
        member = self.state.members.get(client)
        if member is None:
            return "timed-out" if client in self.state.ejected else "not-subscribed"
        return "taken-over" if caller not in ("", member.worker) else ""
