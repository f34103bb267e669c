"""wakeq check."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_servers import RedisServer
from wakeq import keys
from wakeq_command import Result, Wakeq


@pytest.fixture
def wakeq(redis: RedisServer, short_dir: Path) -> Wakeq:
    return Wakeq(short_dir, redis.url)


@pytest.fixture
def listener(wakeq: Wakeq) -> Iterator[socket.socket]:
    """The wake socket of the consumer orders."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(wakeq.socket_path("orders")))
        one.listen()
        one.setblocking(False)
        yield one


def level(result: Result, text: str) -> str:
    """Return the level of the one finding that has the text."""
    (line,) = [line for line in result.lines if text in line]
    return line.split()[0]


def test_finds_nothing_wrong(wakeq: Wakeq, listener: socket.socket) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    result = wakeq.run("check")
    assert result.code == 0
    assert level(result, "redis: Redis ") == "ok"
    assert level(result, "stream orders, group orders, program /bin/true") == "ok"
    assert level(result, f"socket {wakeq.socket_path('orders')}") == "ok"


def test_warns_that_messages_are_overdue(wakeq: Wakeq, redis: RedisServer) -> None:
    client = redis.client()
    client.sadd(keys.STREAMS, "mail", "orders")
    assert level(wakeq.run("check"), "delayed: nothing is overdue") == "ok"
    seconds, _ = client.time()
    client.zadd(keys.delayed("orders"), {"1-0@billing": (seconds - 60) * 1000})
    result = wakeq.run("check")
    assert result.code == 0
    assert level(result, "delayed: 1 delayed message is overdue, the first by 1min") == "warning"


def test_warns_that_it_cannot_look_for_what_is_overdue(wakeq: Wakeq, redis: RedisServer) -> None:
    redis.client().set(keys.STREAMS, "x")
    assert level(wakeq.run("check"), "delayed: cannot be looked at: ") == "warning"


def test_never_connects_to_a_wake_socket(wakeq: Wakeq, listener: socket.socket) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    wakeq.run("check")
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_warns_that_there_is_no_consumer(wakeq: Wakeq) -> None:
    result = wakeq.run("check")
    assert result.code == 0
    assert level(result, "NAME.toml yet") == "warning"


def test_warns_that_a_consumer_has_no_socket(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    result = wakeq.run("check")
    assert result.code == 0
    assert level(result, "systemctl enable --now wakeq-consumer@orders.socket") == "warning"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('handlr = "m:f"', "unknown setting 'handlr' (did you mean 'handler'?)"),
        ("handler = ", "is not TOML"),
        ("concurrency = 0", "concurrency must be 1 to 1000, not 0"),
        ("", "must have handler"),
        ('exec = ["/no/such/program"]', "exec: there is no program /no/such/program"),
        ('exec = ["/etc/passwd"]', "exec: /etc/passwd is not executable"),
        ('exec = ["/etc"]', "exec: /etc is not executable"),
        ('handler = "json:loads"\npython = "/no/python"', "python: there is no program"),
        ('handler = "no_such_module:f"', "finds no module 'no_such_module'"),
        ('handler = "json.none:f"', "finds no module 'json.none'"),
        ('handler = "os.path.none.at.all:f"', "finds no module"),
        ('handler = "json"', "must be package.module:callable"),
        ('handler = "/no/file.py:f"', "there is no file /no/file.py"),
    ],
)
def test_finds_what_is_wrong_with_a_consumer(wakeq: Wakeq, text: str, complaint: str) -> None:
    wakeq.configure("orders", text + "\n")
    result = wakeq.run("check")
    assert result.code == 78
    assert level(result, complaint) == "error"


def test_looks_at_nodes(wakeq: Wakeq) -> None:
    folder = wakeq.etc / "nodes"
    folder.mkdir()
    (folder / "clock.toml").write_text('list = "queue"\nexec = ["/bin/true"]\n')
    (folder / "quiet.toml").write_text("")
    (folder / "late.toml").write_text('calendar = "tomorrowish"\n')
    (folder / "lame.toml").write_text('handler = "nowhere:nothing"\n')
    result = wakeq.run("check")
    assert result.code == 78
    assert level(result, "node clock: list queue, program /bin/true") == "ok"
    assert level(result, "node quiet: stream quiet, without a handler") == "ok"
    assert level(result, "node late: calendar: must be a calendar time") == "error"
    assert level(result, "node lame: handler 'nowhere:nothing': ") == "error"


def test_finds_a_socket_that_is_none(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    wakeq.socket_path("orders").touch()
    result = wakeq.run("check")
    assert result.code == 78
    assert level(result, "is no socket; remove it") == "error"


def test_finds_a_socket_without_a_configuration(wakeq: Wakeq, listener: socket.socket) -> None:
    result = wakeq.run("check")
    assert result.code == 78
    assert level(result, "orders.toml: there is no such file") == "error"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[wakeup]\nstarts = "many"\n', "starts must be 0 to 1000, not 'many'"),
        ("[leader]\nlease = 0\n", "[leader]: lease must be at least 1s, not 0"),
    ],
)
def test_finds_what_is_wrong_with_the_main_file(wakeq: Wakeq, text: str, said: str) -> None:
    (wakeq.etc / "wakeq.toml").write_text(text)
    result = wakeq.run("check")
    assert result.code == 78
    assert level(result, said) == "error"


def test_looks_without_running_the_handlers_code(wakeq: Wakeq, short_dir: Path) -> None:
    module = short_dir / "handlers.py"
    module.write_text("import sys\nprint('ran')\nsys.exit(3)\n")
    wakeq.configure("orders", f'handler = "{module}:handle"\n')
    result = wakeq.run("check")
    assert result.code == 0
    assert "ran" not in result.out


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def handle(message): pass", None),
        ("import no_such_library", "No module named 'no_such_library'"),
        ("handle = 5", "is 5, which cannot be called"),
        ("def other(message): pass", "has no attribute 'handle'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_imports_the_handler_if_asked_to(
    wakeq: Wakeq, short_dir: Path, source: str, complaint: str | None
) -> None:
    module = short_dir / "handlers.py"
    module.write_text(source + "\n")
    wakeq.configure("orders", f'handler = "{module}:handle"\npython = "{sys.executable}"\n')
    result = wakeq.run("check", "--import", "orders")
    assert result.code == (78 if complaint else 0)
    assert (complaint or "handlers.py:handle") in result.out


def test_checks_only_the_consumers_named(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    wakeq.configure("bad", "")
    assert wakeq.run("check", "orders").code == 0
    assert wakeq.run("check", "bad").code == 78
    assert wakeq.run("check", "missing").code == 78
    assert wakeq.run("check", "../etc").code == 64


def test_ends_with_69_when_only_redis_is_missing(wakeq: Wakeq, short_dir: Path) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    down = f"unix://{short_dir}/none"
    assert wakeq.run("check", "--redis-url", down).code == 69
    wakeq.configure("orders", "")
    assert wakeq.run("check", "--redis-url", down).code == 78


def test_finds_that_redis_refuses_the_login(wakeq: Wakeq, own_redis: RedisServer) -> None:
    url = own_redis.url.replace("unix://", "unix://:pw@")
    result = wakeq.run("check", "--redis-url", url)
    assert result.code == 78
    assert level(result, "has no password, but redis_url gives one") == "error"


def test_prints_json(wakeq: Wakeq) -> None:
    wakeq.configure("orders", 'exec = ["/bin/true"]\n')
    findings = wakeq.run("check", "--json").json()
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "error"}
    assert {"wakeq.toml", "redis", "consumer orders"} <= {f["about"] for f in findings}
