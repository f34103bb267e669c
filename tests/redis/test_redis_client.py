"""The factory of redis-py clients."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_py

from redis_servers import SERVER, RedisServer, free_port, wait_until
from wakeq import redis_client
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.redis_client import Servers, connect, connect_async, errors_explained
from wakeq.redis_url import RedisURL

# redis-py before 4.6 leaves the socket of a failed connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_connects_under_its_name_with_resp2(redis: RedisServer) -> None:
    client = connect(RedisURL(redis.url), "wakeq-test")
    (me,) = [c for c in client.client_list() if c["name"] == "wakeq-test"]
    assert me["resp"] == "2"
    assert not me.get("lib-name")
    client.connection_pool.disconnect()


def test_gives_bytes(redis: RedisServer) -> None:
    client = connect(RedisURL(redis.url), "wakeq-test")
    assert client.echo("ä") == "ä".encode()
    client.connection_pool.disconnect()


def test_connects_for_asyncio(redis: RedisServer) -> None:
    async def echo() -> object:
        client = connect_async(RedisURL(redis.url), "wakeq-test")
        try:
            return await client.echo("x")
        finally:
            await client.connection_pool.disconnect()

    assert asyncio.run(echo()) == b"x"


def test_selects_the_database(redis: RedisServer) -> None:
    client = connect(RedisURL(f"{redis.url}?db=3"), "wakeq-test")
    client.set("k", "v")
    assert redis.client(db=3).get("k") == b"v"
    client.connection_pool.disconnect()


def test_logs_in_with_user_and_password(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "app", "on", ">a b", "~*", "+@all")
    client = connect(RedisURL(own_redis.url.replace("//", "//app:a%20b@")), "wakeq-test")
    assert client.execute_command("ACL", "WHOAMI") == b"app"
    client.connection_pool.disconnect()


def test_logs_in_as_a_user_without_a_password(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all")
    client = connect(RedisURL(own_redis.url.replace("://", "://app@")), "wakeq-test")
    assert client.execute_command("ACL", "WHOAMI") == b"app"
    client.connection_pool.disconnect()


def test_connects_again_after_the_server_was_restarted(own_redis: RedisServer) -> None:
    client = connect(RedisURL(own_redis.url), "wakeq-test")
    client.ping()
    own_redis.restart()
    assert client.ping()
    client.connection_pool.disconnect()


class Mute:
    """A server that counts what it is asked and never answers."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.asked = b""
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                received = b""
                while chunk := connection.recv(65536):
                    received += chunk
                    # CLIENT SETNAME is answered, and nothing else. It may come in pieces, and
                    # redis-py sends it twice over a unix socket with asyncio.
                    if received.endswith(b"wakeq-test\r\n"):
                        connection.sendall(b"+OK\r\n")
                        received = b""
            if not received:
                return
            self.connections += 1
            self.asked += received

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.url.removeprefix("unix://"))
        self._thread.join()
        self._listener.close()


@pytest.fixture
def mute(short_dir: Path) -> Iterator[Mute]:
    server = Mute(short_dir / "mute.sock")
    yield server
    server.close()


def test_never_sends_a_command_twice(mute: Mute) -> None:
    client = connect(RedisURL(mute.url), "wakeq-test", timeout=2)
    late = pytest.raises(UnavailableError, match="did not answer in time")
    with late, errors_explained("there"):
        client.xadd("orders", {"body": 1})
    client.connection_pool.disconnect()
    wait_until(lambda: b"XADD" in mute.asked)
    assert (mute.asked.count(b"XADD"), mute.connections) == (1, 1)


def test_never_sends_a_command_twice_with_asyncio(mute: Mute) -> None:
    async def add() -> None:
        client = connect_async(RedisURL(mute.url), "wakeq-test", timeout=2)
        try:
            with errors_explained("there"):
                await client.xadd("orders", {"body": 1})
        finally:
            await client.connection_pool.disconnect()

    with pytest.raises(UnavailableError, match="did not answer in time"):
        asyncio.run(add())
    wait_until(lambda: b"XADD" in mute.asked)
    assert (mute.asked.count(b"XADD"), mute.connections) == (1, 1)


