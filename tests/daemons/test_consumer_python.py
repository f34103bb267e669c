"""wakeq-consumer and the interpreters it runs in: what it loads, and the application's own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest
import sdnotify
import structlog

from consumer_host import ConsumerHost, ConsumerProcess
from redis_servers import RedisServer, wait_until

# What must not be loaded before the first message is handled, because each takes as long to
# import as all that is needed; and what a change is the likeliest to bring in.
TOO_HEAVY = {
    *("asyncio", "typing", "re", "json", "logging", "argparse", "tomllib", "structlog", "redis"),
    *("subprocess", "ssl", "dataclasses", "traceback", "random", "inspect", "importlib.util"),
    *("datetime", "hashlib", "pathlib", "contextlib", "tempfile", "shutil", "concurrent"),
    *("urllib", "difflib", "shlex", "zlib", "systemd", "uuid", "decimal", "ast", "tokenize"),
    *("enum", "signal", "socket", "selectors", "queue", "sdnotify", "unicodedata", "stringprep"),
}
# What there is by then beside the interpreter's own start: each has been thought about.
LOADED = {
    # of the standard library
    *("__future__", "_operator", "_queue", "_socket", "_weakrefset", "_collections"),
    *("collections", "collections.abc", "functools", "gc", "itertools", "_functools"),
    *("keyword", "operator", "reprlib", "select", "threading", "types"),
    "warnings",  # by threading of Python 3.13
    # of others
    *("hiredis", "hiredis.hiredis", "hiredis.version"),
}


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def loaded(host: ConsumerHost, *options: str, **env: str) -> set[str]:
    """Return the modules that are there at the first call of a handler that imports nothing."""
    code = "import sys\nseen = []\n"
    code += "def handle(message): seen or record(*sys.modules); seen.append(1)\n"
    # Without the prelude of tests, and with the interpreter's own modules taken off.
    host.configure(handler=host.handler(code))
    host.publish("a")
    # -S and the path by hand: an editable installation's finder imports what it likes.
    paths = [str(Path(__file__).parents[2] / "daemons")]
    # Not all that these folders hold may be found: a package's .pth file is not looked at.
    paths += {str(Path(module.__file__ or "").parents[1]) for module in (hiredis, structlog)}
    paths += {str(Path(sdnotify.__file__).parents[1])}
    start = f"import sys; sys.path += {paths!r}; from wakeq.consumer.main import main; main()"
    consumer = host.run([sys.executable, "-I", "-S", "-c", start, "orders", *options], **env)
    (line,) = host.wait_records(1)
    assert consumer.stop() == 0
    bare = subprocess.run(
        # os is what `site` loads, without which nobody starts Python.
        [sys.executable, "-I", "-S", "-c", "import os, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(line.split()) - set(bare.stdout.split())


@pytest.mark.parametrize("failpoint", ["", "after_join:sleep=1.5"], ids=["quick", "slow start"])
def test_loads_little_before_the_first_message(host: ConsumerHost, failpoint: str) -> None:
    modules = loaded(host, WAKEQ_FAILPOINT=failpoint)
    ours = {name for name in modules if name.partition(".")[0] == "wakeq"}
    assert not {name for name in modules if name.partition(".")[0] in TOO_HEAVY}
    assert sorted(modules - ours - {"shop"} - LOADED) == []
    assert ours <= {
        *("wakeq", "wakeq.toml", "wakeq.journal", "wakeq.errors", "wakeq.settings"),
        *("wakeq.config", "wakeq.first_sections", "wakeq.systemd", "wakeq.service"),
        "wakeq.backoff",
        *("wakeq.failpoint", "wakeq.keys", "wakeq.message", "wakeq.redis_url", "wakeq.replies"),
        *("wakeq.scripts", "wakeq.selector", "wakeq.wire", "wakeq.consumer"),
        *(name for name in ours if name.startswith("wakeq.consumer.")),
    }
    assert "wakeq.consumer.program" not in ours


def test_loads_no_more_for_keys_than_what_they_need(host: ConsumerHost) -> None:
    modules = loaded(host, "--order=key", "--concurrency=2")
    heavy = {name for name in modules if name.partition(".")[0] in TOO_HEAVY}
    assert heavy == {"zlib"}


def test_a_file_beside_the_handler_does_not_hide_the_library(host: ConsumerHost) -> None:
    # Loaded by whatever tells the service manager, and by most of the library.
    for name in ("enum", "queue", "selectors", "signal", "socket"):
        (host.app_dir / f"{name}.py").write_text("raise SystemExit('not the library')\n")
    code = "import queue, socket\ndef handle(message): record(queue.__name__, message.text())\n"
    host.configure(handler=host.handler(code))
    host.publish("a")
    consumer = host.start()
    assert host.wait_records(1) == ["queue a"]
    assert consumer.stop() == 0


# -- the application's own interpreter -------------------------------------------------------------


def make_venv(host: ConsumerHost) -> Path:
    """Make an environment with a package of the application's, without wakeq."""
    venv = host.directory / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(venv)]
    subprocess.run(command, check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    package = site / "market"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 'of the application'\n")
    python = venv / "bin/python"
    # There is no wakeq in it, unless the consumer brings it.
    failed = subprocess.run([python, "-c", "import wakeq"], capture_output=True, check=False)
    assert failed.returncode == 1
    return python


APPLICATION = """
import sys, market, wakeq
def handle(message):
    record(sys.prefix)
    record(market.VALUE)
    if message.text() == "bad": raise wakeq.Reject("never")
    return wakeq.Publish("out", message.text())
"""


def start_in(host: ConsumerHost, python: Path, code: str = APPLICATION) -> ConsumerProcess:
    host.configure(handler=host.handler(code), python=str(python))
    return host.start()


def test_runs_the_handler_in_the_applications_environment(host: ConsumerHost) -> None:
    python = make_venv(host)
    host.publish("a", "bad")
    consumer = start_in(host, python)
    host.wait_failed(1)
    host.wait_done()
    assert host.wait_records(4)[:2] == [str(python.parents[1]), "of the application"]
    wait_until(lambda: host.redis.xlen("out") == 1)
    # The log needs packages that the environment does not have either.
    consumer.wait_log("Reject: never")
    assert consumer.stop() == 0
    assert host.stats()["handled"] == "1"


def test_lends_wakeq_and_its_needs_and_nothing_else(host: ConsumerHost) -> None:
    python = make_venv(host)
    code = """
import sys, importlib
def there(name):
    try: importlib.import_module(name)
    except ImportError: return False
    return True
def handle(message):
    record(*(name for name in ("wakeq", "hiredis", "structlog", "redis", "pytest", "consumer",
                               "main", "lanes") if there(name)))
    record(*[p for p in sys.path if p.endswith(("/daemons", "/wakeq", "/consumer"))] or ["none"])
"""
    host.publish("a")
    start_in(host, python, code)
    host.wait_done()
    assert host.records == ["wakeq hiredis structlog", "none"]


def test_the_applications_own_packages_go_first_but_not_its_wakeq(host: ConsumerHost) -> None:
    python = make_venv(host)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "wakeq.py").write_text("raise RuntimeError('another wakeq')\n")
    (site / "structlog.py").write_text("NAME = 'of the application'\n")
    code = "import structlog\ndef handle(message): record(structlog.NAME)\n"
    host.publish("a")
    consumer = start_in(host, python, code)
    host.wait_done()
    assert host.records == ["of the application"]
    consumer.kill()


