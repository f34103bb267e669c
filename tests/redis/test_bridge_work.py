"""A worker of a bridge in this process, between a daemon that is played here and a real Redis."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from redis_servers import RedisServer
from wakeq.bridge import talk
from wakeq.bridge.work import Desk, Relay
from wakeq.bridge.writer import _Line


@pytest.fixture
def daemon(redis: RedisServer) -> Iterator[talk.Talk]:
    """The daemon's end of the talk with a worker that publishes to the stream `s`."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)  # a test that waits in vain is to end
    said = {
        "settings": {"stream": "s"}, "bridge": "b", "process": "p", "worker": "w",
        "skips": [], "careful": 0, "url": redis.url,
    }  # fmt: skip
    relay = Relay(Desk(talk.Talk(theirs), said))
    thread = threading.Thread(target=relay.run)
    thread.start()
    end = talk.Talk(ours)
    yield end
    end.finish()
    thread.join()
    relay._writer.close()
    ours.close()
    theirs.close()


def hear(end: talk.Talk, what: str) -> Any:
    """Wait until the worker says something of a kind, and return it."""
    while True:
        heard = end.hear()
        assert heard is not None
        for said in heard:
            if said[0] == what:
                return said


def test_what_could_not_be_sent_does_not_wait_for_the_next_batch(
    daemon: talk.Talk, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_one, failed = _Line.send_one, []

    def fail_once(line: _Line, command: Any) -> None:
        if failed:
            return send_one(line, command)
        failed.append(command)
        raise line._lost(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))

    monkeypatch.setattr(_Line, "send_one", fail_once)
    daemon.say(talk.BATCH, 1, [(b"c", [b"m"])], b"")
    assert hear(daemon, talk.DONE)[:3] == (talk.DONE, 1, (1, 1, 0))
    assert failed
    assert [fields[b"body"] for _, fields in redis.client().xrange("s")] == [b"m"]
