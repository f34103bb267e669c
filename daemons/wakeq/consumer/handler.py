"""Handlers: finding what a consumer's file names, and telling what kind of callable it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import CodeType

from wakeq.config import Consumer
from wakeq.errors import ConfigError

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any, TypeVar

    CallableT = TypeVar("CallableT", bound=Callable[..., object])

_BATCH = "__wakeq_batch__"
# Flags of a code object (inspect.CO_COROUTINE and so on; inspect is slow to import).
_COROUTINE, _GENERATOR, _ASYNC_GENERATOR = 0x80, 0x20, 0x200


def batch(most: int) -> Callable[[CallableT], CallableT]:
    """Have a handler called with a list of messages, 1 to `most`, instead of one message.

    The messages of a batch are handled or fail together.
    """
    if not 1 <= most <= 10000:
        raise ValueError(f"a batch has 1 to 10000 messages, not {most}")

    def mark(handler: CallableT) -> CallableT:
        setattr(handler, _BATCH, most)
        return handler

    return mark


class Handler:
    """What is called for each message, or for each batch.

    Attributes:
        call: the callable.
        is_async: whether it must be awaited.
        batch: the most messages it takes at once, 0 if it takes just one.
        stop: ends what `call` is doing in another thread, if that is possible.
    """

    def __init__(
        self,
        call: Callable[[Any], Any],
        is_async: bool = False,
        batch_most: int = 0,
        stop: Callable[[], None] | None = None,
    ) -> None:
        self.call = call
        self.is_async = is_async
        self.batch = batch_most
        self.stop = stop


def load(settings: Consumer, name: str) -> Handler:
    """Return the handler that a consumer's settings name.

    Raises:
        ConfigError: it cannot be imported, is not callable, or the program does not exist.
    """
    where = f"consumer {name}"
    if settings.exec_:
        from wakeq.consumer.program import Runner

        runner = Runner(settings, where)
        return Handler(runner.run, stop=runner.kill_all)
    call = _find(settings.handler, f"{where}: handler {settings.handler!r}")
    flags = _flags(call)
    if flags & (_GENERATOR | _ASYNC_GENERATOR):
        raise ConfigError(
            f"{where}: handler {settings.handler!r} has a yield, so calling it runs nothing:"
            " return a list instead"
        )
    return Handler(call, bool(flags & _COROUTINE), getattr(call, _BATCH, 0))


def _find(path: str, what: str) -> Callable[[Any], Any]:
    module_name, colon, attributes = path.rpartition(":")
    if not colon or not module_name or not attributes:
        raise ConfigError(f"{what} must be package.module:callable or /a/file.py:callable")
    _add_directory(os.getcwd())  # as `python -m` does: a script beside which one stands is found
    if module_name.endswith(".py"):
        directory, file = os.path.split(module_name)
        if not os.path.isfile(module_name):
            raise ConfigError(f"{what}: there is no file {module_name}")
        _add_directory(directory or os.getcwd())
        module_name = file.removesuffix(".py")
    try:
        __import__(module_name)
        found: Any = sys.modules[module_name]
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported: {_summary(error)}") from None
    if not callable(found):
        raise ConfigError(f"{what} is {found!r}, which cannot be called")
    return found  # type: ignore[no-any-return]  # any callable, as just seen


def _add_directory(directory: str) -> None:
    if directory != "/" and directory not in sys.path:
        sys.path.insert(0, directory)


def _summary(error: Exception) -> str:
    """Return an error and the line of the user's file that it came from."""
    text = f"{type(error).__name__}: {error}"
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen"):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return text + place


def _flags(call: Any) -> int:
    """Return the flags of the code that runs when a callable is called."""
    while hasattr(call, "func") and hasattr(call, "keywords"):  # functools.partial
        call = call.func
    for candidate in (call, getattr(call, "__func__", None), type(call).__call__):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, CodeType):
            return code.co_flags
    return 0
