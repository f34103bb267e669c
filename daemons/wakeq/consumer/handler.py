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
# What wakeq's own modules load after the first message, or nearly everything else does.
_LOADED_LATE = frozenset(("enum", "heapq", "queue", "sdnotify", "selectors", "signal", "socket"))


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


def load(settings: Consumer, name: str, kind: str = "consumer") -> Handler:
    """Return the handler that the settings of a consumer, or of another kind, name.

    Raises:
        ConfigError: it cannot be imported, is not callable, or the program does not exist.
    """
    where = f"{kind} {name}"
    if settings.exec_:
        from wakeq.consumer.program import Runner

        runner = Runner(settings, where)
        return Handler(runner.run, stop=runner.kill_all)
    call = find(settings.handler, f"{where}: handler {settings.handler!r}")
    code = _code(call)
    flags = code.co_flags if code else 0
    if flags & (_GENERATOR | _ASYNC_GENERATOR):
        raise ConfigError(
            f"{where}: handler {settings.handler!r} has a yield, so calling it runs nothing:"
            " return a list instead"
        )
    return Handler(call, bool(flags & _COROUTINE), _batch_most(call))


def find(path: str, what: str) -> Callable[[Any], Any]:
    """Import what `package.module:callable` or `/a/file.py:callable` names.

    Raises:
        ConfigError: it cannot be imported or called; `what` is what the message begins with.
    """
    module_name, colon, attributes = path.rpartition(":")
    if not colon or not module_name or not attributes:
        raise ConfigError(f"{what} must be package.module:callable or /a/file.py:callable")
    _add_directory(os.getcwd())  # as `python -m` does: a script beside which one stands is found
    path = ""
    if module_name.endswith(".py"):
        path = os.path.realpath(module_name)
        if not os.path.isfile(path):
            raise ConfigError(f"{what}: there is no file {module_name}")
        directory, file = os.path.split(os.path.abspath(module_name))
        _add_directory(directory)
        module_name = file.removesuffix(".py")
    try:
        __import__(module_name)
        found: Any = sys.modules[module_name]
        origin = os.path.realpath(getattr(found, "__file__", None) or "built-in")
        if path and origin != path:
            raise ConfigError(
                f"{what} cannot be imported: there is another module {module_name}, {origin}:"
                " give the file another name"
            )
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except ConfigError:
        raise
    # A script that was not meant to be imported exits.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} cannot be imported: {_summary(error)}") from None
    if not callable(found):
        raise ConfigError(f"{what} is {found!r}, which cannot be called")
    return found  # type: ignore[no-any-return]  # any callable, as just seen


def _add_directory(directory: str) -> None:
    if directory == "/" or directory in sys.path:
        return
    try:
        names = {name.removesuffix(".py") for name in os.listdir(directory)}
    except OSError:
        names = set()  # nothing can be imported from there
    for name in _LOADED_LATE & names:
        __import__(name)  # a queue.py beside the handler must not take the place of the library's
    sys.path.insert(0, directory)


def _summary(error: BaseException) -> str:
    """Return an error and the line of the user's file that it came from."""
    text = f"{type(error).__name__}: {error}"
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen"):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return text + place


def _layers(call: Any) -> list[Any]:
    """Return a callable and what it calls: behind a partial, a bound method, an object."""
    layers = [call]
    while hasattr(call, "func") and hasattr(call, "keywords"):  # functools.partial
        call = call.func
        layers.append(call)
    return [*layers, getattr(call, "__func__", None), type(call).__call__]


def _code(call: Any) -> CodeType | None:
    """Return the code that runs when a callable is called."""
    codes = [getattr(layer, "__code__", None) for layer in _layers(call)]
    return next((code for code in codes if isinstance(code, CodeType)), None)


def _batch_most(call: Any) -> int:
    """Return what `batch` has marked a callable with, or 0."""
    return next((most for layer in _layers(call) if (most := getattr(layer, _BATCH, 0))), 0)
