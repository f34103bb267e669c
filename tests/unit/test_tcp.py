"""TCP connections: which of the addresses of a host is taken."""

from __future__ import annotations

import _socket
import socket

import pytest

from wakeq import tcp


def test_passes_over_an_address_of_a_family_that_the_kernel_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        real = _socket.getaddrinfo("127.0.0.1", server.getsockname()[1], 0, socket.SOCK_STREAM)
        unknown = (12345, socket.SOCK_STREAM, 0, "", ("::1", 1))
        monkeypatch.setattr(tcp._socket, "getaddrinfo", lambda *_: [unknown, *real])
        tcp.dial("localhost", 1, 5).close()
        monkeypatch.setattr(tcp._socket, "getaddrinfo", lambda *_: [unknown])
        with pytest.raises(OSError, match="not supported"):
            tcp.dial("localhost", 1, 5)
