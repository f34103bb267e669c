"""The journal's catalog: every event that operators search is explained, with fields it has."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wakeq import journal

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "units/catalog/wakeq.catalog"
PACKAGE = ROOT / "daemons/wakeq"
IDS = {name: value for name, value in vars(journal).items() if re.fullmatch(r"[A-Z_]+", name)
       and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value)}  # fmt: skip

# The fields behind the names that are unpacked into the call of a log method.
UNPACKED = {
    "self._names": {"stream", "group"},
    "_fields(sleeper)": {"consumer", "stream", "group"},
    "fields": {"handled"},
    "about": {"message_id", "attempt", "error", "stream", "group"},
}


def entries() -> dict[str, tuple[dict[str, str], str]]:
    """Return the header lines and the text of each entry, by its MESSAGE_ID."""
    found = {}
    for block in re.split(r"^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = block.partition("\n\n")
        message_id, *lines = head.split("\n")
        assert message_id not in found
        found[message_id] = (dict(line.split(": ", 1) for line in lines), text)
    return found


def logged() -> dict[str, list[set[str]]]:
    """Return the fields of each call that logs an event, by the name of its MESSAGE_ID."""
    calls: dict[str, list[set[str]]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "event_id" not in given:
                continue
            fields = set(given) - {"event_id", "detail"}
            for keyword in node.keywords:
                if keyword.arg is None:
                    fields |= UNPACKED[ast.unparse(keyword.value)]
            name = ast.unparse(given["event_id"]).removeprefix("journal.")
            calls.setdefault(name, []).append(fields)
    return calls


def test_every_event_has_an_entry_and_every_entry_an_event() -> None:
    assert len(IDS) >= 10
    assert set(entries()) == set(IDS.values())


@pytest.mark.parametrize("name", IDS)
def test_an_entry_says_what_happened_and_what_to_do(name: str) -> None:
    head, text = entries()[IDS[name]]
    assert set(head) == {"Subject", "Defined-By", "Documentation"}
    assert head["Defined-By"] == "wakeq"
    paragraphs = text.strip().split("\n\n")
    assert len(paragraphs) >= 2
    assert max(map(len, text.split("\n"))) <= 80


@pytest.mark.parametrize("name", IDS)
def test_an_entry_names_pages_that_there_are(name: str) -> None:
    for reference in entries()[IDS[name]][0]["Documentation"].split():
        page = re.fullmatch(r"man:([\w.-]+)\((\d)\)", reference)
        assert page is not None
        assert (ROOT / f"packaging/man/{page[1]}.{page[2]}").is_file()


@pytest.mark.parametrize("name", IDS)
def test_an_entry_uses_only_fields_that_the_event_always_has(name: str) -> None:
    head, text = entries()[IDS[name]]
    used = set(re.findall(r"@WAKEQ_([A-Z_]+)@", head["Subject"] + text))
    for fields in logged().get(name, []):
        assert used <= {field.upper() for field in fields}


def test_the_events_are_found_in_the_source() -> None:
    # So that the test above does not pass because it sees nothing.
    assert len(logged()) >= 8
    assert set(logged()) <= set(IDS)


def test_journalctl_takes_it(tmp_path: Path) -> None:
    catalog = tmp_path / "usr/lib/systemd/catalog"
    catalog.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, catalog)

    def journalctl(*options: str) -> str:
        done = subprocess.run(
            ["journalctl", f"--root={tmp_path}", "--no-pager", *options],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout

    journalctl("--update-catalog")
    listed = journalctl("--list-catalog").splitlines()
    expected = [f"{key} wakeq: {head['Subject']}" for key, (head, _) in sorted(entries().items())]
    assert listed == expected
    for _, text in entries().values():
        assert text.strip() in journalctl("--dump-catalog")
