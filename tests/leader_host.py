"""Processes that stand for election: wakeq-leader itself, and one that records what it believes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from redis_servers import RedisServer
from wakeq import keys
from wakeup_host import Daemon

NAME = "night"
LEASE = keys.lease(NAME)
RECORD = "record"

# Stands for election with the election of wakeq, and for as long as it believes to lead writes that
# into Redis: `begin TOKEN TIME`, `at TOKEN TIME` every 10 ms, `end TOKEN TIME`. It may stand still
# anywhere: `at` has a time at which it believed so, however late that is written. Arguments:
# URL, a name of its own, lease, trust, and the URL by which it records.
_RECORDER = r"""
import sys
import time
from wakeq.sections import Leader
from wakeq.election import Elector
from wakeq.errors import WakeqError
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.service import Program, Service
from wakeq.loop import Loop
from wakeq.wire import Connection, ServerError

url, name, lease, trust, direct = sys.argv[1:6]
service = Service(Program("recorder", "", Leader), "", {})
service.catch_signals()
loop = Loop(service)
elector = Elector(loop, RedisURL(url), "night", (name, name), (float(lease), float(trust)))
NOTE = "local t = redis.call('TIME') return redis.call('RPUSH', KEYS[1]," \
       " string.format('%s %s %d', ARGV[1], ARGV[2], t[1] * 1000000 + t[2]))"
note = Connection(RedisURL(direct), "recorder")  # not through what is broken by the test
note.connect()
token = b""

def write(what):
    note.call("EVAL", NOTE, 1, "record", what, token)

def tick():
    loop.after(0.01, tick)
    if elector.leads:
        now = time.time()
        if elector.leads:
            note.call("RPUSH", "record", "at %s %d" % (token.decode(), now * 1000000))

def elected(number):
    global token
    token = number
    write("begin")

def lost(why):
    print("lost", why, file=sys.stderr, flush=True)
    write("end")

elector.on_elected, elector.on_lost = elected, lost
elector.on_trouble = lambda error: print("trouble", error, file=sys.stderr, flush=True)
elector.start()
tick()
loop.run()
elector.resign()
"""


@dataclass
class Reign:
    """The time for which one process believed to lead, by the clock of Redis in seconds."""

    token: int
    begin: float
    last: float


class LeaderHost:
    """The folder of a host, and its processes that stand for election.

    Attributes:
        env: added to the environment of each; the test may change it.
    """

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.config_dir = directory / "etc"
        self.config_dir.mkdir()
        self.redis = server.client()
        self.url = server.url
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        self.env = inherited | {"NO_COLOR": "1", "COLUMNS": "300"}
        self._daemons: list[Daemon] = []

    def vacate(self) -> None:
        """Have Redis know that the last leader has left, so that the next one need not wait."""
        self.redis.hset(LEASE, mapping={"holder": "", "token": "1"})

    def start(self, *options: str, url: str = "", name: str = NAME, **env: str) -> Daemon:
        """Start wakeq-leader with a short lease, unless options say otherwise."""
        command = [sys.executable, "-c", "from wakeq.leader.main import main; main()", name]
        command += ["--config-dir", str(self.config_dir), "--redis-url", url or self.url]
        given = {option.partition("=")[0] for option in options}
        for option in ("--lease=3s", "--stop-timeout=0"):
            if option.partition("=")[0] not in given:
                command.append(option)
        return self._run([*command, *options], env)

    def record(self, name: str, lease: float = 2.0, trust: float = 1.2, url: str = "") -> Daemon:
        """Start a process that records what it believes."""
        words = [name, str(lease), str(trust), self.url]
        return self._run(
            [sys.executable, "-c", _RECORDER, url or self.url, *words],
            {"WAKEQ_CONFIG_DIR": str(self.config_dir)},
        )

    def reigns(self) -> list[Reign]:
        """Return who believed to lead and when, in the order of the tokens."""
        found: dict[int, Reign] = {}
        for line in self.redis.lrange(RECORD, 0, -1):
            what, token, usec = line.decode().split()
            when = float(usec) / 1e6
            if what == "begin":
                assert int(token) not in found, "a token was given twice"
                found[int(token)] = Reign(int(token), when, when)
            elif what == "at":
                found[int(token)].last = when
        return [found[token] for token in sorted(found)]

    def assert_one_at_a_time(self) -> list[Reign]:
        """Fail if two believed to lead at one time; return all that did."""
        reigns = self.reigns()
        for before, after in pairwise(reigns):
            assert before.last < after.begin, reigns
        return reigns

    def close(self) -> None:
        """End everything."""
        for daemon in self._daemons:
            daemon.kill()

    def _run(self, command: list[str], env: dict[str, str]) -> Daemon:
        daemon = Daemon(command, self.env | env)
        self._daemons.append(daemon)
        return daemon
