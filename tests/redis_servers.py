"""Real redis-server processes for tests, each on a unix socket in a folder of its own.

Also several of them together: a master with replicas and Sentinels, and a Cluster.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import redis

T = TypeVar("T")

_UNUSED: list[int] = []  # ports that no other test run takes
_PORTS_AT_A_TIME = 500
SERVER = os.environ.get("WAKEQ_TEST_REDIS_SERVER", "redis-server")


def wait_until(predicate: Callable[[], T], deadline_s: float = 60, message: str = "") -> T:
    """Return the first true value of `predicate`, or fail after `deadline_s` seconds."""
    deadline, late = time.monotonic() + deadline_s, False
    while not (value := predicate()):
        if late:
            what = message or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        # It is asked once more after that: this process may have been the one that was slow.
        late = time.monotonic() > deadline
        time.sleep(0.005)
    return value


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


class RedisServer:
    """One redis-server without persistence; `options` are added to its command line.

    It listens on a unix socket alone, unless `options` say `--port`. What it holds outlives
    `restart()` only if `options` turn persistence on.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket_path = directory / "redis.sock"
        self.log_path = directory / "redis.log"
        self.url = f"unix://{self.socket_path}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def pid(self) -> int:
        """The process id; fails if the server is not running."""
        assert self._process is not None, "redis-server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; nothing if it is running."""
        if self.running:
            return
        # One that was killed leaves it behind; it would be mistaken for the new one.
        self.socket_path.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)
        try:
            wait_until(self._answers, message=f"{SERVER} answers")
        except AssertionError:
            self.kill()
            raise

    def _command(self) -> list[str]:
        command = [SERVER, "--port", "0", "--unixsocket", str(self.socket_path)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.directory)]
        return [*command, "--logfile", str(self.log_path), *self._options]

    def stop(self) -> None:
        """Stop the server as an admin would; nothing if it is not running."""
        self.close_clients()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the server without warning; nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.close_clients()

    def restart(self) -> None:
        """Stop the server and start it again at the same address."""
        self.stop()
        self.start()

    def client(self, **options: Any) -> redis.Redis:
        """Return a redis-py client that gives bytes; the server closes it when it stops."""
        settings: dict[str, Any] = {"unix_socket_path": str(self.socket_path)}
        settings |= {"socket_timeout": 30, "decode_responses": False} | options
        client = redis.Redis(**settings)
        self._clients.append(client)
        return client

    def ask(self, *command: Any) -> Any:
        """Return the reply to one command, over a connection of its own."""
        client = redis.Redis(unix_socket_path=str(self.socket_path), socket_timeout=30)
        try:
            return client.execute_command(*command)
        finally:
            client.connection_pool.disconnect()

    def close_clients(self) -> None:
        """Close the connections of all clients that `client()` returned."""
        for client in self._clients:
            client.connection_pool.disconnect()
        self._clients.clear()

    def _answers(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            log = self.log_path.read_text() if self.log_path.exists() else ""
            raise AssertionError(f"{SERVER} exited with {code} at its start: {log[-2000:]}")
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                # An error is not an answer while it is loading; with a password it is one.
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False


def _version() -> tuple[int, ...]:
    """Return the version of the server's program: of Redis, or of Valkey, which began at 7.2."""
    said = subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.partition(" v=")[2].split()[0].split(".")))


def free_port() -> int:
    """Return a port that is free, and whose cluster bus port (10000 higher) is too; each once.

    Both lie below the range that the kernel takes the ports of outgoing connections from. Whoever
    was given one may bind it later, or end and bind it again: no other test run is given it.
    """
    while True:
        if not _UNUSED:
            _UNUSED.extend(_more_ports())
        port = _UNUSED.pop()
        with socket.socket() as bound, socket.socket() as bus:
            try:
                bound.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        return port


def _more_ports() -> list[int]:
    """Return ports, in any order, that are this process's alone until it ends."""
    every = range(10240, 20240)
    for start in every[::_PORTS_AT_A_TIME]:
        # Like the ports, it is of one network namespace, and there as long as it is open.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0wakeq-test-ports-{start}")
        except OSError:
            claim.close()
            continue
        claim.detach()
        return random.sample(range(start, start + _PORTS_AT_A_TIME), _PORTS_AT_A_TIME)
    return random.sample(every, len(every))  # as good as it gets with so many runs


