"""The sockets of wakeq-fanout: those that it listens to, and the connections to its clients.

It reads and writes, and hands lines to who carries them out. A client that does not read what is
for it is not read from either, and is told of when that lasts.
"""

import contextlib
import errno
import select
import socket
import time
from typing import Protocol

from wakeq.fanout.peer import Peer
from wakeq.loop import Loop

_EVENTS_MOST = 512
# After "too many open files": some may be closed by then.
_NO_FILES_SECONDS = 1.0
_LOOK_SECONDS = 0.5
# How much longer a line is than its message, at most: names, and what they are escaped by.
_ENVELOPE = 16_384
_READS, _WRITES = select.EPOLLIN, select.EPOLLOUT
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Host(Protocol):
    """Who carries requests out."""

    def greet(self, sock: socket.socket) -> Peer:
        """Return what a connection becomes."""

    def take(self, peer: Peer, line: bytes | None) -> None:
        """Carry out a line; None: one that was too long. May make the peer busy."""

    def resume(self, peer: Peer) -> None:
        """Hear that a connection is not behind any more."""

    def part(self, peer: Peer) -> None:
        """Hear that a connection has ended."""

    def eject(self, peer: Peer, reason: str) -> None:
        """Have somebody be no client of any room any more, and tell him."""


class Door:
    """Keeps the connections.

    Args:
        loop: what calls when there is something to do.
        listeners: the listening sockets.
        most: how many connections there may be; more wait in the queues of the sockets.
        slow_timeout: how long a client may leave unread what is for it, in seconds.

    Attributes:
        host: who carries requests out.
        peers: the connections, by file descriptor.
        behind: those of which more than half of what may wait does.
        empty_since: since when there is no connection, monotonic.
    """

    def __init__(
        self, loop: Loop, listeners: list[socket.socket], most: int, slow_timeout: float
    ) -> None:
        self.host: Host
        self.peers: dict[int, Peer] = {}
        self.behind: set[Peer] = set()
        self.empty_since = time.monotonic()
        self._loop = loop
        self._listeners = listeners
        self._most = most
        self._slow_timeout = slow_timeout
        # An epoll in the loop's: the loop knows no writing, and all that is ready comes at once.
        self._epoll = select.epoll()
        self._listening = self._quiet = False
        self._looks = False
        self._unsent: set[Peer] = set()
        self._pumped: set[Peer] = set()
        self._done: list[Peer] = []

    def open(self) -> None:
        """Serve from now on."""
        for listener in self._listeners:
            listener.setblocking(False)
        self._listen()
        self._loop.watch(self._epoll.fileno(), self._poll)

    def _listen(self) -> None:
        if not (self._listening or self._quiet):
            self._listening = True
            for listener in self._listeners:
                self._epoll.register(listener.fileno(), select.EPOLLIN)

    def quiet(self) -> None:
        """Accept nobody, and carry nothing out, from now on; who connects waits in the queue of the
        socket."""
        self._quiet = True
        self._hold()

    def _hold(self) -> None:
        if self._listening:
            self._listening = False
            for listener in self._listeners:
                self._epoll.unregister(listener.fileno())

    def close(self) -> None:
        """Close all connections, with what waits for them sent as far as they take it."""
        self.quiet()
        for peer in list(self.peers.values()):
            peer.send()
            peer.close()
        self.peers.clear()
        self._loop.forget(self._epoll.fileno())
        self._epoll.close()

    # -- what is ready -----------------------------------------------------------------------

    def _poll(self) -> None:
        for fd, events in self._epoll.poll(0, _EVENTS_MOST):
            peer = self.peers.get(fd)
            if peer is None:
                self._accept(fd)
                continue
            if events & ~_READS:
                self._unsent.add(peer)
            if peer.wants_more:
                self._receive(peer)

    def _receive(self, peer: Peer) -> None:
        if peer.busy or self._quiet:
            peer.receive()  # it waits here, else it would be told of for ever
        elif (line := peer.receive_line()) is not None:
            self.host.take(peer, line)
            if peer.is_odd:
                self._pumped.add(peer)
            return
        self.pump(peer)

    def _accept(self, fd: int) -> None:
        for listener in self._listeners:
            if listener.fileno() == fd:
                self._accept_all(listener)

    def _accept_all(self, listener: socket.socket) -> None:
        while self._listening:
            if len(self.peers) >= self._most:
                self._hold()
                return
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._hold()
                    self._loop.after(_NO_FILES_SECONDS, self._listen)
                return  # none waits, or it went away while it waited
            sock.setblocking(False)
            _watch_far_end(sock)
            peer = self.host.greet(sock)
            self.peers[peer.fd] = peer
            self._watch(peer, _READS)

    def pump(self, peer: Peer) -> None:
        """Have the lines carried out that a connection has sent, as far as it may go on."""
        while peer.has_line and not (peer.busy or peer.closed or peer.is_behind or self._quiet):
            self.host.take(peer, peer.next_line())
        if peer.is_odd:
            self._pumped.add(peer)

    def again(self, peer: Peer) -> None:
        """Go on with a connection whose request was carried out, when `go_on` is called."""
        self._done.append(peer)

    def go_on(self) -> None:
        """Go on with those."""
        while self._done:
            done, self._done = self._done, []
            for peer in done:
                self.pump(peer)

    def deliver(self, peer: Peer, line: bytes) -> None:
        """Have a message sent to a connection; one that has fallen too far behind is ejected."""
        if peer.has_room(len(line)) or self._makes_room(peer, len(line)):
            self.put(peer, line)
        elif not peer.closed:
            self.host.eject(peer, "too-slow")

    def _makes_room(self, peer: Peer, size: int) -> bool:
        if not peer.has_room(size):
            peer.send()
        return peer.has_room(size)

    def has_room(self, peer: Peer, size: int) -> bool:
        """Tell whether a message may be put, whose line is some longer than it; if not, the peer
        is behind until it has read all."""
        if self._makes_room(peer, size + _ENVELOPE):
            return True
        peer.is_held = True
        self._unsent.add(peer)
        return False

    def put(self, peer: Peer, line: bytes) -> None:
        """Have a line sent that must not be left out: an answer, of which there are few, as no
        requests are taken from who is behind; or the event that somebody is ejected."""
        if not peer.closed:
            peer.put(line)
            self._unsent.add(peer)

    def flush(self) -> None:
        """Send what the turn has brought, and see what may be read next."""
        odd = self._pumped
        for peer in self._unsent:
            peer.send()
            if peer.unsent or peer.is_odd:
                odd.add(peer)
        self._unsent, self._pumped = set(), set()
        for peer in odd:
            self._settle(peer)

    def _settle(self, peer: Peer) -> None:
        if peer.fd not in self.peers or self.peers[peer.fd] is not peer:
            return
        if peer.is_behind and not peer.behind_since:
            peer.behind_since = time.monotonic()
            self.behind.add(peer)
        elif not peer.is_behind:
            if peer.behind_since or peer.is_held:
                peer.behind_since = 0.0
                peer.is_held = False
                self.behind.discard(peer)
                self.host.resume(peer)
            if peer.has_line and not (peer.busy or self._quiet):
                self.pump(peer)  # it was behind, if only until the end of this turn
        done = peer.ended and not (peer.has_line or peer.busy or peer.acks or peer.unsent)
        if peer.closed or done:
            self._drop(peer)
            return
        self._watch(peer, (_READS if peer.wants_more else 0) | (_WRITES if peer.unsent else 0))

        if peer.unsent and not self._looks:
            self._looks = True
            self._loop.after(_LOOK_SECONDS, self._look_for_slow)

    def _watch(self, peer: Peer, interest: int) -> None:
        # Where nothing is wanted, not even that it has been hung up, which would be told for ever.
        if interest == peer.interest:
            return
        if not interest:
            self._epoll.unregister(peer.fd)
        elif not peer.interest:
            self._epoll.register(peer.fd, interest)
        else:
            self._epoll.modify(peer.fd, interest)
        peer.interest = interest

    def _drop(self, peer: Peer) -> None:
        del self.peers[peer.fd]
        self.behind.discard(peer)
        self._watch(peer, 0)
        peer.close()
        if not self.peers:
            self.empty_since = time.monotonic()
        self.host.part(peer)
        if len(self.peers) == self._most - 1:
            self._listen()

    @property
    def has_work(self) -> bool:
        """Tell whether `flush` has something to do at once."""
        return bool(self._unsent or self._pumped or self._done)

    def _look_for_slow(self) -> None:
        """Eject who does not read, and give up who does not even then; as long as there may be."""
        slow = [peer for peer in self.peers.values() if peer.unsent]
        self._looks = bool(slow)
        if slow:
            self._loop.after(_LOOK_SECONDS, self._look_for_slow)
        before = time.monotonic() - self._slow_timeout
        for peer in slow:
            still = peer.moved_at < before
            if peer.rooms and (still or 0 < peer.behind_since < before):
                self.host.eject(peer, "too-slow")
            elif still and not peer.rooms:
                peer.closed = True
                self._pumped.add(peer)


def _watch_far_end(sock: socket.socket) -> None:
    """Have a far end noticed within 15 s that is gone without a word."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 6)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)
