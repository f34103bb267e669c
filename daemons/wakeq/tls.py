"""TLS for the wire connection. Loaded when a redis_url asks for it: only TLS pays for ssl."""

import _socket
import socket
import ssl

from wakeq.errors import ConfigError
from wakeq.redis_url import RedisURL

# What is raised when nothing can be read, and when the server has hung up.
NOT_YET: tuple[type[OSError], ...] = (ssl.SSLWantReadError,)
HUNG_UP: tuple[type[OSError], ...] = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)


def wrap(sock: _socket.socket, url: RedisURL, host: str) -> socket.socket:
    """Return a connected socket that speaks TLS as a URL says.

    Raises:
        ConfigError: the files that the URL names are not usable, or the server is not trusted.
        OSError: the connection broke.
    """
    try:
        context = ssl.create_default_context(cafile=url.ca or None)
        if not url.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if url.cert:
            context.load_cert_chain(url.cert, url.key or None)
    except OSError as error:
        raise ConfigError(f"redis_url: ca, cert or key is not usable: {error}") from None
    try:
        seconds = sock.gettimeout()
        plain = socket.socket(fileno=sock.detach())
        plain.settimeout(seconds)
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"Redis at {url}: its certificate is not trusted: {error.verify_message}"
        ) from None
