"""The application's own interpreter: `python = "/srv/shop/.venv/bin/python"`.

The process executes itself anew with that interpreter, which then has the application's
packages. wakeq itself and the few packages it needs come from here, if the application's
environment does not have them: it needs no copy of wakeq.
"""

import gc
import os
import sys

from wakeq import journal
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import ConfigError

_LIBRARY = "WAKEQ_LIBRARY_PATH"
_ORIGIN = "WAKEQ_STARTED_AS"
_MAIN = "WAKEQ_MAIN_MODULE"
_SEPARATOR = "\x1f"
_DEFAULT_THRESHOLD = gc.get_threshold()

# The command line this process was first started with, if it has switched since.
_origin: list[str] = []


def switch(python: str, wake: WakeSocket, module: str = "wakeq.consumer.main") -> None:
    """Go on in another interpreter, if one is asked for and this is not it already.

    Raises:
        ConfigError: there is no such interpreter.
    """
    if not python or _origin:
        return
    command, environment = lend(python, module)
    os.environ.update(environment)
    _execute([*command, *sys.argv[1:]], wake)


def lend(python: str, module: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs `main` of a module of ours in another interpreter.

    With it goes what is to be added to the environment.
    """
    environment = {
        _LIBRARY: os.pathsep.join(filter(None, sys.path)),
        _ORIGIN: _SEPARATOR.join(_command_line()),
        _MAIN: module,
    }
    return [python, os.path.join(os.path.dirname(__file__), "bootstrap.py")], environment


def restart(wake: WakeSocket) -> None:
    """Begin this process again from its first instruction, with the sockets that it has."""
    _execute(_origin or _command_line(), wake)


def take_over() -> tuple[list[str], str]:
    """Return where the packages of the first interpreter are, and the module to run.

    Called once, by the second one.
    """
    _origin[:] = os.environ.pop(_ORIGIN).split(_SEPARATOR)
    return os.environ.pop(_LIBRARY).split(os.pathsep), os.environ.pop(_MAIN)


def calm_garbage_collection() -> None:
    """Have the garbage collector look at messages less often, and never at what is loaded.

    A message is freed by its reference count; with the default threshold the collector takes a
    tenth of the time of a fast handler. An application that has set it keeps its own.
    """
    gc.freeze()
    if gc.get_threshold() == _DEFAULT_THRESHOLD:
        gc.set_threshold(10_000, *_DEFAULT_THRESHOLD[1:])


def _command_line() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _execute(argv: list[str], wake: WakeSocket) -> None:
    if journal.has_waiting():
        journal.open_log()
    wake.pass_on()
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        raise ConfigError(f"python {argv[0]} cannot be run: {error.strerror}") from None
