"""The connections of wakeq-delay: one that was closed, one that is silent, a key that moves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from fake_server import GREETING, FakeServer
from redis_servers import Cluster, RedisServer, wait_until
from wakeq.delay import link as module
from wakeq.delay.link import Link
from wakeq.errors import UnavailableError
from wakeq.loop import Loop
from wakeq.redis_url import RedisURL
from wakeq.wire import ServerError


class Watched:
    """The file descriptors that a loop watches."""

    def __init__(self) -> None:
        self.fds: set[int] = set()

    def watch(self, fd: int, _callback: Callable[[], None]) -> None:
        self.fds.add(fd)

    def forget(self, fd: int) -> None:
        self.fds.discard(fd)


def new_link(url: str, watched: Watched | None = None) -> Link:
    return Link(cast(Loop, watched or Watched()), RedisURL(url))


@pytest.fixture
def link(cluster: Cluster) -> Iterator[Link]:
    link = new_link(cluster.url())
    yield link
    link.close()


def key_of(cluster: Cluster, index: int, start: str = "s") -> str:
    """Return a key that a node has."""
    return next(key for i in range(1000) if cluster.owner(key := f"{start}{i}") == index)


def hang_up(node: RedisServer) -> None:
    """Close what wakeq-delay has open to a server."""
    for client in node.client().client_list():
        if client["name"] == "wakeq-delay":
            node.ask("CLIENT", "KILL", "ID", client["id"])


def asked(link: Link, key: str) -> Any:
    """Return a reply as wakeq-delay comes to it: it follows a key that has moved."""
    for _ in range(3):
        reply = link.call(key, "TYPE", key)
        if not isinstance(reply, ServerError):
            break
        link.forget(key)
    return reply


def test_closed_twice_it_leaves_alone_who_watches_the_same_number_by_then(
    redis: RedisServer,
) -> None:
    watched = Watched()
    link = new_link(redis.url, watched)
    link.listen()
    (fd,) = watched.fds
    link.close()
    assert not watched.fds
    watched.fds.add(fd)
    link.close()
    assert watched.fds == {fd}


@pytest.mark.parametrize("closes", [False, True], ids=["silent", "closed"])
def test_asks_again_after_a_closed_connection_and_never_after_a_silent_one(
    closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not closes:
        monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.1)
        monkeypatch.setattr(module, "_SILENT_SECONDS", 0.1)
    else:
        monkeypatch.setattr(module, "_SILENT_SECONDS", 60.0)
    connects = 0

    def answer(request: bytes) -> bytes:
        nonlocal connects
        if request.endswith(b"server\r\n"):
            connects += 1
            return b"".join(GREETING)
        if closes and connects == 1:
            raise OSError  # it hangs up
        return b"+PONG\r\n" if closes else b""

    with FakeServer(answer) as server:
        link = new_link(server.url)
        try:
            if closes:
                assert link.call("", "PING") == b"PONG"
                assert connects == 2
            else:
                with pytest.raises(UnavailableError, match="did not answer in time"):
                    link.call("", "PING")
                assert connects == 1
        finally:
            link.close()


def test_a_key_that_goes_to_another_server_and_back_is_found(
    cluster: Cluster, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.0)
    key = key_of(cluster, 0)
    assert asked(link, key) == b"none"
    cluster.move(key, 1)
    hang_up(cluster.nodes[0])
    assert asked(link, key) == b"none"
    cluster.move(key, 0)
    assert asked(link, key) == b"none"
    # And with a connection to each of them, one of which leads to the other server by then.
    other = key_of(cluster, 1, "t")
    assert asked(link, other) == b"none"
    cluster.move(key, 1)
    hang_up(cluster.nodes[0])
    assert [asked(link, name) for name in (key, other)] == [b"none"] * 2
    assert link.connection(key) is link.connection(other)
    cluster.move(key, 0)
    assert [asked(link, name) for name in (key, other)] == [b"none"] * 2
    assert link.connection(key) is not link.connection(other)


def test_a_silent_server_is_left_alone_for_a_while_and_the_others_are_found(
    cluster: Cluster, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_SHARE", 0.001)
    # All that connects anew is counted by who leads there.
    connects: list[str] = []
    connected = link._connected
    monkeypatch.setattr(
        link, "_connected", lambda key, at="": (connects.append(key), connected(key, at))[1]
    )
    gone, there, unseen = (key_of(cluster, index) for index in range(3))
    assert asked(link, there) == b"none"
    os.kill(cluster.nodes[0].pid, signal.SIGSTOP)
    for name in (gone, *(f"{{{gone}}}{i}" for i in range(20))):
        with pytest.raises(UnavailableError):
            link.connection(name)
    assert connects == [there, gone]
    assert asked(link, unseen) == b"none"
    assert asked(link, f"{{{unseen}}}") == b"none"
    assert connects == [there, gone, unseen]
    assert link.has(there)
    assert not link.has(gone)
    link.close()  # begun anew, it is tried
    os.kill(cluster.nodes[0].pid, signal.SIGCONT)
    wait_until(lambda: asked(link, gone) == b"none")
