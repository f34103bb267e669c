"""README.md: what it says to type is typed, in a booted system, and does what it says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Terminal
from wakeq_machine import WAKEUP, WakeqMachine, service, socket

from redis_servers import wait_until

HANDLER = "/srv/shop/orders.py"
CONFIGURATION = "/etc/wakeq/consumers/orders.toml"


@pytest.fixture(scope="session")
def blocks(source: Path) -> dict[str, str]:
    """Each block of README.md that is marked, by its mark."""
    text = (source / "README.md").read_text()
    found = re.findall(r"^<!-- ([^\n]+) -->\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found)) == text.count("<!--")
    return dict(found)


@pytest.fixture
def type_at(machine: WakeqMachine, blocks: dict[str, str]) -> Callable[[str], Terminal]:
    """Type a block of README.md at a terminal of the machine."""
    return lambda mark: Terminal(machine, blocks[mark])


def test_each_block_is_marked_and_each_mark_is_tested(source: Path, blocks: dict[str, str]) -> None:
    files = {f"file {path}" for path in (HANDLER, CONFIGURATION)}
    steps = {"build", "install", "first", "told", "publish", "more"}
    assert set(blocks) == {
        *files, *steps, "develop", "develop-listen", "develop-knock",
    }  # fmt: skip
    # The first of all is that of the demo and the tests, which have tests of their own.
    shell = re.findall(r"(?m)(.*)\n\n?```sh$", (source / "README.md").read_text())
    assert [line.startswith("<!-- ") for line in shell] == [False] + [True] * (len(shell) - 1)


def test_it_builds_the_package(source: Path, package: Path, blocks: dict[str, str]) -> None:
    before = package.stat()
    said = subprocess.run(
        ["bash", "-ec", blocks["build"]], cwd=source, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{package}\n"
    assert package.stat().st_mtime_ns > before.st_mtime_ns


def test_it_leads_to_a_first_consumer(
    bare_machine: WakeqMachine, package: Path, blocks: dict[str, str]
) -> None:
    machine = bare_machine
    machine.path("/root/dist").mkdir()
    machine.path(f"/root/dist/{package.name}").write_bytes(package.read_bytes())
    with Terminal(machine, f"cd /root\n{blocks['install']}") as terminal:
        assert terminal.wait_for_end(600) == 0, terminal
    # As if installing it had started it: there it was installed before.
    machine.start_redis()
    active = machine.systemctl("list-units", "--state=active", "--plain", "--no-legend", "wakeq*")
    assert active == ""
    for path in (HANDLER, CONFIGURATION):
        machine.write(path, blocks[f"file {path}"])

    with Terminal(machine, blocks["first"]) as terminal:
        # All that the journal says of it, and in which order, is checked at its end.
        terminal.wait_for("Deactivated successfully")
        terminal.press_ctrl_c()
        terminal.wait_for_end()

    assert re.search(r"(?m)^\d+-0\r?$", terminal.said), "the id of the message"
    told = re.findall(r"(?m)^\w{3} [ \d]\d [\d:]{8} \w+ (.+?)\r?$", terminal.said)
    # On a busy machine systemd also says how much CPU time it was.
    told = [line for line in told if not re.search(r": Consumed .+ CPU time", line)]
    without_pid = [re.sub(r"(?<=wakeq-consumer\[)\d+", "PID", line) for line in told]
    expected = blocks["told"].replace("4711", "PID").splitlines()
    assert sorted(without_pid) == sorted(expected)
    # What is printed and what is logged come to journald by two ways, and so in no order.
    printed = "wakeq-consumer[PID]: order 7 of Ada"
    for lines in (without_pid, expected):
        lines.remove(printed)
    assert without_pid == expected
    assert machine.is_asleep("orders")
    for unit in (WAKEUP, socket("orders")):
        assert machine.systemctl("is-enabled", unit).strip() == "enabled"


def test_publishing_and_more_instances_are_as_it_says(
    machine: WakeqMachine, blocks: dict[str, str], type_at: Callable[[str], Terminal]
) -> None:
    machine.write(HANDLER, blocks[f"file {HANDLER}"])
    machine.write(CONFIGURATION, blocks[f"file {CONFIGURATION}"])
    machine.enable("orders")

    with type_at("publish") as terminal:
        assert terminal.wait_for_end() == 0, terminal

    def said() -> list[str]:
        entries = machine.journal("-u", service("orders"), "_TRANSPORT=stdout")
        return [entry["MESSAGE"] for entry in entries]

    wait_until(lambda: said() == ["order 8 of Ada", "order 9 of Ada"])

    with type_at("more") as terminal:
        assert terminal.wait_for_end() == 0, terminal

    assert "1 awake, 3 asleep" in terminal.said
    for name in ("orders:2", "orders:3", "orders:4"):
        assert machine.is_asleep(name)
        assert machine.systemctl("is-enabled", socket(name)).strip() == "enabled"


def test_a_consumer_runs_in_a_terminal_without_systemd(
    machine: WakeqMachine, blocks: dict[str, str], type_at: Callable[[str], Terminal]
) -> None:
    machine.write(HANDLER, blocks[f"file {HANDLER}"])
    with type_at("develop") as terminal:
        machine.run("wakeq", "publish", "orders", '{"id": 1, "customer": "Ada"}')
        terminal.wait_for("order 1 of Ada")
        terminal.press_ctrl_c()
        assert terminal.wait_for_end() == 0, terminal
    assert machine.is_drained("orders")


def test_a_consumer_is_woken_by_hand_without_systemd(
    machine: WakeqMachine, blocks: dict[str, str], type_at: Callable[[str], Terminal]
) -> None:
    machine.write(HANDLER, blocks[f"file {HANDLER}"])
    with type_at("develop-listen") as listening:
        listening.wait_for("Listening on")
        with type_at("develop-knock") as knocking:
            listening.wait_for("order 10 of Ada")
            assert knocking.wait_for_end() == 0, knocking
        assert listening.wait_for_end() == 0, listening
    assert "consumer went to sleep" in listening.said
    assert machine.is_drained("orders")
