"""The demo: messages arrive, consumers are started for them, and exit when there are no more.

Publishes a message for each installed package of this machine, tells what happens as it
happens, and compares the results with what dpkg itself says. Exit code 0 only if everything was
as it should be.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import mishaps
from host import DemoError, Host

from wakeq import Publish, Publisher, keys
from wakeq.cli.screen import colours, paint

HERE = Path(__file__).parent
GIVE_UP_SECONDS = 120

# What would be /etc/wakeq/consumers/sizes.toml and verify.toml on a real host. The stream and
# the group of a consumer have its name if nothing else is said.
CONSUMERS = {
    "sizes": """
stream = "packages"
handler = "FOLDER/sizes.py:handle"
idle_timeout = "2.5s"
""",
    "verify": """
exec = ["FOLDER/verify"]
concurrency = 2
idle_timeout = "2.5s"
""",
    mishaps.GROUP: mishaps.CONSUMER,
}
STREAMS = {"sizes": "packages", "verify": "verify"}

# The fields of a message, and what dpkg-query calls them.
FIELDS = {
    "package": "${binary:Package}",
    "version": "${Version}",
    "section": "${Section}",
    "priority": "${Priority}",
    "kib": "${Installed-Size}",
}


class Package(NamedTuple):
    """What dpkg knows of a package: the fields of its message."""

    package: str
    version: str
    section: str
    priority: str
    kib: str


class Note(NamedTuple):
    """What a consumer wrote down of a message: when it was called, and the fields it got."""

    called: float
    fields: tuple[str, ...]


class Demo:
    """Tells, and checks what it tells.

    Args:
        host: where it happens.

    Attributes:
        failures: what was not as it should be.
    """

    def __init__(self, host: Host) -> None:
        self.failures: list[str] = []
        self._host = host
        self._began = time.monotonic()
        self._colours = colours()
        self._handled = Counter[str]()  # by each consumer, before the story that is being told

    def run(self) -> None:
        """Tell the whole story."""
        packages = installed_packages()
        required = [package for package in packages if package.priority == "required"]
        sizes = sizes_by_section()  # now: somebody may be installing packages

        self.say("demo", "sizes, a Python handler, and verify, a program, wait for messages")
        self.check_nobody_runs()
        self.publish(packages)
        self.follow({"sizes": packages, "verify": required})
        self.check_nobody_runs()
        self.check_sizes(sizes)
        self.check_changes(required)

        dpkg = [package for package in packages if package.package == "dpkg"]
        self.publish_with_command(dpkg[0])
        self.follow({"sizes": dpkg, "verify": dpkg})
        self.check_nobody_runs()

        mishaps.Mishaps(self._host, self.say, self.check, run).tell()
        self.check_nobody_runs()
        self.check_status()

    # -- what happens --------------------------------------------------------------------

    def publish(self, packages: list[Package]) -> None:
        """Publish a message for each package."""
        messages = [Publish("packages", fields=package._asdict()) for package in packages]
        with Publisher(self._host.redis_url) as publisher:
            publisher.publish_many(messages)
        self.say("demo", f"published {len(packages):,} messages, one for each installed package",
                 "bold")  # fmt: skip

    def publish_with_command(self, package: Package) -> None:
        """Publish one more."""
        fields = [f"--field={name}={value}" for name, value in package._asdict().items()]
        self._host.wakeq("publish", "packages", *fields)
        self.say("demo", f"published one: wakeq publish packages {' '.join(fields[:2])} ...",
                 "bold")  # fmt: skip

    def follow(self, expected: dict[str, list[Package]]) -> None:
        """Tell what the consumers do with these packages, until all have exited."""
        stories = {name: self.story(name, len(packages)) for name, packages in expected.items()}
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while stories:
            for name in list(stories):
                missing = next(stories[name], "")
                if any(self._host.consumers[name].exits):
                    code = self._host.consumers[name].exits[-1]
                    raise DemoError(f"{name}: exited with {code}", name)
                if not missing:
                    del stories[name]
                elif time.monotonic() > deadline:
                    text = f"{name}: waited {GIVE_UP_SECONDS} s in vain for {missing}"
                    raise DemoError(text, name, "wakeup")
            time.sleep(0.002)
        for name, packages in expected.items():
            self.check_messages(name, packages)
            self._handled[name] += len(packages)

    def story(self, name: str, count: int) -> Iterator[str]:
        """Tell of one consumer; yields what is missing for as long as it is missing."""
        consumer = self._host.consumers[name]
        exits, pid = len(consumer.exits), consumer.pid
        while not (done := self.handled(name)):
            yield "its first message to be handled"
        last = time.time()
        first, wake_ms = self.first_call(name, last)
        self.say(name, f"woken {wake_ms:.0f} ms after the message: process {pid}", "green")
        while done < count:
            yield f"{count} messages to be handled; {done} were"
            done, last = self.handled(name), time.time()
        rate = f", {count / (last - first):,.0f} msg/s" if count > 1 else ""
        self.say(name, f"handled {done:,} of {count:,}{rate}", "green")
        self.say(name, "idle, waits 2.5 s for more", "dim")
        while len(consumer.exits) == exits:
            yield "it to exit"
        self.say(name, f"process {pid} exited with {consumer.exits[-1]}", "green")

    def say(self, who: str, text: str, tint: str = "") -> None:
        """Print one line of the timeline."""
        seconds = time.monotonic() - self._began
        print(f"{seconds:6.2f} s  {who:7} {paint(text, tint, self._colours)}", flush=True)

    # -- what is known of it -------------------------------------------------------------

    def handled(self, name: str) -> int:
        """Return how many messages a consumer has acknowledged since the last story.

        Raises:
            DemoError: one has failed.
        """
        counters = self._host.redis.hmget(keys.stats(STREAMS[name], name), "handled", "failed")
        handled, failed = (int(counter or 0) for counter in counters)
        if failed:
            raise DemoError(f"{name}: {failed:,} messages failed", name)
        return handled - self._handled[name]

    def published(self, name: str) -> dict[str, tuple[str, ...]]:
        """Return the fields of each message in a consumer's stream since the last story."""
        entries = self._host.redis.xrange(STREAMS[name])[self._handled[name] :]
        return {
            entry_id.decode(): tuple(value.decode() for value in fields.values())
            for entry_id, fields in entries
        }

    def notes(self, name: str) -> dict[str, Note]:
        """Return what a consumer has written down, by the ids of the messages."""
        if name == "sizes":
            rows = self.query("SELECT * FROM packages")
        else:
            rows = [tuple(line[:-1]) for line in self.verified()]
        return {row[0]: Note(float(row[1]), tuple(map(str, row[2:]))) for row in rows}

    def first_call(self, name: str, latest: float) -> tuple[float, float]:
        """Return when a consumer was first called, and how many ms after the message that was."""
        published, notes = self.published(name), self.notes(name)
        first = min((notes[i].called for i in published if i in notes), default=latest)
        return first, first * 1000 - int(next(iter(published)).partition("-")[0])

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the database that the handler writes."""
        with closing(sqlite3.connect(self._host.folder / "sizes.db")) as database:
            try:
                return database.execute(text).fetchall()
            except sqlite3.OperationalError:
                return []  # nothing was written yet

    def verified(self) -> list[list[str]]:
        """Return the lines that the program writes, as words."""
        path = self._host.folder / "verified"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    # -- whether that is right -----------------------------------------------------------

    def check(self, holds: bool, what: str, but: str = "") -> None:
        """Tell whether something holds, and if not, what holds instead."""
        if holds:
            self.say("check", f"ok: {what}")
        else:
            self.say("check", f"FAILED: {what}: {but}", "red")
            self.failures.append(what)

    def check_nobody_runs(self) -> None:
        """Look at all processes: none may be a consumer."""
        names = Counter(self._host.processes().values())
        text = ", ".join(f"{n} {name}" if n > 1 else name for name, n in sorted(names.items()))
        self.check("wakeq-consumer" not in names, f"no consumer is running, only {text}", "one is")

    def check_messages(self, name: str, packages: list[Package]) -> None:
        """Compare what was published with what the consumer got."""
        published, notes = self.published(name), self.notes(name)
        got = {i: notes[i].fields for i in published if i in notes}
        # The program gets the first two fields.
        expected = [package[: 2 if name == "verify" else 5] for package in packages]
        handled = self.handled(name)
        right = sum(got.get(i) == fields for i, fields in published.items())
        self.check(
            list(published.values()) == expected and got == published and handled == len(packages),
            f"{name} got every message once, as it was published",
            f"of {len(packages)} messages, {len(published)} were published, {handled} were"
            f" handled, {right} with the fields that were published",
        )

    def check_sizes(self, theirs: Counter[str]) -> None:
        """Compare the sizes that the handler has added up with those that dpkg knows."""
        query = "SELECT section, sum(kib) FROM packages GROUP BY section ORDER BY 2 DESC"
        ours = dict(self.query(query))
        largest = ", ".join(f"{name} {kib / 1024:,.0f} MiB" for name, kib in list(ours.items())[:3])
        different = [str(name) for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
        self.check(
            not different,
            f"installed sizes by section are those of dpkg-query: {largest} ...",
            f"not those of {', '.join(sorted(different))}",
        )

    def check_changes(self, packages: list[Package]) -> None:
        """Compare the changed files that the programs found with those that dpkg finds at once."""
        ours = sum(int(line[-1]) for line in self.verified())
        names = [package.package for package in packages]
        theirs = len(run("dpkg", "--verify", *names).splitlines())
        self.check(
            ours == theirs,
            f"{ours} files of {len(names)} packages have changed, which dpkg --verify finds, too",
            f"it finds {theirs}",
        )

    def check_status(self) -> None:
        """Ask Redis, as an operator would."""
        print("\n$ wakeq status\n" + self._host.wakeq("status"))
        report = json.loads(self._host.wakeq("status", "--json"))
        for stream in report["streams"]:
            for group in stream["groups"]:
                # What failed in the second chapter was handled in the end.
                kinds = ("unread", "pending", "dead")
                if group["group"] != mishaps.GROUP:
                    kinds += ("failed",)
                left = {what: group[what] for what in kinds}
                self.check(
                    not any(left.values()) and group["handled"] == stream["length"],
                    f"nothing is {', '.join(kinds[:-1])} or {kinds[-1]} in {group['group']}",
                    f"{left}, handled {group['handled']} of {stream['length']}",
                )


def installed_packages() -> list[Package]:
    """Return the packages that dpkg says are installed."""
    form = "\t".join(["${db:Status-Status}", *FIELDS.values()]) + "\n"
    rows = [line.split("\t") for line in run("dpkg-query", "-W", "-f", form).splitlines()]
    return [Package(*row[1:5], row[5] or "0") for row in rows if row[0] == "installed"]


def sizes_by_section() -> Counter[str]:
    """Return how many KiB dpkg says are installed, by section."""
    form = "${db:Status-Status}\t${Installed-Size}\t${Section}\n"
    sizes = Counter[str]()
    for line in run("dpkg-query", "-W", "-f", form).splitlines():
        status, kib, section = line.split("\t")
        if status == "installed":
            sizes[section] += int(kib or 0)
    return sizes


def run(*command: str) -> str:
    """Run a command and return what it prints, whatever its exit code."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def main() -> int:
    """Run the demo and return its exit code."""
    demo = None
    files = [HERE / name for name in ("sizes.py", "verify", "depends.py")]
    host = Host(CONSUMERS, mishaps.DELAY, files)
    try:
        with host:
            demo = Demo(host)
            demo.run()
        left = host.processes()
        demo.check(not left and not host.folder.exists(), "nothing is left: no process, no file",
                   f"{left or host.folder}")  # fmt: skip
    except DemoError as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if demo.failures:
        print(f"\ndemo: FAILED: it does not hold that {'; '.join(demo.failures)}", file=sys.stderr)
        return 1
    print("\ndemo: everything held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
