"""What every subcommand works with: the configuration, Redis, and the screen."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wakeq.config import Common, Config, Place
from wakeq.errors import RefusedError

if TYPE_CHECKING:
    from wakeq.publisher import Publisher
    from wakeq.redis_client import Servers
    from wakeq.redis_url import RedisURL

_NAME = "wakeq-cli"


class Session:
    """One call of the command.

    redis-py is loaded when Redis is first used, not before: it takes a tenth of a second.
    """

    def __init__(self, arguments: Namespace) -> None:
        names = [setting.name for kind in (Common, Place) for setting in kind.table.values()]
        given = {name: getattr(arguments, name, None) for name in names}
        self.config = Config({name: value for name, value in given.items() if value is not None})

    @cached_property
    def url(self) -> "RedisURL":
        """Where Redis is, by option, environment or wakeq.toml."""
        from wakeq.redis_url import RedisURL

        return RedisURL(self.config.common().redis_url)

    @cached_property
    def servers(self) -> "Servers":
        """The servers behind the URL; nothing is connected yet."""
        from wakeq.redis_client import Servers

        return Servers(self.url, _NAME)

    def publisher(self) -> "Publisher":
        """Return a publisher to the same Redis."""
        from wakeq.publisher import Publisher

        return Publisher(self.url)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn errors of redis-py in the block into ones that explain themselves.

        A broken pipe is that of stdout, whose reader has enough: redis-py has errors of its own.
        """
        from wakeq.redis_client import errors_explained

        broken: BrokenPipeError | None = None
        with errors_explained(self.url):
            try:
                yield
            except BrokenPipeError as error:
                broken = error
        if broken is not None:
            raise broken

    def call(self, key: str, *command: Any) -> Any:
        """Run one command, which may be repeated, on the server that has a key.

        Returns the reply as redis-py makes it.

        Raises:
            redis.exceptions.RedisError: see `explaining`.
        """
        return self.call_many(key, [command])[0]

    def call_many(self, key: str, commands: list[Any], raises: bool = True) -> list[Any]:
        """Run commands that may be repeated, all of keys in the slot of `key`, in one go.

        With `raises` false, an error reply stands in the place of its reply.
        """
        from redis.exceptions import RedisError, ResponseError

        for _ in range(5):
            pipeline = self.servers.client(key).pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            try:
                replies: list[Any] = pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                if self.servers.lost(key, error):
                    continue
                raise
            errors = [reply for reply in replies if isinstance(reply, ResponseError)]
            if not any(self.servers.redirected(error) for error in errors):
                break
        if raises and errors:
            raise errors[0]
        return replies

    def check_server(self) -> str:
        """Return what Redis says that it is, such as `Redis 7.0.15`.

        Raises:
            ConfigError: it is too old.
        """
        return self.servers.check_version()

    def sockets(self) -> dict[str, str]:
        """Return the wake sockets on this host: path by the consumer's name.

        Raises:
            RefusedError: the folder may not be read.
        """
        folder = os.path.join(self.config.place.runtime_dir, "consumer")
        return {
            name.removesuffix(".sock"): os.path.join(folder, name)
            for name in _listed(folder)
            if name.endswith(".sock")
        }

    def configured(self, kind: str = "consumers") -> list[str]:
        """Return the names of the consumers, or bridges, that have a configuration file.

        Raises:
            RefusedError: the folder may not be read.
        """
        names = _listed(os.path.join(self.config.place.config_dir, kind))
        hidden = (".", "_")
        return [
            name.removesuffix(".toml")
            for name in names
            if name.endswith(".toml") and not name.startswith(hidden)
        ]


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RefusedError(f"{folder}: cannot be read: {error.strerror}") from None


def warn(text: str) -> None:
    """Say something on stderr that does not stop the command."""
    print(f"wakeq: {text}", file=sys.stderr)
