"""What systemd gives a service and hears from it: sockets, credentials, notifications.

Read from the environment by hand, as sd_listen_fds(3) and systemd.exec(5) say, because
importing systemd.daemon takes a consumer a tenth of its start-up time. Notifications go
through sdnotify, which is as small but for the socket module that it loads; so READY=1, which
must be said before the first message is handled, does not wait for that.
"""

from __future__ import annotations

import os

from wakeq.errors import ConfigError

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    import socket
    from typing import Any

_FIRST_FD = 3


class Notifier:
    """Tells the service manager how the service is; without one, says nothing.

    The watchdog is told only through `alive`, from the loop that makes progress.
    """

    def __init__(self) -> None:
        self._notifier: Any = None
        # Kept, because the application may take it out of its environment.
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._status = ""
        self.watchdog_seconds = _watchdog_seconds()

    def _send(self, state: str) -> None:
        if not self._address:
            return
        if self._notifier is None:
            self._notifier = self._connect()
        self._notifier.notify(state)

    def _connect(self) -> Any:
        import sdnotify

        there = os.environ.get("NOTIFY_SOCKET")
        os.environ["NOTIFY_SOCKET"] = self._address
        try:
            return sdnotify.SystemdNotifier()
        finally:
            if there is None:
                del os.environ["NOTIFY_SOCKET"]
            else:
                os.environ["NOTIFY_SOCKET"] = there

    def ready(self) -> None:
        """Say that the service is ready, or ready again after a reload."""
        if self._notifier is not None:
            self._send("READY=1")
        elif self._address:
            _send_alone("READY=1", self._address)

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it."""
        usec = monotonic_usec()
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def stopping(self) -> None:
        """Say that the service is going to exit."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog quiet for another WatchdogSec=."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time for the start or the stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def status(self, text: str) -> None:
        """Say in words what the service is doing; the same words are said once."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + text.replace("\n", " "))


def _send_alone(state: str, address: str) -> None:
    """Say one thing, as sd_notify(3) has it, without a library."""
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(state.encode())
    except OSError:
        pass  # nobody listens; sdnotify says nothing of it either
    finally:
        sock.close()


def monotonic_usec() -> int:
    """Return CLOCK_MONOTONIC in microseconds, as RELOADING=1 wants it."""
    import time

    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _watchdog_seconds() -> float:
    """Return WatchdogSec= of this service, or 0 if there is none (sd_watchdog_enabled(3))."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid and pid != str(os.getpid()):
        return 0.0
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdigit() else 0.0


def listening_fds() -> dict[str, list[int]]:
    """Return the descriptors of the sockets that this process was started with, by name.

    The name is that of FileDescriptorName=, `unknown` without one. Nothing is returned if the
    sockets are meant for another process (LISTEN_PID). The variables stay in the environment,
    so that the process may execute itself anew; children are started without them.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    fds: dict[str, list[int]] = {}
    for index in range(int(count) if count.isdigit() else 0):
        name = names[index] if index < len(names) and names[index] else "unknown"
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        fds.setdefault(name, []).append(fd)
    return fds


def listening_sockets() -> dict[str, list[socket.socket]]:
    """Return the same as sockets of the library."""
    import socket  # takes a consumer a tenth of its start-up time

    return {name: [socket.socket(fileno=fd) for fd in fds] for name, fds in listening_fds().items()}


def credential(name: str) -> str:
    """Return a credential of this service (LoadCredential=), or nothing if it has none.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return ""
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            return file.read().rstrip("\n")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise ConfigError(f"credential {name}: {reason}") from None
