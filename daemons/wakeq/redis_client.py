"""The one place that makes redis-py clients, for blocking code and for asyncio.

redis-py's defaults differ between the versions in the field (4.3.4 in Debian 12, 6.1 in
Debian 13, 8.1 on PyPI): how long a command may take, and how often it is sent again when its
reply is lost. A second XADD is a second message, and the messages of a lost XREADGROUP are
pending, not unread; so every option is set here, nothing is ever sent twice, and who knows
that a request may be repeated does that.

On Redis Cluster redis-py's own cluster client is not used, because before 5.0 it repeats any
command up to five times, whatever it is told. `Servers` has a plain client for each server
instead, asks any of them, and learns from the redirections (MOVED) who owns which slot.
"""

import inspect
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.backoff
import redis.crc
import redis.retry
import redis.sentinel

from wakeq.errors import ConfigError, UnavailableError, WakeqError
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, ServerError, explain

Client = redis.Redis
AsyncClient = redis.asyncio.Redis

_CONNECT_SECONDS = 5.0
_TIMEOUT_SECONDS = 15.0
# Who wants more connections waits for one to become free.
_CONNECTIONS = 32
_REDIRECTS_MOST = 5

# What redis-py takes off an error reply when it makes one of its classes of it.
_CODES = {
    "AskError": "ASK",
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "ExecAbortError": "EXECABORT",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TryAgainError": "TRYAGAIN",
}


def connect(url: RedisURL, name: str, timeout: float = _TIMEOUT_SECONDS) -> Any:
    """Make a blocking client; it connects when it is first used.

    Args:
        url: one server, or the Sentinels that know it; on Redis Cluster, the first one named.
        name: shown in CLIENT LIST.
        timeout: seconds that a reply may take; longer than any BLOCK that is asked for.
    """
    return _make(redis, url, name, timeout, url.hosts[0] if url.hosts else None)


def connect_async(url: RedisURL, name: str, timeout: float = _TIMEOUT_SECONDS) -> Any:
    """Make a client for asyncio; see `connect`."""
    return _make(redis.asyncio, url, name, timeout, url.hosts[0] if url.hosts else None)


def server_error(error: BaseException) -> ServerError | None:
    """Return an error reply as the server sent it, or None if this error is none.

    The attribute `code` of the result is the same in all versions of redis-py.
    """
    text = str(error)
    for kind in type(error).__mro__:
        if code := _CODES.get(kind.__name__):
            if text.startswith("invalid username"):
                code = "WRONGPASS"
            return ServerError(text if text.startswith(code) else f"{code} {text}")
    if isinstance(error, redis.exceptions.ResponseError):
        return ServerError(text)
    return None


def explained(error: Exception, where: object) -> WakeqError:
    """Return the exception that says what an error of redis-py means for the operator."""
    reply = server_error(error)
    text = str(reply or error)
    if "max number of clients" in text:
        return UnavailableError(f"Redis at {where} cannot answer now: {text}")
    if "without any password" in text:
        return ConfigError(f"Redis at {where} has no password, but redis_url gives one")
    if "DB index" in text or text == "Invalid Database":
        return ConfigError(f"Redis at {where} has no such database: {text}")
    if reply is not None:
        return explain(reply, where)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConfigError(
            f"Redis at {where}: its certificate is not trusted: {cause.verify_message}"
        )
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return UnavailableError(f"Redis at {where} did not answer in time")
    if type(error).__name__ in ("MasterNotFoundError", "SlaveNotFoundError"):
        return UnavailableError(f"Redis at {where}: no Sentinel answers with a master")
    if isinstance(error, redis.exceptions.ConnectionError | OSError):
        reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else text
        return UnavailableError(f"Redis at {where} cannot be reached: {reason}")
    return WakeqError(f"Redis at {where}: {text}")


@contextmanager
def errors_explained(where: object) -> Iterator[None]:
    """Turn the errors of redis-py into those of wakeq.

    Raises:
        UnavailableError: the connection broke, or no reply came in time; what was asked for may
            have been done.
        WakeqError: the server answered with an error.
    """
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise explained(error, where) from None


