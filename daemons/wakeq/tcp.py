"""TCP for the wire connection. Loaded when a redis_url names a host."""

# What is C of socket: the rest makes enums, and loading enum takes long.
import _socket


def dial(host: str, port: int, seconds: float) -> _socket.socket:
    """Return a connection to the first address of a host that accepts one.

    Raises:
        OSError: none does, within so many seconds each, or the host has none.
        ValueError: it is no name of a host.
    """
    # As text, it would be encoded by the codec for names that are not ASCII, with all its tables.
    name = host.encode() if host.isascii() else host
    failure = OSError("it has no address")
    for kind in _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM):
        sock = None
        try:
            sock = _socket.socket(*kind[:3])
            sock.settimeout(seconds)
            sock.connect(kind[4])
        except OSError as error:
            if sock is not None:
                sock.close()
            failure = error
            continue
        _tune(sock)
        return sock
    raise failure


def _tune(sock: _socket.socket) -> None:
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    # A peer that is gone without a word is noticed within 15 s.
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 6)
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPINTVL, 3)
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPCNT, 3)
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT, 15_000)
