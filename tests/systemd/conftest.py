"""Systems booted in containers, Debian 12 and 13, with the package as it was built from here.

A system takes less than a second to boot, so each test has one of its own. What is slow, making
a base system and installing the package in it, is done once and shared as layers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# What only these tests share lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

from booted_machine import reason_not_to_boot
from booted_root import SUITES, CannotMake, base_root
from network import Network, reason_for_no_network
from wakeq_machine import WakeqMachine
from wear import begin_to_wear

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def source() -> Iterator[Path]:
    """A copy of the tree, so that all is about the same one while somebody works on it."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests")
    with tempfile.TemporaryDirectory(prefix="p") as folder:
        shutil.copytree(ROOT, f"{folder}/source", ignore=ignored)
        yield Path(folder, "source")


@pytest.fixture(scope="session")
def package(source: Path) -> Path:
    """The package, built from this tree."""
    if not Path("/usr/bin/dh").exists():
        pytest.skip("there is no debhelper; scripts/setup --test installs it")
    subprocess.run([source / "scripts/build-deb"], check=True, stdout=subprocess.DEVNULL)
    return next((source / "dist").glob("*.deb"))


@pytest.fixture(scope="session")
def bootable() -> None:
    """Skip what needs it where no systems can be booted."""
    if reason := reason_not_to_boot():
        pytest.skip(reason)


@pytest.fixture(scope="session", params=SUITES)
def suite(request: pytest.FixtureRequest, bootable: None) -> str:
    """Each Debian release that wakeq is made for."""
    return str(request.param)


@pytest.fixture(scope="session")
def base(suite: str) -> Path:
    """A release as it is before wakeq comes."""
    return _base(suite)


def _base(suite: str) -> Path:
    try:
        return base_root(suite)
    except CannotMake as error:
        pytest.skip(f"the base system of {suite} cannot be made: {error}")


@pytest.fixture(scope="session")
def installed(package: Path) -> Iterator[Callable[[str], list[Path]]]:
    """Installs the package in a release when that is first asked for, and returns its layers."""
    machines: dict[str, WakeqMachine] = {}
    made: dict[str, list[Path]] = {}

    def install(suite: str) -> list[Path]:
        if suite not in made:
            machine = machines[suite] = WakeqMachine(suite, _base(suite))
            machine.start()
            machine.prepare()
            machine.install(package)
            made[suite] = [machine.freeze(), _base(suite)]
        return made[suite]

    yield install
    for machine in machines.values():
        machine.end()


@pytest.fixture(scope="session")
def layers(suite: str, installed: Callable[[str], list[Path]]) -> list[Path]:
    """A release with the package installed."""
    return installed(suite)


@pytest.fixture(scope="session")
def all_layers(bootable: None, installed: Callable[[str], list[Path]]) -> dict[str, list[Path]]:
    """Each release with the package installed."""
    if reason := reason_for_no_network():
        pytest.skip(reason)
    return {suite: installed(suite) for suite in SUITES}


@pytest.fixture
def network(all_layers: dict[str, list[Path]]) -> Iterator[Network]:
    """A network without machines."""
    network = Network(all_layers)
    try:
        yield network
    finally:
        network.end()


@pytest.fixture(scope="session")
def wearing(
    request: pytest.FixtureRequest, suite: str, layers: list[Path]
) -> Iterator[WakeqMachine | None]:
    """A system that is used the whole time, from the first test on, by whom no test need wait for.

    None if the test that looks at it was not chosen.
    """
    if not any("worn_machine" in item.fixturenames for item in request.session.items):
        yield None
        return
    machine = WakeqMachine(suite, *layers)
    try:
        machine.start()
        machine.start_redis()
        begin_to_wear(machine)
        yield machine
    finally:
        machine.end()


@pytest.fixture
def worn_machine(wearing: WakeqMachine) -> WakeqMachine:
    """The system that was in use during all tests before."""
    return wearing


@pytest.fixture
def machine(suite: str, layers: list[Path], wearing: object) -> Iterator[WakeqMachine]:
    """A booted system with the package installed, and its Redis running."""
    machine = WakeqMachine(suite, *layers)
    try:
        machine.start()
        machine.start_redis()
        yield machine
    finally:
        machine.end()


@pytest.fixture
def bare_machine(suite: str, base: Path) -> Iterator[WakeqMachine]:
    """A booted system without the package, and no Redis running."""
    machine = WakeqMachine(suite, base)
    try:
        machine.start()
        machine.prepare()
        yield machine
    finally:
        machine.end()