class Servers:
    """The servers behind a URL, with a client for each that is needed.

    That is one server, or on Redis Cluster the owners of the slots that are used.

    Args:
        url: where they are.
        name: shown in CLIENT LIST.
        asynchronous: whether the clients are for asyncio; then `aclose` closes them.
    """

    def __init__(self, url: RedisURL, name: str, asynchronous: bool = False) -> None:
        self.url = url
        self.name = name
        self.module: Any = redis.asyncio if asynchronous else redis
        self._clients: dict[Any, Any] = {}
        self._owners: dict[int, tuple[str, int]] = {}
        self._entrance = 0
        self._in_vain = 0

    @property
    def cluster(self) -> bool:
        """Tell whether different keys may be on different servers."""
        return self.url.scheme == "redis+cluster"

    def client(self, key: str | bytes) -> Any:
        """Return a client for the server that has a key, as far as known."""
        address = None
        if self.cluster:
            hosts = self.url.hosts
            address = self._owners.get(_slot(key)) or hosts[self._entrance % len(hosts)]
        elif self.url.hosts:
            address = self.url.hosts[0]
        return self._client_at(address)

    def _client_at(self, address: tuple[str, int] | None) -> Any:
        if address not in self._clients:
            self._clients[address] = _make(
                self.module, self.url, self.name, _TIMEOUT_SECONDS, address
            )
        return self._clients[address]

    def call(self, key: str | bytes, *command: Argument) -> Any:
        """Run one command on the server that has a key (blocking clients alone).

        Raises:
            UnavailableError: the connection broke, or no reply came in time; the command may have
                been carried out.
            WakeqError: the server answered with an error.
        """
        with errors_explained(self.url):
            return self._call(key, command)

    def run(self, script: Script, keys: list[Argument], arguments: Sequence[Argument]) -> Any:
        """Run a script on the server that has its keys (blocking clients alone); see `call`."""
        with errors_explained(self.url):
            try:
                return self._call(keys[0], script.command(keys, arguments))
            except redis.exceptions.NoScriptError:
                return self._call(keys[0], script.whole(keys, arguments))

    def _call(self, key: Any, command: Sequence[Argument]) -> Any:
        for _ in range(_REDIRECTS_MOST):
            try:
                return self.client(key).execute_command(*command)
            except (redis.exceptions.RedisError, OSError) as error:
                if self.redirected(error):
                    continue
                if server_error(error) is not None or not self.lost(key, error):
                    raise
        raise UnavailableError(f"Redis at {self.url} moves the keys around")

    def check_version(self) -> str:
        """Return what the server says that it is, such as `Redis 7.0.15`.

        Raises:
            ConfigError: it is too old.
            WakeqError: see `call`.
        """
        server = self.call("", "INFO", "server")
        version = str(server.get("redis_version", ""))
        numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
        if len(numbers) == 2 and numbers < [7, 0]:
            raise ConfigError(
                f"Redis at {self.url} is version {version};"
                " wakeq needs Redis 7.0 or Valkey 7.2, or newer"
            )
        if "valkey_version" in server:
            return f"Valkey {server['valkey_version']}"
        return f"Redis {version}"

    def masters(self) -> list[Any]:
        """Return a client for each server that has keys of its own (blocking clients alone).

        Raises:
            WakeqError: see `call`.
        """
        if not self.cluster:
            return [self.client("")]
        asked = self.client("").connection_pool.connection_kwargs["host"]
        # Each is [first slot, last slot, [host, port, ...] of the master, ... of its replicas];
        # the one that is asked may not know how it is called.
        ranges = self.call("", "CLUSTER", "SLOTS")
        found = {((served[2][0] or b"").decode() or asked, served[2][1]) for served in ranges}
        return [self._client_at(address) for address in sorted(found)]

    def redirected(self, error: BaseException) -> bool:
        """Learn from a MOVED, and tell whether this was one: then the request was not carried
        out, and `client` returns the right one now."""
        reply = server_error(error)
        if reply is None or reply.code != "MOVED" or not self.cluster:
            return False
        # "MOVED 3999 127.0.0.1:6381"; without a host, the one that was asked
        _, slot, address = str(reply).split(" ")[:3]
        host, _, port = address.rpartition(":")
        asked = self._owners.get(int(slot)) or self.url.hosts[self._entrance % len(self.url.hosts)]
        self._owners[int(slot)] = (host.strip("[]") or asked[0], int(port))
        return True

    def lost(self, key: str | bytes, error: BaseException | None = None) -> bool:
        """Forget who had a key, after its server could not be reached: ask another one next.

        Tell whether that may be done at once: the error says that the request was not sent, and
        not all servers that the URL names have been tried in vain.
        """
        if not self.cluster:
            return False
        if self._owners.pop(_slot(key), None) is None:
            self._entrance += 1
        if not isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
            return False
        self._in_vain = (self._in_vain + 1) % (len(self.url.hosts) + 1)
        # So say all versions of redis-py, and have nothing else to tell it by.
        return bool(self._in_vain) and " connecting to " in str(error)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.connection_pool.disconnect()
        self._clients.clear()

    async def aclose(self) -> None:
        """Close all connections of clients for asyncio."""
        for client in self._clients.values():
            await client.connection_pool.disconnect()
        self._clients.clear()


