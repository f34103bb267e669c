"""lua/trim.lua: removes what every group has handled, exactly that, and nothing that one needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_servers import RedisServer
from wakeq.redis_client import Servers
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.sections import Trim
from wakeq.trim.trimmer import Trimmed, Trimmer

S = "orders"
MOST = 2**64 - 1


class Trimming:
    """Trims `S` by the script."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()
        self.servers = Servers(RedisURL(server.url), "wakeq-test")
        self._script = Script("trim")

    def slice(self, keep: int = 0, max_length: int = 0, size: int = 2000) -> list[Any]:
        """Run the script once: kind, removed, lost, left, done, from."""
        arguments = (keep, max_length, size, "", "")
        return list(self.servers.run(self._script, [S], arguments))

    def whole(self, keep: int = 0, max_length: int = 0, size: int = 2000) -> tuple[int, int, int]:
        """Run it until there is no more to remove; return removed, lost, left."""
        trimmer, trimmed = self._trimmer(keep, max_length), Trimmed(S.encode())
        more = True
        while more:
            trimmer._slice = size
            more = trimmer.slice(trimmed)
        return trimmed.removed, trimmed.lost, trimmed.left

    def count(self, keep: int = 0, max_length: int = 0) -> tuple[int, int, int]:
        """Return what `whole` would return."""
        trimmed = self._trimmer(keep, max_length).count(S.encode())
        return trimmed.removed, trimmed.lost, trimmed.left

    def _trimmer(self, keep: int, max_length: int) -> Trimmer:
        section = Trim()
        section.keep, section.max_length = keep, max_length
        return Trimmer(self.servers, section)

    def add(self, count: int, body: bytes = b"x") -> list[str]:
        """Add entries 1-0, 2-0 …"""
        pipe = self.client.pipeline(transaction=False)
        for number in range(1, count + 1):
            pipe.xadd(S, {"body": body}, id=f"{number}-0")
        return [entry_id.decode() for entry_id in pipe.execute()]

    def group(self, name: str, delivered: str) -> None:
        """Make a group that has handled everything up to an id."""
        self.client.xgroup_create(S, name, delivered)

    def read(self, name: str, count: int) -> list[str]:
        """Have a group read, and leave it pending."""
        ((_, entries),) = self.client.xreadgroup(name, "c", {S: ">"}, count=count)
        return [entry_id.decode() for entry_id, _ in entries]

    def ids(self) -> list[str]:
        """Return what is there."""
        return [entry_id.decode() for entry_id, _ in self.client.xrange(S)]


@pytest.fixture
def trimming(redis: RedisServer) -> Iterator[Trimming]:
    made = Trimming(redis)
    yield made
    made.servers.close()


def test_removes_what_was_handled(trimming: Trimming) -> None:
    trimming.add(1234)
    trimming.group("g", "1150-0")
    assert trimming.count() == (1150, 0, 84)
    assert trimming.whole() == (1150, 0, 84)
    assert trimming.ids()[0] == "1151-0"


@pytest.mark.parametrize("keep", [1, 99, 100, 101, 1199, 1200, 1201])
def test_keeps_so_many_to_the_last_one(trimming: Trimming, keep: int) -> None:
    trimming.add(1200)
    trimming.group("g", "$")
    left = min(keep, 1200)
    assert trimming.count(keep) == (1200 - left, 0, left)
    assert trimming.whole(keep) == (1200 - left, 0, left)


def test_a_group_that_has_read_nothing_keeps_all(trimming: Trimming) -> None:
    trimming.add(500)
    trimming.group("done", "$")
    trimming.group("new", "0")
    assert trimming.slice() == [b"stream", 0, 0, 500, 1, b""]


def test_the_slowest_group_decides(trimming: Trimming) -> None:
    trimming.add(500)
    for group, delivered in (("a", "400-0"), ("b", "250-0"), ("c", "$")):
        trimming.group(group, delivered)
    assert trimming.whole() == (250, 0, 250)


def test_what_is_pending_stays_whoever_has_it(trimming: Trimming) -> None:
    trimming.add(500)
    trimming.group("g", "0")
    read = trimming.read("g", 500)
    trimming.client.xack(S, "g", *(read[:200] + read[201:]))
    assert trimming.whole() == (200, 0, 300)


def test_what_is_unread_again_stays_though_what_is_pending_is_newer(trimming: Trimming) -> None:
    trimming.add(500)
    trimming.group("g", "300-0")
    trimming.read("g", 100)
    trimming.client.xgroup_setid(S, "g", "150-0")
    assert trimming.whole() == (150, 0, 350)


