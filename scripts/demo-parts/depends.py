"""The handler of the demo's consumer "depends": notes which version of a package is installed.

Not every name that packages depend on is that of an installed package: some are only provided
by another one, some are alternatives that nobody has chosen. Those fail, honestly.
"""

import subprocess
import time
from pathlib import Path

from wakeq import Message


def handle(message: Message) -> None:
    """Note the version, or fail."""
    name = message.fields[b"package"].decode()
    version = installed_version(name)
    if not version:
        optional = Path("optional")  # names that an operator does not miss
        if not optional.exists() or name not in optional.read_text().split():
            raise LookupError(f"no package {name} is installed")
    with open("resolved", "a", encoding="utf-8") as notes:
        notes.write(f"{message.id} {time.time()} {name} {version or '-'} {message.attempt}\n")


def installed_version(name: str) -> str:
    """Return the version of an installed package, or nothing."""
    form = "${db:Status-Status} ${Version}\n"
    command = ("dpkg-query", "-W", "-f", form, name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    states = [line.split() for line in done.stdout.splitlines()]
    return next((state[1] for state in states if state[0] == "installed"), "")


def repair(message: Message) -> dict[str, str] | None:
    """Put the package that provides a name in its place; wakeq-delay calls this for what failed."""
    name = message.fields[b"package"].decode()
    form = "${db:Status-Status}\t${Package}\t${Provides}\n"
    done = subprocess.run(
        ("dpkg-query", "-W", "-f", form), capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        status, package, provides = line.split("\t")
        provided = [word.split(" (")[0] for word in provides.split(", ")]
        if status == "installed" and name in provided:
            return {"package": package}
    return None  # as it is, for another try