def _slot(key: str | bytes) -> int:
    raw = key.encode() if isinstance(key, str) else key
    return int(redis.crc.key_slot(raw))


def _make(
    module: Any, url: RedisURL, name: str, timeout: float, address: tuple[str, int] | None
) -> Any:
    options = _options(module, url, name, timeout)
    if url.scheme == "redis+sentinel":
        return _by_sentinel(module, url, options)
    kind = module.Connection
    if url.scheme == "unix":
        kind = module.UnixDomainSocketConnection
        options["path"] = url.path
    elif url.scheme == "rediss":
        kind = module.SSLConnection
        options |= _tls(url)
    if address is not None:
        options["host"], options["port"] = address
    pool = module.BlockingConnectionPool(
        max_connections=_CONNECTIONS,
        timeout=timeout,
        connection_class=kind,
        **_accepted(kind, options),
    )
    return module.Redis(connection_pool=pool)


def _options(module: Any, url: RedisURL, name: str, timeout: float) -> dict[str, Any]:
    retry = redis.asyncio.retry.Retry if module is redis.asyncio else redis.retry.Retry
    return {
        "db": url.db,
        "username": url.username or None,
        "password": url.password or None,
        "client_name": name,
        "decode_responses": False,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "socket_timeout": timeout,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_keepalive": True,
        "socket_keepalive_options": _keepalive(),
        "socket_read_size": 65536,
        # Nothing is sent a second time by redis-py.
        # (retry_on_timeout is off in all versions, and naming it is deprecated since 6.0.)
        "retry": retry(redis.backoff.NoBackoff(), 0),
        "retry_on_error": [],
        # No PING before a command: the pool sees when the server has closed a connection, and
        # keep-alive finds the ones whose peer is gone without a word.
        "health_check_interval": 0,
        "protocol": 2,
        # No CLIENT SETINFO: rights that nobody needs, and one more reply to wait for.
        **({"driver_info": None} if _knows_driver() else {"lib_name": None, "lib_version": None}),
    }


def _keepalive() -> dict[int, int]:
    """Return what finds a peer that is gone without a word within 15 s."""
    return {
        socket.TCP_KEEPIDLE: 6,
        socket.TCP_KEEPINTVL: 3,
        socket.TCP_KEEPCNT: 3,
        socket.TCP_USER_TIMEOUT: 15_000,
    }


def _tls(url: RedisURL) -> dict[str, Any]:
    for path in filter(None, (url.ca, url.cert, url.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(
                f"redis_url: ca, cert or key is not usable: {path}: {error.strerror}"
            ) from None
    return {
        "ssl_ca_certs": url.ca or ssl.get_default_verify_paths().cafile,
        "ssl_certfile": url.cert or None,
        "ssl_keyfile": url.key or None,
        "ssl_cert_reqs": "required" if url.verify else "none",
        "ssl_check_hostname": url.verify,
    }


def _by_sentinel(module: Any, url: RedisURL, options: dict[str, Any]) -> Any:
    kind = module.sentinel.SentinelManagedConnection
    # Sentinels have no databases, and no password here (nor has wakeq.wire).
    personal = ("db", "username", "password")
    asked = {k: v for k, v in options.items() if k not in personal}
    asked |= {"socket_timeout": _CONNECT_SECONDS, "max_connections": 2}
    sentinel = module.sentinel.Sentinel(
        url.hosts, sentinel_kwargs=_accepted(module.Redis, asked), **_accepted(kind, options)
    )
    return sentinel.master_for(url.service, module.Redis, max_connections=_CONNECTIONS)


def _knows_driver() -> bool:
    return "driver_info" in inspect.signature(redis.Redis.__init__).parameters


def _accepted(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version's class takes."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= set(parameters)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break  # it hands nothing on to its base
    return {name: value for name, value in options.items() if name in names}
