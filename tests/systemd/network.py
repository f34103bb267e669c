"""Machines on one network, whose links can be cut: a bridge in a network namespace of its own.

Nothing leads out of that namespace, and the addresses are those that belong to nobody (RFC 5737).
It and those of the machines are held by descriptors of this process and by what runs in them, so
none can be left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from wakeq_machine import WakeqMachine

PREFIX = "192.0.2."
# The same folder of this machine in each of the network's: as if on a disk that all have.
SHARED = "/shared"
_BRIDGE = "bridge"
# How a bridge finds out where to send something.
_FINDING = ("learning", "flood", "mcast_flood", "bcast_flood")


class Network:
    """A bridge, and the machines that are plugged into it.

    Args:
        layers: for each Debian release, what its machines consist of.

    Attributes:
        shared: the folder that is SHARED in each machine; everybody may write there.
    """

    def __init__(self, layers: Mapping[str, list[Path]]) -> None:
        self._layers = layers
        self._hosts: list[Host] = []
        self.shared = Path(tempfile.mkdtemp(prefix="n"))
        self.shared.chmod(0o777)
        self.namespace = _new_namespace()
        _ip(self.namespace, f"link add name {_BRIDGE} type bridge", f"link set dev {_BRIDGE} up")

    def boot(self, **suites: str) -> list[Host]:
        """Boot new machines, all at a time, and return them.

        Args:
            suites: the name of each, and its Debian release.
        """
        hosts = []
        for name, suite in suites.items():
            hosts.append(Host(self, name, len(self._hosts) + 1, suite, *self._layers[suite]))
            self._hosts.append(hosts[-1])
            hosts[-1].begin()
        for host in hosts:
            host.wait_for_boot()
        return hosts

    def end(self) -> None:
        """End everything at once."""
        for host in self._hosts:
            host.end()
        os.close(self.namespace)
        shutil.rmtree(self.shared)


class Host(WakeqMachine):
    """A machine on a network.

    Args:
        network: where its link ends.
        name: its host name.
        number: the last part of its address.

    Attributes:
        address: its address.
    """

    def __init__(self, network: Network, name: str, number: int, suite: str, *layers: Path) -> None:
        super().__init__(suite, *layers)
        self.name = name
        self.address = f"{PREFIX}{number}"
        self._mac = f"02:00:00:00:00:{number:02x}"
        self._network = network
        self._namespace = -1
        self.before_boot("/etc/hostname", f"{name}\n")

    def begin(self) -> None:
        """Have it boot, with its link plugged in."""
        namespace = _new_namespace()
        _ip(
            self._network.namespace,
            f"link add name {self.name} type veth peer name eth0 address {self._mac}"
            f" netns /proc/{os.getpid()}/fd/{namespace}",
        )
        self._namespace = namespace
        _ip(self._network.namespace, f"link set dev {self.name} master {_BRIDGE} up")
        _ip(namespace, f"addr add {self.address}/24 dev eth0", "link set dev eth0 up")
        self.descriptors = (namespace,)
        self.options = (
            f"--network-namespace-path=/proc/self/fd/{namespace}",
            f"--bind={self._network.shared}:{SHARED}",
        )
        super().begin()

    def kill_all(self) -> None:
        """End it at once, as when the power goes: nobody on the network hears of it."""
        if self._namespace < 0:
            return
        self.cut()
        super().kill_all()
        # The kernel would go on to speak for connections whose processes are dead.
        _ip(self._network.namespace, f"link delete dev {self.name}")
        os.close(self._namespace)
        self._namespace = -1

    def cut(self) -> None:
        """Pull the plug of its link: what is sent is lost, and nobody is told."""
        _ip(self._network.namespace, f"link set dev {self.name} down")

    def deafen(self) -> None:
        """Lose what is sent to it, and nothing that it sends."""
        # The bridge forgets behind which port it is, and must not try all.
        options = " ".join(f"{what} off" for what in _FINDING)
        _ip(
            self._network.namespace,
            f"link set dev {self.name} type bridge_slave {options}",
            f"link set dev {self.name} type bridge_slave fdb_flush",
        )

    def heal(self) -> None:
        """Have its link be as before."""
        options = " ".join(f"{what} on" for what in _FINDING)
        _ip(
            self._network.namespace,
            f"link set dev {self.name} type bridge_slave {options}",
            f"link set dev {self.name} up",
        )

    def serve_redis(self) -> None:
        """Have Redis, for the whole network."""
        with self.path("/etc/redis/redis.conf").open("a") as file:
            file.write(f"bind 127.0.0.1 {self.address}\nprotected-mode no\n")
        self.start_redis()

    def _has_booted(self) -> bool:
        # One that has a candidate for leader never says that all has started.
        return self.call("systemctl", "is-active", "multi-user.target").returncode == 0


def reason_for_no_network() -> str:
    """Return why machines cannot be on a network here, empty if they can."""
    if shutil.which("ip") is None:
        return "there is no ip; scripts/setup --test installs it"
    script = "ip link add name b type bridge && ip link add name v type veth"
    result = subprocess.run(
        ["unshare", "--net", "sh", "-ec", script], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return f"no bridge can be made here: {result.stdout.strip()}" if result.returncode else ""


def _new_namespace() -> int:
    """Return a new network namespace, with a loopback interface that is up."""
    command = ["unshare", "--net", "sh", "-ec", "ip link set lo up; echo; read over || :"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline(), "the namespace could not be made"
        descriptor = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        process.stdin.close()
    return descriptor


def _ip(namespace: int, *lines: str) -> None:
    """Run lines of ip(8) in a namespace."""
    command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}", "ip", "-batch", "-"]
    text = "".join(f"{line}\n" for line in lines)
    result = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert result.returncode == 0, f"{text}: {result.stderr}"
