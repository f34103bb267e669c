"""Connects to the sockets of consumers: that starts them, and tells when they sleep again.

The connection is a lease. The consumer keeps it open for as long as it lives and answers the
line `status` on it; its end means that the consumer sleeps. A herd of cold starts only queues
for the CPU, so at most `starts` consumers are between connection and answer at a time.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Callable

from wakeq.loop import Loop, Timer
from wakeq.wakeup.group import AWAKE, QUEUED, STARTING, Sleeper

# A start that takes longer does not hold up the others any more.
_SLOT_SECONDS = 10.0
_ANSWER_BYTES = 65536


class Starter:
    """Starts consumers, a few at a time, and keeps a lease on each that is awake.

    Attributes:
        starts: how many may be starting at once.
        on_state: called with a sleeper whose state is to be STARTING, or AWAKE when it has
            answered.
        on_end: called with a sleeper whose lease has ended.
        on_refusal: called with a sleeper that cannot be connected to, and the reason.
    """

    def __init__(self, loop: Loop, starts: int) -> None:
        self.starts = starts or 2 * (os.cpu_count() or 1)
        self.on_state: Callable[[Sleeper, str], None]
        self.on_end: Callable[[Sleeper], None]
        self.on_refusal: Callable[[Sleeper, OSError], None]
        self._loop = loop
        self._queue: deque[Sleeper] = deque()
        self._slots: dict[Sleeper, Timer] = {}
        self._leases: dict[Sleeper, socket.socket] = {}

    def start(self, sleeper: Sleeper) -> None:
        """Connect to a sleeper as soon as there is a slot; its state is QUEUED now."""
        self._queue.append(sleeper)

    def drop(self, sleeper: Sleeper) -> None:
        """Close the lease on a sleeper without a word; nothing if there is none."""
        self._close(sleeper)
        if sleeper.state == QUEUED:
            self._queue.remove(sleeper)

    def send(self) -> None:
        """Use the free slots: the end of a turn."""
        while self._queue and len(self._slots) < self.starts:
            self._connect(self._queue.popleft())

    def _connect(self, sleeper: Sleeper) -> None:
        try:
            lease = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # too many open files
            self.on_refusal(sleeper, error)
            return
        try:
            lease.connect(sleeper.path)
            lease.send(b"status\n")
        except OSError as error:
            lease.close()
            # Whoever closes at once has been woken all the same.
            if error.errno == errno.EPIPE:
                self.on_state(sleeper, STARTING)
                self.on_end(sleeper)
            else:
                self.on_refusal(sleeper, error)
            return
        self._leases[sleeper] = lease
        self._slots[sleeper] = self._loop.after(_SLOT_SECONDS, lambda: self._free(sleeper))
        self._loop.watch(lease.fileno(), lambda: self._read(sleeper))
        self.on_state(sleeper, STARTING)

    def _read(self, sleeper: Sleeper) -> None:
        try:
            answer = self._leases[sleeper].recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""  # killed before it had accepted: a reset is an end too
        if not answer:
            self._close(sleeper)
            self.on_end(sleeper)
        elif sleeper.state == STARTING:
            self._free(sleeper)
            self.on_state(sleeper, AWAKE)

    def _free(self, sleeper: Sleeper) -> None:
        timer = self._slots.pop(sleeper, None)
        if timer is not None:
            timer.cancel()

    def _close(self, sleeper: Sleeper) -> None:
        self._free(sleeper)
        lease = self._leases.pop(sleeper, None)
        if lease is not None:
            self._loop.forget(lease.fileno())
            lease.close()
