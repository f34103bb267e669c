"""The life of messages, step by step in any order, beside a model of it (tests/message_model.py).

Each rule is one step of a consumer, of wakeq-delay, wakeq-trim or an operator, as they take it, by
the scripts of lua/; or a command of somebody else, or a crash. After each, Redis holds what the
model says, and each message is in one place for each group. In the end everything is handled.

Nobody sleeps: what is due is so at once, or in an hour, unless it is made due.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from message_model import (
    BELL,
    FIRST,
    RETRY,
    STREAM,
    Copy,
    Delayed,
    Group,
    Id,
    Model,
    Pairs,
    Reading,
    State,
    changed,
    parse,
    text,
)
from redis_servers import RedisServer
from wakeq import keys
from wakeq.delay.failed import FailedMessage
from wakeq.message import (
    ATTEMPT,
    CONSUMER,
    ERROR,
    FAILED_AT,
    FIRST_FAILED_AT,
    FIRST_ID,
    HANDED_BACK,
    HOST,
    KEY,
    OWN_PREFIX,
    REPAIR_ERROR,
    Message,
    carry,
    pack_failed,
)
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

# More of them than the tests of every day take, and others each time.
EXAMPLES = int(os.environ.get("WAKEQ_TEST_EXAMPLES", "0"))

S, T = "orders", "{orders}:invoices"
DELAYED, DATA, REPAIRS, PAUSED = (
    *(keys.delayed(S), keys.delayed_data(S)),
    *(keys.repairs(S), keys.paused(S)),
)
# Of the second, an id among the delayed ones looks like one of the first that is there twice.
GROUPS = ("g", "g@2", "späte:r")
CONSUMERS = ("host/orders", "host/orders:2", "other/orders")
LAST = "last"
HOUR_MS = 3_600_000
HANDED_BACK_MS = 2**31 - 1
NEVER_FORGET, FORGET = 10**12, -1
UNPACKED = """
local all, unpacked = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  unpacked[#unpacked + 1] = {all[i], cmsgpack.unpack(all[i + 1])}
end
return unpacked"""

Seat = tuple[str, str]

VALUE = st.binary(max_size=6)
NAME = st.sampled_from([b"body", b"", b"\0\xff\r\n", b"wakeq", "größe".encode()]) | st.binary(
    max_size=3
)
FIELDS = st.lists(st.tuples(NAME, VALUE), min_size=1, max_size=4).map(tuple)
CHANGES = st.dictionaries(NAME, VALUE, max_size=2)
# More than a script passes on one by one: they are folded when the message fails.
BODY: Pairs = ((b"body", b"x"),)
MANY: Pairs = tuple((b"f%d" % number, b"") for number in range(3600))
PICKS = st.sets(st.integers(0, 5), min_size=1, max_size=4)
SEAT = st.tuples(st.integers(0, 2), st.integers(0, 2))
DELAY = st.sampled_from([0, 0, HOUR_MS, -1])
AGAIN = st.booleans()


def copy_of(message: Message) -> Copy:
    """Return what a message brings along."""
    pairs = tuple(pair for pair in message.pairs() if not pair[0].startswith(OWN_PREFIX))
    first_failed_at = int(message.own(FIRST_FAILED_AT) or 0)
    return Copy(message.id, pairs, message.key, message.attempt, first_failed_at)


def read_copy(source: int, raw_id: bytes, items: list[bytes]) -> Copy:
    """Return what an entry brings along."""
    if source == RETRY and items[0] == HANDED_BACK:
        return BELL
    return copy_of(Message(S, source, raw_id, items))


def read_copies(source: int, entries: Iterable[Any]) -> dict[Id, Copy]:
    """Return what all entries of a stream bring along."""
    return {parse(raw_id): read_copy(source, raw_id, items) for raw_id, items in entries}


def picked(all_of_them: Iterable[Any], picks: set[int]) -> list[Any]:
    """Return some of them, at least one if there is any."""
    known = list(all_of_them)
    chosen = {pick % len(known) for pick in picks} if known else set()
    return [each for number, each in enumerate(known) if number in chosen]


def read_state(connection: Connection, groups: Iterable[str], others: Iterable[str]) -> State:
    """Return all that Redis holds of the messages."""
    groups, others = list(groups), list(others)
    commands: list[Any] = [("XRANGE", S, "-", "+"), ("XINFO", "GROUPS", S)]
    commands += [("ZRANGE", each, 0, -1, "WITHSCORES") for each in (DELAYED, REPAIRS)]
    commands += [("EVAL", UNPACKED, 1, DATA)]
    commands += [("XPENDING", S, group, "-", "+", 1000) for group in groups + others]
    for group in groups:
        retry = keys.retry(S, group)
        commands += [("XRANGE", retry, "-", "+"), ("XINFO", "GROUPS", retry)]
        commands += [("XPENDING", retry, group, "-", "+", 1000)]
        commands += [("XRANGE", keys.dead(S, group), "-", "+"), ("HGETALL", keys.stats(S, group))]
    replies = iter(connection.call_many(commands))
    entries, found, delayed, repairs, stored = (next(replies) for _ in range(5))
    readings = {group: _reading(found, group, next(replies)) for group in groups + others}
    state = State(stream=read_copies(STREAM, entries))
    state.others = {group: readings[group] for group in others}
    for group in groups:
        entries, found, pending, dead, counters = (next(replies) for _ in range(5))
        of = state.groups[group] = Group((readings[group], _reading(found, group, pending)))
        of.retry, of.dead = read_copies(RETRY, entries), read_copies(RETRY, dead)
        figures = dict(zip(map(bytes.decode, counters[::2]), counters[1::2], strict=True))
        of.position = figures.pop("position", b"").decode()
        of.counters = Counter({name: int(value) for name, value in figures.items()})
    packed = dict(stored)
    assert set(packed) == {*delayed[::2], *repairs[::2]}, "each is stored, and nothing else"
    for waiting, members in ((state.delayed, delayed), (state.repairs, repairs)):
        for member, due in zip(members[::2], members[1::2], strict=True):
            group, first_id, *items = packed[member]
            copy = read_copy(RETRY if group else STREAM, first_id, items)
            assert copy.first_id == first_id.decode()
            waiting[member.decode()] = Delayed(int(due), group.decode(), copy)
    return state


def _reading(groups: Any, name: str, pending: Any) -> Reading:
    found = [dict(zip(group[::2], group[1::2], strict=True)) for group in groups]
    (of,) = (group for group in found if group[b"name"] == name.encode())
    reading = Reading(parse(of[b"last-delivered-id"]))
    for raw_id, consumer, _, deliveries in pending:
        reading.pending[parse(raw_id)] = (consumer.decode(), deliveries)
    return reading


class Life(RuleBasedStateMachine):
    """The steps; a server and its model side by side."""

    connection: Connection
    scripts: dict[str, Script]
    drained = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.hands: dict[Seat, dict[tuple[int, Id], Message]] = {}
        self.alive: set[Seat] = set()
        # Who was away for so long that others may have claimed what it has in hand.
        self.unsure: set[Seat] = set()
        self.dedups: dict[str, str] = {}
        self.published: list[Pairs] = []
        self.owners: dict[str, tuple[str, bytes]] = {}  # of each group: consumer, token
        self.job: tuple[str, bytes, Delayed, list[bytes]] | None = None
        self.has_many = False
        self.ask("FLUSHALL")
        for group in GROUPS[:2]:
            self.make_group(group, "0")
        self.is_sound = True

    # -- how it is asked -----------------------------------------------------------------------

    def ask(self, *command: Any) -> Any:
        """Send one command."""
        self.is_sound = False  # until it was compared
        return self.connection.call(*command)

    def run(self, name: str, names: list[str], *arguments: Any, fenced: bool = False) -> Any:
        """Run a script."""
        self.is_sound = False
        script = self.scripts.setdefault(f"{name} {fenced}", Script(name, fenced))
        return script.call(self.connection, names, arguments)

    def twice(self, again: bool, name: str, names: list[str], *arguments: Any) -> tuple[Any, Any]:
        """Run a script, and again as if the reply was lost: the second time changes nothing."""
        reply = self.run(name, names, *arguments)
        if not again:
            return reply, None
        before = self.look()
        second = self.run(name, names, *arguments)
        assert self.look() == before
        return reply, second

    def look(self) -> State:
        """Return what Redis holds."""
        return read_state(self.connection, self.model.state.groups, self.model.state.others)

    def now_ms(self) -> int:
        """Return the time of Redis."""
        seconds, microseconds = self.connection.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    def new_entries(self, key: str, after: Id) -> list[tuple[Id, list[bytes]]]:
        """Return what was added to a stream since."""
        entries = self.connection.call("XRANGE", key, f"({text(after)}", "+")
        return [(parse(raw_id), items) for raw_id, items in entries]

    def seat(self, seat: tuple[int, int]) -> Seat:
        """Return the group and the consumer that are meant; it is awake."""
        groups = list(self.model.state.groups)
        chosen = groups[seat[0] % len(groups)], CONSUMERS[seat[1]]
        self.wake(chosen)
        return chosen

    def holder(self, seat: tuple[int, int]) -> Seat:
        """Return a consumer that has something in hand."""
        busy = [each for each in self.hands if self.hands[each]]
        if busy:
            return busy[(seat[0] * 3 + seat[1]) % len(busy)]
        chosen = self.seat(seat)
        for _ in range(2):
            self.take_new(chosen, 3)
            if self.hands[chosen]:
                break
            self.publish((BODY, None), (BODY, b"k"))
        return chosen

    def fail_one(self, seat: tuple[int, int], delay: int) -> None:
        """Have something fail, so that there is a message that has."""
        chosen = self.holder(seat)
        hand = self.hands[chosen].items()
        (source, entry_id), message = max(hand, key=lambda each: each[1].attempt)
        self.fail_some(chosen, source, [((entry_id, message), delay)], {}, False)

    def group_with(self, part: str, seat: tuple[int, int], delay: int) -> str:
        """Return a group that has dead letters or retries; see that there is one."""
        groups = self.model.state.groups
        if not any(getattr(of, part) for of in groups.values()):
            self.fail_one(seat, delay)
            self.move(1000, False)
        some = [group for group, of in groups.items() if getattr(of, part)] or list(groups)
        return some[seat[0] % len(some)]

    def hand(self, seat: Seat, source: int, picks: set[int]) -> list[tuple[Id, Message]]:
        """Return some messages of one source that a consumer has in hand."""
        hand = self.hands[seat]
        return [(each, hand[of, each]) for of, each in picked(hand, picks) if of == source]

    # -- groups and consumers --------------------------------------------------------------------

    @rule(start=st.sampled_from(["0", "$"]))
    def make_late_group(self, start: str) -> None:
        """A group is made when there are messages, or was there."""
        self.make_group(GROUPS[2], start)

    def make_group(self, group: str, start: str) -> None:
        """Make a group as a consumer does when it starts."""
        is_new = group not in self.model.state.groups
        names = [S, keys.retry(S, group), keys.stats(S, group), PAUSED]
        made, paused = self.run("ensure_group", names, group, start, "")
        assert (made.decode(), paused) == (start if is_new else "", 0)
        if is_new:
            self.model.make_group(group, start)

    def wake(self, seat: Seat) -> None:
        """Start a consumer unless it runs: it has its name, and what it had before."""
        if seat not in self.alive:
            self.hands[seat] = {}
            self.alive.add(seat)
            process = f"process of {seat[1]}"
            assert self.run("join", [keys.alive(S, *seat)], process, "", 600_000) == b""
            self.recover(seat)

    def recover(self, seat: Seat) -> None:
        """Have a consumer read what is pending for it."""
        group, consumer = seat
        sources = (S, keys.retry(S, group))
        head = ("XREADGROUP", "GROUP", group, consumer, "COUNT", 1000, "STREAMS")
        reply = {key.decode(): entries for key, entries in self.ask(*head, *sources, "0", "0")}
        for source in (STREAM, RETRY):
            entries = reply.get(sources[source], [])
            expected = self.model.read_again(group, consumer, source)
            assert [parse(raw_id) for raw_id, _ in entries] == expected
            self.take(seat, source, entries)

    def take(self, seat: Seat, source: int, entries: Iterable[Any]) -> None:
        """Have messages in hand; be rid of what is none."""
        group, _ = seat
        for raw_id, items in entries:
            entry_id = parse(raw_id)
            known = self.model.state.entries(group, source).get(entry_id)
            assert (read_copy(source, raw_id, items) if items else None) == known
            if known is None or known == BELL:
                if source == RETRY:
                    self.ask("XDEL", keys.retry(S, group), raw_id)
                self.ask("XACK", (S, keys.retry(S, group))[source], group, raw_id)
                self.model.acknowledge(group, source, [entry_id], counted=False)
            else:
                message = Message(S, source, raw_id, items)
                self.hands[seat].setdefault((source, entry_id), message)

    @rule(seat=SEAT)
    def crash(self, seat: tuple[int, int]) -> None:
        """A process is killed, and its name has run out."""
        self.kill(self.holder(seat))

    def kill(self, seat: Seat) -> None:
        """Kill a process, if it lives."""
        if seat in self.alive:
            self.alive.remove(seat)
            self.unsure.discard(seat)
            self.hands[seat] = {}
            self.ask("DEL", keys.alive(S, *seat))

    @rule(seat=SEAT, picks=PICKS, then=st.sampled_from(["acknowledge", "fail", "keep", "publish"]))
    def stall(self, seat: tuple[int, int], picks: set[int], then: str) -> None:
        """A process pauses for so long that others take what it has; then it goes on."""
        group, consumer = chosen = self.holder(seat)
        self.unsure.add(chosen)
        other = CONSUMERS[(CONSUMERS.index(consumer) + 1) % len(CONSUMERS)]
        self.wake((group, other))
        self.alive.remove(chosen)
        self.ask("DEL", keys.alive(S, *chosen))
        self.claim_all((group, other), 2, NEVER_FORGET)
        self.run("join", [keys.alive(S, *chosen)], f"process of {consumer}", "", 600_000)
        self.alive.add(chosen)
        for source in (STREAM, RETRY):
            messages = self.hand(chosen, source, picks)
            ids = [each for each, _ in messages]
            if then == "acknowledge":
                self.finish(chosen, source, ids)
            elif then == "fail" and messages:
                self.fail_some(chosen, source, [(each, 0) for each in messages], {}, True)
            elif then == "publish":
                self.finish_joint(chosen, source, ids, [(T, BODY)], True)
            elif then == "keep":
                for entry_id in self.set_idle(chosen, source, ids, False):
                    del self.hands[chosen][source, entry_id]

    @rule(seat=SEAT)
    def stop(self, seat: tuple[int, int]) -> None:
        """A consumer leaves, and hands back what it has."""
        group, consumer = self.holder(seat)
        hand = self.hands[group, consumer]
        for source in (STREAM, RETRY):
            self.set_idle((group, consumer), source, [i for of, i in hand if of == source], True)
        retry = keys.retry(S, group)
        last = max(self.model.state.groups[group].retry, default=FIRST)
        names = [keys.alive(S, group, consumer), retry, keys.owner(S, group), keys.turn(S, group)]
        ring = consumer if hand else ""
        assert self.run("leave", names, f"process of {consumer}", ring, "") == 1
        for entry_id, items in self.new_entries(retry, last):
            assert items == [HANDED_BACK, consumer.encode()]
            assert ring
            self.model.add(entry_id, BELL, group)
            ring = ""
        assert not ring
        self.alive.remove((group, consumer))
        self.unsure.discard((group, consumer))
        hand.clear()

    @rule(seat=SEAT, picks=PICKS, source=st.sampled_from([STREAM, RETRY]))
    def keep(self, seat: tuple[int, int], picks: set[int], source: int) -> None:
        """A consumer is long at its messages."""
        chosen = self.holder(seat)
        ids = [entry_id for entry_id, _ in self.hand(chosen, source, picks)]
        for entry_id in self.set_idle(chosen, source, ids, False):
            del self.hands[chosen][source, entry_id]

    def set_idle(self, seat: Seat, source: int, ids: list[Id], back: bool) -> list[Id]:
        """Say how long messages have been idle; returns which are another's."""
        if not ids:
            return []
        group, consumer = seat
        key = (S, keys.retry(S, group))[source]
        idle_ms = HANDED_BACK_MS if back else 0
        # Only what was never begun is as if it had not been delivered.
        count = len(ids) % 3 if back and len(ids) % 2 else None
        arguments = [idle_ms, "" if count is None else count, *map(text, ids)]
        gone = self.run("set_idle", [key], group, consumer, *arguments)
        assert list(map(parse, gone)) == self.model.keep(group, consumer, source, ids, count)
        return list(map(parse, gone))

    # -- publishing ------------------------------------------------------------------------------

    @rule(messages=st.lists(st.tuples(FIELDS, st.none() | VALUE), min_size=1, max_size=3))
    def publish_some(self, messages: list[tuple[Pairs, bytes | None]]) -> None:
        """Somebody publishes, in whatever language."""
        self.publish(*messages)

    def publish(self, *messages: tuple[Pairs, bytes | None]) -> None:
        """Add messages to the stream, their ids next to each other."""
        commands: list[Any] = [("MULTI",)]
        for pairs, key in messages:
            own = () if key is None else ((KEY, key),)
            # Our fields may stand in front or behind.
            order = own + pairs if len(pairs) % 2 else pairs + own
            commands.append(("XADD", S, "*", *(part for pair in order for part in pair)))
        self.is_sound = False
        raw_ids = self.connection.call_many([*commands, ("EXEC",)])[-1]
        for raw_id, (pairs, key) in zip(raw_ids, messages, strict=True):
            self.model.add(parse(raw_id), Copy(raw_id.decode(), pairs, key or b""))

    @rule()
    def publish_many_fields(self) -> None:
        """Somebody publishes a message of many fields; one in a life is enough."""
        if not self.has_many:
            self.has_many = True
            self.publish((MANY, b"k"))

    @rule(pairs=FIELDS, dedup=st.sampled_from("kl"), again=AGAIN)
    def publish_once(self, pairs: Pairs, dedup: str, again: bool) -> None:
        """Somebody publishes with a deduplication key."""
        items = [part for pair in pairs for part in pair]
        names = [S, keys.dedup(S, dedup)]
        (raw_id, added), second = self.twice(again, "publish_once", names, HOUR_MS, *items)
        assert second in (None, [raw_id, 0])
        if self.took(dedup, raw_id, added):
            self.model.add(parse(raw_id), Copy(raw_id.decode(), pairs))

    def took(self, dedup: str, raw_id: bytes, added: int) -> bool:
        """Tell whether a message was taken: the first with its deduplication key is."""
        assert bool(added) == (dedup not in self.dedups)
        first_id = self.dedups.setdefault(dedup, raw_id.decode())
        assert first_id == raw_id.decode()
        return bool(added)

    @rule(
        pairs=FIELDS,
        delay=st.sampled_from([0, HOUR_MS]),
        dedup=st.none() | st.sampled_from("km"),
        again=AGAIN,
    )
    def schedule(self, pairs: Pairs, delay: int, dedup: str | None, again: bool) -> None:
        """Somebody publishes for later."""
        items = [part for pair in pairs for part in pair]
        names = [S, DELAYED, DATA, *([keys.dedup(S, dedup)] if dedup else [])]
        arguments = (keys.DOORBELL, S, "in", delay, HOUR_MS, *items)
        before = self.now_ms()
        reply, second = self.twice(again and bool(dedup), "schedule", names, *arguments)
        raw_id, added, due = reply
        assert second in (None, [raw_id, 0, 0])
        if dedup is None or self.took(dedup, raw_id, added):
            assert before + delay <= due <= self.now_ms() + delay
            self.model.schedule(raw_id.decode(), due, Copy(raw_id.decode(), pairs))

    # -- consuming -------------------------------------------------------------------------------

    @rule(seat=SEAT, count=st.integers(1, 4), is_lost=st.booleans())
    def read(self, seat: tuple[int, int], count: int, is_lost: bool) -> None:
        """A consumer reads; if the reply is lost, it asks for what is pending for it."""
        chosen = self.seat(seat)
        if is_lost:
            self.read_new(chosen, count)
            self.recover(chosen)
        else:
            self.take_new(chosen, count)

    def take_new(self, seat: Seat, count: int) -> bool:
        """Have a consumer read; tells whether there was anything."""
        read = self.read_new(seat, count)
        for source, entries in read:
            self.take(seat, source, entries)
        return bool(read)

    @rule(seat=SEAT)
    def catch_up(self, seat: tuple[int, int]) -> None:
        """All groups come to the end of their streams."""
        for group in self.model.state.groups:
            last = group, CONSUMERS[seat[1]]
            self.wake(last)
            while self.take_new(last, 1000):
                pass
        for each in self.alive:
            self.finish_all(each)

    def finish_all(self, seat: Seat) -> None:
        """Acknowledge all that a consumer has in hand."""
        for source in (STREAM, RETRY):
            self.finish(seat, source, [i for of, i in self.hands[seat] if of == source])

    def read_new(self, seat: Seat, count: int) -> list[tuple[int, Any]]:
        """Have a consumer read what nobody had yet, from both of its streams."""
        group, consumer = seat
        sources = (S, keys.retry(S, group))
        head = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS")
        reply = self.ask(*head, *sources, ">", ">") or []
        read = {sources.index(key.decode()): entries for key, entries in reply}
        for source in (STREAM, RETRY):
            expected = self.model.read(group, consumer, source, count)
            assert [parse(raw_id) for raw_id, _ in read.get(source, [])] == expected
        return list(read.items())

    @rule(
        seat=SEAT,
        die=st.sets(st.sampled_from(CONSUMERS)),
        count=st.integers(1, 3),
        forget=st.sampled_from([NEVER_FORGET, FORGET]),
    )
    def claim(self, seat: tuple[int, int], die: set[str], count: int, forget: int) -> None:
        """A consumer takes over what is pending for those that are gone, and nothing else."""
        group, consumer = self.seat(seat)
        self.publish((BODY, None), (BODY, None))
        for other in CONSUMERS:
            if other != consumer:
                self.wake((group, other))
                self.take_new((group, other), 1)
                if other in die:
                    self.kill((group, other))
        self.claim_all((group, consumer), count, forget)

    def claim_all(self, seat: Seat, count: int, forget: int) -> None:
        """Look at both streams for what to claim."""
        group, consumer = seat
        for source, key in ((STREAM, S), (RETRY, keys.retry(S, group))):
            others = [each for each in self.consumers(key, group) if each != consumer]
            gone = [each for each in others if (group, each) not in self.alive]
            names = [key, *(keys.alive(S, group, each) for each in others)]
            claimed = self.run("claim", names, group, consumer, 0, count, forget, *others)
            expected = self.model.take_over(group, consumer, source, gone, count)
            pending = self.model.state.groups[group].readings[source].pending
            assert [(parse(each[0]), each[2]) for each in claimed] == [
                (each, pending[each][1]) for each in expected
            ]
            left = set(self.consumers(key, group))
            assert {each for each in others if (group, each) in self.alive} <= left
            self.take(seat, source, ((raw_id, items) for raw_id, items, _ in claimed))

    @rule(seat=SEAT, picks=PICKS)
    def own(self, seat: tuple[int, int], picks: set[int]) -> None:
        """In strict order, a consumer becomes the owner, unless another one is and lives."""
        group, consumer = chosen = self.holder(seat)
        before, old_token = self.owners.get(group, ("", b""))
        dead = "" if (group, before) in self.alive else f"process of {before}"
        names = [keys.owner(S, group), keys.turn(S, group)]
        arguments = (f"process of {consumer}", consumer, HOUR_MS, "", dead, 1)
        token, *rest = self.run("own", names, *arguments)
        if before not in ("", consumer) and not dead:
            assert (token, rest[0].decode()) == (b"", f"process of {before}")
            return
        assert int(token) > int(old_token or b"0")
        self.owners[group] = consumer, token
        ids = [each for each, _ in self.hand(chosen, STREAM, picks)]
        if ids:
            # Whoever was the owner before is kept out, or the same in an earlier life.
            names = [S, keys.stats(S, group), keys.owner(S, group)]
            sent = (group, "", 0, *map(text, ids))
            with pytest.raises(ServerError, match="FENCED"):
                self.run("acknowledge", names, *sent, old_token or "0", fenced=True)
            count = self.run("acknowledge", names, *sent, token, fenced=True)
            assert count == self.model.acknowledge(group, STREAM, ids)
            for entry_id in ids:
                del self.hands[chosen][STREAM, entry_id]

    def consumers(self, key: str, group: str) -> list[str]:
        """Return the consumers of a group that Redis knows."""
        found = self.ask("XINFO", "CONSUMERS", key, group)
        return [dict(zip(each[::2], each[1::2], strict=True))[b"name"].decode() for each in found]

    @rule(seat=SEAT, picks=PICKS, again=AGAIN, tells=st.booleans())
    def acknowledge(self, seat: tuple[int, int], picks: set[int], again: bool, tells: bool) -> None:
        """A consumer has handled messages; `tells` up to where it is."""
        chosen = self.holder(seat)
        for source in (STREAM, RETRY):
            messages = self.hand(chosen, source, picks)
            self.finish(chosen, source, [each for each, _ in messages], again, tells)

    def finish(
        self, seat: Seat, source: int, ids: list[Id], again: bool = False, tells: bool = False
    ) -> None:
        """Acknowledge messages in hand."""
        if not ids:
            return
        group, _ = seat
        of = self.model.state.groups[group]
        position = text(of.readings[STREAM].delivered) if tells else ""
        names = [(S, keys.retry(S, group))[source], keys.stats(S, group)]
        arguments = (group, position, int(source == RETRY), *map(text, ids))
        count, second = self.twice(again, "acknowledge", names, *arguments)
        assert (count, second or 0) == (self.model.acknowledge(group, source, ids), 0)
        of.position = position or of.position
        for entry_id in ids:
            del self.hands[seat][source, entry_id]

    @rule(
        seat=SEAT,
        picks=PICKS,
        returned=st.lists(st.tuples(st.sampled_from([S, T]), FIELDS), min_size=1, max_size=2),
        again=AGAIN,
    )
    def publish_and_acknowledge(
        self, seat: tuple[int, int], picks: set[int], returned: list[Any], again: bool
    ) -> None:
        """A handler returned messages to be published."""
        chosen = self.holder(seat)
        source = RETRY if self.hand(chosen, RETRY, picks) else STREAM
        ids = [each for each, _ in self.hand(chosen, source, picks)]
        self.finish_joint(chosen, source, ids, returned, again)

    def finish_joint(
        self, seat: Seat, source: int, ids: list[Id], returned: list[Any], again: bool
    ) -> None:
        """Acknowledge messages in hand, and publish others with that."""
        if not ids:
            return
        group, _ = seat
        names = [(S, keys.retry(S, group))[source], keys.stats(S, group)]
        names += [target for target, _ in returned]
        arguments: list[Any] = [group, int(source == RETRY), "", len(ids), *map(text, ids)]
        for _, pairs in returned:
            arguments += [len(pairs) * 2, *(part for pair in pairs for part in pair)]
        last = self.model.last
        count, second = self.twice(again, "publish_and_acknowledge", names, *arguments)
        assert second in (None, 0)
        assert count == self.model.acknowledge(group, source, ids)
        if count:
            self.model.state.groups[group].counters["published"] += len(returned)
            self.published += [pairs for target, pairs in returned if target == T]
            here = [pairs for target, pairs in returned if target == S]
            for (entry_id, _), pairs in zip(self.new_entries(S, last), here, strict=True):
                self.model.add(entry_id, Copy(text(entry_id), pairs))
        for entry_id in ids:
            del self.hands[seat][source, entry_id]

    @rule(
        seat=SEAT,
        picks=PICKS,
        delays=st.tuples(DELAY, DELAY, DELAY, DELAY),
        changes=CHANGES,
        again=AGAIN,
    )
    def fail(
        self,
        seat: tuple[int, int],
        picks: set[int],
        delays: tuple[int, ...],
        changes: dict[bytes, bytes],
        again: bool,
    ) -> None:
        """Handlers fail: their messages are tried again in a while, or are dead letters."""
        chosen = self.holder(seat)
        for source in (STREAM, RETRY):
            failed = list(zip(self.hand(chosen, source, picks), delays, strict=False))
            if failed:
                self.fail_some(chosen, source, failed, changes, again)

    @rule(seat=SEAT, repair=st.booleans())
    def try_again(self, seat: tuple[int, int], repair: bool) -> None:
        """A message fails, and comes again at once, unless it waits for a repair."""
        self.fail_one(seat, 0)
        self.move(1000, repair)
        for group in self.model.state.groups:
            self.wake((group, CONSUMERS[seat[1]]))
            self.take_new((group, CONSUMERS[seat[1]]), 1000)

    def fail_some(
        self,
        seat: Seat,
        source: int,
        failed: list[tuple[tuple[Id, Message], int]],
        changes: dict[bytes, bytes],
        again: bool,
    ) -> None:
        """Have messages of one source fail, each with its delay; -1: never again."""
        group, consumer = seat
        soonest = min((delay for _, delay in failed if delay >= 0), default="")
        is_sure = seat not in self.unsure and all(delay >= 0 for _, delay in failed)
        caller = "" if is_sure else consumer
        arguments: list[Any] = [group, caller, "", S, keys.DOORBELL, soonest]
        for (entry_id, message), delay in failed:
            items = failed_items(message, delay, changes)
            arguments += [text(entry_id), f"{message.id}@{group}", delay]
            arguments += pack_failed(group, message.id, items)
        names = [(S, keys.retry(S, group))[source], keys.stats(S, group), DELAYED, DATA]
        dead = keys.dead(S, group)
        last = max(self.model.state.groups[group].dead, default=FIRST)
        before = self.now_ms()
        results, second = self.twice(again, "fail", [*names, dead], *arguments)
        after = self.now_ms()
        assert second in (None, [-1] * len(failed))
        letters = iter(self.new_entries(dead, last))
        for ((entry_id, message), delay), result in zip(failed, results, strict=True):
            del self.hands[seat][source, entry_id]
            # Who has never been away is believed. It may be another's all the same: one that was
            # away has acknowledged it, and then somebody has set the group back.
            if not self.model.has(group, caller, source, entry_id):
                assert result == -1
                continue
            copy = copy_of(message)
            copy = replace(copy, pairs=changed(copy.pairs, changes))
            if delay >= 0:
                at = result - delay
                copy = replace(copy, attempt=copy.attempt + 1)
            else:
                assert result == 0
                letter_id, items = next(letters)
                at = int(Message(S, RETRY, b"", items).own(FAILED_AT) or 0)
            assert before <= at <= after
            copy = replace(copy, first_failed_at=copy.first_failed_at or at)
            if delay >= 0:
                self.model.delay(group, source, entry_id, result, copy)
            else:
                self.model.bury(group, source, entry_id, letter_id, copy)
        assert not list(letters)

    # -- delivering again ------------------------------------------------------------------------

    @rule(batch=st.sampled_from([1, 2, 1000]), repair=st.booleans())
    def deliver(self, batch: int, repair: bool) -> None:
        """wakeq-delay looks at the stream."""
        self.move(batch, repair)

    def move(self, batch: int, repair: bool) -> int:
        """Deliver what is due; returns how much was moved."""
        names = [S, DELAYED, DATA, REPAIRS]
        reply = self.run("deliver", names, keys.retry(S, ""), batch, HOUR_MS, int(repair), 1)
        now_us, _, _, left, strays, moved, troubles, told = reply
        told_of = zip(told[::3], told[1::3], told[2::3], strict=True)
        due = self.model.due(now_us // 1000, batch, repair)
        for member in due:
            waiting = {**self.model.state.repairs, **self.model.state.delayed}[member]
            if waiting.group and repair:
                self.model.await_repair(member)
                continue
            first_id, group, raw_id = next(told_of)
            expected = (waiting.copy.first_id.encode(), waiting.group.encode())
            assert (first_id, group) == expected
            self.model.deliver(member, parse(raw_id))
        assert (list(told_of), moved, troubles, strays) == ([], len(told) // 3, [], 0)
        assert left == len(self.model.state.delayed) + len(self.model.state.repairs)
        return len(due)

    @rule(seat=SEAT, again=AGAIN)
    def hand_out(self, seat: tuple[int, int], again: bool) -> None:
        """wakeq-delay has a message repaired; two of it have two, or one has none."""
        if not self.model.state.repairs:
            self.fail_one(seat, 0)
            self.move(1000, True)
        for _ in range(1 + again):
            now_us, _, *found = self.run("hand_out", [REPAIRS, DATA], HOUR_MS)
            expected = self.model.hand_out(now_us // 1000, HOUR_MS)
            assert (found[0].decode() if found else "") == expected
            if found:
                member, token, _, (_, _, *items) = found
                self.job = (member.decode(), token, self.model.state.repairs[expected], items)

    def give_back(self) -> None:
        """Have others repair at once what was handed out, as who is stopped in the midst of it."""
        repairs = self.model.state.repairs
        for member, waiting in repairs.items():
            self.ask("ZADD", REPAIRS, "XX", 1, member)
            repairs[member] = replace(waiting, due=1)

    @rule(
        outcome=st.sampled_from(["same", "changed", "dead"]),
        changes=CHANGES,
        late=st.sampled_from(["", "", "given back", "failed again"]),
        again=AGAIN,
    )
    def finish_repair(
        self, outcome: str, changes: dict[bytes, bytes], late: str, again: bool
    ) -> None:
        """A repair is over, whatever has become of its message meanwhile."""
        if self.job is None:
            self.hand_out((0, 0), False)
        if late:
            self.give_back()
        if late == "failed again" and self.job is not None:
            self.move(1000, False)
            chosen = self.job[2].group, CONSUMERS[0]
            self.wake(chosen)
            self.take_new(chosen, 1000)
            for (source, entry_id), message in list(self.hands[chosen].items()):
                if message.id == self.job[2].copy.first_id:
                    self.fail_some(chosen, source, [((entry_id, message), 0)], {}, False)
            self.move(1000, True)
        if self.job is None:
            return  # somebody else has them all
        (member, token, job, items), self.job = self.job, None
        copy, group = job.copy, job.group
        message = FailedMessage(S, group, copy.first_id.encode(), items)
        if outcome == "changed":
            own = [(name, message.own(name) or b"") for name in (ATTEMPT, FIRST_ID, ERROR)]
            items = carry(message, [*own, (FAILED_AT, b"7")], changes)
            copy = replace(copy, pairs=changed(copy.pairs, changes))
        elif outcome == "dead":
            own = [(ATTEMPT, b"%d" % message.failures), (FIRST_ID, message.id.encode())]
            items = carry(message, [*own, (ERROR, b"E"), (REPAIR_ERROR, b"E")])
            copy = replace(copy, attempt=copy.attempt - 1)
        target = (keys.dead if outcome == "dead" else keys.retry)(S, group)
        names = [REPAIRS, DATA, target, keys.stats(S, group)]
        is_dead = int(outcome == "dead")
        raw_id, second = self.twice(again, "finish_repair", names, member, token, is_dead, *items)
        assert second in (None, b"")
        waiting = self.model.state.repairs.get(member)
        if waiting is None or waiting.copy != job.copy:
            assert raw_id == b""
        elif outcome == "dead":
            of = self.model.state.groups[group]
            of.dead[parse(raw_id)] = copy
            of.counters["dead"] += 1
            del self.model.state.repairs[member]
        else:
            del self.model.state.repairs[member]
            self.model.add(parse(raw_id), copy, group)

    @rule(picks=PICKS, again=AGAIN)
    def make_due(self, picks: set[int], again: bool) -> None:
        """An operator will not wait."""
        self.make_these_due(picked(self.model.state.delayed, picks), again)

    def make_these_due(self, members: list[str], again: bool) -> None:
        """Make delayed messages due now."""
        before = self.now_ms()
        unknown = "9-9@g"
        arguments = (keys.DOORBELL, S, 0, *members, unknown)
        names = [DELAYED, REPAIRS]
        (count, *none), second = self.twice(again, "make_due", names, *arguments)
        after = self.now_ms()
        assert none == [unknown.encode()]
        assert second in (None, [0, unknown.encode()])
        for member in members:
            delayed = self.model.state.delayed[member]
            if delayed.due > after:
                count -= 1
                due = int(self.ask("ZSCORE", DELAYED, member))
                assert before <= due <= after
                self.model.state.delayed[member] = replace(delayed, due=due)
        assert count == 0

    @rule(picks=PICKS, waits=st.booleans(), again=AGAIN)
    def cancel_delayed(self, picks: set[int], waits: bool, again: bool) -> None:
        """An operator drops delayed messages; `waits`: for a repair."""
        state = self.model.state
        members = picked(state.repairs if waits else state.delayed, picks)
        names = [DELAYED, REPAIRS, DATA]
        reply, second = self.twice(again, "cancel_delayed", names, 0, *members, "9-9")
        assert reply == [len(members), b"9-9"]
        assert second in (None, [0, *(member.encode() for member in members), b"9-9"])
        for member in members:
            self.model.cancel(member)

    @rule(seat=SEAT, picks=PICKS, again=AGAIN)
    def redrive(self, seat: tuple[int, int], picks: set[int], again: bool) -> None:
        """An operator has dead letters delivered again."""
        group = self.group_with("dead", seat, -1)
        letters = picked(self.model.state.groups[group].dead, picks)
        names = [keys.dead(S, group), keys.retry(S, group)]
        arguments = [*map(text, letters), "9-9"]
        reply, second = self.twice(again, "redrive", names, *arguments)
        assert second in (None, [b""] * len(arguments))
        assert reply.pop() == b""
        for letter_id, raw_id in zip(letters, reply, strict=True):
            self.model.redrive(group, letter_id, parse(raw_id))

    # -- trimming, and a pause's end -------------------------------------------------------------

    @rule(seat=SEAT, keep=st.integers(0, 3), size=st.sampled_from([1, 2000]), late=st.booleans())
    def trim(self, seat: tuple[int, int], keep: int, size: int, late: bool) -> None:
        """wakeq-trim comes by, in the midst of it or when all is handled."""
        if late:
            self.foreign_group_ends()
            self.catch_up(seat)
        self.trim_to(keep, size)

    def trim_to(self, keep: int, size: int) -> None:
        """Remove what nobody needs, a slice at a time."""
        removed = done = 0
        while not done:
            kind, gone, lost, _, done, _ = self.run("trim", [S], keep, 0, size, "", "")
            assert (kind, lost) == (b"stream", 0)
            removed += gone
        assert removed == self.model.trim(keep)

    @rule()
    def resume(self) -> None:
        """A pause ends: each group that has consumers is rung for."""
        groups = self.model.state.groups
        last = {group: max(of.retry, default=FIRST) for group, of in groups.items()}
        assert self.run("resume", [PAUSED, S, keys.retry(S, "")]) == [None, len(last)]
        for group in groups:
            ((entry_id, _),) = self.new_entries(keys.retry(S, group), last[group])
            self.model.add(entry_id, BELL, group)

    # -- what others do --------------------------------------------------------------------------

    @rule(picks=PICKS)
    def foreign_xdel(self, picks: set[int]) -> None:
        """Somebody deletes messages, unread, pending or handled."""
        ids = picked(self.model.state.stream, picks)
        if ids:
            assert self.ask("XDEL", S, *map(text, ids)) == len(ids)
            self.model.delete(ids)

    @rule(seat=SEAT, picks=PICKS)
    def foreign_xdel_of_retries(self, seat: tuple[int, int], picks: set[int]) -> None:
        """Somebody deletes messages of a group alone."""
        group = self.group_with("retry", seat, 0)
        ids = picked(self.model.state.groups[group].retry, picks)
        if ids:
            assert self.ask("XDEL", keys.retry(S, group), *map(text, ids)) == len(ids)
            self.model.delete(ids, group)

    @rule(left=st.integers(2, 6))
    def foreign_xtrim(self, left: int) -> None:
        """Somebody keeps the stream short, needed or not."""
        gone = sorted(self.model.state.stream)[:-left]
        assert self.ask("XTRIM", S, "MAXLEN", left) == len(gone)
        self.model.delete(gone)

    @rule(start=st.sampled_from(["0", "$"]))
    def foreign_group_begins(self, start: str) -> None:
        """Somebody has a group of their own, or moves it."""
        others = self.model.state.others
        action = "SETID" if "theirs" in others else "CREATE"
        self.ask("XGROUP", action, S, "theirs", start)
        others.setdefault("theirs", Reading()).delivered = (
            self.model.last if start == "$" else FIRST
        )

    @rule(seat=SEAT, start=st.sampled_from(["0", "0", "$"]))
    def foreign_setid(self, seat: tuple[int, int], start: str) -> None:
        """Somebody moves a group of ours: it has messages twice, or never."""
        group, _ = self.seat(seat)
        self.ask("XGROUP", "SETID", S, group, start)
        self.model.move(group, start)

    @rule(count=st.integers(1, 5))
    def foreign_group_reads(self, count: int) -> None:
        """Somebody reads, and handles half of it."""
        reading = self.model.state.others.get("theirs")
        if reading is None:
            return
        head = ("XREADGROUP", "GROUP", "theirs", "they", "COUNT", count, "STREAMS", S, ">")
        for _, entries in self.ask(*head) or []:
            for number, (raw_id, _) in enumerate(entries):
                reading.delivered = parse(raw_id)
                # Set back, it reads again what is pending: that counts as delivered once.
                reading.pending[parse(raw_id)] = ("they", 1)
                if number % 2:
                    self.ask("XACK", S, "theirs", raw_id)
                    del reading.pending[parse(raw_id)]

    @rule()
    def foreign_group_ends(self) -> None:
        """Somebody is done."""
        if self.model.state.others.pop("theirs", None) is not None:
            self.ask("XGROUP", "DESTROY", S, "theirs")

    # -- what holds always -----------------------------------------------------------------------

    @invariant()
    def each_message_is_where_it_must_be_and_there_alone(self) -> None:
        """Compare all that Redis holds; count places; look for what is owed."""
        state = self.look()
        assert state == self.model.state
        for group in state.groups:
            places = self.model.places(state, group)
            assert group in self.model.moved or len(places) == len(set(places))
            assert self.model.missing(group, places) == set()
        self.is_sound = True

    def teardown(self) -> None:
        """Handle everything to the end, unless a step has failed."""
        if self.is_sound:
            self.drain()
            type(self).drained += 1

    def drain(self) -> None:
        """Have one consumer for each group handle all there is; nothing is left then."""
        self.make_these_due(list(self.model.state.delayed), False)
        self.give_back()
        while self.move(2, False):
            pass
        self.foreign_group_ends()
        for group in self.model.state.groups:
            for consumer in CONSUMERS:
                self.kill((group, consumer))
            self.handle_all((group, LAST))
        self.trim_to(0, 2000)
        self.each_message_is_where_it_must_be_and_there_alone()
        left = self.model.state
        assert (left.stream, left.delayed, left.repairs) == ({}, {}, {})
        documented = {S, T, *(keys.dedup(S, each) for each in self.dedups)}
        for group, of in left.groups.items():
            dead = {letter.first_id for letter in of.dead.values()}
            done = self.model.handled[group] | self.model.excused[group] | dead
            assert self.model.owed[group] <= done
            assert of.retry == of.readings[STREAM].pending == of.readings[RETRY].pending == {}
            documented |= {part(S, group) for part in (keys.retry, keys.stats, keys.dead)}
            documented |= {keys.owner(S, group)}
        assert {each.decode() for each in self.ask("KEYS", "*")} <= documented
        entries = self.ask("XRANGE", T, "-", "+")
        published = [tuple(zip(items[::2], items[1::2], strict=True)) for _, items in entries]
        assert published == self.published

    def handle_all(self, seat: Seat) -> None:
        """Have a consumer claim, read and handle until there is no more."""
        group, consumer = seat
        self.wake(seat)
        while True:
            for _ in range(2):  # a consumer that has something pending is not forgotten yet
                self.claim_all(seat, 1000, FORGET)
            if not self.take_new(seat, 2) and not self.hands[seat]:
                break
            self.finish_all(seat)
        for key in (S, keys.retry(S, group)):
            assert set(self.consumers(key, group)) <= {consumer}
        self.kill(seat)


def failed_items(message: Message, delay: int, changes: dict[bytes, bytes]) -> list[bytes]:
    """Return what a message is after a failure, as a consumer makes it."""
    own = [
        (ATTEMPT, b"%d" % (message.attempt + (delay >= 0))),
        (FIRST_ID, message.id.encode()),
        (ERROR, b"ValueError: no"),
    ]
    if delay < 0:
        own += [(CONSUMER, b"host/orders"), (HOST, b"host")]
    return carry(message, own, changes)


@pytest.fixture
def life(redis: RedisServer) -> Iterator[type[Life]]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    yield type("LifeHere", (Life,), {"connection": connection, "scripts": {}, "drained": 0})
    connection.close()


def test_each_message_has_one_place_until_it_is_handled(life: type[Life]) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=EXAMPLES or 120,
            stateful_step_count=40,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),  # to explain it takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert life.drained
