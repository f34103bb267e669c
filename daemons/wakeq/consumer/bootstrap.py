"""Starts a module of wakeq in an interpreter that does not know wakeq (see `interpreter`).

Run as a script. Of the packages of the interpreter that came before, only wakeq and what it
needs are made known, last in line: the application's own versions go first.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

_NEEDED = frozenset(("hiredis", "sdnotify", "structlog", "systemd"))


class _Lender(MetaPathFinder):
    """Finds a few packages, and no others, in given directories."""

    def __init__(self, names: frozenset[str], directories: list[str]) -> None:
        self.names = names
        self.directories = directories

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is None and name in self.names:
            return PathFinder.find_spec(name, self.directories)
        return None


def main() -> None:
    """Make wakeq known, check that it can work here, and run the module."""
    # The directory of this script must not offer its modules to the application.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [p for p in sys.path if p and not os.path.abspath(p).startswith(package)]
    # The same wakeq as before, even where the application has another one.
    sys.meta_path.insert(0, _Lender(frozenset(("wakeq",)), [os.path.dirname(package)]))
    from wakeq.consumer import interpreter

    directories, module = interpreter.take_over()
    sys.meta_path.append(_Lender(_NEEDED, directories))
    try:
        import hiredis  # noqa: F401  (only to see whether it can be loaded here)
    except ImportError as error:
        print(
            f"wakeq: python {sys.executable} cannot load hiredis ({error}):"
            f" install it there with '{sys.executable} -m pip install hiredis'",
            file=sys.stderr,
        )
        raise SystemExit(78) from None
    __import__(module)
    sys.modules[module].main()


main()
