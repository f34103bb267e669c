"""The life of a room, step by step in any order, beside a model of it (tests/room_model.py).

Each rule is one step of a client or a worker, by the scripts of lua/, or somebody's silence or
death. After each, Redis holds what the model says. The workers are real desks, which decide what to
ask and whom to give a message; each client sees each message of its time once and in order, apart
from what was in the hands of a worker that died. In the end everything is delivered.

Nobody sleeps: who is to be timed out is made so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from redis_servers import RedisServer
from room_model import Member, Model, State
from wakeq import keys
from wakeq.fanout.delivery import Ask, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.records import read_message, read_peek
from wakeq.fanout.rooms import MODES, Request, Rooms, failures
from wakeq.fanout.tally import Tally
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, ServerError

# More of them than the tests of every day take, and others each time.
EXAMPLES = int(os.environ.get("WAKEQ_TEST_EXAMPLES", "0"))

R = "Raum {1}::*? %7B"
QUIET_MS = 600_000
CLIENTS = ("a", "b::c", "*", "d e\n", "größe", "{x}")
WORKERS = ("w1", "w 2")
STATE, QUEUE, CLIENTS_KEY, MEMBERS, SYNC, WAITING, WORKERS_KEY, LOG, EJECTED, TIMEOUTS = keys.room(
    R
)
UNPACKED = """
local all, unpacked = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  unpacked[#unpacked + 1] = {all[i], cmsgpack.unpack(all[i + 1])}
end
return unpacked"""

CLIENT = st.sampled_from(CLIENTS)
WORKER = st.sampled_from(WORKERS)
AGAIN = st.booleans()


def pairs(reply: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(reply[::2], reply[1::2], strict=True))


class Life(RuleBasedStateMachine):
    """The steps; a server and its model side by side."""

    connection: Connection
    rooms: dict[str, Rooms]
    drained = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.desks: dict[str, Desk] = {}
        self.hands: dict[str, list[RoomMessage]] = {}
        self.replies: dict[str, tuple[Ask, Any]] = {}  # to reading, on their way
        self.seen: dict[str, list[str]] = {}  # of each client, since it joined
        self.seen_oob: dict[str, list[str]] = {}
        self.oob: list[str] = []
        self.oob_before: dict[str, int] = {}  # how many there were when a client joined
        self.excused: set[str] = set()  # who may see a message again
        self.by_hand: dict[str, set[str]] = {}  # what somebody acknowledged for a client
        self.old: list[str] = []
        self.tally = Tally()
        self.connection.call("FLUSHALL")
        for worker in WORKERS:
            self.open_desk(worker)

    # -- how it is asked -----------------------------------------------------------------------

    def run(self, request: Request) -> Any:
        """Carry out a request."""
        try:
            return self.connection.call(*request.command)
        except ServerError as error:
            assert error.code == "NOSCRIPT", error
            assert request.send_whole()
            return self.connection.call(*request.command)

    def step(self, request: Request) -> Any:
        """Carry out a step, of which the model has reaped before."""
        before = len(self.model.begun)
        reply = self.run(request)
        self.model.reap()
        assert before == len(self.model.begun)
        return reply

    def settle(self) -> None:
        """Have the model end the step."""
        self.model.settle()

    def open_desk(self, worker: str) -> None:
        """Let a process of a worker begin, knowing nothing."""
        self.desks[worker] = Desk(R, self.tally, reports=True)
        self.hands[worker] = []
        self.replies.pop(worker, None)

    def read_state(self) -> State:
        """Return what Redis holds."""
        call = self.connection.call
        figures = {
            k.decode(): v.decode() for k, v in pairs(call("HGETALL", STATE)) if k != b"message"
        }
        state = State()
        line = call("ZRANGE", QUEUE, 0, -1, "WITHSCORES")
        state.line = [(m.priority or 0, m.id) for m in read_peek(line)]
        members = call("EVAL", UNPACKED, 1, MEMBERS)
        for name, (worker, mode, since, joined, _, _) in members:
            state.members[name.decode()] = Member(worker.decode(), mode.decode(), since, joined)
        seats = {name: of.worker + "\0" + name for name, of in state.members.items()}
        sync = {raw.decode() for raw in call("SMEMBERS", SYNC)}
        assert sync == {seats[name] for name in state.having("sync")}
        waiting = {raw.decode() for raw in call("SMEMBERS", WAITING)}
        state.waiting = {name for name, seat in seats.items() if seat in waiting}
        assert len(state.waiting) == len(waiting)
        assert {raw.decode() for raw in call("ZRANGE", CLIENTS_KEY, 0, -1)} == state.members.keys()
        state.outstanding = figures.get("id", "")
        state.round, state.logged = int(figures.get("round", 0)), int(figures.get("logged", 0))
        for raw_id, (_, rounds, _, message) in call("XRANGE", LOG, "-", "+"):
            number = int(raw_id.partition(b"-")[0])
            state.log[number] = int(rounds), read_message(message).id
        state.ejected = {raw.decode() for raw in call("ZRANGE", EJECTED, 0, -1)}
        state.reports = [raw.decode() for raw in call("LRANGE", TIMEOUTS, 0, -1)]
        state.drops = "drop" in figures
        for name in ("sent", "oob", "acknowledged", "timeouts", "dropped"):
            if int(figures.get(name, 0)):
                state.counters[name] = int(figures[name])
        workers = dict(call("EVAL", UNPACKED, 1, WORKERS_KEY))
        counted = {name.decode(): packed[0] for name, packed in workers.items()}
        assert counted == {
            worker: sum(of.worker == worker for of in state.members.values())
            for worker in {of.worker for of in state.members.values()}
        }
        positions = {name.decode(): packed[2] for name, packed in workers.items()}
        assert positions == self.model.positions
        if figures:
            is_kept = bool(state.members or state.line)
            assert (call("PTTL", STATE) < 0) == is_kept
        return state

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        """Compare them."""
        found, expected = self.read_state(), self.model.state
        expected.counters = +expected.counters
        assert found == expected

    @invariant()
    def all_see_the_same_order(self) -> None:
        """What a client has seen are rounds in their order."""
        begun = self.model.begun
        for client, seen in self.seen.items():
            if client in self.excused:
                continue
            places = iter(begun)
            assert all(any(each == one for one in places) for each in seen), (seen, begun)

    # -- clients -------------------------------------------------------------------------------

    @rule(client=CLIENT, worker=WORKER, mode=st.sampled_from(MODES + ("sync",) * 3),
          drop=st.sampled_from([False, False, True]), again=AGAIN)  # fmt: skip
    def join(self, client: str, worker: str, mode: str, drop: bool, again: bool) -> None:
        """Somebody joins, or is taken over."""
        before = self.model.state.members.get(client)
        reply = self.step(Rooms().join(R, client, worker, mode, QUIET_MS, drop))
        resumed, since, joined = self.model.join(client, worker, mode, drop)
        self.settle()
        assert (reply[0], reply[2], reply[3]) == (resumed, since, joined)
        if not resumed:
            self.seen[client], self.seen_oob[client] = [], []
            self.oob_before[client] = len(self.oob)
            self.excused.discard(client)
        if before and (before.worker, before.mode) != (worker, mode):
            # The old worker may have handed it out, or this one what is out-of-band alone.
            self.excused.add(client)
        # Only who does it through a worker tells its desk.
        if again:
            self.desks[worker].take_joined(client, mode, reply)
            reply = self.step(Rooms().join(R, client, worker, mode, QUIET_MS, drop))
            assert reply[0] == 1

    @rule(client=CLIENT, worker=st.sampled_from(("", *WORKERS)))
    def leave(self, client: str, worker: str) -> None:
        """Somebody leaves, or tries to."""
        reply = self.step(Rooms(worker).leave(R, [client]))
        expected = self.model.leave(worker, client)
        self.settle()
        assert list(failures(reply)) == expected

    @rule(client=CLIENT)
    def be_silent(self, client: str) -> None:
        """Somebody's time is over."""
        self.connection.call("ZADD", CLIENTS_KEY, "XX", 0, client)
        if client in self.model.state.members:
            self.model.overdue.add(client)

    @rule(client=CLIENT, worker=st.sampled_from(("", *WORKERS)))
    def ping(self, client: str, worker: str) -> None:
        """Somebody says that it is alive, maybe too late."""
        reply = self.step(Rooms(worker).ping(R, [client], QUIET_MS, QUIET_MS))
        expected = self.model.ping(worker, client)
        self.settle()
        assert list(failures(reply[0])) == expected
        state = self.model.state
        assert reply[2:] == [state.round, state.logged, state.counters["timeouts"]]
        if worker:
            self.desks[worker].take_failures(reply[0])
            self.desks[worker].hear(*reply[2:], reply[1])

    @rule(priority=st.sampled_from([0, 0, 0, 1, -1, 2**53]), count=st.integers(1, 3))
    def send(self, priority: int, count: int) -> None:
        """Somebody sends the same message, once or more."""
        for _ in range(count):
            message_id, length = self.step(Rooms().send(R, b"same", "p::q", priority, 0))
            self.model.send(message_id.decode(), priority)
            self.settle()
            assert length == len(self.model.state.line)
            self.old.append(message_id.decode())

    @rule()
    def send_out_of_band(self) -> None:
        """Somebody sends to all who are there."""
        message_id, count, _ = self.step(Rooms().send_out_of_band(R, b"\0now\r\n", ""))
        assert count == self.model.send_out_of_band(message_id.decode())
        self.oob.append(message_id.decode())
        self.settle()

    @rule(clients=st.lists(CLIENT, min_size=1, max_size=4), worker=st.sampled_from(("", *WORKERS)),
          pick=st.integers(0, 5))  # fmt: skip
    def acknowledge(self, clients: list[str], worker: str, pick: int) -> None:
        """Somebody acknowledges what is outstanding, or what is not, by hand."""
        ids = [self.model.state.outstanding or "0" * 16, *self.old[-3:]]
        message = ids[pick % len(ids)] if pick > 2 else ids[0]
        reply = self.step(Rooms(worker).acknowledge(R, message, clients))
        expected = self.model.acknowledge(worker, message, clients)
        self.settle()
        assert list(failures(reply[0])) == expected
        # Of who is named twice, the first counts.
        for client in Counter(clients) - Counter(name for name, _ in expected):
            self.by_hand.setdefault(client, set()).add(message)

    # -- workers -------------------------------------------------------------------------------

    @rule(worker=WORKER)
    def ring(self, worker: str) -> None:
        """A worker hears the figures; rings may also come late, twice or never."""
        call = self.connection.call
        found = call("HMGET", STATE, "round", "logged", "timeouts")
        packed = dict(call("EVAL", UNPACKED, 1, WORKERS_KEY)).get(worker.encode())
        figures = [int(each or 0) for each in found]
        self.desks[worker].hear(*figures, packed[1] if packed else 0)

    @rule(worker=WORKER, count=st.integers(1, 4))
    def work(self, worker: str, count: int) -> None:
        """A worker does some of what there is to do."""
        for _ in range(count):
            self.work_once(worker)

    def work_once(self, worker: str) -> bool:
        """Have a worker do one thing; tell whether there was one."""
        desk = self.desks[worker]
        step = desk.next_step()
        if isinstance(step, RoomMessage):
            self.see(worker, step)
            self.hands[worker].append(step)
        elif step is not None:
            self.ask(worker, desk, step)
        else:
            return self.read_once(worker)
        desk.ejected.clear()
        return True

    @rule(worker=WORKER)
    def read_on(self, worker: str) -> None:
        """A worker goes on with the log, whatever it has heard of."""
        self.read_once(worker)

    def read_once(self, worker: str) -> bool:
        """Have a worker go on with the log; tell whether it could.

        The reply to what it asks is on its way until it is called again.
        """
        desk = self.desks[worker]
        if worker in self.replies:
            desk.take_read(*self.replies.pop(worker))
            return True
        step = desk.next_read()
        if isinstance(step, RoomMessage):
            self.see(worker, step)
            desk.finish(step)
        elif step is not None:
            self.replies[worker] = step, self.read(worker, desk)
        return step is not None

    def read(self, worker: str, desk: Desk) -> Any:
        """Return the reply to reading on."""
        after, done = desk.read_from
        packed = dict(self.connection.call("EVAL", UNPACKED, 1, WORKERS_KEY))
        if (mine := packed.get(worker.encode())) and desk.listed < mine[9]:
            done = None  # it does not know who is behind
        reply = self.step(Rooms(worker).read(R, *desk.read_from, desk.listed))
        self.settle()
        if any(of.worker == worker for of in self.model.state.members.values()):
            rows = iter(reply[3])
            found = [
                (n, r, read_message(raw).id) for n, r, raw in zip(rows, rows, rows, strict=True)
            ]
            assert found == self.model.read(worker, after, done)
        else:
            assert reply[0] == -1
        return reply

    def ask(self, worker: str, desk: Desk, ask: Ask) -> None:
        """Carry out what a desk asks for the rounds."""
        rooms = Rooms(worker)
        if ask.what == "ack":
            reply = self.step(rooms.acknowledge(R, ask.message_id, ask.clients))
            expected = self.model.acknowledge(worker, ask.message_id, ask.clients)
            self.settle()
            assert desk.take_ack(ask, reply) == expected
        else:
            reply = self.step(rooms.look(R, QUIET_MS, desk.version, True, ask.clients))
            self.settle()
            assert [raw.decode() for raw in reply[8]] == self.model.state.reports
            self.model.state.reports.clear()
            desk.take_look(ask, reply)

    def see(self, worker: str, message: RoomMessage) -> None:
        """Have a client see a message."""
        if self.is_late(worker, message):
            return
        if message.oob:
            seen = self.seen_oob.setdefault(message.client, [])
            assert message.id not in seen or message.client in self.excused
            assert message.data == b"\0now\r\n"
            seen.append(message.id)
        else:
            assert (message.data, message.producer) == (b"same", "p::q")
            self.seen.setdefault(message.client, []).append(message.id)

    def is_late(self, worker: str, message: RoomMessage) -> bool:
        """Tell whether a message is for whom its client was before it left, or joined anew.

        That may come from a worker alone that has not heard of it yet, or had read it before.
        """
        seat = self.desks[worker].seats.get(message.client)
        member = self.model.state.members.get(message.client)
        if seat is None or member is None or member.worker != worker:
            return True
        is_new = message.oob or message.id in self.model.begun[member.joined :]
        return not is_new and member != Member(worker, seat.mode, seat.since, seat.joined)

    @rule(worker=WORKER, pick=st.integers(0, 3))
    def finish(self, worker: str, pick: int) -> None:
        """A handler returns."""
        if hand := self.hands[worker]:
            message = hand.pop(pick % len(hand))
            self.desks[worker].acknowledge(message.client, message.id)

    @rule(worker=WORKER)
    def die(self, worker: str) -> None:
        """A worker's process dies, and another with its name begins."""
        self.open_desk(worker)
        self.excused |= {
            name for name, of in self.model.state.members.items() if of.worker == worker
        }

    @rule()
    def drain(self) -> None:
        """Everybody does what there is to do; then nothing is left, if anybody is there."""
        for _ in range(500):
            busy = False
            for worker in WORKERS:
                self.ring(worker)
                busy = self.work_once(worker) or busy
                while self.hands[worker]:
                    self.finish(worker, 0)
                    busy = True
            if not busy:
                break
        else:
            raise AssertionError("it does not come to rest")
        state = self.model.state
        if state.having("sync"):
            assert (state.line, state.outstanding) == ([], "")
            type(self).drained += 1
        for client, of in state.members.items():
            begun, oob = self.model.begun[of.joined :], self.oob[self.oob_before[client] :]
            by_hand = self.by_hand.get(client, set()) if of.mode == "sync" else set()
            unseen = by_hand - set(self.seen[client])
            expected = [each for each in begun if each not in unseen]
            if client in self.excused:
                assert set(expected) | set(oob) <= {*self.seen[client], *self.seen_oob[client]}
            else:
                assert (self.seen[client], self.seen_oob[client]) == (expected, oob)

    def teardown(self) -> None:
        """End at rest."""
        self.drain()


@pytest.fixture
def life(redis: RedisServer) -> Iterator[type[Life]]:
    connection = Connection(RedisURL(redis.url), "wakeq-test")
    connection.connect()
    yield type("LifeHere", (Life,), {"connection": connection, "drained": 0})
    connection.close()


def test_a_room_is_in_lock_step_whatever_happens(life: type[Life]) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=EXAMPLES or 100,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),  # to explain it takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert life.drained
