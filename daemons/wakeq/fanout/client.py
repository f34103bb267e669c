"""Rooms for applications: `FanoutClient` for blocking code, `AsyncFanoutClient` for asyncio.

    with FanoutClient() as rooms:
        rooms.send("auction-7", {"bid": 120}, producer="ada")

It joins, leaves, sends, acknowledges and looks; a `FanoutWorker` is what receives.
"""

import secrets
from collections.abc import Iterable
from typing import Any, Self

from wakeq.fanout.calling import Steps, drive, drive_async, servers
from wakeq.fanout.core import Core
from wakeq.fanout.records import Metrics, Queued, RoomMetrics, RoomState
from wakeq.redis_url import RedisURL

__all__ = ["AsyncFanoutClient", "FanoutClient"]

_NAME = "wakeq-fanout-client"


class _Client:
    """What both clients are made of."""

    def __init__(
        self, redis_url: str | RedisURL | None, client: Any, core: dict[str, Any], kind: bool
    ) -> None:
        self._servers = servers(redis_url, client, _NAME, kind)
        self._core = Core(self._servers, **core, remembers=True)

    def create_client_id(self) -> str:
        """Return a client id that nobody else has: 128 random bits, without asking anybody."""
        return secrets.token_hex(16)


class FanoutClient(_Client):
    """Takes part in rooms; may be used by several threads at once.

    Rooms, clients and producers are named by any text of 1 to 1000 bytes.

    Args:
        redis_url: where Redis is; by default what WAKEQ_REDIS_URL or wakeq.toml says.
        client: a `redis.Redis` to use instead; it is not closed.
        timeout: clients are timed out that are silent for so many seconds.
        queue_limit: a send to a room where so many messages wait is an error; 0: no limit.

    Raises:
        ConfigError: the URL or wakeq.toml is wrong.

    All methods raise UnavailableError if Redis cannot be reached, for some seconds in the case of
    those that can be repeated; RoomError, with a `code`, if the room does not do it; ValueError or
    TypeError for arguments that cannot be right.
    """

    def __init__(
        self,
        redis_url: str | RedisURL | None = None,
        *,
        client: Any = None,
        timeout: float = 30.0,
        queue_limit: int = 0,
    ) -> None:
        core = {"timeout": timeout, "queue_limit": queue_limit}
        super().__init__(redis_url, client, core, False)

    def __enter__(self) -> Self:
        """Return the client; it connects when it is first used."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; who was subscribed stays so, until timed out."""
        self._servers.close()

    def subscribe(
        self, room: str, client_id: str, worker: str, *, mode: str = "sync", backlog: str = "keep"
    ) -> None:
        """Make somebody a client of a room; nothing new for who is one, but a sign of life.

        Args:
            room: which one; there is one as soon as it is used.
            client_id: who; see `create_client_id`.
            worker: the name of the FanoutWorker that receives for it.
            mode: `sync`: each message waits for its acknowledgement; `async`: none does;
                `observer`: as async, but where nobody else is, messages wait.
            backlog: `drop`: what waits is dropped when the last sync client leaves; `keep`.
        """
        drive(self._servers, self._core.subscribe(room, client_id, worker, mode, backlog))

    def unsubscribe(self, room: str, client_id: str) -> None:
        """Let a client leave; what it has not acknowledged is no longer waited for."""
        drive(self._servers, self._core.unsubscribe(room, client_id))

    def send(self, room: str, data: object, *, producer: str = "", priority: int = 0) -> str:
        """Send a message to all clients of a room, after those before it; return its id.

        Args:
            room: to which one; if nobody is there, it waits.
            data: bytes or text as they are, anything else as JSON.
            producer: who sends it, for those who receive it.
            priority: lower ones first; equal ones in the order of sending.

        Raises:
            RoomError: `full`.
            UnavailableError: Redis cannot be reached; it may have been sent.
        """
        return str(drive(self._servers, self._core.send(room, data, producer, priority)))

    def send_out_of_band(self, room: str, data: object, *, producer: str = "") -> str:
        """Send a message to all who are clients now, at once; return its id. See `send`.

        Raises:
            RoomError: `full`: a worker with clients that are waited for has a thousand messages of
                the room before it; it would miss some.
            UnavailableError: Redis cannot be reached; it may have been sent.
        """
        return str(drive(self._servers, self._core.send_out_of_band(room, data, producer)))

    def ack(self, room: str, client_id: str | Iterable[str], message_id: str) -> None:
        """Acknowledge a message for a client, or for several in one round trip.

        Raises:
            RoomError: it does not count: `not-outstanding` (too late, too early), `doubled`,
                `not-waited-for`, `not-subscribed`, `timed-out`; of several clients, `failed` says
                for which, and the others' have counted.
        """
        drive(self._servers, self._core.ack(room, client_id, message_id))

    def ping(self, client_id: str, room: str | None = None) -> None:
        """Say that a client is alive, in one room, or in all that it was subscribed to here.

        Remembered are the hundred thousand clients that were heard of last.

        Raises:
            RoomError: `timed-out` or `not-subscribed`; the other rooms have heard it.
        """
        drive(self._servers, self._core.ping(client_id, room))

    def peek(self, room: str, offset: int = 0, limit: int | None = 10) -> list[Queued]:
        """Return messages that wait, in the order of their delivery; limit None: all from there."""
        return list(drive(self._servers, self._core.peek(room, offset, limit)))

    def room_state(self, room: str) -> RoomState:
        """Return who is in a room, what is outstanding, and its figures."""
        state: RoomState = drive(self._servers, self._core.room_state(room))
        return state

    def room_metrics(self, room: str) -> RoomMetrics:
        """Return the figures of a room."""
        metrics: RoomMetrics = drive(self._servers, self._core.room_metrics(room))
        return metrics

    def metrics(self, top: int = 10, by: str = "backlog") -> Metrics:
        """Return the figures of all rooms; each is asked, in a few round trips.

        Args:
            top: how many rooms to name.
            by: those with most of what: `backlog`, `delay`, `clients`, `waiting`, `round_age`,
                `rounds` or `timeouts`, as RoomMetrics has them.
        """
        metrics: Metrics = drive(self._servers, self._core.metrics(top, by))
        return metrics


