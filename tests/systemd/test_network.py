"""The network of machines itself: what the tests on it rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import PREFIX, Host, Network

from redis_servers import wait_until

# Boots a machine, says which process is its init, and waits to be killed.
BEGINS = """
import ast, pathlib, sys, time
from network import Network
layers = ast.literal_eval(sys.argv[1])
network = Network({suite: [pathlib.Path(path) for path in layers[suite]] for suite in layers})
(host,) = network.boot(web1="bookworm")
print(host.leader, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pair(network: Network) -> Iterator[list[Host]]:
    """Two machines, the first with a Redis for both."""
    pair = network.boot(web1="bookworm", web2="trixie")
    pair[0].serve_redis()
    yield pair


def reaches(host: Host, other: Host) -> bool:
    """Tell whether a host has an answer of another one's Redis."""
    ask = ("timeout", "1", "redis-cli", "-h", other.address, "ping")
    return host.call(*ask).stdout == "PONG\n"


def connections(server: Host, client: Host) -> list[str]:
    """Return the names of a host's connections to another one's Redis."""
    with server.redis() as redis:
        clients = redis.client_list()
    return [each["name"] for each in clients if each["addr"].startswith(f"{client.address}:")]


def test_a_link_is_cut_and_healed(pair: list[Host]) -> None:
    server, client = pair
    wait_until(lambda: reaches(client, server), message="it is reached")
    for lose in (server.cut, client.cut, server.deafen, client.deafen):
        lose()
        assert not reaches(client, server)
        lose.__self__.heal()
        wait_until(lambda: reaches(client, server), message="it is reached again")


def test_nothing_leads_out_of_it(pair: list[Host]) -> None:
    for host in pair:
        routes = host.run("cat", "/proc/net/route").splitlines()[1:]
        # In hexadecimal, the last byte first.
        destinations = [bytes.fromhex(route.split()[1])[::-1] for route in routes]
        assert destinations == [bytes(map(int, f"{PREFIX}0".split(".")))]


def test_nobody_hears_of_it_when_a_host_loses_its_power(pair: list[Host]) -> None:
    server, client = pair
    listen = f"redis-cli -h {server.address} subscribe news"
    client.run("systemd-run", "--quiet", "sh", "-c", listen)
    wait_until(lambda: connections(server, client), message="it listens")

    client.kill_all()

    assert connections(server, client)
    client.start()
    # What is sent now is answered by a kernel that knows nothing of it.
    with server.redis() as redis:
        wait_until(
            lambda: redis.publish("news", "x") == 0, message="it is seen that nobody is there"
        )


def test_all_ends_with_the_process_that_began_it(
    all_layers: dict[str, list[Path]], short_dir: Path
) -> None:
    layers = {suite: list(map(str, paths)) for suite, paths in all_layers.items()}
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "TMPDIR": str(short_dir)}
    command = [sys.executable, "-c", BEGINS, repr(layers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        init = Path("/proc", process.stdout.readline().strip())
        assert (init / "comm").read_text() == "systemd\n"
        process.kill()
    wait_until(lambda: not init.exists(), message="the machine has ended")
