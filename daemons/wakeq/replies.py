"""What Redis's replies mean: its errors, and which exception says so to who runs a daemon."""

from __future__ import annotations

from collections.abc import Sequence

from wakeq.errors import ConfigError, KeyRefusedError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any

    Reply = Any
else:
    Reply = object

# Errors that pass by themselves, in the server's words (the first word of the reply).
TRANSIENT = frozenset(
    (
        *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN"),
        *("OOM", "MISCONF", "NOREPLICAS", "UNBLOCKED", "MOVED", "ASK"),
    )
)
# What NOPERM says of a key, before Redis 7.2 and since then; it may be of a command or channel.
_OF_KEY = ("access one of the keys", "access a key")
_FLOOR = (7, 0)
_REFUSED = frozenset(("NOAUTH", "WRONGPASS", "NOPERM", "DENIED"))


class ServerError(Exception):
    """An error reply of the server.

    Attributes:
        code: the first word, by which errors are told apart: `NOGROUP`, `WRONGTYPE` …
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class Lost(UnavailableError):
    """The connection broke, or what came over it is not Redis's protocol.

    Attributes:
        replies: those that `call_many` had got before.
    """

    replies: Sequence[Reply] = ()


def is_of_key(error: ServerError) -> bool:
    """Tell whether the server permits the user all but a key: others may be permitted."""
    return error.code == "NOPERM" and any(words in str(error) for words in _OF_KEY)


def explain(error: ServerError, where: object) -> WakeqError:
    """Return the exception that says what an error reply means for who runs the daemon."""
    if error.code in ("NOAUTH", "WRONGPASS"):
        return RefusedError(
            f"Redis at {where} refuses the login ({error}): put user and password into redis_url,"
            " or the password into the credential wakeq.redis-password"
        )
    if error.code in _REFUSED:
        kind = KeyRefusedError if is_of_key(error) else RefusedError
        return kind(f"Redis at {where} does not permit this user: {error}")
    if error.code == "WRONGTYPE":
        return ConfigError(f"Redis at {where} holds something other than a stream: {error}")
    if error.code in TRANSIENT or "max number of clients" in str(error):
        return UnavailableError(f"Redis at {where} cannot answer now: {error}")
    return WakeqError(f"Redis at {where} answered with an error: {error}")


def explain_login(error: ServerError, url: RedisURL) -> WakeqError:
    """Return the exception that says why AUTH or SELECT failed; it never shows the password."""
    if error.code == "ERR" and "without any password" in str(error):
        return ConfigError(f"Redis at {url} has no password, but redis_url gives one")
    if error.code == "ERR" and ("DB index" in str(error) or "cluster mode" in str(error)):
        return ConfigError(f"Redis at {url} has no database {url.db}")
    # A server that knows no AUTH repeats it with the password.
    return explain(ServerError(str(error).partition(", with args")[0]), url)


def check_version(server: bytes, url: RedisURL) -> tuple[int, int]:
    """Return the version in a reply to INFO server, (0, 0) if there is none in it.

    Raises:
        ConfigError: it is too old.
    """
    version = (0, 0)
    for line in server.split(b"\r\n"):
        # Valkey gives the version of Redis that it is compatible with here, 7.2 or higher.
        if line.startswith(b"redis_version:"):
            major, minor, *_ = (*line.partition(b":")[2].split(b"."), b"0")
            if major.isdigit() and minor.isdigit():
                version = (int(major), int(minor))
    if (0, 0) < version < _FLOOR:
        raise ConfigError(
            f"Redis at {url} is version {version[0]}.{version[1]};"
            " wakeq needs Redis 7.0 or Valkey 7.2, or newer"
        )
    return version
