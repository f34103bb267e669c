"""The rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemons/wakeq"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(PACKAGE.rglob("*.lua"))
CHORES = sorted((ROOT / "scripts").rglob("*.py"))

# Options of redis-py whose defaults differ between its versions.
CLIENT_OPTIONS = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"),
    *("retry", "retry_on_error", "retry_on_timeout", "max_connections", "decode_responses"),
)


def name(path: Path) -> str:
    """Return a path as it is said in the project."""
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    """Return every text file of the project; those that git tracks, if this is a checkout."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return [path for word in listed.stdout.split("\0") if (path := ROOT / word).is_file()]
    hidden = {".venv", ".git", "__pycache__"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.parts)]


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each string of a module that is not a docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            if isinstance(node.value, bytes):
                yield node.lineno, node.value.decode(errors="replace")
            elif isinstance(node.value, str):
                yield node.lineno, node.value


def test_no_file_names_the_place_where_it_was_made() -> None:
    # The checkout is no part of the project, wherever it lies; nor is anybody's home.
    places = [str(ROOT), str(ROOT.parent), str(Path.home())]
    # Folders that every machine has say nothing about this one.
    common = {"/", "/root", "/home", "/tmp", "/srv", "/opt", "/usr/src", "/var/tmp"}
    # A whole path, not the end or the beginning of another.
    patterns = [
        rf"(?<![\w.}}]){re.escape(place)}(?![\w.-])" for place in places if place not in common
    ]
    found = [
        name(path)
        for path in tracked()
        # Its paths begin at the checkout.
        if path.name != ".gitignore"
        and any(re.search(pattern, path.read_text(errors="replace")) for pattern in patterns)
    ]
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_key_names_are_made_in_one_module(path: Path) -> None:
    if path.name == "keys.py":
        return
    # ":" after wakeq, unless a space follows: then it is a message for people.
    found = [f"{line}: {text!r}" for line, text in strings(path) if re.match(r"wakeq:(?! )", text)]
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_client_options_are_set_in_one_module(path: Path) -> None:
    if path.name in {"redis_client.py", "wire.py"}:
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [
        f"{call.lineno}: {keyword.arg}"
        for call in calls
        for keyword in call.keywords
        if keyword.arg in CLIENT_OPTIONS
    ]
    assert not found


@pytest.mark.parametrize("path", MODULES + CHORES, ids=name)
def test_a_module_is_small_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert not text or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_has_a_header(path: Path) -> None:
    header = re.match(r"(--.*\n)+", path.read_text())
    assert header is not None
    assert header[0].startswith(f"-- {path.stem}: ")
    for part in ("KEYS[1]", "Returns", "Atomic because"):
        assert part in header[0], part


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_names_each_key_and_argument_that_it_uses(path: Path) -> None:
    text = path.read_text()
    header = re.match(r"(--.*\n)+", text)
    assert header is not None
    used = set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", text[header.end() :]))
    assert used <= set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", header[0]))