def test_waits_for_a_free_connection(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "_CONNECTIONS", 2)
    client = connect(RedisURL(redis.url), "wakeq-test")
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(client.blpop("none", timeout=0.2)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.connection_pool.disconnect()
    assert results == [None] * 5


def explained(url: str, *command: str) -> WakeqError:
    """Return what a command that fails is explained as."""
    parsed = RedisURL(url)
    client = connect(parsed, "wakeq-test", timeout=30)
    try:
        with errors_explained(parsed):
            client.execute_command(*(command or ("PING",)))
    except WakeqError as error:
        return error
    finally:
        client.connection_pool.disconnect()
    raise AssertionError("nothing failed")


def test_explains_that_nobody_listens(short_dir: Path) -> None:
    error = explained(f"unix://{short_dir}/none")
    assert isinstance(error, UnavailableError)
    assert str(error) == f"Redis at unix://{short_dir}/none cannot be reached: " + (
        "No such file or directory"
    )


def test_explains_a_refused_connection() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        error = explained(f"redis://127.0.0.1:{bound.getsockname()[1]}")
    assert isinstance(error, UnavailableError)
    assert "cannot be reached: Connection refused" in str(error)


def test_explains_a_missing_and_a_wrong_password(redis_server: Callable[..., RedisServer]) -> None:
    server = redis_server("--requirepass", "right")
    missing = explained(server.url)
    wrong = explained(server.url.replace("//", "//:wrong@"))
    assert isinstance(missing, RefusedError) and "(NOAUTH" in str(missing)
    assert isinstance(wrong, RefusedError) and "(WRONGPASS" in str(wrong)
    assert "wrong@" not in str(wrong)


def test_explains_a_password_that_is_not_needed(redis: RedisServer) -> None:
    error = explained(redis.url.replace("//", "//:pw@"))
    assert isinstance(error, ConfigError)
    assert "has no password, but redis_url gives one" in str(error)


def test_explains_a_database_that_is_not_there(redis: RedisServer) -> None:
    error = explained(f"{redis.url}?db=99")
    assert isinstance(error, ConfigError)
    assert "no such database" in str(error)


def test_explains_what_is_not_permitted(own_redis: RedisServer) -> None:
    own_redis.client().execute_command(
        "ACL", "SETUSER", "poor", "on", ">pw", "~*", "+ping", "+client|setname"
    )
    url = own_redis.url.replace("//", "//poor:pw@")
    client = connect(RedisURL(url), "wakeq-test")
    refused = pytest.raises(RefusedError, match="does not permit this user: NOPERM")
    with refused, errors_explained("there"):
        client.get("k")
    client.connection_pool.disconnect()


@pytest.mark.parametrize(
    ("prepare", "command", "kind", "text"),
    [
        ("SET k v", "XADD k * a 1", ConfigError, "something other than a stream: WRONGTYPE"),
        ("PING", "NONSENSE", WakeqError, "answered with an error: "),
        ("CONFIG SET maxmemory 1", "SET k v", UnavailableError, "cannot answer now: OOM"),
        ("REPLICAOF 127.0.0.1 1", "SET k v", UnavailableError, "cannot answer now: READONLY"),
        ("PING", "EVALSHA 0 0", WakeqError, "NOSCRIPT"),
    ],
)
def test_explains_an_error_reply(
    own_redis: RedisServer, prepare: str, command: str, kind: type[WakeqError], text: str
) -> None:
    own_redis.client().execute_command(*prepare.split(" "))
    error = explained(own_redis.url, *command.split(" "))
    assert type(error) is kind
    assert text in str(error)


def test_explains_that_there_are_too_many_clients(own_redis: RedisServer) -> None:
    first = own_redis.client()
    first.config_set("maxclients", "1")
    # The server may have closed the connection before its reason was read.
    assert isinstance(explained(own_redis.url), UnavailableError)
    refused = redis_py.exceptions.ConnectionError("max number of clients reached")
    assert "cannot answer now: max" in str(redis_client.explained(refused, "there"))


def test_explains_sentinels_that_are_not_there() -> None:
    error = explained("redis+sentinel://127.0.0.1:1/main")
    assert isinstance(error, UnavailableError)
    assert "no Sentinel answers with a master" in str(error)


def test_asks_sentinel_for_the_master(
    redis_server: Callable[..., RedisServer], short_dir: Path
) -> None:
    port, sentinel_port = free_port(), free_port()
    redis_server("--port", str(port))
    configuration = short_dir / "sentinel.conf"
    configuration.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {short_dir}\nlogfile {short_dir}/log\n"
        f"sentinel monitor main 127.0.0.1 {port} 1\n"
    )
    process = subprocess.Popen([SERVER, str(configuration), "--sentinel"])
    try:
        url = RedisURL(f"redis+sentinel://127.0.0.1:{sentinel_port}/main/2")
        client = connect(url, "wakeq-test")

        def answered() -> bool:
            try:
                return bool(client.ping())
            except redis_py.exceptions.ConnectionError:
                return False

        wait_until(answered)
        client.xadd("orders", {"body": 1})
        assert redis_py.Redis(port=port, db=2).xlen("orders") == 1
        client.connection_pool.disconnect()
    finally:
        process.terminate()
        process.wait(60)