def test_what_is_pending_and_deleted_is_needed_by_nobody(trimming: Trimming) -> None:
    trimming.add(500)
    trimming.group("g", "0")
    read = trimming.read("g", 500)
    trimming.client.xack(S, "g", *read[10:300])
    trimming.client.xdel(S, *read[:10])
    assert trimming.count() == (290, 0, 200)
    assert trimming.whole() == (290, 0, 200)
    trimming.client.xtrim(S, maxlen=0, approximate=False)
    assert trimming.whole() == (0, 0, 0)


def test_after_many_looks_at_what_was_deleted_it_rather_keeps_too_much(trimming: Trimming) -> None:
    # Handled, then pending and deleted, in turns: each costs a look.
    trimming.add(500)
    trimming.group("g", "0")
    read = trimming.read("g", 500)
    trimming.client.xack(S, "g", *read[::2])
    trimming.client.xdel(S, *read[1::2])
    kind, removed, lost, _, done, _ = trimming.slice()
    assert (kind, lost, done) == (b"stream", 0, 1)
    assert removed == 101
    # It goes on from there the next time.
    assert trimming.whole() == (101, 0, 48)


def test_foreign_trimming_of_what_is_pending_disturbs_nothing(trimming: Trimming) -> None:
    trimming.add(5000)
    trimming.group("g", "0")
    trimming.read("g", 4000)
    trimming.client.xtrim(S, maxlen=1500, approximate=False)
    assert trimming.whole() == (0, 0, 1500)
    trimming.client.xack(S, "g", *(f"{number}-0" for number in range(3501, 3601)))
    assert trimming.whole() == (100, 0, 1400)


@pytest.mark.parametrize(
    ("delivered", "following"),
    [
        ((5, 9), (5, 10)),
        ((5, 1099), (5, 1100)),
        ((5, 999), (5, 1000)),
        ((5, MOST), (6, 0)),
        ((9, MOST), (10, 0)),
        ((5, 2**53), (5, 2**53 + 1)),
        ((2**53, MOST), (2**53 + 1, 0)),
        ((MOST, 8), (MOST, 9)),
    ],
)
def test_ids_of_64_bits_are_told_apart(
    trimming: Trimming, delivered: tuple[int, int], following: tuple[int, int]
) -> None:
    ids = [f"{delivered[0]}-{delivered[1]}", f"{following[0]}-{following[1]}"]
    for entry_id in ids:
        trimming.client.xadd(S, {"a": "b"}, id=entry_id)
    trimming.group("g", ids[0])
    assert trimming.whole() == (1, 0, 1)
    assert trimming.ids() == ids[1:]


def test_groups_whose_ids_are_next_to_each_other_are_told_apart(trimming: Trimming) -> None:
    # As numbers of 53 bits, what these two need would be the same.
    for sequence in (2**53 + 2, 2**53 + 3, 2**53 + 4):
        trimming.client.xadd(S, {"a": "b"}, id=f"5-{sequence}")
    trimming.group("a", f"5-{2**53 + 3}")
    trimming.group("b", f"5-{2**53 + 2}")
    assert trimming.whole() == (1, 0, 2)


def test_the_last_id_that_there_is_has_none_after_it(trimming: Trimming) -> None:
    trimming.client.xadd(S, {"a": "b"}, id="1-0")
    trimming.client.xadd(S, {"a": "b"}, id=f"{MOST}-{MOST}")
    trimming.group("g", "$")
    # It cannot be told to be below the bound.
    assert trimming.whole() == (1, 0, 1)


def test_without_a_group_it_is_left_alone(trimming: Trimming) -> None:
    trimming.add(5000)
    assert trimming.slice(keep=10) == [b"stream", 0, 0, 5000, 1, b""]


def test_without_a_group_max_length_holds_and_all_of_it_is_lost(trimming: Trimming) -> None:
    trimming.add(5000)
    assert trimming.count(keep=10, max_length=1234) == (0, 3766, 1234)
    assert trimming.whole(keep=10, max_length=1234) == (0, 3766, 1234)


def test_max_length_counts_only_what_a_group_needed(trimming: Trimming) -> None:
    trimming.add(5000)
    trimming.group("g", "2050-0")
    assert trimming.count(keep=10, max_length=777) == (2050, 2173, 777)
    assert trimming.whole(keep=10, max_length=777) == (2050, 2173, 777)
    assert trimming.whole(keep=10, max_length=777) == (0, 0, 777)


def test_max_length_loses_nothing_as_long_as_enough_was_handled(trimming: Trimming) -> None:
    trimming.add(5000)
    trimming.group("g", "4500-0")
    assert trimming.whole(keep=1, max_length=500) == (4500, 0, 500)


