"""A connection to one Redis server, quick to import and quick to use.

redis-py takes a hundred milliseconds to import, hiredis one. A consumer is started for the
first message that arrives, so it speaks to Redis over this module: one socket, requests
packed here, replies parsed by hiredis, any number of requests in one send. Everything that a
consumer touches lies in one hash slot, so one server is all it ever needs: on Redis Cluster
the owner of that slot, with Sentinel the master.

It does not retry and does not reconnect: after `Lost` the owner of the connection decides
what may have happened to its requests. It speaks RESP2.
"""

from __future__ import annotations

import _socket  # what is C of socket: the rest makes enums, and loading enum takes long
import select
import time
from collections.abc import Iterable, Sequence

import hiredis

from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.replies import (
    TRANSIENT,
    Lost,
    Reply,
    ServerError,
    check_version,
    explain,
    explain_login,
)

__all__ = ["TRANSIENT", "Argument", "Command", "Connection", "Lost", "Reply", "ServerError"]
__all__ += ["client_name", "explain", "pack"]

Argument = bytes | str | int
Command = Sequence[Argument]

_CONNECT_SECONDS = 5.0
# Several servers may be silent. Whoever connects must still feed its watchdog (30 s) in time.
_CONNECT_ALL_SECONDS = 10.0
# A request that the server takes longer to accept than this will not be answered either.
_SEND_SECONDS = 15.0
_READ_BYTES = 64 * 1024
_MAX_REDIRECTS = 5

# What hiredis raises over bytes that are no replies, depending on its version.
_GARBLED = (hiredis.ProtocolError, ValueError, TypeError, MemoryError, SystemError)


