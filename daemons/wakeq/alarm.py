"""A time at which to be woken, also if the machine was suspended until then.

CLOCK_BOOTTIME is not changed by who sets the clock, and goes on while a machine is suspended; a
timeout of poll(2) does not. So what may be believed until then is watched by a timer of that
clock, timerfd_create(2), over the C library (Python knows it from 3.13 on).
"""

import ctypes
import os
import time

from wakeq.errors import WakeqError

_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC  # the same bits as TFD_*
_ABSTIME = 1


class _Setting(ctypes.Structure):
    """struct itimerspec: interval and first time, in seconds and ns each."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Alarm:
    """Is readable once a time of its clock has come.

    Attributes:
        fd: the file descriptor, for a selector.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_BOOTTIME, _NONBLOCK_CLOEXEC)
        if self.fd < 0:
            raise WakeqError(f"a timer cannot be used: {os.strerror(ctypes.get_errno())}")

    @staticmethod
    def clock() -> float:
        """Return the time in seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def set(self, when: float) -> None:
        """Go off at a time of `clock`, no more at the one before; 0: not at all."""
        seconds = int(when)
        setting = _Setting(0, 0, seconds, int((when - seconds) * 1e9))
        if self._libc.timerfd_settime(self.fd, _ABSTIME, ctypes.byref(setting), None) < 0:
            raise WakeqError(f"a timer cannot be set: {os.strerror(ctypes.get_errno())}")

    def clear(self) -> None:
        """Be readable no more, until it goes off again."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass  # it was set anew meanwhile

    def close(self) -> None:
        """Give the file descriptor back."""
        os.close(self.fd)
