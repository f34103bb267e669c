"""A client of redis-py that the caller has already, in the place of our own connections."""

from typing import Any


class GivenClient:
    """Stands for the servers when the caller has a client already, whose it stays.

    Args:
        client: the client, sync or async.

    Raises:
        TypeError: it is one for a Cluster, whose routing is ours to do.
    """

    url = "the client given"
    cluster = False

    def __init__(self, client: Any) -> None:
        if type(client).__name__ == "RedisCluster":
            raise TypeError("client must not be a RedisCluster: give redis_url, redis+cluster://")
        self._client = client

    def client(self, _key: str) -> Any:
        """Return the client."""
        return self._client

    def redirected(self, _error: BaseException) -> bool:
        """Tell that nothing can be done about a redirection."""
        return False

    def lost(self, _key: str, _error: BaseException) -> bool:
        """Tell that nothing can be done about a lost connection."""
        return False

    def close(self) -> None:
        """Leave it open."""

    async def aclose(self) -> None:
        """Leave it open."""
