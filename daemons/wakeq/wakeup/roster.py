"""Knows the consumers of this host: the sockets that are there, and their configuration.

A socket RUNTIME_DIR/consumer/NAME.sock is a consumer NAME that can be woken; which stream and
group it reads stands in CONFIG_DIR/consumers/. Both directories are watched. A burst of events
(twenty units started at once) is gathered for a moment, which also keeps a socket from being
tried between its bind(2) and its listen(2). Events may be lost, so `refresh` looks at
everything, and is called at each re-check.
"""

import os
from functools import partial

from wakeq import journal
from wakeq.config import Config, instance_base
from wakeq.config import Consumer as Settings
from wakeq.errors import WakeqError
from wakeq.loop import Loop, Timer
from wakeq.wakeup.group import Sleeper
from wakeq.wakeup.inotify import Inotify
from wakeq.wakeup.waker import Waker

_GATHER_SECONDS = 0.02
_SOCKET = ".sock"
_FILE = ".toml"


class Roster:
    """Tells the waker of each consumer that appears, changes or goes away."""

    def __init__(self, loop: Loop, log: journal.Log, waker: Waker, config: Config) -> None:
        self._loop = loop
        self._log = log
        self._waker = waker
        self._config = config
        self._inotify = Inotify()
        self._host = os.uname().nodename
        self._sleepers: dict[str, Sleeper] = {}
        self._settings: dict[str, Settings] = {}  # by the name without an instance's number
        self._wrong: dict[str, str] = {}  # what was reported, by name
        self._touched: set[str] = set()
        self._edited: set[str] = set()
        self._timer: Timer | None = None

    def start(self) -> None:
        """Find the consumers that are there, and follow changes from now on."""
        sockets, files = self._directories()
        self._inotify.watch(sockets, self._sockets_changed)
        self._inotify.watch(files, self._files_changed)
        self._loop.watch(self._inotify.fd, self._inotify.read)
        self.refresh()

    def reload(self, config: Config) -> None:
        """Read all configuration anew."""
        self._config = config
        self._edited.update(self._settings, map(_base, self._wrong))
        self._wrong.clear()  # said again if it is still so
        self.refresh()

    def refresh(self) -> None:
        """Compare what is known with what is there."""
        self._timer = None
        edited, self._edited = self._edited, set()
        touched, self._touched = self._touched, set()
        there = self._listed()
        changed = {base for base in edited if self._changed(base)}
        for name, sleeper in list(self._sleepers.items()):
            if name not in there:
                self._log.info("consumer's socket is gone", consumer=name)
            elif _base(name) not in changed:
                continue
            self._waker.remove(sleeper)
            del self._sleepers[name]
        for name in self._wrong.keys() - there:
            del self._wrong[name]
        for name in sorted(there - self._sleepers.keys()):
            self._add(name)
        self._settings = {base: self._settings[base] for base in map(_base, self._sleepers)}
        for name in touched & self._sleepers.keys():
            self._waker.revive(self._sleepers[name])

    def _directories(self) -> tuple[str, str]:
        place = self._config.place
        return (
            os.path.abspath(os.path.join(place.runtime_dir, "consumer")),
            os.path.abspath(os.path.join(place.config_dir, "consumers")),
        )

    def _listed(self) -> set[str]:
        try:
            names = os.listdir(self._directories()[0])
        except OSError:
            return set()  # no socket was ever made, or all are gone
        return {name.removesuffix(_SOCKET) for name in names if name.endswith(_SOCKET)}

    def _changed(self, base: str) -> bool:
        """Tell whether a consumer's file says something else than before."""
        before = self._settings.pop(base, None)
        try:
            after = self._settings[base] = self._config.consumer(base)
        except WakeqError:
            return True
        return before is None or vars(before) != vars(after)

    def _add(self, name: str) -> None:
        try:
            base = instance_base(name)
            if base not in self._settings:
                self._settings[base] = self._config.consumer(base)
        except WakeqError as error:
            if self._wrong.get(name) != str(error):
                self._wrong[name] = str(error)
                self._log.warning(f"consumer cannot be woken: {error}", consumer=name)
            return
        if self._wrong.pop(name, None):
            self._log.info("consumer's configuration was corrected", consumer=name)
        path = os.path.join(self._directories()[0], name + _SOCKET)
        sleeper = Sleeper(name, path, os.fsencode(f"{self._host}/{name}"))
        self._sleepers[name] = sleeper
        self._waker.add(sleeper, self._settings[base])

    def _sockets_changed(self, names: set[str] | None) -> None:
        every = [name + _SOCKET for name in self._sleepers]
        for name in every if names is None else names:
            self._touched.add(name.removesuffix(_SOCKET))
        self._soon()

    def _files_changed(self, names: set[str] | None) -> None:
        every = [base + _FILE for base in (*self._settings, *map(_base, self._wrong))]
        for name in every if names is None else names:
            if name.endswith(_FILE):
                self._edited.add(name.removesuffix(_FILE))
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.after(_GATHER_SECONDS, partial(self.refresh))


def _base(name: str) -> str:
    return name.partition(":")[0]
