"""Redis URLs: which server, which database, which user; and how to show them in a log.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]
    rediss://…            TLS; ?ca=FILE&cert=FILE&key=FILE&verify=no
    unix://[USER:PASSWORD@]/PATH[?db=DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DB]
    redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]

Read by hand, because a consumer's start-up time is the product and urllib.parse is not free.
"""

from wakeq import systemd
from wakeq.errors import ConfigError

_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "redis+cluster": 6379}
_QUERY = ("db", "ca", "cert", "key", "verify")


class RedisURL:
    """A parsed Redis URL.

    Attributes:
        scheme: `redis`, `rediss`, `unix`, `redis+sentinel` or `redis+cluster`.
        hosts: (host, port) of each server named; empty for `unix`.
        likely: the same in the order in which to try them; see `put_last`.
        path: the socket, for `unix`.
        db: the database number.
        service: the master's name, for Sentinel.
        username, password: empty if there is none.
        ca, cert, key: files for TLS, empty for the system's own trust and no client certificate.
        verify: whether the server's certificate and name are checked.
    """

    def __init__(self, url: str) -> None:
        """Parse a URL; a password from the service's credentials goes before one in it.

        Raises:
            ConfigError: the URL is none of the forms above. Its text never shows a password.
        """
        self.hosts: list[tuple[str, int]] = []
        self.path = self.service = self.username = self.password = ""
        self.db = 0
        self.ca = self.cert = self.key = ""
        self.verify = True
        self.scheme, separator, rest = url.partition("://")
        if not separator or self.scheme not in ("unix", *_PORTS):
            raise ConfigError(
                f"redis_url must begin with {', '.join(f'{s}://' for s in _PORTS)} or unix://,"
                f" not {self.scheme.partition(':')[0]!r}"
            )
        rest, _, query = rest.partition("?")
        if "@" in query:  # else a part of the password would be taken for a name, and shown
            raise ConfigError("redis_url must write ? in a password as %3F, @ in a file as %40")
        # A socket's path begins with "/" and may have an "@", as in redis@main.sock.
        if "@" in rest and not (self.scheme == "unix" and rest.startswith("/")):
            userinfo, _, rest = rest.rpartition("@")
            username, _, password = userinfo.partition(":")
            self.username, self.password = _unquote(username), _unquote(password)
        self._read_place(rest)
        self.likely = list(self.hosts)
        self._read_query(query)
        if self.db and self.scheme == "redis+cluster":
            raise ConfigError("redis_url must not name a database: Redis Cluster has only 0")
        self.username = systemd.credential("wakeq.redis-username") or self.username
        self.password = systemd.credential("wakeq.redis-password") or self.password

    def put_last(self, host: tuple[str, int]) -> None:
        """Have a server that did not answer tried after the others from now on.

        It may take seconds to find that out, which not every connection shall have to wait.
        """
        if host in self.likely:
            self.likely.remove(host)
            self.likely.append(host)

    def _read_place(self, rest: str) -> None:
        if self.scheme == "unix":
            self.path = _unquote(rest)
            if not self.path.startswith("/"):
                raise ConfigError("redis_url must name a socket by its full path: unix:///PATH")
            return
        servers, *parts = rest.split("/")
        self.hosts = [self._host(server) for server in servers.split(",")]
        if len(self.hosts) > 1 and self.scheme in ("redis", "rediss"):
            raise ConfigError(f"redis_url must name one server after {self.scheme}://")
        if self.scheme == "redis+sentinel":
            self.service = _unquote(parts.pop(0)) if parts else ""
            if not self.service:
                raise ConfigError("redis_url must end with the name of the master: .../SERVICE")
        if parts and parts[0]:
            self.db = self._number(parts.pop(0))
        if any(parts):
            raise ConfigError("redis_url must end after the database number")

    def _host(self, server: str) -> tuple[str, int]:
        if server.startswith("["):  # an IPv6 address
            host, _, port = server[1:].partition("]")
            port = port.removeprefix(":")
        else:
            host, _, port = server.partition(":")
        return _unquote(host) or "127.0.0.1", self._number(port, _PORTS[self.scheme], 65535)

    def _read_query(self, query: str) -> None:
        for pair in filter(None, query.split("&")):
            name, _, value = pair.partition("=")
            if name not in _QUERY:
                raise ConfigError(f"redis_url must not have ?{name}=, only {', '.join(_QUERY)}")
            if name != "db" and self.scheme != "rediss":
                raise ConfigError(f"redis_url must begin with rediss:// to have ?{name}=")
            if name == "db":
                self.db = self._number(value)
            elif name == "verify":
                self.verify = value.lower() not in ("no", "0", "false", "off")
            else:
                setattr(self, name, _unquote(value))

    @staticmethod
    def _number(text: str, default: int = 0, high: int = 1_000_000) -> int:
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and int(text) <= high):
            raise ConfigError(f"redis_url must have a number up to {high}, not {text!r}")
        return int(text)

    def __str__(self) -> str:
        """Return the URL as it may be shown: without user and password."""
        if self.scheme == "unix":
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{self.scheme}://{hosts}{service}" + (f"/{self.db}" if self.db else "")


def _unquote(text: str) -> str:
    """Return the text with %XX decoded."""
    if "%" not in text:
        return text
    head, *parts = text.encode().split(b"%")
    try:
        if any(len(p) < 2 for p in parts):
            raise ValueError
        return (head + b"".join(bytes.fromhex(p[:2].decode()) + p[2:] for p in parts)).decode()
    except ValueError:
        raise ConfigError("redis_url has a % that is not followed by two hex digits") from None
