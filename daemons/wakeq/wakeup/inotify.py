"""Changes in directories, as inotify(7) tells them, over the C library.

What it tells is a hint: events may be lost (the queue is bounded) and a directory may be
replaced. Who listens looks at the directory itself, after each hint and now and then.
"""

import ctypes
import os
import struct
from collections.abc import Callable

from wakeq.errors import WakeqError

_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name

# inotify.h
_CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_Q_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLYDIR = 0x1000000
_CONTENT = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_SELF = _DELETE_SELF | _MOVE_SELF

# The names that changed; None: any may have.
Changed = Callable[[set[str] | None], None]


class Inotify:
    """Watches directories, also those that do not exist yet."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise WakeqError(f"inotify cannot be used: {os.strerror(ctypes.get_errno())}")
        self._changed: dict[str, Changed] = {}
        # Watch descriptor -> what is watched, and the directories for whose sake.
        self._watched: dict[int, tuple[str, set[str]]] = {}

    def watch(self, directory: str, changed: Changed) -> None:
        """Call whenever something in a directory changes."""
        self._changed[directory] = changed
        self._arm(directory)

    def read(self) -> None:
        """Take what the kernel has to tell, and call whom it concerns."""
        names: dict[str, set[str] | None] = {}
        try:
            while chunk := os.read(self.fd, 65536):
                self._take(chunk, names)
        except BlockingIOError:
            pass  # that was all
        for directory, changed in names.items():
            self._changed[directory](changed)

    def _take(self, chunk: bytes, names: dict[str, set[str] | None]) -> None:
        at = 0
        while at < len(chunk):
            wd, mask, _, length = _EVENT.unpack_from(chunk, at)
            at += _EVENT.size
            name = os.fsdecode(chunk[at : at + length].rstrip(b"\0"))
            at += length
            if mask & _Q_OVERFLOW:
                names.update(dict.fromkeys(self._changed))
                continue
            if wd not in self._watched:
                continue
            path, directories = self._watched[wd]
            if mask & _IGNORED:
                del self._watched[wd]
            for directory in sorted(directories):
                known = names.setdefault(directory, set())
                if mask & (_IGNORED | _SELF) or path != directory:
                    # The directory, or one above it, came or went.
                    self._arm(directory)
                    names[directory] = None
                elif known is not None:
                    known.add(name)

    def _arm(self, directory: str) -> None:
        """Watch a directory, or while it is missing the nearest one above it that is there."""
        for _, directories in self._watched.values():
            directories.discard(directory)
        before = ""
        while True:
            path = directory
            while not self._add(path, directory):
                path = os.path.dirname(path)
            # Once more, for what was made while the one above it was not watched yet.
            if path in (directory, before):
                return
            before = path

    def _add(self, path: str, directory: str) -> bool:
        mask = _CONTENT | _SELF | _ONLYDIR
        wd = self._libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
        if wd < 0:
            # Missing, not permitted, too many watches: what can be watched is the next best,
            # and if that is nothing, who listens looks now and then anyway.
            return path == "/"
        known = self._watched.setdefault(wd, (path, set()))
        if known[0] != path:  # another name of the same directory
            self._watched[wd] = known = (path, known[1])
        known[1].add(directory)
        return True
