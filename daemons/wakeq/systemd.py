"""What systemd gives a service and hears from it: sockets, credentials, notifications.

Read from the environment by hand, as sd_listen_fds(3) and systemd.exec(5) say, because
importing systemd.daemon takes a consumer a tenth of its start-up time. Notifications go
through sdnotify, which is as small.
"""

import os
import socket

from wakeq.errors import ConfigError

_FIRST_FD = 3


class Notifier:
    """Tells the service manager how the service is; without one, says nothing.

    The watchdog is told only through `alive`, from the loop that makes progress.
    """

    def __init__(self) -> None:
        self._notifier = None
        self._status = ""
        self.watchdog_seconds = _watchdog_seconds()
        if os.environ.get("NOTIFY_SOCKET"):
            import sdnotify  # not needed in a terminal

            self._notifier = sdnotify.SystemdNotifier()

    def _send(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)

    def ready(self) -> None:
        """Say that the service is ready, or ready again after a reload."""
        self._send("READY=1")

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


def listening_sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets that this process was started with, by name.

    The name is that of FileDescriptorName=, `unknown` without one. Nothing is returned if the
    sockets are meant for another process (LISTEN_PID). The variables stay in the environment,
    so that the process may execute itself anew; children are started without them.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets: dict[str, list[socket.socket]] = {}
    for index in range(int(count) if count.isdigit() else 0):
        name = names[index] if index < len(names) and names[index] else "unknown"
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        sockets.setdefault(name, []).append(socket.socket(fileno=fd))
    return sockets


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