def pack(commands: Iterable[Command]) -> bytes:
    """Return the bytes of one or more requests."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        raws = [a if type(a) is bytes else str(a).encode() for a in command]
        parts += [b"$%d\r\n%b\r\n" % (len(raw), raw) for raw in raws]
    return b"".join(parts)


def client_name(name: str) -> str:
    """Return a name as CLIENT LIST shows it: no space, and no letter that is not ASCII."""
    return "".join(c if "!" <= c <= "~" else "_" for c in name)


class Connection:
    """One connection to the server that a URL means.

    Args:
        url: the server, or those that know it.
        name: shown in CLIENT LIST, as far as Redis takes it: see `client_name`.
        key: a key in the slot that matters, for Redis Cluster.

    After `connect`, `client_id` is the number that CLIENT UNBLOCK takes, and `version` the
    server's version as two numbers (0, 0 if the user may not ask). `owner` is the address where the
    slot was last, on Cluster: it is tried first.
    """

    def __init__(self, url: RedisURL, name: str, key: Argument = b"") -> None:
        self.url = url
        self.name = name
        self.key = key
        self.client_id = 0
        self.version = (0, 0)
        self.outstanding = 0
        self.bytes_read = 0
        self._socket: _socket.socket | None = None
        self._buffer = bytearray(_READ_BYTES)
        self._reader = _new_reader()
        self.owner: tuple[str, int] | None = None
        self._connect_by = 0.0  # monotonic
        # What is raised when nothing can be read, and when the server has hung up.
        self._not_yet: tuple[type[OSError], ...] = (BlockingIOError,)
        self._hung_up: tuple[type[OSError], ...] = (BrokenPipeError, ConnectionResetError)

    def connect(self, seconds: float = 0.0) -> None:
        """Connect, log in and make sure that the server is one that wakeq can use.

        Takes ten seconds at most (or what is said), apart from the resolution of names. If that
        is too short to ask all servers of the URL, the next call begins with the others.

        Raises:
            UnavailableError: no server answers, or it cannot answer now.
            RefusedError: the login or the user's rights are wrong.
            ConfigError: the server is too old, or the URL is wrong about it.
        """
        failure: UnavailableError | None = None
        self._reader = _new_reader()  # to free what the old one had been told may take seconds
        self._connect_by = time.monotonic() + (seconds or _CONNECT_ALL_SECONDS)
        for address in self._candidates():
            try:
                return self._connect_to(address)
            except UnavailableError as error:
                self.close()
                failure = error
            except WakeqError:
                self.close()
                raise
        raise failure or UnavailableError(f"Redis at {self.url}: no Sentinel answers")

    def close(self) -> None:
        """Close the connection; what is outstanding stays unanswered."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.outstanding = 0

    @property
    def connected(self) -> bool:
        """Tell whether the connection is open, as far as known."""
        return self._socket is not None

    def fileno(self) -> int:
        """Return the file descriptor, for a selector."""
        return -1 if self._socket is None else self._socket.fileno()

    def send(self, commands: Sequence[Command]) -> None:
        """Send requests; their replies come in the same order from `receive`.

        Raises:
            Lost: the connection broke; any of the requests may have been carried out. It may
                have broken without: then `receive` raises it.
        """
        if self._socket is None:
            raise Lost(f"Redis at {self.url}: not connected")
        self.outstanding += len(commands)
        try:
            if self.url.scheme == "rediss":
                self._socket.settimeout(_SEND_SECONDS)
            self._socket.sendall(pack(commands))
        except self._hung_up:
            pass  # `receive` gives what the server said before it hung up, and then Lost
        except OSError as error:
            raise self._lost(error) from None

    def receive(self) -> list[Reply]:
        """Wait until something came, and return the replies that are complete, maybe none.

        An error reply is returned as a `ServerError`, not raised.

        Raises:
            Lost: the connection broke, or what came is no reply.
        """
        if self._socket is None:
            raise Lost(f"Redis at {self.url}: not connected")
        replies: list[Reply] = []
        gets = self._reader.gets
        try:
            if self.url.scheme == "rediss":
                self._socket.settimeout(0)  # of a TLS record, a part may have come
            size = self._socket.recv_into(self._buffer)
            if not size:
                self.close()
                raise Lost(f"Redis at {self.url} closed the connection")
            self.bytes_read += size
            self._reader.feed(self._buffer, 0, size)
            while (reply := gets()) is not False:
                replies.append(reply)
        except self._not_yet:
            return replies
        except OSError as error:
            raise self._lost(error) from None
        except _GARBLED as error:
            self.close()
            raise Lost(f"Redis at {self.url} sent what is not its protocol: {error}") from None
        if len(replies) > self.outstanding:
            self.close()
            raise Lost(f"Redis at {self.url} sent more replies than there were requests")
        self.outstanding -= len(replies)
        return replies

    def has_buffered(self) -> bool:
        """Tell whether more can be received that a selector does not see (TLS)."""
        pending = getattr(self._socket, "pending", None)
        return pending is not None and pending() > 0

    def call_many(self, commands: Sequence[Command], timeout: float = 15.0) -> list[Reply]:
        """Send requests while none is outstanding, and return their replies.

        Raises:
            Lost: the connection broke, or not all replies came within `timeout` seconds.
        """
        assert self.outstanding == 0, "replies to earlier requests would be taken for these"
        deadline = time.monotonic() + timeout
        self.send(commands)
        replies: list[Reply] = []
        try:
            while len(replies) < len(commands):
                self._wait(deadline)
                replies += self.receive()
        except Lost as error:
            error.replies = replies
            raise
        return replies

    def call(self, *command: Argument, timeout: float = 15.0) -> Reply:
        """Send one request and return its reply.

        Raises:
            ServerError: the server answered with an error.
            Lost: the connection broke, or no reply came within `timeout` seconds.
        """
        (reply,) = self.call_many([command], timeout)
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def _wait(self, deadline: float) -> None:
        rest = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        # What trickles in for ever is no answer either.
        if rest <= 0 or not (self.has_buffered() or poll.poll(rest * 1000)):
            self.close()
            raise Lost(f"Redis at {self.url} did not answer in time")

    def _lost(self, error: Exception) -> WakeqError:
        self.close()
        alert = str(getattr(error, "reason", ""))
        if "ALERT" in alert and any(word in alert for word in ("CERT", "_CA", "HANDSHAKE")):
            return RefusedError(
                f"Redis at {self.url} refuses the client certificate, or that there is none"
                f" ({alert}): put cert and key into redis_url"
            )
        cause = getattr(error, "strerror", None) or error
        return Lost(f"Redis at {self.url} cannot be reached: {cause}")

    def _candidates(self) -> Iterable[tuple[str, int]]:
        """Yield the addresses to try, the likeliest first, while there is time."""
        if self.url.scheme == "unix":
            yield (self.url.path, 0)
        elif self.url.scheme == "redis+sentinel":
            yield from self._masters()
        else:
            if self.owner is not None:
                yield self.owner
            yield from self._hosts()

    def _hosts(self) -> Iterable[tuple[str, int]]:
        for host in list(self.url.likely):
            if time.monotonic() >= self._connect_by:
                return
            yield host
            self.url.put_last(host)  # as another one is asked for

    def _masters(self) -> Iterable[tuple[str, int]]:
        """Yield the master's address in the eyes of each Sentinel."""
        command = ("SENTINEL", "get-master-addr-by-name", self.url.service)
        strangers = 0
        for address in self._hosts():
            try:
                self._open(address)
                reply = self.call(*command, timeout=self._rest(_CONNECT_SECONDS))
            except UnavailableError:
                continue
            except ServerError as error:
                place = "{}:{}".format(*address)
                if error.code == "ERR":
                    raise ConfigError(f"redis_url: {place} is no Sentinel: {error}") from None
                raise explain(error, f"{place}, asked as a Sentinel,") from None
            finally:
                self.close()
            match reply:
                case [bytes(name), bytes(number)] if number.isdigit():
                    yield name.decode(errors="replace"), int(number)
                case None:
                    strangers += 1
        if strangers == len(self.url.hosts):
            raise ConfigError(f"redis_url: Sentinel knows no master {self.url.service!r}")

    def _connect_to(self, address: tuple[str, int]) -> None:
        for _ in range(_MAX_REDIRECTS):
            self._open(address)
            moved = self._greet()
            if moved is None:
                return
            # "MOVED 3999 127.0.0.1:6381"; without a host, the one that was asked
            host, _, port = str(moved).rpartition(" ")[2].rpartition(":")
            if not port.isdecimal():
                raise Lost(f"Redis at {self.url} sent what is not its protocol: {moved}")
            address = (host or address[0], int(port))
            self.owner = address
        self.owner = None
        raise UnavailableError(f"Redis at {self.url} moves the key around: {moved}")

    def _open(self, address: tuple[str, int]) -> None:
        self.close()
        self._reader = _new_reader()
        try:
            if self.url.scheme == "unix":
                self._socket = _socket.socket(_socket.AF_UNIX)
                self._socket.settimeout(self._rest(_CONNECT_SECONDS))
                self._socket.connect(address[0])
            else:
                from wakeq import tcp  # a socket does not pay for it

                self._socket = tcp.dial(*address, self._rest(_CONNECT_SECONDS))
                if self.url.scheme == "rediss":
                    from wakeq import tls  # only TLS pays for it

                    self._not_yet, self._hung_up = tls.NOT_YET, tls.HUNG_UP
                    self._socket = tls.wrap(self._socket, self.url, address[0])
            self._socket.settimeout(_SEND_SECONDS)
        except (OSError, ValueError, OverflowError) as error:  # also a name that is no host's
            raise self._lost(error) from None

    def _rest(self, most: float) -> float:
        """Return how many seconds a step of connecting may take."""
        rest = self._connect_by - time.monotonic()
        if rest <= 0:
            raise Lost(f"Redis at {self.url} did not answer in time")
        return min(most, rest)

    def _greet(self) -> ServerError | None:
        """Log in and look at the server; return a MOVED that must be followed, if any."""
        commands: list[Command] = []
        if self.url.username or self.url.password:
            # Also without a password: such users there are (nopass).
            user = [self.url.username] if self.url.username else []
            commands.append(["AUTH", *user, self.url.password])
        if self.url.db:
            commands.append(["SELECT", self.url.db])
        look = len(commands)
        commands.append(["CLIENT", "SETNAME", client_name(self.name)])
        commands.append(["CLIENT", "ID"])
        commands.append(["INFO", "server"])
        if self.url.scheme == "redis+sentinel":
            commands.append(["ROLE"])
        if self.url.scheme == "redis+cluster" and self.key:
            commands.append(["EXISTS", self.key])
        try:
            replies = self.call_many(commands, self._rest(_CONNECT_ALL_SECONDS))
        except Lost as error:
            # Too many clients, protected mode: it says so and hangs up.
            if len(error.replies) == 1 and isinstance(error.replies[0], ServerError):
                raise explain(error.replies[0], self.url) from None
            raise
        for reply in replies[:look]:
            if isinstance(reply, ServerError):
                raise explain_login(reply, self.url)
        return self._look_at(*replies[look:])

    def _look_at(
        self, named: Reply, client_id: Reply, server: Reply, place: Reply = None
    ) -> ServerError | None:
        """Judge the server by its replies; return a MOVED that must be followed, if any."""
        for reply in (named, place):
            if isinstance(reply, ServerError):
                if reply.code == "MOVED":
                    return reply
                # A user may do without a name or ROLE, but not without the key's owner.
                if reply.code != "NOPERM" or (
                    reply is place and self.url.scheme == "redis+cluster"
                ):
                    raise explain(reply, self.url)
        if isinstance(place, list) and place[:1] != [b"master"]:
            raise UnavailableError(f"Redis at {self.url}: the master is being changed")
        self.client_id = client_id if isinstance(client_id, int) else 0
        if isinstance(server, bytes):
            self.version = check_version(server, self.url)
        return None


def _new_reader() -> hiredis.Reader:
    return hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=ServerError)
