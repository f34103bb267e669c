"""The wake socket: who connects to it has this consumer started, and learns when it sleeps.

A connection is a lease: it is kept open for as long as the consumer lives, and its end tells
the other side that the consumer sleeps again. The line `status` on it is answered with one
line of JSON. Connections are accepted before anything that may fail, because one that is left
in the queue of the socket would have systemd start the consumer again at once.
"""

import _socket
import os
from collections.abc import Callable
from functools import partial

from wakeq import systemd
from wakeq.selector import Selector

_NAME = "wake"
# Says which descriptors are leases, to a process that is executed or started with them.
INHERITED = "WAKEQ_WAKE_FDS"
_LONGEST_REQUEST = 256
# More than anybody needs; a leak elsewhere must not take all our file descriptors.
_MOST_LEASES = 256


class WakeSocket:
    """The listening sockets this process was started with, and the connections to them.

    Attributes:
        listeners: the sockets; empty in a terminal.
        leases: the connections, with what was read of a request.
    """

    def __init__(self) -> None:
        self.listeners: list[_socket.socket] = []
        self.leases: dict[_socket.socket, bytes] = {}
        self._selector: Selector | None = None
        self._status: Callable[[], object] = dict

    @classmethod
    def adopt(cls) -> "WakeSocket":
        """Take the sockets that systemd passed, and accept what waits on them."""
        wake = cls()
        named = systemd.listening_fds()
        # A socket that is passed without FileDescriptorName=, as by systemd-socket-activate
        passed = [fd for name, some in named.items() for fd in some if name != "monitor"]
        wake.listeners = [_socket.socket(fileno=fd) for fd in passed]
        for fd in filter(None, os.environ.pop(INHERITED, "").split(",")):
            lease = _socket.socket(fileno=int(fd))
            lease.setblocking(False)
            wake.leases[lease] = b""
        for listener in wake.listeners:
            listener.setblocking(False)
            wake.accept(listener)
        return wake

    def accept(self, listener: _socket.socket) -> None:
        """Accept all connections that wait."""
        while True:
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]  # as socket.accept does
            except OSError:
                return  # none waits, or it went away while it waited
            lease = _socket.socket(fileno=fd)
            if len(self.leases) >= _MOST_LEASES:
                lease.close()
                continue
            lease.setblocking(False)
            self.leases[lease] = b""
            if self._selector is not None:
                self._watch_lease(self._selector, lease)

    def watch(self, selector: Selector, status: Callable[[], object]) -> None:
        """Accept and answer whenever a selector says so, and calls what is registered.

        Args:
            selector: where to register.
            status: returns what `status` is answered with.
        """
        self._selector, self._status = selector, status
        for listener in self.listeners:
            selector.register(listener.fileno(), partial(self.accept, listener))
        for lease in self.leases:
            self._watch_lease(selector, lease)

    def pass_on(self) -> None:
        """Let all sockets survive the execution of another program by this process."""
        for sock in (*self.listeners, *self.leases):
            os.set_inheritable(sock.fileno(), True)
        os.environ[INHERITED] = ",".join(str(lease.fileno()) for lease in self.leases)

    def _watch_lease(self, selector: Selector, lease: _socket.socket) -> None:
        selector.register(lease.fileno(), partial(self._answer, selector, lease))

    def _answer(self, selector: Selector, lease: _socket.socket) -> None:
        if self._has_ended(lease):
            selector.unregister(lease.fileno())
            del self.leases[lease]
            lease.close()

    def _has_ended(self, lease: _socket.socket) -> bool:
        """Answer what came over a lease; return True if it is to be dropped."""
        try:
            chunk = lease.recv(_LONGEST_REQUEST)
            *lines, rest = (self.leases[lease] + chunk).split(b"\n")
            for line in lines:
                if line.strip() == b"status":
                    import json  # only who asks pays for it

                    lease.send(json.dumps(self._status()).encode() + b"\n")
        except BlockingIOError:
            # Nothing to read after all; or the other side does not read its answers, which
            # are then left out.
            return False
        except OSError:
            return True
        self.leases[lease] = rest
        return not chunk or len(rest) > _LONGEST_REQUEST
