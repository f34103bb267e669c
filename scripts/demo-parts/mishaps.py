"""The demo's second chapter: messages fail, are tried again, repaired, buried and dug up."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

from host import DemoError, Host

from wakeq import Publish, Publisher, keys

STREAM = GROUP = "depends"
GIVE_UP_SECONDS = 120

CONSUMER = """
handler = "FOLDER/depends.py:handle"
max_attempts = 3
backoff = { base = "100ms", cap = "400ms" }
idle_timeout = "2.5s"
"""
# Of wakeq.toml: what wakeq-delay has failed messages repaired by.
DELAY = """
[delay]
repair = "FOLDER/depends.py:repair"
"""


class Mishaps:
    """Tells the chapter.

    Args:
        host: where it happens.
        say, check: of the demo.
        run: runs a command and returns what it prints.
    """

    def __init__(
        self,
        host: Host,
        say: Callable[..., None],
        check: Callable[..., None],
        run: Callable[..., str],
    ) -> None:
        self._host = host
        self._say = say
        self._check = check
        self._run = run

    def tell(self) -> None:
        """Tell it all."""
        names = self.dependencies()
        versions, provided = self.known()
        absent = sorted(n for n in names if n not in versions and n not in provided)
        virtual = sorted(n for n in names if n not in versions and n in provided)
        exits = len(self._host.consumers[GROUP].exits)
        with Publisher(self._host.redis_url) as publisher:
            publisher.publish_many(Publish(STREAM, fields={"package": name}) for name in names)
        self._say("demo", f"published {len(names)} messages, one for each package that the"
                  " required ones depend on", "bold")  # fmt: skip

        plain = len(names) - len(absent) - len(virtual)
        self.wait("those to be handled that are installed", lambda: self.handled() >= plain)
        failing = len(absent) + len(virtual)
        self._say(GROUP, f"handled {plain} of {len(names)}; {failing} fail, and wait for another"
                  " try", "green")  # fmt: skip
        self.wait(
            "what is provided by others to be repaired and handled",
            lambda: self.handled() >= plain + len(virtual),
        )
        notes = {line[2]: line for line in self.notes()}
        said = ", ".join(f"{n} is {p}" for n in virtual if (p := provided[n]) in notes)
        self._say("delay", f"{len(virtual)} were repaired and handled: {said}", "green")
        self.wait("the rest to be dead letters", lambda: self.dead() >= len(absent))
        self._say(GROUP, f"{len(absent)} failed 3 times, and are dead letters", "green")
        self.bury_and_dig_up(absent, len(names))
        self.wait("it to exit", lambda: self.has_exited(exits))
        self._say(GROUP, "idle, exited", "green")
        self.compare(names, versions, provided)

    def bury_and_dig_up(self, absent: list[str], total: int) -> None:
        """Show the dead letters as an operator sees them, and have them delivered again."""
        print(f"\n$ wakeq dead list {STREAM}\n" + self._host.wakeq("dead", "list", STREAM))
        letters = self._host.wakeq("dead", "list", STREAM, "--json").splitlines()
        errors = [str(json.loads(line).get("error")) for line in letters]
        buried = sorted(e.split()[-3] for e in errors if e.endswith(" is installed"))
        self._check(buried == absent, f"{len(absent)} dead letters, each with its error",
                    f"those are {buried}, not {absent}")  # fmt: skip
        (self._host.folder / "optional").write_text("\n".join(absent))
        if absent:
            self._host.wakeq("dead", "retry", STREAM, "--all", "--yes")
            self._say("demo", "nobody misses those: wakeq dead retry depends --all --yes", "bold")
        self.wait("all to be handled", lambda: self.handled() >= total)
        self._say(GROUP, f"handled {total} of {total}", "green")

    def compare(self, names: list[str], versions: dict[str, str], provided: dict[str, str]) -> None:
        """Compare what was noted with what dpkg says, and see that nothing is left behind."""
        noted = sorted((line[2], line[3]) for line in self.notes())
        expected = sorted(
            (real, versions.get(real, "-")) for real in (provided_by(n, versions, provided)
                                                         for n in names)
        )  # fmt: skip
        self._check(noted == expected, "each was handled once, with the version that dpkg names",
                    f"different: {sorted(set(noted) ^ set(expected))}")  # fmt: skip
        ids = {entry_id.decode() for entry_id, _ in self._host.redis.xrange(STREAM)}
        self._check({line[0] for line in self.notes()} == ids,
                    "each kept the id it was published with")  # fmt: skip
        left = {
            "delayed": self._host.redis.zcard(keys.delayed(STREAM)),
            "to be delivered again": self._host.redis.xlen(keys.retry(STREAM, GROUP)),
            "dead": self.dead(),
        }
        self._check(not any(left.values()), "nothing is delayed or dead any more", str(left))

    def has_exited(self, before: int) -> bool:
        """Tell whether the consumer has exited, and is not awake again: it may sleep in between."""
        exits = len(self._host.consumers[GROUP].exits)
        return exits > before and "wakeq-consumer" not in self._host.processes().values()

    # -- what is known ---------------------------------------------------------------------

    def dependencies(self) -> list[str]:
        """Return the names that the required packages depend on."""
        form = "${Priority}\t${Pre-Depends}, ${Depends}\n"
        names = set()
        for line in self._run("dpkg-query", "-W", "-f", form).splitlines():
            priority, _, text = line.partition("\t")
            if priority == "required":
                names |= {re.sub(r"[ (:].*", "", n.strip()) for n in re.split("[,|]", text)}
        return sorted(names - {""})

    def known(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the versions of what is installed, and who provides what."""
        form = "${db:Status-Status}\t${Package}\t${Version}\t${Provides}\n"
        versions, provided = {}, {}
        for line in self._run("dpkg-query", "-W", "-f", form).splitlines():
            status, package, version, provides = line.split("\t")
            if status == "installed":
                versions.setdefault(package, version)
                for word in provides.split(", "):
                    provided.setdefault(word.split(" (")[0], package)
        return versions, provided

    def handled(self) -> int:
        """Return how many messages were acknowledged."""
        return int(self._host.redis.hget(keys.stats(STREAM, GROUP), "handled") or 0)

    def dead(self) -> int:
        """Return how many dead letters there are."""
        return int(self._host.redis.xlen(keys.dead(STREAM, GROUP)))

    def notes(self) -> list[list[str]]:
        """Return what the handler noted: id, time, package, version, attempt."""
        path = self._host.folder / "resolved"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, what: str, holds: Callable[[], Any]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                text = f"{GROUP}: waited {GIVE_UP_SECONDS} s in vain for {what}"
                raise DemoError(text, GROUP, "delay", "wakeup")
            time.sleep(0.005)


def provided_by(name: str, versions: dict[str, str], provided: dict[str, str]) -> str:
    """Return the installed package that a name stands for; the name itself if there is none."""
    return name if name in versions else provided.get(name, name)
