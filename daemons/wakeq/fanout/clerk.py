"""Carries out what the clients of wakeq-fanout ask for, and answers.

The requests of one connection are carried out one after the other, so that what it sends keeps its
order whatever becomes of each; but for acknowledgements, which go together with those of others and
hold up nothing.
"""

import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from wakeq.errors import RoomError, UnavailableError
from wakeq.fanout import protocol, rooms
from wakeq.fanout.calling import Steps, call
from wakeq.fanout.door import Door
from wakeq.fanout.gateway import Gateway
from wakeq.fanout.link import Link
from wakeq.fanout.peer import Limits, Peer
from wakeq.fanout.protocol import Asked, BadRequest, granted, refused
from wakeq.fanout.rooms import checked
from wakeq.journal import Log
from wakeq.service import full_traceback

# More acknowledgements than a connection may wait for at once; then its next request waits.
_ACKS_MOST = 1000
# Characters of a ref that is kept with them; the answer to an acknowledgement has nothing else.
_REF_MOST = 1000
_PEEKED_MOST = 1000
_TOP_MOST = 1000

More = Callable[[Any], Mapping[str, object]]


class Clerk:
    """Takes requests; see `door.Host`."""

    def __init__(self, log: Log, door: Door, gateway: Gateway, link: Link, limits: Limits) -> None:
        self._log = log
        self._door = door
        self._gateway = gateway
        self._link = link
        self._limits = limits
        self._last_ack: tuple[bytes, str, str, object] | None = None  # line, room, id, ref
        self._operations: dict[str, Callable[[Peer, object, dict[str, Any]], None]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "send": self._send,
            "oob": self._send_out_of_band,
            "ack": self._acknowledge,
            "ping": self._ping,
            "peek": self._peek,
            "metrics": self._metrics,
            "state": self._state,
        }

    def greet(self, sock: socket.socket) -> Peer:
        """Return what a connection becomes, with a client id of its own."""
        return Peer(sock, secrets.token_hex(16), self._limits)

    def part(self, peer: Peer) -> None:
        """Have a connection that has ended leave its rooms."""
        self._gateway.part(peer)

    def eject(self, peer: Peer, reason: str) -> None:
        """Take a connection out of all rooms."""
        self._gateway.eject(peer, reason)

    def resume(self, peer: Peer) -> None:
        """Go on with a connection that is not behind any more."""
        self._gateway.resume(peer)

    def take(self, peer: Peer, line: bytes | None) -> None:
        """Carry out a line, or say what is wrong with it."""
        # Those who acknowledge the same message say it in the same words, in all likelihood.
        if self._last_ack is not None and self._last_ack[0] == line:
            _, room, message_id, ref = self._last_ack
            if room in peer.rooms and self._gather(peer, room, message_id, ref):
                return
        ref = None
        try:
            if line is None:
                most = f"the line is longer than {self._limits.line:,} bytes"
                raise BadRequest("too-long", most)
            asked = protocol.read(line)
            ref = asked.ref
            if asked.op == "ack" and _is_small(ref):
                self._last_ack = line, asked.fields["room"], asked.fields["id"], ref
            self._carry_out(peer, asked)
        except BadRequest as error:
            self._door.put(peer, refused(error.ref, error.code, str(error)))
        except (TypeError, ValueError, RecursionError, RoomError) as error:
            self._refuse(peer, ref, error)
        except Exception as error:  # a fault of ours: no line may end the daemon for everybody
            self._fail(peer, ref, error)

    def _fail(self, peer: Peer, ref: object, error: Exception) -> None:
        self._log.error("failed to carry out a request", detail=full_traceback(error))
        text = "wakeq-fanout has a fault; its log has more about it"
        self._door.put(peer, refused(ref, "failed", text))
        # If it is busy, nobody knows whether its next request would ever be carried out.
        peer.closed = peer.closed or peer.busy

    def _carry_out(self, peer: Peer, asked: Asked) -> None:
        room = asked.fields.get("room")
        if room is not None and room not in peer.rooms:
            checked("room", room)
        self._operations[asked.op](peer, asked.ref, asked.fields)

    # -- answers -----------------------------------------------------------------------------

    def _grant(self, peer: Peer, ref: object, more: Mapping[str, object] | None = None) -> None:
        answer = granted(ref, more)
        if len(answer) > self._limits.unread:
            text = f"the answer would have {len(answer):,} bytes; ask for less"
            answer = refused(ref, "too-long", text)
        self._door.put(peer, answer)

    def _refuse(self, peer: Peer, ref: object, error: Exception) -> None:
        self._door.put(peer, refused(ref, protocol.code_of(error), str(error)))

    def _run(self, peer: Peer, ref: object, steps: Steps, more: More | None = None) -> None:
        """Do the steps of a request, and answer it; the next one waits for that."""

        def done(result: Any, error: Exception | None) -> None:
            if error is not None:
                self._refuse(peer, ref, error)
            else:
                self._grant(peer, ref, more(result) if more else None)
            self._end(peer)

        peer.busy = True
        self._link.run(steps, done)

    def _end(self, peer: Peer) -> None:
        peer.busy = False
        self._door.again(peer)

    # -- the operations ----------------------------------------------------------------------

    def _subscribe(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        room, mode = fields["room"], fields.get("mode", "sync")
        backlog = fields.get("backlog", "keep")
        before = peer.rooms.get(room)
        client = checked("client", fields.get("client", before or peer.client))
        if mode not in rooms.MODES:
            raise ValueError(f"mode must be {', '.join(rooms.MODES)}, not {mode!r}")
        if backlog not in ("keep", "drop"):
            raise ValueError(f"backlog must be keep or drop, not {backlog!r}")
        if before not in (None, client):
            raise ValueError(f"this connection is client {before!r} of the room; unsubscribe first")
        timeout = fields.get("timeout")
        if timeout is not None:
            rooms.seconds_as_ms("timeout", timeout)
        if peer.ended:
            raise _hung_up()
        peer.busy = True

        def done(error: Exception | None) -> None:
            if error is not None:
                self._refuse(peer, ref, error)
            else:
                self._grant(peer, ref, {"room": room, "client": client})
                self._gateway.expect(peer, room, timeout)
            self._end(peer)

        def go_on() -> None:
            if peer.closed or peer.ended:
                done(_hung_up())
            else:
                self._gateway.join(peer, room, client, mode, backlog, done)

        self._gateway.leaver.when_left(room, client, go_on)

    def _unsubscribe(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        room = fields["room"]
        self._client(peer, room)
        peer.busy = True

        def told(error: Exception | None) -> None:
            if isinstance(error, UnavailableError):
                text = "Redis does not answer; the client leaves as soon as it does"
                self._refuse(peer, ref, UnavailableError(text))
            elif error is not None:
                self._refuse(peer, ref, error)
            else:
                self._grant(peer, ref)
            self._end(peer)

        self._gateway.unsubscribe(peer, room, told)

    def _client(self, peer: Peer, room: str) -> str:
        """Return the client that a connection is in a room.

        Raises:
            RoomError: it is none there.
        """
        client = peer.rooms.get(room)
        if client is None:
            code = peer.gone.get(room, "not-subscribed")
            text = f"this connection is not subscribed to room {room}"
            if code != "not-subscribed":
                text = f"this connection was ejected from room {room}"
            raise RoomError(code, text)
        return client

    def _send(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        data = protocol.as_json(fields["data"])
        sending = self._gateway.core.send(
            fields["room"], data, fields.get("producer", ""), fields.get("priority", 0)
        )
        self._run(peer, ref, sending, lambda message_id: {"id": message_id})

    def _send_out_of_band(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        data = protocol.as_json(fields["data"])
        core = self._gateway.core
        sending = core.send_out_of_band(fields["room"], data, fields.get("producer", ""))
        self._run(peer, ref, sending, lambda message_id: {"id": message_id})

    def _acknowledge(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        room, message_id = fields["room"], fields["id"]
        client = self._client(peer, room)
        if _is_small(ref) and self._gather(peer, room, message_id, ref):
            return
        # Else it will be refused, in all likelihood; Redis says why.
        checked("id", message_id)
        request = self._gateway.office.rooms.acknowledge(room, message_id, [client])

        def done(reply: Any, error: Exception | None) -> None:
            refusal = error if error is not None else rooms.refused(room, reply[0])
            if refusal is not None:
                self._refuse(peer, ref, refusal)
            else:
                self._grant(peer, ref)
            if error is None:
                self._gateway.hear(room, reply)
            self._end(peer)

        peer.busy = True
        self._link.run(call(self._link, request), done)

    def _gather(self, peer: Peer, room: str, message_id: str, ref: object) -> bool:
        gatherer = self._gateway.gatherer
        return peer.acks < _ACKS_MOST and gatherer.acknowledge(peer, room, message_id, ref)

    def _ping(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        room = fields.get("room")
        if room is None:
            self._grant(peer, ref)
            return
        client = self._client(peer, room)
        self._run(peer, ref, self._pinging(room, client))

    def _pinging(self, room: str, client: str) -> Steps:
        request = self._gateway.office.rooms.ping(room, [client])
        reply = yield from call(self._link, request)
        if error := rooms.refused(room, reply[0]):
            raise error

    def _peek(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        limit = fields.get("limit", 10)
        if not 0 <= limit <= _PEEKED_MOST:
            raise ValueError(f"limit must be 0 to {_PEEKED_MOST}, not {limit}")
        steps = self._gateway.core.peek(fields["room"], fields.get("offset", 0), limit)
        self._run(peer, ref, steps, _messages)

    def _metrics(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        core = self._gateway.core
        if "room" in fields:
            if len(fields) > 1:
                raise ValueError("top and by are for all rooms, not for one")
            steps = core.room_metrics(fields["room"])
        else:
            top = fields.get("top", 10)
            if not 0 <= top <= _TOP_MOST:
                raise ValueError(f"top must be 0 to {_TOP_MOST}, not {top}")
            steps = core.metrics(top, fields.get("by", "backlog"))
        self._run(peer, ref, steps, lambda found: {"metrics": protocol.figures(found)})

    def _state(self, peer: Peer, ref: object, fields: dict[str, Any]) -> None:
        self._run(peer, ref, self._gateway.core.room_state(fields["room"]), protocol.whole_state)


def _hung_up() -> RoomError:
    # It would leave again at once, and take the room from its client, back on another connection.
    return RoomError("not-subscribed", "this connection has hung up")


def _is_small(ref: object) -> bool:
    if ref is None:
        return True
    if isinstance(ref, str):
        return len(ref) <= _REF_MOST
    return not isinstance(ref, list | dict) or len(protocol.echo(ref)) <= _REF_MOST


def _messages(found: list[Any]) -> dict[str, object]:
    return {"messages": list(map(protocol.queued, found))}