class AsyncFanoutClient(_Client):
    """Takes part in rooms, for asyncio; arguments and errors are those of `FanoutClient`."""

    def __init__(
        self,
        redis_url: str | RedisURL | None = None,
        *,
        client: Any = None,
        timeout: float = 30.0,
        queue_limit: int = 0,
    ) -> None:
        core = {"timeout": timeout, "queue_limit": queue_limit}
        super().__init__(redis_url, client, core, True)

    async def __aenter__(self) -> Self:
        """Return the client; it connects when it is first used."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; who was subscribed stays so, until timed out."""
        await self._servers.aclose()

    async def subscribe(
        self, room: str, client_id: str, worker: str, *, mode: str = "sync", backlog: str = "keep"
    ) -> None:
        """Make somebody a client of a room; see `FanoutClient.subscribe`."""
        await self._drive(self._core.subscribe(room, client_id, worker, mode, backlog))

    async def unsubscribe(self, room: str, client_id: str) -> None:
        """Let a client leave; see `FanoutClient.unsubscribe`."""
        await self._drive(self._core.unsubscribe(room, client_id))

    async def send(self, room: str, data: object, *, producer: str = "", priority: int = 0) -> str:
        """Send a message to all clients of a room; see `FanoutClient.send`."""
        return str(await self._drive(self._core.send(room, data, producer, priority)))

    async def send_out_of_band(self, room: str, data: object, *, producer: str = "") -> str:
        """Send a message to all clients at once; see `FanoutClient.send_out_of_band`."""
        return str(await self._drive(self._core.send_out_of_band(room, data, producer)))

    async def ack(self, room: str, client_id: str | Iterable[str], message_id: str) -> None:
        """Acknowledge a message; see `FanoutClient.ack`."""
        await self._drive(self._core.ack(room, client_id, message_id))

    async def ping(self, client_id: str, room: str | None = None) -> None:
        """Say that a client is alive; see `FanoutClient.ping`."""
        await self._drive(self._core.ping(client_id, room))

    async def peek(self, room: str, offset: int = 0, limit: int | None = 10) -> list[Queued]:
        """Return messages that wait; see `FanoutClient.peek`."""
        return list(await self._drive(self._core.peek(room, offset, limit)))

    async def room_state(self, room: str) -> RoomState:
        """Return who is in a room, and what goes on; see `FanoutClient.room_state`."""
        state: RoomState = await self._drive(self._core.room_state(room))
        return state

    async def room_metrics(self, room: str) -> RoomMetrics:
        """Return the figures of a room."""
        metrics: RoomMetrics = await self._drive(self._core.room_metrics(room))
        return metrics

    async def metrics(self, top: int = 10, by: str = "backlog") -> Metrics:
        """Return the figures of all rooms; see `FanoutClient.metrics`."""
        metrics: Metrics = await self._drive(self._core.metrics(top, by))
        return metrics

    async def _drive(self, steps: Steps) -> Any:
        return await drive_async(self._servers, steps)
