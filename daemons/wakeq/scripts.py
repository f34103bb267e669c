"""The Lua scripts: one file of lua/ is one atomic step.

A script is sent whole the first time it is used over a connection, by its hash after that,
and whole again when the server no longer has it (NOSCRIPT: it was restarted, or another
server is the master now).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from wakeq.wire import Argument, Command, Connection, ServerError

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any


_DIRECTORY = os.path.join(os.path.dirname(__file__), "lua")
# Run also when Redis is out of memory. Room is made by trimming what was handled, so consumers
# must be able to start: join, ensure_group and own take a few bytes each, trim gives memory back.
# Nor is a leader to be lost for lack of memory; nor are clients of rooms, and rounds end; nor the
# channels of a bridge, which has memory of its own for what comes.
_RUN_WHEN_FULL = (
    *("join", "ensure_group", "own", "trim", "elect", "resign"),
    # What was taken of a list is moved, not added.
    *("take", "finish_taken", "put_back", "return_taken", "keep_taker"),
    *("bridge_hold", "bridge_begin", "bridge_leave", "bridge_enlist"),
    *("room_acknowledge", "room_leave", "room_look", "room_ping", "room_read"),
)


def _read(name: str) -> bytes:
    with open(os.path.join(_DIRECTORY, f"{name}.lua"), "rb") as file:
        return file.read()


class Script:
    """One script, and whether the server at the other end of a connection has it.

    Args:
        name: the file's name in lua/, without `.lua`.
        fenced: run it only for the owner of the group, see fence.lua.
        ahead: another file, what it shares with others; it stands ahead of it.
    """

    def __init__(self, name: str, fenced: bool = False, ahead: str = "") -> None:
        self.name = name
        self.text = (_read("fence") if fenced else b"") + (_read(ahead) if ahead else b"")
        self.text += _read(name)
        if name in _RUN_WHEN_FULL:
            self.text = b"#!lua flags=allow-oom\n" + self.text
        self._sent = False
        self._hash = b""

    def command(self, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Command:
        """Return the request that runs the script; NOSCRIPT as the reply: send `whole`."""
        if not self._sent:
            self._sent = True
            return self.whole(keys, arguments)
        if not self._hash:
            import hashlib  # loads OpenSSL; a first message does not wait for that

            self._hash = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        return (b"EVALSHA", self._hash, len(keys), *keys, *arguments)

    def whole(self, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Command:
        """Return the request that runs the script and leaves it with the server."""
        return (b"EVAL", self.text, len(keys), *keys, *arguments)

    def call(
        self, connection: Connection, keys: Sequence[Argument], arguments: Sequence[Argument]
    ) -> Any:
        """Run the script over a connection with nothing outstanding.

        Raises:
            ServerError: the script failed.
            Lost: the connection broke; the script may have run.
        """
        try:
            return connection.call(*self.command(keys, arguments))
        except ServerError as error:
            if error.code != "NOSCRIPT":
                raise
            return connection.call(*self.whole(keys, arguments))
