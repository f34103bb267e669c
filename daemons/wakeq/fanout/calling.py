"""Carrying out the requests of rooms over redis-py, for blocking code and for asyncio.

A call is a generator, as in `publishing`: it yields a Request and gets the reply, or the error that
took its place; or it yields a number of seconds to wait, and gets nothing.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any

import redis

from wakeq.backoff import Backoff
from wakeq.config import Config
from wakeq.errors import RefusedError, UnavailableError, WakeqError
from wakeq.fanout.rooms import Request
from wakeq.given_client import GivenClient
from wakeq.redis_client import Servers, explained, server_error
from wakeq.redis_url import RedisURL
from wakeq.steps import follow, follow_async
from wakeq.wire import ServerError, explain

_REDIRECTS_MOST = 5
# How often what may be repeated is tried: about three seconds in all.
_TRIES = 6
# Requests that go out together; so many scripts do not hold others up for long.
_TOGETHER = 100

Steps = Generator[Request | Sequence[Request] | float, Any, Any]


def servers(redis_url: str | RedisURL | None, client: Any, name: str, asynchronous: bool) -> Any:
    """Return the servers that a caller means; by default those of the configuration.

    Raises:
        ConfigError: the URL or wakeq.toml is wrong.
    """
    if client is not None:
        if redis_url is not None:
            raise TypeError("give redis_url or client, not both")
        return GivenClient(client)
    url = redis_url or Config().common().redis_url
    return Servers(url if isinstance(url, RedisURL) else RedisURL(url), name, asynchronous)


def call(servers: Any, request: Request, repeatable: bool = True, tries: int = _TRIES) -> Steps:
    """Carry out a request; what may be repeated is, for a while, when its reply was lost.

    Raises:
        UnavailableError: Redis cannot be reached, or cannot answer now; what is not repeatable may
            have been carried out.
        WakeqError: Redis refuses.
    """
    backoff, redirects = Backoff(0.2, 2.0), 0
    while True:
        reply = yield request
        if not isinstance(reply, Exception):
            return reply
        if servers.redirected(reply) and redirects < _REDIRECTS_MOST:
            redirects += 1
            continue
        code = reply if isinstance(reply, ServerError) else server_error(reply)
        if code is not None and code.code == "NOSCRIPT" and request.send_whole():
            continue
        error = _meaning(reply, servers.url)
        unavailable = isinstance(error, UnavailableError)
        # An error reply says that nothing was done, unless a replica's promotion was waited for.
        if not unavailable or (code is None and not repeatable) or backoff.tries + 1 >= tries:
            raise error
        if code is not None and code.code == "OOM":
            raise error
        request.repeated = request.repeated or code is None
        yield backoff.next()


def _meaning(error: Exception, url: object) -> WakeqError:
    if isinstance(error, ServerError):
        return explain(error, url)
    return error if isinstance(error, WakeqError) else explained(error, url)


def call_all(servers: Any, requests: Sequence[Request], tries: int = _TRIES) -> Steps:
    """Carry out requests that may be repeated, in any order; see `call`."""
    replies = yield from call_each(servers, requests, tries)
    for reply in replies:
        if isinstance(reply, WakeqError):
            raise reply
    return replies


def call_each(servers: Any, requests: Sequence[Request], tries: int = _TRIES) -> Steps:
    """Carry out requests as `call_all` does, but what is wrong with one does not keep others from
    being carried out: the error takes the place of its reply.

    Raises:
        UnavailableError, RefusedError: of whichever request; others have the same to expect.
    """
    replies: list[Any] = []
    for start in range(0, len(requests), _TOGETHER):
        some = requests[start : start + _TOGETHER]
        if servers.cluster or len(some) == 1:
            found: list[Any] = [None] * len(some)
        else:
            found = yield some
        for request, reply in zip(some, found, strict=True):
            if reply is None or isinstance(reply, Exception):
                try:
                    replies.append((yield from call(servers, request, tries=tries)))
                except (UnavailableError, RefusedError):
                    raise
                except WakeqError as error:
                    replies.append(error)
            else:
                replies.append(reply)
    return replies


def drive(servers: Any, steps: Steps, carry_out: Callable[[Request], Any] | None = None) -> Any:
    """Do what a generator yields, and return what it returns.

    Args:
        servers: where requests go.
        steps: the generator.
        carry_out: has single requests carried out instead.
    """
    one = carry_out or partial(_carry_out, servers)

    def do(step: Request | Sequence[Request]) -> Any:
        return one(step) if isinstance(step, Request) else _carry_out_all(servers, step)

    return follow(steps, do)


def _carry_out(servers: Any, request: Request) -> Any:
    while True:
        try:
            return servers.client(request.key).execute_command(*request.command)
        except WakeqError as error:
            return error
        except (redis.exceptions.RedisError, OSError) as error:
            if server_error(error) is not None or not servers.lost(request.key, error):
                return error


def _carry_out_all(servers: Any, requests: Sequence[Request]) -> list[Any]:
    pipeline = servers.client(requests[0].key).pipeline(transaction=False)
    for request in requests:
        pipeline.execute_command(*request.command)
    try:
        return list(pipeline.execute(raise_on_error=False))
    except (redis.exceptions.RedisError, OSError):
        return [None] * len(requests)


async def drive_async(
    servers: Any, steps: Steps, carry_out: Callable[[Request], Awaitable[Any]] | None = None
) -> Any:
    """Do what a generator yields, for asyncio; see `drive`."""
    one = carry_out or partial(_carry_out_async, servers)

    async def do(step: Request | Sequence[Request]) -> Any:
        if isinstance(step, Request):
            return await one(step)
        return await _carry_out_all_async(servers, step)

    return await follow_async(steps, do)


async def _carry_out_async(servers: Any, request: Request) -> Any:
    while True:
        try:
            return await servers.client(request.key).execute_command(*request.command)
        except WakeqError as error:
            return error
        except AttributeError:
            # redis-py 4.3 looks for the host of a unix socket when it is to say that one broke.
            return redis.exceptions.ConnectionError("the connection broke")
        except (redis.exceptions.RedisError, OSError) as error:
            if server_error(error) is not None or not servers.lost(request.key, error):
                return error


async def _carry_out_all_async(servers: Any, requests: Sequence[Request]) -> list[Any]:
    pipeline = servers.client(requests[0].key).pipeline(transaction=False)
    for request in requests:
        pipeline.execute_command(*request.command)
    try:
        return list(await pipeline.execute(raise_on_error=False))
    except (redis.exceptions.RedisError, OSError):
        return [None] * len(requests)
