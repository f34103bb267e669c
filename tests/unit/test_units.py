"""The units: systemd accepts them, they are closed enough, and they hang together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "units"
UNIT_FILES = sorted(path for path in UNITS.iterdir() if path.is_file())
DROP_INS = sorted(UNITS.glob("*.d/*.conf"))
SANDBOX = UNITS / "wakeq-.service.d/10-sandbox.conf"

# What the units refer to and systemd brings along: stubs, so that only ours are judged.
SYSTEMD_UNITS = [
    *("sysinit.target", "basic.target", "shutdown.target", "sockets.target", "timers.target"),
    *("multi-user.target", "network-online.target"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with the units installed, and stubs for what they need."""
    system = tmp_path / "etc/systemd/system"
    shutil.copytree(UNITS, system)
    for name in SYSTEMD_UNITS:
        (system / name).write_text(f"[Unit]\nDescription={name}\n")
    for program in executables():
        stub = tmp_path / program.lstrip("/")
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text("#!/bin/sh\n")
        stub.chmod(0o755)
    return tmp_path


def executables() -> set[str]:
    """Return every program that a unit runs."""
    text = "\n".join(path.read_text() for path in UNIT_FILES)
    return set(re.findall(r"^Exec\w+=(/\S+)", text, re.MULTILINE))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result, standard error within its output."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def verify(root: Path, unit: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze verify on one installed unit; a template as its instance "i"."""
    path = root / "etc/systemd/system" / unit
    # Without recursive-errors unknown keys pass; the man pages come with the packages.
    options = ["--recursive-errors=yes", "--man=no", f"--root={root}"]
    return run("systemd-analyze", "verify", *options, path)


@pytest.mark.parametrize("unit", [path.name for path in UNIT_FILES])
def test_systemd_accepts_each_unit_without_a_warning(root: Path, unit: str) -> None:
    result = verify(root, unit)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("file", ["wakeq-wakeup.service", "wakeq-.service.d/10-sandbox.conf"])
def test_a_misspelt_key_would_be_noticed(root: Path, file: str) -> None:
    path = root / "etc/systemd/system" / file
    path.write_text(path.read_text() + "[Service]\nRestrt=no\n")
    result = verify(root, "wakeq-wakeup.service")
    assert result.returncode != 0
    assert "Restrt" in result.stdout


@pytest.mark.parametrize(
    ("unit", "threshold_x10"),
    [
        ("wakeq-consumer@orders.service", 20),
        ("wakeq-consumer@orders:2.service", 20),
        ("wakeq-wakeup.service", 12),
        ("wakeq-bridge@clicks.service", 20),
        ("wakeq-bridge@clicks:2.service", 20),
        ("wakeq-delay.service", 12),
        ("wakeq-fanout.service", 12),
        ("wakeq-leader@nightly.service", 12),
        ("wakeq-node@clock.service", 20),
        ("wakeq-node@clock:2.service", 20),
        ("wakeq-trim.service", 12),
    ],
)
def test_each_service_is_closed_enough(root: Path, unit: str, threshold_x10: int) -> None:
    options = ["--offline=true", f"--threshold={threshold_x10}", f"--root={root}", "--no-pager"]
    result = run("systemd-analyze", "security", *options, unit)
    assert result.returncode == 0, result.stdout


def test_the_sandbox_counts_in_the_exposure(root: Path) -> None:
    shutil.rmtree(root / "etc/systemd/system/wakeq-.service.d")
    options = ["--offline=true", "--threshold=50", f"--root={root}", "--no-pager"]
    result = run("systemd-analyze", "security", *options, "wakeq-wakeup.service")
    assert result.returncode != 0


@pytest.mark.parametrize("unit", [path.name for path in UNIT_FILES])
def test_each_unit_names_its_man_page(unit: str) -> None:
    assert re.search(
        r"^Documentation=man:wakeq\S*\([78]\)$", (UNITS / unit).read_text(), re.MULTILINE
    )


def test_the_target_stops_every_other_unit() -> None:
    # A slice is empty when its units are stopped, and needs no stopping itself.
    bound = [path for path in UNIT_FILES if path.suffix not in {".slice"}]
    bound.remove(UNITS / "wakeq.target")
    for path in bound:
        assert "\nPartOf=wakeq.target\n" in path.read_text(), path.name


def test_instance_names_are_never_unescaped() -> None:
    # %I turns "-" into "/", so that a consumer order-mail would be looked for as order/mail.
    for path in [*UNIT_FILES, *DROP_INS]:
        assert "%I" not in path.read_text(), path.name


def test_nothing_gates_a_consumer_but_itself() -> None:
    # A condition that fails leaves the wake unread: systemd tries again until a limit is hit.
    for path in [*UNIT_FILES, *DROP_INS]:
        assert not re.search(r"^(Condition|Assert)\w+=", path.read_text(), re.MULTILINE), path.name


def test_no_limit_of_systemd_is_lifted() -> None:
    for path in [*UNIT_FILES, *DROP_INS]:
        found = re.search(r"^(Start|Trigger|Poll)Limit\w+=", path.read_text(), re.MULTILINE)
        assert not found, path.name


def test_every_service_runs_as_the_wakeq_user_in_the_slice() -> None:
    for path in UNITS.glob("*.service"):
        text = path.read_text()
        assert "\nUser=wakeq\nGroup=wakeq\nSlice=system-wakeq.slice\n" in text, path.name


def test_a_service_does_not_set_what_the_sandbox_sets() -> None:
    # Drop-ins are read after the unit, so such a line in the unit would be without effect.
    keys = set(re.findall(r"^(\w+)=", SANDBOX.read_text(), re.MULTILINE))
    for path in UNITS.glob("*.service"):
        both = keys & set(re.findall(r"^(\w+)=", path.read_text(), re.MULTILINE))
        assert not both, path.name


def test_a_consumer_can_see_who_else_lives() -> None:
    # Else it takes a living consumer of its host for dead, and its messages away from it.
    assert not re.search(r"^(ProtectProc|ProcSubset)=", SANDBOX.read_text(), re.MULTILINE)


def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    result = run("systemd-sysusers", f"--root={tmp_path}", UNITS / "sysusers.d/wakeq.conf")
    assert result.returncode == 0, result.stdout
    user = (tmp_path / "etc/passwd").read_text().split(":")
    assert (user[0], user[5], Path(user[6].strip()).name) == ("wakeq", "/", "nologin")


def test_the_folder_of_the_sockets_is_made(tmp_path: Path) -> None:
    options = [f"--root={tmp_path}", "--create"]
    result = run("systemd-tmpfiles", *options, UNITS / "tmpfiles.d/wakeq.conf")
    assert (result.returncode, result.stdout) == (0, "")
    socket = re.search(r"^ListenStream=(/\S+)$", (UNITS / "wakeq-consumer@.socket").read_text(), 8)
    assert socket is not None
    folder = tmp_path / Path(socket[1]).parent.relative_to("/")
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o755
