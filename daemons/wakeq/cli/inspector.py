"""Finds what is wrong on this host: each finding says what, and what to do about it."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import NamedTuple

from wakeq import keys
from wakeq.bridge.channel import describe
from wakeq.cli import streams
from wakeq.cli.session import Session
from wakeq.config import Consumer
from wakeq.errors import EX_CONFIG, ConfigError, UnavailableError, WakeqError
from wakeq.sections import Node

_IMPORT_SECONDS = 60.0
# Says what the consumer would say; in the interpreter that the consumer would use.
_IMPORT = """\
import sys
from wakeq.config import Consumer
from wakeq.sections import Node
from wakeq.consumer.handler import load
from wakeq.errors import ConfigError
settings = Consumer()
settings.handler = sys.argv[2]
try:
    load(settings, sys.argv[1])
except ConfigError as error:
    sys.exit(str(error))
"""


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str  # ok, warning or error
    about: str
    text: str


class Inspector:
    """Looks at everything, or at some consumers.

    Args:
        session: where to look.
        imports: import the handlers, which runs their code.

    Attributes:
        exit_code: that of the command, once all findings were taken.
    """

    def __init__(self, session: Session, imports: bool) -> None:
        self._session = session
        self._imports = imports
        self.exit_code = 0

    def run(self, names: list[str]) -> Iterator[Finding]:
        """Yield the findings; about the consumers named, or all."""
        yield from self._main_file()
        yield from self._redis()
        try:
            sockets = self._session.sockets()
            found = sorted({*self._session.configured(), *sockets})
            bridges = self._session.configured("bridges")
            nodes = self._session.configured("nodes")
        except WakeqError as error:
            yield self._error("consumers", str(error))
            return
        if not (found or names or bridges or nodes):
            folder = os.path.join(self._session.config.place.config_dir, "consumers")
            yield Finding("warning", "consumers", f"there is no file {folder}/NAME.toml yet")
        for name in names or found:
            yield from self._consumer(name, sockets)
        for name in [] if names else bridges:
            yield self._bridge(name)
        for name in [] if names else nodes:
            yield self._node(name)
        yield from self._units(names or found)

    def _error(self, about: str, text: str, code: int = EX_CONFIG) -> Finding:
        # What must be corrected here is worse than a server that may come back.
        self.exit_code = max(self.exit_code, code)
        return Finding("error", about, text)

    def _main_file(self) -> Iterator[Finding]:
        path = os.path.join(self._session.config.place.config_dir, "wakeq.toml")
        try:
            self._session.config.common()
            self._session.config.wakeup()
            self._session.config.delay()
            self._session.config.leader()
            self._session.config.trim()
        except WakeqError as error:
            yield self._error("wakeq.toml", str(error))
            return
        there = path if os.path.exists(path) else f"there is no {path}, the defaults hold"
        yield Finding("ok", "wakeq.toml", there)

    def _redis(self) -> Iterator[Finding]:
        try:
            server = self._session.check_server()
        except UnavailableError as error:
            yield self._error("redis", str(error), error.exit_code)
        except WakeqError as error:
            yield self._error("redis", str(error))
        else:
            yield Finding("ok", "redis", f"{server} at {self._session.url}")
            yield self._delayed()

    def _delayed(self) -> Finding:
        about, late = "delayed", (0, 0.0)
        try:
            with self._session.explaining():
                seconds, _ = self._session.call(keys.STREAMS, "TIME")
                for name in self._session.call(keys.STREAMS, "SMEMBERS", keys.STREAMS):
                    stream = streams.text(name)
                    count, since = streams.overdue(self._session, stream, seconds * 1000)
                    late = (late[0] + count, max(late[1], since or 0.0))
        except WakeqError as error:
            return Finding("warning", about, f"cannot be looked at: {error}")
        if late[0]:
            return Finding("warning", about, streams.overdue_told(*late))
        return Finding("ok", about, "nothing is overdue")

    def _consumer(self, name: str, sockets: dict[str, str]) -> Iterator[Finding]:
        about = f"consumer {name}"
        try:
            settings = self._session.config.consumer(name)
            what = self._program(settings, name)
        except WakeqError as error:
            yield self._error(about, str(error))
            return
        yield Finding("ok", about, f"stream {settings.stream}, group {settings.group}, {what}")
        yield self._socket(name, about, sockets)

    def _bridge(self, name: str) -> Finding:
        try:
            settings = self._session.config.bridge(name)
            if settings.exec_:
                _must_be_executable(settings.exec_[0], "exec")
        except WakeqError as error:
            return self._error(f"bridge {name}", str(error))
        return Finding("ok", f"bridge {name}", f"{describe(settings)}, stream {settings.stream}")

    def _node(self, name: str) -> Finding:
        from wakeq.node.timetable import Timetable

        about = f"node {name}"
        try:
            settings = self._session.config.node(name)
            Timetable(settings)
            does = "without a handler"
            if settings.handler or settings.exec_:
                does = self._program(settings, name)
            if settings.generate_exec:
                _must_be_executable(settings.generate_exec[0], "generate_exec")
        except WakeqError as error:
            return self._error(about, str(error))
        where = f"list {settings.list_}" if settings.list_ else f"stream {settings.stream}"
        return Finding("ok", about, f"{where}, {does}")

    def _program(self, settings: Consumer | Node, name: str) -> str:
        """Return what runs for each message.

        Raises:
            ConfigError: it is not there, or cannot be run.
        """
        if settings.exec_:
            _must_be_executable(settings.exec_[0], "exec")
            return f"program {settings.exec_[0]}"
        if settings.python:
            _must_be_executable(settings.python, "python")
        if self._imports:
            self._import(settings, name)
        else:
            _must_be_found(settings)
        return f"handler {settings.handler}"

    def _import(self, settings: Consumer | Node, name: str) -> None:
        source = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        command = [settings.python or sys.executable, "-c", _IMPORT, name, settings.handler]
        try:
            done = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=_IMPORT_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"handler {settings.handler!r}: its import takes more than {_IMPORT_SECONDS:g} s"
            ) from None
        except OSError as error:
            raise ConfigError(f"python: {command[0]} does not run: {error.strerror}") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ConfigError(f"handler {settings.handler!r}: {lines[-1]}")

    def _socket(self, name: str, about: str, sockets: dict[str, str]) -> Finding:
        unit = f"wakeq-consumer@{name}.socket"
        if name not in sockets:
            return Finding(
                "warning", about,
                f"has no socket, so nothing wakes it; to make it: systemctl enable --now {unit}",
            )  # fmt: skip
        path = sockets[name]
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError as error:
            return self._error(about, f"{path}: {error.strerror}")
        if not is_socket:
            return self._error(about, f"{path} is no socket; remove it and restart {unit}")
        return Finding("ok", about, f"socket {path}")

    def _units(self, names: list[str]) -> Iterator[Finding]:
        systemctl = shutil.which("systemctl")
        # sd_booted(3)
        if systemctl is None or not os.path.isdir("/run/systemd/system"):
            yield Finding("ok", "units", "not looked at: this host is not run by systemd")
            return
        units = ["wakeq-wakeup.service", *(f"wakeq-consumer@{name}.socket" for name in names)]
        for unit in units:
            yield self._unit(systemctl, unit)

    def _unit(self, systemctl: str, unit: str) -> Finding:
        command = [systemctl, "show", "--property=LoadState,UnitFileState,ActiveState", unit]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("warning", unit, f"systemctl does not answer: {error}")
        if done.returncode:
            return Finding("warning", unit, f"systemctl: {done.stderr.strip()}")
        state = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        load, active = state.get("LoadState", ""), state.get("ActiveState", "")
        if load != "loaded":
            return Finding("warning", unit, f"is {load or 'unknown'} to systemd: install the units")
        if active == "failed":
            return self._error(
                unit, f"has failed: systemctl status {unit}; then systemctl reset-failed {unit}"
            )
        if active != "active":
            return Finding("warning", unit, f"is {active}; systemctl enable --now {unit}")
        if state.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "linked"):
            return Finding("warning", unit, f"will not start at boot; systemctl enable {unit}")
        return Finding("ok", unit, "enabled and active")


def _must_be_executable(path: str, key: str) -> None:
    if not os.path.exists(path):
        raise ConfigError(f"{key}: there is no program {path}")
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        raise ConfigError(f"{key}: {path} is not executable; chmod +x {path}")


def _must_be_found(settings: Consumer | Node) -> None:
    """Look for a handler's module without running any of its code."""
    module, colon, attribute = settings.handler.rpartition(":")
    what = f"handler {settings.handler!r}"
    if not (colon and module and attribute):
        raise ConfigError(f"{what} must be package.module:callable or /a/file.py:callable")
    if module.endswith(".py"):
        if not os.path.isfile(module):
            raise ConfigError(f"{what}: there is no file {module}")
    elif not settings.python and not _is_found(module):
        raise ConfigError(
            f"{what}: {sys.executable} finds no module {module!r}; install it there,"
            " or name its own interpreter with python="
        )


def _is_found(module: str) -> bool:
    """Tell whether a module can be found; importlib.util would import its packages."""
    places: list[str] | None = [os.getcwd(), *sys.path]
    name = ""
    for part in module.split("."):
        if places is None:
            return False
        name = f"{name}.{part}" if name else part
        if name in sys.builtin_module_names:
            return True
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return False
        found = spec.submodule_search_locations
        places = None if found is None else list(found)
    return True