@pytest.mark.parametrize("size", [100, 300, 2000])
def test_what_is_lost_does_not_depend_on_how_large_slices_are(
    trimming: Trimming, size: int
) -> None:
    # The first one is pending, and so are some in the middle; all others were handled.
    trimming.add(3000)
    trimming.group("g", "0")
    read = trimming.read("g", 3000)
    trimming.client.xack(S, "g", *(read[1:1500] + read[1510:]))
    assert trimming.count(keep=10, max_length=2000) == (0, 1000, 2000)
    assert trimming.whole(keep=10, max_length=2000, size=size) == (0, 1000, 2000)
    # What is free to go now goes the next time.
    assert trimming.whole(keep=10, max_length=2000, size=size) == (500, 0, 1500)


def test_a_stream_that_is_not_there_or_is_none_is_told_apart(trimming: Trimming) -> None:
    assert trimming.slice() == [b"none", 0, 0, 0, 1, b""]
    trimming.client.sadd(S, "member")
    assert trimming.slice() == [b"set", 0, 0, 0, 1, b""]
    assert trimming.client.smembers(S) == {b"member"}


def test_an_empty_stream_stays(trimming: Trimming) -> None:
    trimming.client.xgroup_create(S, "g", "0", mkstream=True)
    assert trimming.slice(max_length=1) == [b"stream", 0, 0, 0, 1, b""]
    assert trimming.client.exists(S)


def test_a_slice_removes_no_more_than_it_may(trimming: Trimming) -> None:
    trimming.add(5000)
    trimming.group("g", "$")
    assert trimming.slice(keep=10, size=1050) == [b"stream", 1000, 0, 4000, 0, b""]
    assert trimming.slice(keep=10, max_length=20, size=200) == [b"stream", 200, 0, 3800, 0, b""]


def test_a_slice_of_large_messages_is_smaller(trimming: Trimming) -> None:
    trimming.add(100, b"x" * 1_000_000)
    trimming.group("g", "$")
    assert trimming.slice(keep=10) == [b"stream", 16, 0, 84, 0, b""]
    assert trimming.whole(keep=10) == (74, 0, 10)


def test_a_group_that_is_made_between_two_slices_loses_nothing(trimming: Trimming) -> None:
    trimming.add(5000)
    trimming.group("g", "$")
    trimming.slice(size=1000)
    trimming.group("late", "0")
    assert trimming.whole(size=1000) == (0, 0, 4000)


@pytest.mark.parametrize("entries", [100, 5000])
def test_a_node_that_is_larger_than_a_slice_goes_whole(
    own_redis: RedisServer, entries: int
) -> None:
    trimming = Trimming(own_redis)
    trimming.client.config_set("stream-node-max-entries", entries)
    trimming.client.config_set("stream-node-max-bytes", 0)
    trimming.add(12_000)
    trimming.group("g", "11000-0")
    assert trimming.count(keep=500) == (11_000, 0, 1000)
    assert trimming.slice(keep=500, size=10)[1] == (100 if entries == 100 else 5000)
    assert trimming.whole(keep=500, size=10)[2] == 1000
    trimming.servers.close()


def test_it_runs_when_redis_has_no_memory_left(own_redis: RedisServer) -> None:
    trimming = Trimming(own_redis)
    trimming.add(5000)
    trimming.group("g", "4000-0")
    trimming.client.config_set("maxmemory-policy", "noeviction")
    trimming.client.config_set("maxmemory", 1)
    with pytest.raises(redis_py.ResponseError, match=r"OOM|maxmemory"):
        trimming.client.set("k", "v")
    assert trimming.count(keep=10) == (4000, 0, 1000)
    assert trimming.whole(keep=10) == (4000, 0, 1000)
    trimming.servers.close()


# -- against a model -------------------------------------------------------------------------

Id = tuple[int, int]