def test_says_how_to_help_an_interpreter_that_cannot_load_hiredis(host: ConsumerHost) -> None:
    python = make_venv(host)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "hiredis.py").write_text("raise ImportError('built for another Python')\n")
    listener = host.wake_socket()
    lease = host.connect()
    host.configure(handler=host.handler(APPLICATION), python=str(python))
    consumer = host.start(wake=listener)
    assert consumer.wait_exit() == 78
    assert consumer.lines == [
        f"wakeq: python {python} cannot load hiredis (built for another Python):"
        f" install it there with '{python} -m pip install hiredis'"
    ]
    assert lease.recv(10) == b""


def test_says_that_there_is_no_such_interpreter(host: ConsumerHost) -> None:
    host.configure(handler="market:handle", python="/nowhere/python")
    consumer = host.start()
    assert consumer.wait_exit() == 78
    assert "python /nowhere/python cannot be run: No such file or directory" in consumer.output


def test_sockets_survive_the_change_of_the_interpreter_and_its_reload(host: ConsumerHost) -> None:
    python = make_venv(host)
    code = "import sys\ndef handle(message): record({!r}, sys.prefix)\n"
    host.configure(handler=host.handler(code.format("old")), python=str(python))
    listener = host.wake_socket()
    lease = host.connect()
    consumer = host.start(wake=listener)
    lease.sendall(b"status\n")
    assert b'"name": "orders"' in lease.recv(4096)
    host.publish("a")
    host.wait_done()
    host.configure(handler=host.handler(code.format("new"), "next.py"), python=str(python))
    consumer.send(signal.SIGHUP)
    consumer.wait_log("restarted for a reload")
    host.publish("b")
    assert host.wait_records(2) == [f"old {python.parents[1]}", f"new {python.parents[1]}"]
    host.connect().sendall(b"status\n")
    lease.sendall(b"status\n")
    assert b'"name": "orders"' in lease.recv(4096)
    # Without python= it is the interpreter of wakeq again.
    host.configure(handler=host.handler(code.format("own"), "own.py"))
    consumer.send(signal.SIGHUP)
    consumer.wait_log("restarted for a reload", times=2)
    host.publish("c")
    assert host.wait_records(3)[2] == f"own {sys.prefix}"
    assert consumer.stop() == 0
