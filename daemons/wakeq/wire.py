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

import select
import socket
import time
from collections.abc import Iterable, Sequence

import hiredis

from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any

    Reply = Any
else:
    Reply = object

Argument = bytes | str | int
Command = Sequence[Argument]

_CONNECT_SECONDS = 5.0
# A request that the server takes longer to accept than this will not be answered either.
_SEND_SECONDS = 15.0
_READ_BYTES = 256 * 1024
_FLOOR = (7, 0)
_MAX_REDIRECTS = 5

# Errors that pass by themselves, in the server's words (the first word of the reply).
TRANSIENT = frozenset(
    "LOADING READONLY MASTERDOWN CLUSTERDOWN BUSY TRYAGAIN OOM MISCONF NOREPLICAS UNBLOCKED"
    " MOVED ASK".split()
)
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
    """The connection broke, or what came over it is not Redis's protocol."""


def pack(commands: Iterable[Command]) -> bytes:
    """Return the bytes of one or more requests."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            if type(argument) is not bytes:
                argument = str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(argument), argument))
    return b"".join(parts)


def explain(error: ServerError, where: object) -> WakeqError:
    """Return the exception that says what an error reply means for who runs the daemon."""
    if error.code in ("NOAUTH", "WRONGPASS"):
        return RefusedError(
            f"Redis at {where} refuses the login ({error}): put user and password into redis_url,"
            " or the password into the credential wakeq.redis-password"
        )
    if error.code in _REFUSED:
        return RefusedError(f"Redis at {where} does not permit this user: {error}")
    if error.code == "WRONGTYPE":
        return ConfigError(f"Redis at {where} holds something other than a stream: {error}")
    if error.code in TRANSIENT or "max number of clients" in str(error):
        return UnavailableError(f"Redis at {where} cannot answer now: {error}")
    return WakeqError(f"Redis at {where} answered with an error: {error}")


class Connection:
    """One connection to the server that a URL means.

    Args:
        url: the server, or those that know it.
        name: shown in CLIENT LIST.
        key: a key in the slot that matters, for Redis Cluster.

    After `connect`, `client_id` is the number that CLIENT UNBLOCK takes, and `version` the
    server's version as two numbers (0, 0 if the user may not ask).
    """

    def __init__(self, url: RedisURL, name: str, key: Argument = b"") -> None:
        self.url = url
        self.name = name
        self.key = key
        self.client_id = 0
        self.version = (0, 0)
        self.outstanding = 0
        self.bytes_read = 0
        self._socket: socket.socket | None = None
        self._reader = _new_reader()
        self._owner: tuple[str, int] | None = None  # on Cluster, where the slot was last

    def connect(self) -> None:
        """Connect, log in and make sure that the server is one that wakeq can use.

        Raises:
            UnavailableError: no server answers, or it cannot answer now.
            RefusedError: the login or the user's rights are wrong.
            ConfigError: the server is too old, or the URL is wrong about it.
        """
        failure: UnavailableError | None = None
        for address in self._candidates():
            try:
                return self._connect_to(address)
            except UnavailableError as error:
                self.close()
                failure = error
            except WakeqError:
                self.close()
                raise
        raise failure or UnavailableError(f"Redis at {self.url}: no server is known")

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
            Lost: the connection broke; any of the requests may have been carried out.
        """
        if self._socket is None:
            raise Lost(f"Redis at {self.url}: not connected")
        self.outstanding += len(commands)
        try:
            self._socket.sendall(pack(commands))
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
            chunk = self._socket.recv(_READ_BYTES)
            if not chunk:
                raise Lost(f"Redis at {self.url} closed the connection")
            self.bytes_read += len(chunk)
            self._reader.feed(chunk)
            while (reply := gets()) is not False:
                replies.append(reply)
        except OSError as error:
            raise self._lost(error) from None
        except (hiredis.ProtocolError, ValueError, MemoryError) as error:
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
        while len(replies) < len(commands):
            self._wait(deadline)
            replies += self.receive()
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
        if self.has_buffered():
            return
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.close()
            raise Lost(f"Redis at {self.url} did not answer in time")

    def _lost(self, error: OSError) -> Lost:
        self.close()
        return Lost(f"Redis at {self.url} cannot be reached: {error.strerror or error}")

    def _candidates(self) -> Iterable[tuple[str, int]]:
        """Yield the addresses to try, the likeliest first."""
        if self.url.scheme == "unix":
            yield (self.url.path, 0)
        elif self.url.scheme == "redis+sentinel":
            yield from self._masters()
        else:
            if self._owner is not None:
                yield self._owner
            yield from self.url.hosts

    def _masters(self) -> Iterable[tuple[str, int]]:
        """Yield the master's address in the eyes of each Sentinel."""
        for address in self.url.hosts:
            try:
                self._open(address)
                reply = self.call("SENTINEL", "get-master-addr-by-name", self.url.service)
            except UnavailableError:
                continue
            except ServerError as error:
                raise explain(error, self.url) from None
            finally:
                self.close()
            if reply is None:
                raise ConfigError(f"redis_url: Sentinel knows no master {self.url.service!r}")
            yield reply[0].decode(), int(reply[1])

    def _connect_to(self, address: tuple[str, int]) -> None:
        for _ in range(_MAX_REDIRECTS):
            self._open(address)
            moved = self._greet()
            if moved is None:
                return
            # "MOVED 3999 127.0.0.1:6381"; without a host, the one that was asked
            host, _, port = str(moved).split(" ")[2].rpartition(":")
            address = (host or address[0], int(port))
            self._owner = address
        self._owner = None
        raise UnavailableError(f"Redis at {self.url} moves the key around: {moved}")

    def _open(self, address: tuple[str, int]) -> None:
        self.close()
        self._reader = _new_reader()
        try:
            if self.url.scheme == "unix":
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(_CONNECT_SECONDS)
                self._socket.connect(address[0])
            else:
                self._socket = socket.create_connection(address, _CONNECT_SECONDS)
                self._tune(self._socket)
                if self.url.scheme == "rediss":
                    self._socket = self._wrap_tls(self._socket, address[0])
            self._socket.settimeout(_SEND_SECONDS)
        except OSError as error:
            raise self._lost(error) from None

    def _tune(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that is gone without a word is noticed within 15 s.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 6)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)

    def _wrap_tls(self, sock: socket.socket, host: str) -> socket.socket:
        import ssl  # only TLS pays for it

        try:
            context = ssl.create_default_context(cafile=self.url.ca or None)
            if not self.url.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.url.cert:
                context.load_cert_chain(self.url.cert, self.url.key or None)
        except OSError as error:
            raise ConfigError(f"redis_url: ca, cert or key is not usable: {error}") from None
        try:
            return context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(
                f"Redis at {self.url}: its certificate is not trusted: {error.verify_message}"
            ) from None

    def _greet(self) -> ServerError | None:
        """Log in and look at the server; return a MOVED that must be followed, if any."""
        commands: list[Command] = []
        if self.url.password:
            user = [self.url.username] if self.url.username else []
            commands.append(["AUTH", *user, self.url.password])
        if self.url.db:
            commands.append(["SELECT", self.url.db])
        look = len(commands)
        commands.append(["CLIENT", "SETNAME", self.name])
        commands.append(["CLIENT", "ID"])
        commands.append(["INFO", "server"])
        if self.url.scheme == "redis+sentinel":
            commands.append(["ROLE"])
        if self.url.scheme == "redis+cluster" and self.key:
            commands.append(["EXISTS", self.key])
        replies = self.call_many(commands)
        for reply in replies[:look]:
            if isinstance(reply, ServerError):
                raise self._login_error(reply)
        name, client_id, server, *rest = replies[look:]
        for reply in (name, *rest):
            if isinstance(reply, ServerError):
                if reply.code == "MOVED":
                    return reply
                if reply.code != "NOPERM":
                    raise explain(reply, self.url)
        if self.url.scheme == "redis+sentinel" and rest[0][0] != b"master":
            raise UnavailableError(f"Redis at {self.url}: the master is being changed")
        self.client_id = client_id if isinstance(client_id, int) else 0
        if isinstance(server, bytes):
            self._check_version(server)
        return None

    def _login_error(self, error: ServerError) -> WakeqError:
        if error.code == "ERR" and "without any password" in str(error):
            return ConfigError(f"Redis at {self.url} has no password, but redis_url gives one")
        if error.code == "ERR" and "DB index" in str(error):
            return ConfigError(f"Redis at {self.url} has no database {self.url.db}")
        return explain(error, self.url)

    def _check_version(self, server: bytes) -> None:
        for line in server.split(b"\r\n"):
            # Valkey gives the version of Redis that it is compatible with here, 7.2 or higher.
            if line.startswith(b"redis_version:"):
                major, minor, *_ = line.partition(b":")[2].split(b".")
                self.version = (int(major), int(minor))
        if (0, 0) < self.version < _FLOOR:
            raise ConfigError(
                f"Redis at {self.url} is version {self.version[0]}.{self.version[1]};"
                " wakeq needs Redis 7.0 or Valkey 7.2, or newer"
            )


def _new_reader() -> "hiredis.Reader":
    return hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=ServerError)