class Model:
    """What must become of a stream, said in the plainest way."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.last: Id = (0, 0)
        self.entries: list[Id] = []
        self.delivered: dict[str, Id] = {}
        self.pending: dict[str, set[Id]] = {}

    def add(self, steps: list[Id]) -> None:
        for ms, seq in steps:
            self.last = (self.last[0] + ms, seq if ms else self.last[1] + seq + 1)
            self.client.xadd(S, {"a": "b"}, id=text(self.last))
            self.entries.append(self.last)

    def make(self, group: str, at: float) -> None:
        self.client.xgroup_destroy(S, group)
        self.delivered[group] = self.at(at)
        self.pending[group] = set()
        self.client.xgroup_create(S, group, text(self.delivered[group]))

    def set_back(self, group: str, at: float) -> None:
        if group in self.delivered:
            self.delivered[group] = self.at(at)
            self.client.xgroup_setid(S, group, text(self.delivered[group]))

    def destroy(self, group: str) -> None:
        self.client.xgroup_destroy(S, group)
        self.delivered.pop(group, None)
        self.pending.pop(group, None)

    def read(self, group: str, count: int) -> None:
        if group not in self.delivered:
            return
        unread = [entry for entry in self.entries if entry > self.delivered[group]][:count]
        self.client.xreadgroup(group, "c", {S: ">"}, count=count)
        if unread:
            self.delivered[group] = unread[-1]
            self.pending[group] |= set(unread)

    def acknowledge(self, group: str, which: list[float]) -> None:
        if self.pending.get(group):
            pending = sorted(self.pending[group])
            acked = {pending[int(part * (len(pending) - 1))] for part in which}
            self.client.xack(S, group, *map(text, acked))
            self.pending[group] -= acked

    def delete(self, which: list[float]) -> None:
        if self.entries:
            gone = {self.entries[int(part * (len(self.entries) - 1))] for part in which}
            self.client.xdel(S, *map(text, gone))
            self.entries = [entry for entry in self.entries if entry not in gone]

    def cut(self, count: int) -> None:
        self.client.xtrim(S, maxlen=max(0, len(self.entries) - count), approximate=False)
        self.entries = self.entries[count:]

    def at(self, part: float) -> Id:
        """Return an id somewhere in the stream, as a position; 0 and 1 are its ends."""
        known = [(0, 0), *self.entries, self.last]
        return known[int(part * (len(known) - 1))]

    def needed(self, group: str) -> list[Id]:
        return [
            entry
            for entry in self.entries
            if entry > self.delivered[group] or entry in self.pending[group]
        ]

    def trim(self, keep: int, max_length: int) -> tuple[int, int, int]:
        handled = 0
        if self.delivered:
            needed = {entry for group in self.delivered for entry in self.needed(group)}
            while handled < len(self.entries) - keep and self.entries[handled] not in needed:
                handled += 1
        left = len(self.entries) - handled
        lost = max(0, left - max_length) if max_length else 0
        self.entries = self.entries[handled + lost :]
        return handled, lost, len(self.entries)


def text(entry_id: Id) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"


GROUP = st.sampled_from("abc")
PART = st.floats(0, 1)
STEPS = st.tuples(st.sampled_from([0, 0, 1, 7, 90, 2**50]), st.sampled_from([0, 1, 8, 98, 2**53]))
ACTION: st.SearchStrategy[tuple[str, tuple[Any, ...]]] = st.one_of(
    st.tuples(st.just("add"), st.tuples(st.lists(STEPS, min_size=1, max_size=12))),
    st.tuples(st.just("make"), st.tuples(GROUP, PART)),
    st.tuples(st.just("set_back"), st.tuples(GROUP, PART)),
    st.tuples(st.just("destroy"), st.tuples(GROUP)),
    st.tuples(st.just("read"), st.tuples(GROUP, st.integers(1, 15))),
    st.tuples(st.just("acknowledge"), st.tuples(GROUP, st.lists(PART, min_size=1, max_size=12))),
    st.tuples(st.just("delete"), st.tuples(st.lists(PART, min_size=1, max_size=4))),
    st.tuples(st.just("cut"), st.tuples(st.integers(0, 4))),
    st.tuples(st.just("trim"), st.tuples(st.integers(0, 6), st.sampled_from([0, 0, 0, 8]))),
)


@pytest.fixture
def small_nodes(redis_server: Callable[..., RedisServer]) -> Iterator[Trimming]:
    """A server whose streams have nodes of four entries."""
    made = Trimming(redis_server("--stream-node-max-entries", "4"))
    yield made
    made.servers.close()


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                             HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(ACTION, min_size=5, max_size=40), st.integers(1, 9))
def test_does_what_the_model_does(
    small_nodes: Trimming, actions: list[tuple[str, tuple[Any, ...]]], size: int
) -> None:
    small_nodes.client.flushall()
    model = Model(small_nodes.client)
    model.add([(1, 0)] * 9)
    for name, arguments in (*actions, ("trim", (0, 0))):
        if name == "trim":
            counted = small_nodes.count(*arguments)
            trimmed = small_nodes.whole(*arguments, size=size)
            assert trimmed == counted == model.trim(*arguments)
        else:
            getattr(model, name)(*arguments)
        assert small_nodes.ids() == [text(entry) for entry in model.entries], name


def test_a_trimmed_stream_gives_each_group_all_that_it_had_not_handled(trimming: Trimming) -> None:
    trimming.add(3000)
    trimming.group("slow", "1000-0")
    trimming.group("other", "2000-0")
    mine = trimming.read("slow", 500)
    trimming.client.xack(S, "slow", *mine[:250])
    assert trimming.whole(keep=10) == (1250, 0, 1750)
    ((_, again),) = trimming.client.xreadgroup("slow", "c", {S: "0"}, count=3000)
    assert [entry_id.decode() for entry_id, fields in again if fields] == mine[250:]
    assert len(trimming.read("slow", 5000)) == 1500
    assert len(trimming.read("other", 5000)) == 1000