class SentinelServer(RedisServer):
    """One Sentinel; `configuration` is its file, which it writes to."""

    def __init__(self, directory: Path, port: int, configuration: str) -> None:
        super().__init__(directory)
        self.port = port
        self._path = directory / "sentinel.conf"
        self._path.write_text(
            f"port {port}\nbind 127.0.0.1\nunixsocket {self.socket_path}\n"
            f"dir {directory}\nlogfile {self.log_path}\n{configuration}"
        )

    def _command(self) -> list[str]:
        return [SERVER, str(self._path), "--sentinel"]


class Sentinels:
    """A master, two replicas, and three Sentinels that watch them.

    They do not fail over by themselves, because a busy machine may not run a master for seconds,
    but when `await_failover` is called.
    """

    def __init__(self, directory: Path, service: str = "mymaster") -> None:
        self.service = service
        self._directory = directory
        self._of_port: dict[int, RedisServer] = {}
        self.sentinels: list[SentinelServer] = []

    def start(self) -> None:
        """Start all, and return when the Sentinels know one another and the replicas."""
        ports = [free_port() for _ in range(3)]
        for port in ports:
            replica = () if port == ports[0] else ("--replicaof", "127.0.0.1", str(ports[0]))
            options = ("--port", str(port), "--repl-diskless-sync-delay", "0", *replica)
            server = RedisServer(_subdirectory(self._directory, port), *options)
            self._of_port[port] = server
            server.start()
        self._start_sentinels(ports)
        wait_until(self._complete, 120, "the Sentinels know everybody")

    def _start_sentinels(self, ports: list[int]) -> None:
        ids = {free_port(): os.urandom(20).hex() for _ in range(3)}
        name = self.service
        for port, run_id in ids.items():
            # What they would else learn from one another, within seconds.
            lines = [f"sentinel myid {run_id}", f"sentinel monitor {name} 127.0.0.1 {ports[0]} 2"]
            lines += [f"sentinel down-after-milliseconds {name} 600000"]
            lines += [f"sentinel failover-timeout {name} 10000"]
            lines += [f"sentinel known-replica {name} 127.0.0.1 {p}" for p in ports[1:]]
            others = {p: other for p, other in ids.items() if p != port}
            lines += [
                f"sentinel known-sentinel {name} 127.0.0.1 {p} {o}" for p, o in others.items()
            ]
            directory = _subdirectory(self._directory, port)
            sentinel = SentinelServer(directory, port, "\n".join(lines) + "\n")
            self.sentinels.append(sentinel)
            sentinel.start()
            # Their own periods are of seconds. After two seconds of standing still one does
            # nothing for thirty, because it takes that for a change of the clock.
            periods = {"info-period": 100, "ask-period": 100, "publish-period": 100}
            periods |= {"tilt-trigger": 600_000}
            sentinel.ask("SENTINEL", "DEBUG", *(word for item in periods.items() for word in item))

    @property
    def url(self) -> str:
        """The URL that names all Sentinels."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    @property
    def master_port(self) -> int:
        """The port of the master, as the first Sentinel that runs sees it."""
        sentinel = next(sentinel for sentinel in self.sentinels if sentinel.running)
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return int(sentinel.ask(*command)[1])

    @property
    def master(self) -> RedisServer:
        """The master, as the first Sentinel that runs sees it."""
        return self._of_port[self.master_port]

    @property
    def servers(self) -> list[RedisServer]:
        """The master and the replicas, without the Sentinels."""
        return list(self._of_port.values())

    def await_failover(self, from_port: int, deadline_s: float = 120) -> int:
        """Have the Sentinels fail over from a master that is gone.

        Return the port of the new one, when all of them name it and it is one.
        """

        def agreed() -> int:
            # Not GET-MASTER-ADDR-BY-NAME: who fails over names another before it is done.
            seen = [one.ask("SENTINEL MASTERS") for one in self.sentinels if one.running]
            ports = {int(masters[self.service]["port"]) for masters in seen}
            # Who was at it when it was looked at may be done by now, and would fail over from the
            # new one.
            is_at_it = "failover_in_progress" in seen[0][self.service]["flags"]
            if ports == {from_port} and not is_at_it:
                self._fail_over()
            (port, *others) = ports
            if others or port == from_port or not self._of_port[port].running:
                return 0
            is_master = self._of_port[port].ask("ROLE")[0] == b"master"
            return port if is_master else 0

        return wait_until(agreed, deadline_s, "another master")

    def _fail_over(self) -> None:
        sentinel = next(sentinel for sentinel in self.sentinels if sentinel.running)
        try:
            sentinel.ask("SENTINEL", "FAILOVER", self.service)
        except redis.ResponseError as error:
            # It has not heard of a replica for too long.
            if str(error).split()[0] != "NOGOODSLAVE":
                raise

    def stop(self) -> None:
        """End all."""
        for server in (*self.sentinels, *self._of_port.values()):
            server.kill()

    def _complete(self) -> bool:
        for sentinel in self.sentinels:
            (raw,) = sentinel.ask("SENTINEL MASTERS").values()
            replicas = sentinel.ask("SENTINEL SLAVES", self.service)
            good = sum("disconnected" not in r["flags"] and not r["is_sdown"] for r in replicas)
            if raw["num-other-sentinels"] != 2 or raw["flags"] != "master" or good != 2:
                return False
            if any(r["master-link-status"] != "ok" for r in replicas):
                return False
        return True


class Cluster:
    """Three masters that share the slots, and with `replicas` one replica for each.

    One that is gone is not called so for a while, because a busy machine may not run one for
    seconds; a replica takes its place when it is told to.
    """

    SLOTS = 16384

    def __init__(self, directory: Path, replicas: bool = False, timeout_ms: int = 15_000) -> None:
        self._directory = directory
        self._timeout_ms = timeout_ms
        self._shards: list[str] = []
        self.ports = [free_port() for _ in range(6 if replicas else 3)]
        self.nodes: list[RedisServer] = []

    def start(self) -> None:
        """Start the nodes, and return when each of them says that all is well."""
        ids = [os.urandom(20).hex() for _ in self.ports]
        # Redis 8.0 ends at an SPUBLISH if a node's shard is not there; 7.0 has none.
        self._shards = [os.urandom(20).hex() for _ in range(3)] if _version() >= (7, 2) else []
        for index, port in enumerate(self.ports):
            directory = _subdirectory(self._directory, port)
            # What they would else learn from one another, within seconds.
            (directory / "nodes.conf").write_text(self._configuration(ids, index))
            options = ["--port", str(port), "--cluster-enabled", "yes"]
            options += ["--cluster-node-timeout", str(self._timeout_ms)]
            options += ["--repl-diskless-sync-delay", "0"]
            node = RedisServer(directory, *options)
            self.nodes.append(node)
            node.start()
        wait_until(lambda: all(map(self._is_well, self.nodes)), 120, "the cluster is ok")

    def _configuration(self, ids: list[str], me: int) -> str:
        lines = []
        for index, (node_id, port) in enumerate(zip(ids, self.ports, strict=True)):
            master = ids[index % 3] if index >= 3 else "-"
            flags = ("myself," if index == me else "") + ("slave" if index >= 3 else "master")
            epoch = index % 3 + 1
            place = f"127.0.0.1:{port}@{port + 10000}"
            if self._shards:
                place += f",,shard-id={self._shards[index % 3]}"
            line = f"{node_id} {place} {flags} {master} 0 0 {epoch} connected"
            if index < 3:
                line += f" {self.SLOTS * index // 3}-{self.SLOTS * (index + 1) // 3 - 1}"
            lines.append(line)
        return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0"]) + "\n"

    def _is_well(self, node: RedisServer) -> bool:
        info = node.ask("CLUSTER INFO")
        if info["cluster_state"] != "ok" or info["cluster_known_nodes"] != str(len(self.nodes)):
            return False
        # Without a link to another it does not hand on what is published; one that is connected
        # may not be accepted yet.
        for about in node.ask("CLUSTER NODES").values():
            answered = "myself" in about["flags"] or about["last_pong_rcvd"] != "0"
            if not about["connected"] or not answered:
                return False
        role = node.ask("ROLE")
        return role[0] == b"master" or role[3] == b"connected"

    def url(self, *indices: int) -> str:
        """The URL that names some nodes, or all."""
        ports = [self.ports[index] for index in indices] or self.ports
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)

    def owner(self, key: str) -> int:
        """The index of the node that has a key, in the eyes of the node itself."""
        for index, node in enumerate(self.nodes):
            if node.running:
                try:
                    node.ask("EXISTS", key)
                    return index
                except redis.ResponseError as error:
                    # ASK: it is moving away. Older versions of redis-py have no class for that
                    # here, newer ones make MovedError a subclass of it.
                    if type(error) is redis.exceptions.AskError or str(error)[:4] == "ASK ":
                        return index
        raise AssertionError(f"nobody has {key}")

    def begin_move(self, key: str, to: int) -> None:
        """Begin to move the slot of a key to another node."""
        origin, target = self.nodes[self.owner(key)].client(), self.nodes[to].client()
        slot = origin.execute_command("CLUSTER KEYSLOT", key)
        there, here = target.execute_command("CLUSTER MYID"), origin.execute_command("CLUSTER MYID")
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", here)
        origin.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", there)

    def move(self, key: str, to: int) -> None:
        """Move the slot of a key to another node, with all that is in it."""
        origin, target = self.nodes[self.owner(key)].client(), self.nodes[to].client()
        self.begin_move(key, to)
        slot = origin.execute_command("CLUSTER KEYSLOT", key)
        there = target.execute_command("CLUSTER MYID")
        while names := origin.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            origin.execute_command(
                *("MIGRATE", "127.0.0.1", self.ports[to], "", 0, 25_000, "KEYS"), *names
            )
        for node in (target, origin):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", there)
        # Who has not heard from the target yet may, with the next move, claim the slot with the
        # same epoch; then two nodes each name the other as its owner, for good.
        wait_until(
            lambda: all(self._knows(node, slot, to) for node in self.nodes if node.running),
            message="every node knows who has the slot, and with which epoch",
        )

    def _knows(self, node: RedisServer, slot: int, to: int) -> bool:
        """Tell whether a node has heard from another that the slot is there."""
        target = self.nodes[to]
        epoch = int(target.ask("CLUSTER INFO")["cluster_my_epoch"])
        about = node.ask("CLUSTER NODES")[f"127.0.0.1:{self.ports[to]}"]
        held = any(int(ends[0]) <= slot <= int(ends[-1]) for ends in about["slots"])
        return held and int(about["epoch"]) == epoch

    def stop(self) -> None:
        """End all."""
        for node in self.nodes:
            node.kill()


class Certificates:
    """A certificate authority of our own, a server's and a client's certificate, another CA."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca, self.other_ca = directory / "ca.crt", directory / "other.crt"
        self.server, self.server_key = directory / "server.crt", directory / "server.key"
        self.client, self.client_key = directory / "client.crt", directory / "client.key"

    def make(self) -> None:
        """Make them."""
        ca: tuple[str, ...] = ("-addext", "basicConstraints=critical,CA:TRUE")
        ca += ("-addext", "keyUsage=critical,keyCertSign")  # Python 3.13 asks for it
        self._request("ca", *ca)
        self._request("other", *ca)
        signed = ("-CA", str(self.ca), "-CAkey", str(self._directory / "ca.key"))
        names = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:redis.test")
        leaf = ("-addext", "basicConstraints=critical,CA:FALSE")
        self._request("server", *signed, *names, *leaf)
        self._request("client", *signed, *leaf)

    def options(self, port: int, clients: bool = False) -> tuple[str, ...]:
        """Options of a server that speaks TLS at a port; `clients`: to those we know alone."""
        files = ("--tls-cert-file", str(self.server), "--tls-key-file", str(self.server_key))
        asked = ("--tls-auth-clients", "yes" if clients else "no")
        return ("--tls-port", str(port), *files, "--tls-ca-cert-file", str(self.ca), *asked)

    def _request(self, name: str, *options: str) -> None:
        key, certificate = self._directory / f"{name}.key", self._directory / f"{name}.crt"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN=wakeq test {name}"]
        command += ["-keyout", str(key), "-out", str(certificate), *options]
        subprocess.run(command, check=True, capture_output=True)


def _subdirectory(directory: Path, port: int) -> Path:
    path = directory / str(port)
    path.mkdir()
    return path
