"""The scripts of an election: elect, resign, and the fence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError

NAME = "night"
LEASE, CHANNEL = keys.lease(NAME), keys.vacancy(NAME)
LEASE_MS, KEEP_MS = 60_000, 600_000


class Election:
    """Runs the scripts for one name."""

    def __init__(self, server: RedisServer, connection: Connection) -> None:
        self.client = server.client()
        self.connection = connection

    def elect(
        self,
        who: str,
        token: bytes = b"",
        watched: bytes = b"",
        lease_ms: int = LEASE_MS,
        connection: Connection | None = None,
    ) -> Any:
        """Ask for the lease as the process `who` on a host of that name."""
        arguments: list[Any] = [who, f"{who}/1", lease_ms, token, watched, KEEP_MS]
        return Script("elect").call(connection or self.connection, [LEASE], arguments)

    def first(self, who: str = "a", lease_ms: int = LEASE_MS) -> bytes:
        """Elect somebody, after the last one has resigned."""
        self.client.hset(LEASE, mapping={"holder": "", "token": "1"})
        token = self.elect(who, lease_ms=lease_ms)[0]
        assert isinstance(token, bytes)
        assert token
        return token

    def resign(self, token: bytes) -> Any:
        return Script("resign").call(self.connection, [LEASE], [token, CHANNEL])

    def run_fenced(self, token: bytes) -> Any:
        """Add an entry to the stream `out`, as the leader with this token."""
        script = Script("elect")
        script.text = FENCE + b"return redis.call('RPUSH', KEYS[1], ARGV[1])"
        return script.call(self.connection, ["out", LEASE], ["x", token])

    def run_out(self) -> None:
        """Have the lease be over, by the clock of Redis."""
        self.client.hset(LEASE, "until", 1)


FENCE = Script("hold", fenced=True).text.removesuffix(Script("hold").text)


@pytest.fixture
def election(redis: RedisServer) -> Iterator[Election]:
    connection = Connection(RedisURL(redis.url), "test")
    connection.connect()
    yield Election(redis, connection)
    connection.close()


def test_of_many_at_once_one_is_elected(election: Election, redis: RedisServer) -> None:
    election.client.hset(LEASE, mapping={"holder": "", "token": "1"})
    together = threading.Barrier(16)

    def ask(number: int) -> Any:
        connection = Connection(RedisURL(redis.url), "test")
        connection.connect()
        together.wait(60)
        reply = election.elect(f"p{number}", connection=connection)
        connection.close()
        return reply

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, range(16)))
    leaders = [number for number, reply in enumerate(replies) if reply[0]]
    assert len(leaders) == 1
    names = {bytes(reply[1]) for reply in replies if not reply[0]}
    assert names == {f"p{leaders[0]}/1".encode()}


def test_the_leader_keeps_its_token_and_the_others_wait(election: Election) -> None:
    token = election.first("a")
    assert election.elect("a", token) == [token, 0]
    nobody, who, left, term = election.elect("b")
    assert (nobody, who) == (b"", b"a/1")
    assert LEASE_MS / 2 < left <= LEASE_MS
    assert term == token + b":1"


def test_a_renewal_prolongs_the_lease_and_has_a_term_of_its_own(election: Election) -> None:
    token = election.first("a")
    before = election.elect("b")
    election.run_out()
    assert election.elect("a", token) == [token, 0]
    after = election.elect("b", watched=before[3])
    assert (after[0], after[3] != before[3]) == (b"", True)
    assert after[2] > LEASE_MS / 2


def test_a_lease_that_was_watched_until_its_end_goes_to_another(election: Election) -> None:
    old = election.first("a")
    term = election.elect("b")[3]
    election.run_out()
    token, forgot = election.elect("b", watched=term)
    assert int(token) > int(old)
    assert forgot == 0
    # And the one before is told so.
    assert election.elect("a", old)[:2] == [b"", b"b/1"]


def test_a_lease_that_nobody_watched_is_watched_first(election: Election) -> None:
    # As if the clock of Redis had been set forward: the leader may still believe.
    token = election.first("a")
    election.run_out()
    assert election.elect("b")[0::2] == [b"", LEASE_MS]
    assert election.elect("b", watched=b"5:5")[0] == b""
    assert election.elect("a", token) == [token, 0]


def test_a_lease_is_not_over_before_redis_says_so(election: Election) -> None:
    election.first("a")
    term = election.elect("b")[3]
    assert election.elect("b", watched=term)[0] == b""


def test_a_clock_that_was_set_back_prolongs_no_lease(election: Election) -> None:
    election.first("a")
    far = int(election.client.hget(LEASE, "until") or 0) + 3_600_000
    election.client.hset(LEASE, "until", far)
    assert election.elect("b")[2] == LEASE_MS
    assert election.elect("b")[2] <= LEASE_MS
    assert int(election.client.hget(LEASE, "until") or 0) < far - 3_000_000


def test_others_wait_as_long_as_the_lease_of_the_leader_is(election: Election) -> None:
    election.first("a", lease_ms=300_000)
    assert election.elect("b", lease_ms=1_000)[2] > 200_000


def test_without_the_key_a_candidate_waits_and_the_leader_goes_on(election: Election) -> None:
    token = election.first("a")
    election.client.delete(LEASE)
    nobody, who, left, term = election.elect("b")
    assert (nobody, who, left) == (b"", b"", LEASE_MS)
    assert election.elect("a", token) == [token, 1]
    election.run_out()
    assert election.elect("b", watched=term)[0] == b""


def test_without_the_key_and_without_a_leader_a_candidate_leads_after_a_lease(
    election: Election,
) -> None:
    term = election.elect("b")[3]
    assert election.elect("b", watched=term)[0] == b""
    election.run_out()
    assert election.elect("b", watched=term)[0]


def test_a_leader_whose_election_redis_has_forgotten_restores_it(election: Election) -> None:
    # A replica was promoted that had seen the leader before it.
    old = election.first("a")
    new = str(int(old) + 5).encode()
    assert election.elect("b", new) == [new, 1]
    assert election.elect("a", old)[:2] == [b"", b"b/1"]


def test_tokens_grow_also_when_the_key_is_lost_and_when_the_clock_is_set_back(
    election: Election,
) -> None:
    old = election.first("a")
    election.client.delete(LEASE)
    assert int(election.first("b")) > int(old)
    ahead = 9 * 10**15
    election.client.hset(LEASE, mapping={"holder": "", "token": ahead})
    assert int(election.elect("c")[0]) == ahead + 1


def test_who_did_not_hear_that_it_was_elected_is_not_preferred(election: Election) -> None:
    old = election.first("a")
    nobody, _, left, term = election.elect("a")
    assert (nobody, left > LEASE_MS / 2) == (b"", True)
    election.run_out()
    assert int(election.elect("b", watched=term)[0]) > int(old)


def test_who_has_resigned_is_followed_at_once_and_candidates_hear_it(
    election: Election,
) -> None:
    token = election.first("a")
    listener = election.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(CHANNEL)
    wait_until(lambda: dict(election.client.pubsub_numsub(CHANNEL))[CHANNEL.encode()] == 1)

    assert election.resign(token) == 1

    heard = wait_until(lambda: listener.get_message(timeout=1))
    listener.close()
    assert heard["channel"] == CHANNEL.encode()
    assert int(election.elect("b")[0]) > int(token)


def test_a_late_renewal_of_who_has_resigned_makes_it_no_leader(election: Election) -> None:
    token = election.first("a")
    election.resign(token)
    assert election.elect("a", token)[0] == b""
    assert election.elect("b")[0]


def test_only_the_leader_can_resign(election: Election) -> None:
    token = election.first("a")
    assert election.resign(b"7") == 0
    assert election.elect("b")[0] == b""
    assert election.resign(token) == 1
    assert election.resign(token) == 0


def test_the_fence_lets_the_leader_through_and_nobody_else(election: Election) -> None:
    old = election.first("a")
    assert election.run_fenced(old) == 1
    term = election.elect("b")[3]
    election.run_out()
    new, _ = election.elect("b", watched=term)
    with pytest.raises(ServerError, match=r"^FENCED"):
        election.run_fenced(old)
    assert election.run_fenced(new) == 2


def test_what_is_sent_after_resigning_does_not_pass_the_fence(election: Election) -> None:
    token = election.first("a")
    election.resign(token)
    with pytest.raises(ServerError, match=r"^FENCED"):
        election.run_fenced(token)


def test_the_lease_outlives_itself_but_not_for_ever(election: Election) -> None:
    election.first("a")
    assert LEASE_MS < election.client.pttl(LEASE) <= KEEP_MS


@pytest.mark.parametrize("publishes", [True, False])
def test_resigning_needs_no_right_to_publish(own_redis: RedisServer, publishes: bool) -> None:
    rights = ["+@all", "~*", "&*"] if publishes else ["+@all", "~*", "resetchannels"]
    own_redis.ask("ACL", "SETUSER", "small", "on", ">p", *rights)
    connection = Connection(RedisURL(own_redis.url.replace("unix://", "unix://small:p@")), "test")
    connection.connect()
    election = Election(own_redis, connection)
    token = election.first("a")
    assert election.resign(token) == 1
    connection.close()


def test_a_leader_stays_one_when_redis_is_out_of_memory(own_redis: RedisServer) -> None:
    connection = Connection(RedisURL(own_redis.url), "test")
    connection.connect()
    election = Election(own_redis, connection)
    token = election.first("a")
    election.client.config_set("maxmemory", 1)
    assert election.elect("a", token) == [token, 0]
    assert election.resign(token) == 1
    connection.close()
