"""The rpm package: what is in it, what it does when it comes and goes, and that it is reproducible.

It is built for Fedora and RHEL, here by Debian's rpmbuild, and installed in a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "packaging/rpm/wakeq.spec"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What an admin enables, in the order of the spec.
ENABLED = "wakeq-wakeup.service wakeq-delay.service wakeq-fanout.socket wakeq-trim.timer"
# What they start.
STARTED = "wakeq-fanout.service wakeq-trim.service"
RESTARTED = ENABLED.replace("wakeq-fanout.socket", "wakeq-fanout.service")
SITE = "usr/lib/python3.12/site-packages"
UNIT_FOLDER = "usr/lib/systemd/system"
SYSTEMD_UNITS = [
    *("sysinit.target", "basic.target", "shutdown.target", "sockets.target", "timers.target"),
    *("multi-user.target", "network-online.target"),
]
SCRIPTLETS = ["PREIN", "POSTIN", "PREUN", "POSTUN"]
# Macros of Fedora, as far as the spec uses them: what they are called with is left over.
FEDORA = [
    *("systemd_post() POST %{?*}", "systemd_preun() PREUN %{?*}", "tmpfiles_create() TMP %{?*}"),
    *("systemd_postun_with_restart() POSTUN %{?*}", "pyproject_wheel WHEEL"),
    *("pyproject_install INSTALL", "pyproject_save_files(l) SAVE %{-l} %{?*}"),
    *("pyproject_buildrequires REQUIRES", "pyproject_check_import CHECK"),
    *("pyproject_files /made/by/save_files", "python3_sitelib /usr/lib/python3.14/site-packages"),
    *("_unitdir /usr/lib/systemd/system", "_sysusersdir /usr/lib/sysusers.d"),
    *("_tmpfilesdir /usr/lib/tmpfiles.d", "_journalcatalogdir /usr/lib/systemd/catalog"),
]


def run(
    *command: object, cwd: Path | None = None, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result, standard error within its output."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, input=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=os.environ | more, text=True, check=False, timeout=300,
    )  # fmt: skip


def build(tree: Path, folder: Path, *options: str, **more: str) -> dict[str, Path]:
    """Build the packages of a tree into a folder, and return them by their kind."""
    result = run(tree / "scripts/build-rpm", *options, folder, **more)
    assert result.returncode == 0, result.stdout
    return {path.name.rsplit(".", 2)[1]: path for path in folder.iterdir()}


def copy_tree(source: Path, target: Path) -> None:
    """Copy what the packages are built from."""
    ignore = shutil.ignore_patterns(".*", "dist", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copy)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it was at one moment: somebody may be at work in it."""
    tree = tmp_path_factory.mktemp("tree") / "wakeq"
    copy_tree(ROOT, tree)
    return tree


