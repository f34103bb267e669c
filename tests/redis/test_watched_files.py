"""What watches a connection by its number stops when that is closed: it may be another file's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fake_server import GREETING, FakeServer
from redis_servers import RedisServer
from wakeq.config import Consumer
from wakeq.errors import RefusedError, UnavailableError, WakeqError
from wakeq.fanout.door import Door
from wakeq.fanout.gateway import Gateway
from wakeq.fanout.link import Link
from wakeq.fanout.trouble import Trouble
from wakeq.journal import Log
from wakeq.redis_url import RedisURL
from wakeq.wakeup.group import Group
from wakeq.wakeup.lines import Line, Lines
from wakeq.wakeup.watcher import Watcher
from wakeq.wire import Connection


class Files:
    """A loop that does nothing by itself; `watched` are its callbacks, by the file's number."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        assert fd not in self.watched
        self.watched[fd] = callback

    def forget(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """No time passes here."""

    def read(self) -> int:
        """Have the one file that is watched read, and return its number."""
        ((number, callback),) = self.watched.items()
        callback()
        return number


def something_else() -> None:
    """What is called for another file."""


def test_a_line_that_ended_quietly_leaves_the_next_file_of_its_number_alone(
    own_redis: RedisServer,
) -> None:
    loop: Any = Files()
    line = Line(loop, Connection(RedisURL(own_redis.url), "test"))
    line.open()
    own_redis.stop()
    number = loop.read()
    assert loop.watched == {}
    loop.watch(number, something_else)
    with pytest.raises(UnavailableError):
        line.ask(("PING",), lambda _: None)
    line.close()
    assert loop.watched == {number: something_else}


def test_a_shard_that_ended_quietly_leaves_the_next_file_of_its_number_alone(
    own_redis: RedisServer,
) -> None:
    own_redis.ask("XADD", "orders", "1-0", "body", "x")
    loop: Any = Files()
    lines = Lines(loop, RedisURL(own_redis.url))
    watcher = Watcher(loop, lines)
    hinted: list[Group] = []
    watcher.on_hint = hinted.append
    settings = Consumer()
    settings.stream = settings.group = "orders"
    group = Group(settings)
    watcher.watch(group, (0, 0), (0, 0))
    watcher.send()
    loop.read()
    assert hinted == [group]
    own_redis.stop()
    number = loop.read()
    assert loop.watched == {}
    loop.watch(number, something_else)
    watcher.close()
    assert loop.watched == {number: something_else}


def test_a_gateway_that_hears_no_more_leaves_the_next_file_of_its_number_alone(
    own_redis: RedisServer,
) -> None:
    loop: Any = Files()
    link = Link(loop, RedisURL(own_redis.url), Trouble(Log("test")))
    door = Door(loop, [], 10, 1.0)
    gateway = Gateway(loop, link, door, 10.0, 0)
    gateway.listen()
    own_redis.stop()
    number = loop.read()
    assert loop.watched == {}
    loop.watch(number, something_else)
    gateway.listen()  # in vain
    assert loop.watched == {number: something_else}
    gateway.close()
    assert loop.watched == {number: something_else}
    loop.forget(number)
    door.close()


def no_permission() -> bytes:
    return b"-NOPERM this user has no permissions to run the 'cluster|myid' command\r\n"


def hangs_up() -> bytes:
    raise ConnectionAbortedError


@pytest.mark.parametrize(
    ("answer", "error"), [(no_permission, RefusedError), (hangs_up, UnavailableError)]
)
def test_a_node_that_does_not_say_who_it_is_is_not_watched(
    answer: Callable[[], bytes], error: type[WakeqError]
) -> None:
    def serve(request: bytes) -> bytes:
        if b"MYID" in request:
            return answer()
        return b"+PONG\r\n" if b"PING" in request else b"".join(GREETING) + b":0\r\n"

    loop: Any = Files()
    with FakeServer(serve) as server:
        lines = Lines(loop, RedisURL(server.url.replace("redis://", "redis+cluster://")))
        with pytest.raises(error):
            lines.to(b"orders")
        assert loop.watched == {}
