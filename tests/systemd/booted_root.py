"""Base systems for the tests under a real systemd: made once by mmdebstrap, and kept.

They lie in $XDG_CACHE_HOME/wakeq/roots (or ~/.cache), each under a hash of its recipe: what is
below here. Booted systems have them as the lower layer of an overlay and never write to them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

MIRROR = os.environ.get("WAKEQ_TEST_MIRROR", "http://deb.debian.org/debian")

# What a server has, what wakeq depends on, and what the tests look with: wakeq itself is then
# installed by apt without a network.
_PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "procps", "socat", "redis-server", "redis-tools"),
    *("python3", "python3-redis", "python3-hiredis", "python3-systemd", "python3-sdnotify"),
    "python3-structlog",
]
_PACKAGES_OF = {"bookworm": _PACKAGES, "trixie": [*_PACKAGES, "valkey-server", "valkey-tools"]}
# In the new system, after its packages.
_LAST = """
set -e
# Which servers run is up to each test.
for unit in redis-server valkey-server; do
    chroot "$1" systemctl --quiet disable "$unit.service" 2>/dev/null || true
done
# No upgrades or cleaning in the middle of a test, no waiting for a network that is not there.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        fstrim.timer systemd-networkd.service systemd-resolved.service getty.target \
        console-getty.service systemd-pcrphase.service systemd-firstboot.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
# mmdebstrap takes over the name of its own host.
echo host >"$1/etc/hostname"
printf '127.0.0.1 localhost\\n::1 localhost\\n' >"$1/etc/hosts"
echo uninitialized >"$1/etc/machine-id"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
"""

SUITES = sorted(_PACKAGES_OF)


class CannotMake(Exception):
    """The base system cannot be made here."""


def base_root(suite: str) -> Path:
    """Return the folder of a suite's base system, made now if it is not there.

    Raises:
        CannotMake: mmdebstrap failed; the text is the last that it said.
    """
    recipe = json.dumps([suite, MIRROR, _PACKAGES_OF[suite], _LAST])
    name = f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "wakeq/roots")
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / name
    # Another test run may want the same.
    with (cache / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            # Those of older recipes stay: somebody may be using them.
            _make(suite, root)
    return root


def _make(suite: str, root: Path) -> None:
    # A name without "unfinished" is only ever that of a whole one.
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [
        *("mmdebstrap", "--variant=minbase", "--format=directory", "--components=main"),
        *(f"--aptopt={option}" for option in _apt_options()),
        f"--include={','.join(_PACKAGES_OF[suite])}",
        f"--customize-hook={_LAST}",
        *(suite, str(unfinished), MIRROR),
    ]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if result.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CannotMake("; ".join(result.stdout.splitlines()[-3:]))
    unfinished.rename(root)


def _apt_options() -> list[str]:
    """Return how apt reaches the archive on this machine: mmdebstrap does not look."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    wanted = ("Acquire::http", "Acquire::Check-", "Acquire::Retries")
    return [
        line for line in dump.stdout.splitlines() if line.startswith(wanted) and '""' not in line
    ]
