"""A system booted in a container with a real systemd and journald, to be used and thrown away.

It has a network of its own with nothing in it but the loopback interface, unless it is put into
another one (network.py), and an overlay over a base system. The overlay is mounted in a mount
namespace of the container's own, and the container is in a PID namespace that ends with the
process that started it, so neither can be left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis_servers import wait_until

_NSPAWN = [
    *("systemd-nspawn", "--quiet", "--boot", "--console=passive"),
    # The one who runs it need not be known to a machined, nor be in a unit of its own.
    *("--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
]
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "cat",
    "SYSTEMD_COLORS": "0",
}
# What systemd-nspawn ends with when its system reboots.
_REBOOT = 133
# systemd gives what does not end a minute and a half.
_OFF_SECONDS = 180
# SIOCSIFFLAGS with IFF_UP: netdevice(7).
_LOOPBACK_UP = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH22x", b"lo", 1))
"""


class Machine:
    """One booted system.

    Args:
        suite: the name of its Debian release.
        layers: what it consists of, the uppermost first; they are not written to.

    Attributes:
        leader: the PID of its init, seen from outside.
        options: those of systemd-nspawn that not every machine has.
        descriptors: what they speak of, to be found in its /proc/self/fd.
    """

    options: Sequence[str] = ("--private-network",)
    descriptors: Sequence[int] = ()

    def __init__(self, suite: str, *layers: Path) -> None:
        self.suite = suite
        self.leader = 0
        self._layers = layers
        self._folder = Path(tempfile.mkdtemp(prefix="b"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot it, and return when all that starts at boot has started."""
        self.begin()
        self.wait_for_boot()

    def before_boot(self, path: str, text: str) -> None:
        """Write one of its files before it boots for the first time."""
        file = self._folder / "upper" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def begin(self) -> None:
        """Have it boot.

        It ends with the thread that calls this.
        """
        self.leader = 0
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir(exist_ok=True)
        overlay = f"lowerdir={':'.join(map(str, self._layers))},upperdir=upper,workdir=work"
        nspawn = [
            *_NSPAWN,
            *self.options,
            f"--directory={self._folder}/root",
            f"--machine=wakeq-{secrets.token_hex(4)}",
        ]
        script = f"mount -t overlay -o {overlay} overlay root && exec {shlex.join(nspawn)}"
        # Ends with this process, and takes all with it that is in the namespace: a systemd-nspawn
        # that is killed would leave its container behind.
        command = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=slave"]
        command += ["--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
        with (self._folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [*command, "sh", "-ec", script], cwd=self._folder, stdin=subprocess.DEVNULL,
                stdout=console, stderr=subprocess.STDOUT, pass_fds=self.descriptors,
                # systemd 257 refuses a host's cgroup v1 if it is not hidden from it.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip

    def end(self) -> None:
        """End it at once, and remove what was written in it."""
        self.kill_all()
        shutil.rmtree(self._folder)

    def kill_all(self) -> None:
        """End it at once, as when the power goes; what was written in it stays for a next start."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader or self._process.pid, signal.SIGKILL)
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self.leader = 0

    def freeze(self) -> Path:
        """Turn it off, and return what was written in it, as a layer for others.

        The layer is there until `end`.
        """
        self.power_off()
        return self._folder / "upper"

    def power_off(self) -> None:
        """Turn it off as an admin would."""
        assert self._process is not None
        self.call("systemctl", "poweroff")
        self._process.wait(timeout=_OFF_SECONDS)
        self._process = None
        self.leader = 0

    def reboot(self) -> None:
        """Reboot it as an admin would."""
        assert self._process is not None
        self.call("systemctl", "reboot")
        # With --keep-unit it ends, and leaves starting anew to whoever keeps the unit.
        assert self._process.wait(timeout=_OFF_SECONDS) == _REBOOT, self._console()
        self.start()

    def wait_for_boot(self) -> None:
        """Return when all that starts at boot has started."""
        self.leader = wait_until(self._find_leader, 120, "the container has an init")
        try:
            wait_until(self._has_booted, 120, "the system has booted")
        except AssertionError as error:
            raise AssertionError(f"{error}; its console: {self._console()}") from None

    def _console(self) -> str:
        return (self._folder / "console").read_text(errors="replace")[-2000:]

    def _find_leader(self) -> int:
        """Return the PID of the container's init, or 0 as long as there is none."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended: {self._console()}")
        for outer in _children(self._process.pid):
            for child in _children(outer):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{child}/status").read_text()
                    inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    if inside.split()[3:] == ["1"] and name == "systemd":
                        return child
        return 0

    def _has_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    # -- what is done in it ----------------------------------------------------------------

    def call(
        self, *command: object, seconds: float = 300, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root and return its result, standard error in its output."""
        return subprocess.run(
            self.inside(*command), input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=seconds, check=False,
        )  # fmt: skip

    def inside(self, *command: object) -> list[str]:
        """Return the command out here that runs a command in there as root."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "env", "-i"]
        variables = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
        return [*enter, *variables, *map(str, command)]

    def run(self, *command: object, check: bool = True, seconds: float = 300) -> str:
        """Run a command in it as root and return what it says; with `check` it must succeed."""
        result = self.call(*command, seconds=seconds)
        words = shlex.join(map(str, command))
        assert result.returncode == 0 or not check, f"{words}: {result.returncode}: {result.stdout}"
        return result.stdout

    def path(self, path: str) -> Path:
        """Return where one of its files is for us; there must be no absolute link on the way."""
        return Path(f"/proc/{self.leader}/root{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write one of its files, with the folders above; nobody sees half of it."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_text(text)
        new.chmod(mode)
        new.rename(file)

    def systemctl(self, *words: object, check: bool = True, seconds: float = 300) -> str:
        """Run systemctl in it."""
        return self.run("systemctl", *words, check=check, seconds=seconds)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def has(self, unit: str, **properties: str) -> bool:
        """Tell whether a unit has all these properties at one moment."""
        said = self.systemctl("show", f"--property={','.join(properties)}", unit).splitlines()
        return set(said) == {f"{name}={value}" for name, value in properties.items()}

    def state(self, unit: str) -> str:
        """Return active, inactive, failed, activating ..."""
        return self.show(unit, "ActiveState")

    def wait_for_state(self, unit: str, state: str, deadline_s: float = 60) -> None:
        """Wait until a unit is in a state."""
        wait_until(lambda: self.state(unit) == state, deadline_s, f"{unit} is {state}")

    def kill(self, unit: str) -> None:
        """Kill the main process of a service, as soon as it has one."""
        kill = ("systemctl", "kill", "--kill-who=main", "--signal=KILL", unit)
        wait_until(lambda: self.call(*kill).returncode == 0, message=f"{unit} is killed")

    # journald learns from /proc of what unit a process is that logs by itself, and too late if
    # it was not run while the process lived: what one of those says is found by its
    # SYSLOG_IDENTIFIER. What comes by stdout, and from systemd, also by -u.

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return what was logged up to now, by options and fields of journalctl(1)."""
        lines = self.log("--output=json", "--all", *matches).splitlines()
        return [json.loads(line) for line in lines]

    def log(self, *matches: str) -> str:
        """Return what was logged up to now as text, by options and fields of journalctl(1)."""
        # What was sent to journald before has been written then, however busy it was.
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--quiet", *matches)


def _children(pid: int) -> list[int]:
    """Return the children of a process; none if it has ended."""
    with contextlib.suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def reason_not_to_boot() -> str:
    """Return why no system can be booted on this machine, empty if one can."""
    if os.geteuid() != 0:
        return "this needs root"
    for program in ("systemd-nspawn", "mmdebstrap", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"there is no {program}; scripts/setup --test installs it"
    with tempfile.TemporaryDirectory(prefix="o") as folder:
        script = "mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m"
        result = subprocess.run(
            ["unshare", "--mount", "--propagation=slave", "sh", "-ec", script], cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if result.returncode:
        return f"no overlay can be mounted here: {result.stdout.strip()}"
    # Within a container that has the network of its host, systemd-nspawn may not, and only warns.
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _LOOPBACK_UP], capture_output=True, check=False
    )
    if result.returncode:
        return "no loopback interface can be set up here: CAP_NET_ADMIN is missing"
    return ""
