"""Waiting for several files at once, and calling what is registered for those that are ready.

The library's `selectors` does the same for more systems; a consumer starts in less time without
it. It is epoll(7). A file may be unregistered after it was closed.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from collections.abc import Callable


class Selector:
    """Waits for files that something can be read from, by their descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], object]] = {}

    def register(self, fd: int, call: Callable[[], object]) -> None:
        """Have something called, from now on, when there is something to read or the end."""
        self._epoll.register(fd, select.EPOLLIN)
        self._calls[fd] = call

    def unregister(self, fd: int) -> None:
        """Wait for a file no longer."""
        del self._calls[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            self._renew()

    def _renew(self) -> None:
        """Begin anew without a file that has been closed.

        If a child process has it open yet, epoll goes on to tell of it, under a number that may
        be that of another file by now, and it cannot be unregistered any more: epoll(7).
        """
        self._epoll.close()
        self._epoll = select.epoll()
        for fd in self._calls:
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError:
                pass  # closed as well, and unregistered soon

    def forget(self, call: Callable[[], object]) -> None:
        """Wait no longer for the files that this would be called for."""
        for fd in [fd for fd, other in self._calls.items() if other == call]:
            self.unregister(fd)

    def wait(self, seconds: float) -> list[int]:
        """Return the descriptors that are ready, after so many seconds at most; maybe none."""
        return [fd for fd, _ in self._epoll.poll(seconds)]

    def call(self, fd: int) -> None:
        """Call what is registered for a descriptor, if anything is still."""
        call = self._calls.get(fd)
        if call is not None:
            call()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()
