"""The registry of streams: where wakeq-trim and wakeq-delay find them."""

from wakeq import keys
from wakeq.errors import WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Connection, ServerError

_SECONDS = 1.0


def sign_up(url: RedisURL, stream: str) -> None:
    """Put a stream into the registry, if there is one and that is quickly done.

    On Cluster the registry is in a slot of its own. Who may not add to it does without.
    """
    if not stream:
        return
    connection = Connection(url, "wakeq-node", keys.STREAMS)
    try:
        connection.connect(_SECONDS)
        connection.call("SADD", keys.STREAMS, stream, timeout=_SECONDS)
    except (WakeqError, ServerError):
        pass  # the node works without; consumers sign it up as well
    finally:
        connection.close()