@pytest.fixture(scope="module")
def packages(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages: `noarch` and `src`."""
    return build(tree, tmp_path_factory.mktemp("rpm"))


@pytest.fixture(scope="module")
def package(packages: dict[str, Path]) -> Path:
    """The package that is installed."""
    return packages["noarch"]


def query(package: Path, *options: str) -> list[str]:
    """Return the lines that rpm says of a package."""
    result = run("rpm", "-qp", *options, package)
    assert result.returncode == 0, result.stdout
    return result.stdout.splitlines()


def rpm(root: Path, *options: object) -> str:
    """Install or remove in a folder, without the scripts: there is no shell for them."""
    needed = ["--root", root, "--dbpath", "/var/lib/rpm", "--nodeps", "--noscripts"]
    result = run("rpm", *needed, *options)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture
def root(tmp_path: Path, package: Path) -> Path:
    """A folder that the package is installed in."""
    if os.geteuid() != 0:
        pytest.skip("rpm --root needs root")
    rpm(tmp_path, "-i", package)
    return tmp_path


def files(folder: Path) -> set[str]:
    """Return the paths of all files below a folder but rpm's own, and the users that it makes."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    own = r"var/lib/rpm/.*|etc/(passwd|group|g?shadow)-?|etc/\.pwd\.lock"
    return {path for path in found if not re.fullmatch(own, path)}


def expected_files(tree: Path) -> set[str]:
    """Return what the package must contain."""
    source = tree / "daemons/wakeq"
    expected = {
        f"{SITE}/wakeq/{path.relative_to(source)}"
        for path in source.rglob("*")
        if path.suffix in {".py", ".lua"} or path.name == "py.typed"
    }
    expected |= {f"usr/bin/{name}" for name in PROJECT["scripts"]}
    for path in (tree / "units").iterdir():
        if path.is_file():
            expected.add(f"{UNIT_FOLDER}/{path.name}")
    expected.add(f"{UNIT_FOLDER}/wakeq-.service.d/10-sandbox.conf")
    expected |= {"usr/lib/sysusers.d/wakeq.conf", "usr/lib/tmpfiles.d/wakeq.conf"}
    expected |= {"usr/lib/systemd/catalog/wakeq.catalog", "etc/wakeq/wakeq.toml"}
    folders = {"bash": "bash-completion/completions", "zsh": "zsh/site-functions",
               "fish": "fish/vendor_completions.d"}  # fmt: skip
    for shell, folder in folders.items():
        for path in (tree / "packaging/completions" / shell).iterdir():
            expected.add(f"usr/share/{folder}/{path.name}")
    for path in (tree / "packaging/man").glob("*.[1-8]"):
        expected.add(f"usr/share/man/man{path.suffix[1:]}/{path.name}")
    return expected


def plain(path: str) -> str:
    """Return a path without what distributions add: a version, a suffix of compression."""
    return path.removesuffix(".gz").replace(f"wakeq-{PROJECT['version']}/", "wakeq/")


def test_two_builds_are_the_same_to_the_last_bit(
    tree: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    # Another place, other rights and times of the files, another zone: nothing of it matters.
    copy = tmp_path / "elsewhere"
    copy_tree(tree, copy)
    for path in copy.rglob("*.toml"):
        path.chmod(0o600)
    again = build(copy, tmp_path / "again", TZ="Asia/Tokyo", HOSTNAME="other")
    assert {kind: path.name for kind, path in again.items()} == {
        kind: path.name for kind, path in packages.items()
    }
    for kind, path in again.items():
        assert path.read_bytes() == packages[kind].read_bytes(), kind


def test_it_says_the_version_of_the_project(package: Path) -> None:
    assert query(package, "--qf", "%{NAME} %{VERSION} %{ARCH} %{LICENSE}\n") == [
        f"wakeq {PROJECT['version']} noarch MIT"
    ]
    assert query(package, "--qf", "%{BUILDHOST}\n") == ["localhost"]
    changelog = query(package, "--changelog")
    assert changelog[0].endswith(f" {PROJECT['version']}-1")


def test_it_contains_what_there_is_and_nothing_else(tree: Path, package: Path) -> None:
    listed = query(package, "--qf", "[%{FILEFLAGS:fflags} %{FILENAMES} %{FILEMODES:perms}\n]")
    entries = [line.strip().rsplit(" ", 2) for line in listed]
    found = {
        plain(name.lstrip("/"))
        for *flags, name, mode in entries
        if not mode.startswith("d") and "g" not in "".join(flags)
    }
    documents = {path for path in found if path.startswith(("usr/share/doc", "usr/share/licenses"))}
    metadata = {path for path in found if ".dist-info/" in path}
    assert found - documents - metadata == expected_files(tree)
    config = tree / "packaging/config"
    examples = {str(path.relative_to(config)) for path in config.glob("*/*.toml")}
    names = {"README.md", "CHANGELOG.md", "ARCHITECTURE.md", "LICENSE", *examples}
    assert {path.split("/wakeq/", 1)[1] for path in documents} == names
    assert {Path(path).name for path in metadata} >= {"METADATA", "entry_points.txt"}


def test_all_of_it_belongs_to_root_and_can_be_read_by_all(package: Path) -> None:
    listed = query(package, "--qf", "[%{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:perms}\n]")
    assert set(listed) == {
        "root:root drwxr-xr-x", "root:root -rw-r--r--", "root:root -rwxr-xr-x"
    }  # fmt: skip


def test_byte_code_goes_when_the_package_goes(tree: Path, package: Path) -> None:
    ghosts = {line for line in query(package, "--list") if "__pycache__/" in line}
    modules = [path for path in expected_files(tree) if path.endswith(".py")]
    assert len(ghosts) == len(modules)
    for path in modules:
        folder, name = path.rsplit("/", 1)
        code = f"/{folder}/__pycache__/{name.removesuffix('.py')}.cpython-312.pyc"
        assert code in ghosts
    assert not ghosts & set(query(package, "--noghost", "--list"))


def test_the_configuration_is_the_admins(package: Path) -> None:
    assert query(package, "--configfiles") == ["/etc/wakeq/wakeq.toml"]
    flags = query(package, "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]")
    assert "/etc/wakeq/wakeq.toml cn" in flags  # noreplace


def test_it_needs_what_the_project_needs(package: Path) -> None:
    required = set(query(package, "--requires"))
    for requirement in PROJECT["dependencies"]:
        name, version = requirement.split(">=")
        assert f"python3dist({name}) >= {version}" in required
    assert {"python(abi) = 3.12", "/usr/bin/python3", "systemd >= 252"} <= required
    # Nothing of Debian, and no Redis: it may be elsewhere.
    known = r"(/bin/sh|/usr/bin/python3|python.*|systemd.*|rpmlib\(.*|config\(wakeq\).*)"
    assert [line for line in required if not re.fullmatch(known, line)] == []
    assert query(package, "--recommends") == ["(valkey or redis)"]


def test_another_version_of_python_can_be_asked_for(tree: Path, tmp_path: Path) -> None:
    package = build(tree, tmp_path, "--python", "3.14")["noarch"]
    listed = query(package, "--list")
    assert "/usr/lib/python3.14/site-packages/wakeq/__pycache__/wire.cpython-314.pyc" in listed
    assert not [line for line in listed if "3.12" in line]
    assert "python(abi) = 3.14" in query(package, "--requires")


def test_rpmlint_has_nothing_to_say(packages: dict[str, Path]) -> None:
    config = SPEC.with_suffix(".rpmlintrc")
    result = run("rpmlint", "--rpmlintrc", config, *packages.values(), SPEC)
    assert "packages and 1 specfiles checked" in result.stdout, result.stdout
    # Its versions find different things.
    found = [line for line in result.stdout.splitlines() if re.search(r": [EW]: ", line)]
    assert [line for line in found if "unused-rpmlintrc-filter" not in line] == []


def test_the_source_package_can_be_built_again(packages: dict[str, Path], tmp_path: Path) -> None:
    folders = ["--define", f"_topdir {tmp_path}", "--define", f"_tmppath {tmp_path}"]
    result = run("rpmbuild", "--rebuild", "--nodeps", *folders,
                 packages["src"], HOME=str(tmp_path), PATH="/usr/bin:/bin")  # fmt: skip
    assert result.returncode == 0, result.stdout
    (again,) = (tmp_path / "RPMS/noarch").iterdir()
    assert query(again, "--list") == query(packages["noarch"], "--list")
    assert {"pyproject-rpm-macros", "systemd-rpm-macros"} <= set(
        query(packages["src"], "--requires")
    )


# -- as Fedora and RHEL build it -------------------------------------------------------------


def test_with_the_macros_of_fedora_those_are_used() -> None:
    macros = [word for macro in FEDORA for word in ("--define", macro)]
    result = run("rpmspec", "--parse", *macros, SPEC)
    assert result.returncode == 0, result.stdout
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    for line in (
        *("REQUIRES", "WHEEL", "INSTALL", "SAVE -l wakeq", "CHECK"),
        f"POST {ENABLED} wakeq.target",
        f"PREUN {ENABLED} {STARTED} wakeq.target",
        *("TMP wakeq.conf", f"POSTUN {RESTARTED} $units"),
        "%files -f /made/by/save_files",
    ):
        assert line in lines, line
    # Neither what stands in for them, nor what Fedora does for every package.
    for word in ("compileall", "zipfile", "python3dist", "systemd-sysusers"):
        assert word not in result.stdout, word


# -- when it comes and goes ------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTLETS)
def test_a_shell_accepts_each_script(package: Path, name: str) -> None:
    script = "\n".join(query(package, "--qf", f"%{{{name}}}"))
    assert script
    for shell in ("bash", "dash"):
        result = run(shell, "-n", stdin=script)
        assert (result.returncode, result.stdout) == (0, "")


@pytest.fixture
def scripts(package: Path, tmp_path: Path) -> dict[str, str]:
    """The scripts, with the tools of a booted system that only note how they are called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "booted").mkdir()
    listed = "wakeq-consumer@mail.service loaded\nwakeq-consumer@orders:2.service loaded\n"
    (tmp_path / "units").write_text(listed)
    for tool in ("systemctl", "systemd-tmpfiles", "systemd-sysusers", "journalctl", "python3"):
        text = f'#!/bin/sh\necho "{tool} $*" >>{tmp_path}/calls\n'
        if tool == "systemctl":
            text += f'[ "$1" != list-units ] || cat {tmp_path}/units\n'
        # Whatever fails then, the package is installed or removed all the same.
        (tools / tool).write_text(f"{text}exit 1\n")
        (tools / tool).chmod(0o755)
    scripts = {}
    for name in SCRIPTLETS:
        script = "\n".join(query(package, "--qf", f"%{{{name}}}"))
        script = script.replace("/usr/bin/", f"{tools}/")
        scripts[name] = script.replace("/run/systemd/system", f"{tmp_path}/booted")
    return scripts


def called(scripts: dict[str, str], tmp_path: Path, name: str, left: int) -> list[str]:
    """Run a script and return what it called; `left` is how many packages there are after it."""
    calls = tmp_path / "calls"
    calls.write_text("")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    result = run("sh", "-e", "-c", scripts[name], "script", left, PATH=path)
    assert (result.returncode, result.stdout) == (0, "")
    return calls.read_text().splitlines()


def test_installing_it_makes_the_user_first(scripts: dict[str, str], tmp_path: Path) -> None:
    assert called(scripts, tmp_path, "PREIN", 1) == [
        "systemd-sysusers --replace=/usr/lib/sysusers.d/wakeq.conf -"
    ]
    (line,) = [line for line in scripts["PREIN"].splitlines() if line.startswith("u ")]
    assert line in (ROOT / "units/sysusers.d/wakeq.conf").read_text().splitlines()


def test_installing_it_starts_and_enables_nothing_by_itself(
    scripts: dict[str, str], tmp_path: Path
) -> None:
    # A preset is the distribution's or the admin's own decision.
    assert called(scripts, tmp_path, "POSTIN", 1) == [
        f"systemctl --no-reload preset {ENABLED} wakeq.target",
        "systemd-tmpfiles --create wakeq.conf",
        "journalctl --update-catalog",
        f"python3 -m compileall -q /{SITE}/wakeq",
    ]
    assert called(scripts, tmp_path, "POSTUN", 0) == [
        "systemctl list-units --plain --no-legend --state=active,activating,reloading"
        " wakeq-bridge@*.service wakeq-consumer@*.service wakeq-node@*.service"
    ]


def test_an_upgrade_restarts_what_runs_and_no_socket(
    scripts: dict[str, str], tmp_path: Path
) -> None:
    assert not [c for c in called(scripts, tmp_path, "POSTIN", 2) if c.startswith("systemctl")]
    assert called(scripts, tmp_path, "PREUN", 1) == []
    # Marked units are restarted when systemd has read the new ones.
    assert called(scripts, tmp_path, "POSTUN", 1)[1:] == [
        "systemctl set-property wakeq-wakeup.service Markers=+needs-restart",
        "systemctl set-property wakeq-delay.service Markers=+needs-restart",
        "systemctl set-property wakeq-fanout.service Markers=+needs-restart",
        "systemctl set-property wakeq-trim.timer Markers=+needs-restart",
        "systemctl set-property wakeq-consumer@mail.service Markers=+needs-restart",
        "systemctl set-property wakeq-consumer@orders:2.service Markers=+needs-restart",
        "systemctl --no-block try-restart wakeq-leader@*.service",
    ]


def test_removing_it_stops_and_disables_all(scripts: dict[str, str], tmp_path: Path) -> None:
    assert called(scripts, tmp_path, "PREUN", 0) == [
        f"systemctl --no-reload disable --now --no-warn {ENABLED} {STARTED} wakeq.target",
        "systemctl --no-reload disable --no-warn wakeq-bridge@.service wakeq-consumer@.socket"
        " wakeq-leader@.service wakeq-node@.service",
        "systemctl stop wakeq-bridge@*.service wakeq-consumer@*.socket wakeq-consumer@*.service"
        " wakeq-leader@*.service wakeq-node@*.service system-wakeq.slice",
    ]


def test_in_an_image_that_is_not_booted_nothing_is_stopped(
    scripts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "booted").rmdir()
    assert called(scripts, tmp_path, "PREUN", 0) == [
        f"systemctl --no-reload disable --no-warn {ENABLED} {STARTED} wakeq.target",
        "systemctl --no-reload disable --no-warn wakeq-bridge@.service wakeq-consumer@.socket"
        " wakeq-leader@.service wakeq-node@.service",
    ]
    assert called(scripts, tmp_path, "POSTUN", 1) == []


# -- installed -------------------------------------------------------------------------------


def test_installed_it_is_whole(tree: Path, root: Path) -> None:
    found = {plain(path) for path in files(root)}
    assert expected_files(tree) <= found
    assert rpm(root, "-V", "--nomtime", "wakeq") == ""


def test_systemd_accepts_the_installed_units(root: Path) -> None:
    units = root / UNIT_FOLDER
    for name in SYSTEMD_UNITS:
        (units / name).write_text(f"[Unit]\nDescription={name}\n")
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy("/bin/true", root / "bin/kill")  # stands for a program of the distribution
    for unit in sorted(units.glob("*wakeq*.*")):
        if unit.is_file():
            options = ["--recursive-errors=yes", "--man=no", f"--root={root}"]
            result = run("systemd-analyze", "verify", *options, unit)
            assert (result.returncode, result.stdout) == (0, ""), unit.name


def test_the_installed_programs_run(root: Path) -> None:
    for name in PROJECT["scripts"]:
        # This machine's Python in place of the target's.
        result = run("/usr/bin/python3", root / "usr/bin" / name, "--version",
                     PYTHONPATH=f"{root}/{SITE}", PYTHONDONTWRITEBYTECODE="1")  # fmt: skip
        assert (result.returncode, result.stdout) == (0, f"{name} {PROJECT['version']}\n")


def test_the_programs_are_those_of_the_project(root: Path) -> None:
    for name, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        lines = (root / "usr/bin" / name).read_text().splitlines()
        call = [f"from {module} import {function}", "", f"sys.exit({function}())"]
        assert lines == ["#!/usr/bin/python3 -P", "import sys", "", *call]


def test_the_user_the_folder_and_the_catalog_are_made_from_it(root: Path) -> None:
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create", "--prefix=/run/wakeq"]):
        result = run(command[0], f"--root={root}", *command[1:])
        assert result.returncode == 0, result.stdout
    assert re.search(r"^wakeq:", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert (root / "run/wakeq/consumer").is_dir()
    (root / "var/lib/systemd/catalog").mkdir(parents=True)
    run("journalctl", f"--root={root}", "--update-catalog")
    assert "wakeq: " in run("journalctl", f"--root={root}", "--list-catalog").stdout


def test_what_the_admin_wrote_outlives_an_upgrade_and_the_package(
    root: Path, package: Path
) -> None:
    main = root / "etc/wakeq/wakeq.toml"
    main.write_text('log_level = "debug"\n')
    own = root / "etc/wakeq/consumers/orders.toml"
    own.write_text('exec = ["/usr/bin/cat"]\n')
    rpm(root, "-U", "--replacepkgs", package)
    assert main.read_text() == 'log_level = "debug"\n'
    code = root / SITE / "wakeq/__pycache__/wire.cpython-312.pyc"
    code.parent.mkdir()
    code.touch()
    rpm(root, "-e", "wakeq")
    # Nothing else is left, byte code included.
    assert files(root) == {"etc/wakeq/wakeq.toml.rpmsave", "etc/wakeq/consumers/orders.toml"}
    assert not (root / SITE / "wakeq").exists()
