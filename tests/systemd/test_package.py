"""The Debian package: how it is built, and what it does to a system that it comes to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from wakeq_machine import WAKEUP, Load, WakeqMachine, service, socket

from redis_servers import wait_until

ROOT = Path(__file__).parents[2]


def run(*command: object) -> str:
    """Run a command, which must succeed, and return what it says."""
    words = list(map(str, command))
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_two_builds_are_the_same(
    source: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another folder, other rights and dates of the files, another place on earth.
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    for path in (source, *source.rglob("*")):
        copy = tmp_path / "another place" / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(mode=0o700, parents=True)
        else:
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o700 if os.access(path, os.X_OK) else 0o600)
    run(tmp_path / "another place/scripts/build-deb", tmp_path / "dist")
    (again,) = (tmp_path / "dist").glob("*.deb")
    assert again.name == package.name
    assert again.read_bytes() == package.read_bytes()


def test_lintian_has_no_complaint(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It leaves some of its own behind.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    options = ["--allow-root", "--tag-display-limit=0", "--display-level=>=warning"]
    result = subprocess.run(
        ["lintian", *options, next(package.parent.glob("*.changes"))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "")


def test_the_versions_agree(package: Path) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert run("dpkg-deb", "--field", package, "Version").strip() == version


def test_the_package_has_what_it_is_made_of(package: Path) -> None:
    listed = run("dpkg-deb", "--contents", package).splitlines()
    files = {line.split()[5].removeprefix(".").replace("/usr/lib/", "/lib/") for line in listed}
    units = {path.name for path in (ROOT / "units").iterdir() if path.is_file()}
    assert {f"/lib/systemd/system/{name}" for name in units} <= files
    modules = (ROOT / "daemons").rglob("*.[pl]*")
    for module in (path for path in modules if path.suffix in {".py", ".lua"}):
        name = module.relative_to(ROOT / "daemons")
        assert f"/lib/python3/dist-packages/{name}" in files
    daemons = ("bridge", "consumer", "delay", "fanout", "leader", "node", "trim", "wakeup")
    assert {"/usr/bin/wakeq", *(f"/usr/bin/wakeq-{name}" for name in daemons)} <= files
    assert run("dpkg-deb", "--info", package, "conffiles").split() == ["/etc/wakeq/wakeq.toml"]


@pytest.fixture(scope="session")
def older_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a lower version."""
    folder = tmp_path_factory.mktemp("older")
    run("dpkg-deb", "--raw-extract", package, folder / "tree")
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: (.*)$", r"Version: \1~before", control.read_text()))
    run("dpkg-deb", "--root-owner-group", "--build", folder / "tree", folder / "older.deb")
    return folder / "older.deb"


def test_installing_starts_nothing_and_needs_no_redis(
    bare_machine: WakeqMachine, package: Path
) -> None:
    machine = bare_machine
    assert machine.state("redis-server") == "inactive"

    said = machine.install(package)

    assert not re.search("syntax|usage|error|fail|warn", said, re.IGNORECASE), said
    active = machine.systemctl("list-units", "--state=active", "--plain", "--no-legend", "wakeq*")
    assert active.strip() == ""
    files = machine.systemctl("list-unit-files", "--plain", "--no-legend", "wakeq*").splitlines()
    assert {line.split()[1] for line in files} == {"disabled", "static"}
    assert machine.call("pgrep", "-u", "wakeq").returncode == 1
    assert machine.path("/run/wakeq/consumer").is_dir()
    assert machine.path("/etc/wakeq/consumers").is_dir()
    assert machine.systemctl("--failed", "--plain", "--no-legend").strip() == ""
    assert machine.run("dpkg", "--audit") == ""


def main_processes(machine: WakeqMachine) -> list[int]:
    """Return the PIDs of the consumer and of wakeq-wakeup, as soon as they have one each."""
    return [
        wait_until(lambda unit=unit: int(machine.show(unit, "MainPID")), message=f"{unit} runs")
        for unit in (service("orders"), WAKEUP)
    ]


def test_an_upgrade_under_load_loses_nothing_and_keeps_the_sockets(
    bare_machine: WakeqMachine, older_package: Path, package: Path
) -> None:
    machine = bare_machine
    machine.install(older_package)
    machine.start_redis()
    machine.configure("orders")
    machine.configure("sleeper")
    machine.enable("orders", "sleeper")
    with Load(machine, "orders") as load:
        load.go_on_handled()
        before = main_processes(machine)
        listening = machine.show(socket("orders"), "ActiveEnterTimestampMonotonic")

        said = machine.install(package)

        load.go_on_handled()
        after = main_processes(machine)
    load.wait_until_handled()
    assert not re.search("syntax|usage|error|fail|warn", said, re.IGNORECASE), said
    assert not set(before) & set(after)
    assert machine.show(socket("orders"), "ActiveEnterTimestampMonotonic") == listening
    # What slept was not woken by it.
    assert machine.is_asleep("sleeper")
    assert machine.handled("sleeper") == []
    assert machine.state("wakeq.target") == "inactive"


def test_removing_stops_all_and_purging_leaves_nothing(machine: WakeqMachine) -> None:
    machine.configure("orders")
    machine.enable("orders", "orders:2")
    machine.publish("orders", "one")
    machine.wait_for_handled("orders", "one")

    machine.run("apt-get", "remove", "--yes", "--quiet=2", "wakeq")

    assert machine.call("pgrep", "-u", "wakeq").returncode == 1
    assert not machine.path("/run/wakeq").exists()
    units = machine.systemctl("list-units", "--plain", "--no-legend", "wakeq*")
    assert units.strip() == ""
    # As long as it is not purged, it is what it was when it comes back.
    assert machine.path("/etc/wakeq/consumers/orders.toml").exists()

    machine.run("apt-get", "purge", "--yes", "--quiet=2", "wakeq")

    found = machine.run("find", "/", "-xdev", "-name", "*wakeq*").split()
    assert [path for path in found if not path.startswith(("/proc/", "/sys/"))] == []
    assert machine.call("dpkg-query", "--status", "wakeq").returncode == 1
    wait_until(lambda: machine.systemctl("is-system-running", check=False).strip() == "running")


def test_what_was_removed_works_again_when_it_comes_back(
    machine: WakeqMachine, package: Path
) -> None:
    machine.configure("orders")
    machine.enable("orders")
    machine.run("apt-get", "remove", "--yes", "--quiet=2", "wakeq")

    machine.install(package)
    # Installing starts nothing, so it takes a boot; that it is enabled was not forgotten.
    machine.reboot()

    machine.publish("orders", "again")
    machine.wait_for_handled("orders", "again")