def test_explains_files_for_tls_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"/no/ca\.pem: No such file"):
        connect(RedisURL("rediss://127.0.0.1?ca=/no/ca.pem"), "wakeq-test")


@pytest.fixture
def certificate(short_dir: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 (cert.pem, key.pem)."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(short_dir / "key.pem"), "-out", str(short_dir / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return short_dir


def test_speaks_tls_with_a_server_it_trusts(
    redis_server: Callable[..., RedisServer], certificate: Path
) -> None:
    port = free_port()
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    redis_server("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file",
                 str(key), "--tls-auth-clients", "no")  # fmt: skip
    client = connect(RedisURL(f"rediss://127.0.0.1:{port}?ca={cert}"), "wakeq-test")
    assert client.ping()
    client.connection_pool.disconnect()
    blind = connect(RedisURL(f"rediss://127.0.0.1:{port}?verify=no"), "wakeq-test")
    assert blind.ping()
    blind.connection_pool.disconnect()
    error = explained(f"rediss://127.0.0.1:{port}")
    assert isinstance(error, ConfigError)
    assert "its certificate is not trusted" in str(error)


def moved(text: str) -> redis_py.exceptions.ResponseError:
    return redis_py.exceptions.ResponseError(text)


def test_asks_any_server_of_a_cluster_until_it_learns_better() -> None:
    servers = Servers(RedisURL("redis+cluster://127.0.0.1:1,127.0.0.1:2"), "wakeq-test")
    first = servers.client("orders")
    assert servers.redirected(moved("MOVED 105 127.0.0.1:3"))  # the slot of orders
    owner = servers.client("orders")
    assert address(first) == ("127.0.0.1", 1)
    assert address(owner) == ("127.0.0.1", 3)
    assert servers.client("other") is first


def test_takes_a_redirection_without_a_host_as_to_the_host_it_asked() -> None:
    servers = Servers(RedisURL("redis+cluster://h1:1"), "wakeq-test")
    assert servers.redirected(moved("MOVED 105 :3"))
    assert address(servers.client("orders")) == ("h1", 3)


def test_asks_another_server_after_one_was_lost() -> None:
    servers = Servers(RedisURL("redis+cluster://127.0.0.1:1,127.0.0.1:2"), "wakeq-test")
    servers.redirected(moved("MOVED 105 127.0.0.1:3"))
    servers.lost("orders")
    assert address(servers.client("orders")) == ("127.0.0.1", 1)
    servers.lost("orders")
    assert address(servers.client("orders")) == ("127.0.0.1", 2)


def test_asks_each_server_once_when_none_can_be_reached() -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    servers = Servers(RedisURL(url), "wakeq-test")
    with pytest.raises(UnavailableError, match="cannot be reached: Connection refused"):
        servers.call("orders", "PING")
    assert len(servers._clients) == 2
    servers.close()


@pytest.mark.parametrize(
    "error",
    [
        None,
        redis_py.exceptions.ConnectionError("Error 104 while reading from 127.0.0.1:1: reset"),
        redis_py.exceptions.TimeoutError("Timeout reading from 127.0.0.1:1"),
    ],
)
def test_does_not_send_again_what_may_have_been_carried_out(error: Exception | None) -> None:
    servers = Servers(RedisURL("redis+cluster://127.0.0.1:1,127.0.0.1:2"), "wakeq-test")
    assert not servers.lost("orders", error)
    assert address(servers.client("orders")) == ("127.0.0.1", 2)


@pytest.mark.parametrize("text", ["ASK 105 127.0.0.1:3", "WRONGTYPE no", "ERR MOVED"])
def test_follows_nothing_but_moved(text: str) -> None:
    servers = Servers(RedisURL("redis+cluster://127.0.0.1:1"), "wakeq-test")
    assert not servers.redirected(moved(text))


def test_follows_nothing_without_a_cluster() -> None:
    servers = Servers(RedisURL("redis://127.0.0.1:1"), "wakeq-test")
    assert not servers.redirected(moved("MOVED 105 127.0.0.1:3"))


def address(client: object) -> tuple[str, int]:
    options = client.connection_pool.connection_kwargs  # type: ignore[attr-defined]
    return options["host"], options["port"]
