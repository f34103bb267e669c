"""The configuration: which place wins, and what is said about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wakeq.backoff import Growth
from wakeq.config import Common, Config, Consumer, Place, instance_base, read_file
from wakeq.errors import ConfigError, UsageError
from wakeq.first_sections import TABLE_NAMES
from wakeq.sections import TABLES, Node, Wakeup


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "consumers").mkdir()
    return tmp_path


def config(etc: Path, options: dict[str, str] | None = None, own: Any = None, **env: str) -> Config:
    return Config(options, {"WAKEQ_CONFIG_DIR": str(etc), **env}, own)


def write(etc: Path, text: str, name: str = "wakeq.toml") -> None:
    (etc / name).write_text(text)


def test_needs_no_file(etc: Path) -> None:
    assert config(etc).common().redis_url == "redis://127.0.0.1:6379/0"
    assert config(etc).wakeup().recheck == 60.0
    assert Config(environ={}).place.config_dir == "/etc/wakeq"


def test_options_win_over_the_environment_and_that_over_files(etc: Path) -> None:
    write(etc, 'redis_url = "redis://file"\n')
    assert config(etc).common().redis_url == "redis://file"
    assert config(etc, WAKEQ_REDIS_URL="redis://env").common().redis_url == "redis://env"
    both = config(etc, {"redis_url": "redis://option"}, WAKEQ_REDIS_URL="redis://env")
    assert both.common().redis_url == "redis://option"


def test_a_variable_that_is_empty_is_not_set(etc: Path) -> None:
    assert config(etc, WAKEQ_REDIS_URL="").common().redis_url == "redis://127.0.0.1:6379/0"


def test_the_folders_come_from_options_and_the_environment(etc: Path) -> None:
    assert config(etc).place.config_dir == str(etc)
    assert config(etc, {"config_dir": "/option"}).place.config_dir == "/option"
    assert config(etc, WAKEQ_RUNTIME_DIR="/env").place.runtime_dir == "/env"


def test_reads_a_consumers_file_over_the_defaults_for_all(etc: Path) -> None:
    write(etc, "[consumer]\nconcurrency = 4\nprefetch = 9\n")
    write(etc, 'handler = "m:f"\nprefetch = 10\n', "consumers/orders.toml")
    section = config(etc).consumer("orders")
    assert (section.concurrency, section.prefetch) == (4, 10)
    assert (section.handler, section.exec_) == ("m:f", [])


def test_stream_and_group_are_named_after_the_consumer(etc: Path) -> None:
    write(etc, 'handler = "m:f"\n', "consumers/orders.toml")
    section = config(etc).consumer("orders")
    assert (section.stream, section.group) == ("orders", "orders")


def test_an_instance_reads_the_file_of_its_consumer(etc: Path) -> None:
    write(etc, 'handler = "m:f"\n', "consumers/orders.toml")
    assert config(etc).consumer("orders:2").group == "orders"


def test_only_the_programs_own_section_takes_the_environment(etc: Path) -> None:
    write(etc, 'handler = "m:f"\n', "consumers/orders.toml")
    variables = {"WAKEQ_CONCURRENCY": "7"}
    assert config(etc, own=Consumer, **variables).consumer("orders").concurrency == 7
    assert config(etc, own=Wakeup, **variables).consumer("orders").concurrency == 1


def test_a_handler_from_an_option_needs_no_file(etc: Path) -> None:
    section = config(etc, {"handler": "m:f"}, own=Consumer).consumer("orders")
    assert (section.handler, section.stream) == ("m:f", "orders")


@pytest.mark.parametrize(
    ("options", "handler", "program"),
    [({"handler": "m:f"}, "m:f", []), ({"exec_": "/bin/true -x"}, "", ["/bin/true", "-x"])],
)
def test_the_highest_place_decides_between_handler_and_program(
    etc: Path, options: dict[str, str], handler: str, program: list[str]
) -> None:
    other = 'exec = ["/bin/false"]\n' if "handler" in options else 'handler = "other:f"\n'
    write(etc, other, "consumers/orders.toml")
    section = config(etc, options, own=Consumer).consumer("orders")
    assert (section.handler, section.exec_) == (handler, program)


def test_a_consumers_file_decides_over_the_defaults_for_all(etc: Path) -> None:
    write(etc, '[consumer]\nhandler = "all:f"\n')
    write(etc, 'exec = ["/bin/true"]\n', "consumers/orders.toml")
    section = config(etc).consumer("orders")
    assert (section.handler, section.exec_) == ("", ["/bin/true"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("handlr = 'm:f'", "orders.toml: unknown setting 'handlr' (did you mean 'handler'?)"),
        ("concurrency = 0", "orders.toml: concurrency must be 1 to 1000, not 0"),
        ("order = 'strictest'", "order must be"),
        ("timeout = '5 parsecs'", "orders.toml: timeout must be a time span"),
        ("idle_timeout = 1", "idle_timeout must be at least 2.5s, not 1"),
        ("handler = 'm:f'\nexec = ['/bin/true']", "has both handler and exec"),
        ("stream = 'x'", "must have handler = "),
        ("exec = ['/bin/true']\npython = '/usr/bin/python3'", "python is for a handler"),
        ("= 5", "orders.toml: is not TOML"),
        ("handler = '\udcff'", "orders.toml: is not TOML"),
    ],
)
def test_says_what_is_wrong_with_a_consumers_file(etc: Path, text: str, complaint: str) -> None:
    (etc / "consumers/orders.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        config(etc).consumer("orders")
    assert complaint in str(caught.value)
    assert str(etc) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("redis = 'x'", "unknown setting 'redis'"),
        ("[consumr]\nprefetch = 5", "unknown setting 'consumr' (did you mean 'consumer'?)"),
        ("consumer = 5", "consumer must be a table, [consumer], not 5"),
        ("[consumer]\nprefetch = 0", "wakeq.toml: [consumer]: prefetch must be 1 to 10000"),
        ("log_level = 'loud'", "log_level must be 'debug' or 'info' or 'warning'"),
    ],
)
def test_says_what_is_wrong_with_the_main_file(etc: Path, text: str, complaint: str) -> None:
    write(etc, text)
    write(etc, 'handler = "m:f"\n', "consumers/orders.toml")
    with pytest.raises(ConfigError) as caught:
        made = config(etc)
        made.common()
        made.consumer("orders")
    assert complaint in str(caught.value)


def test_says_which_variable_is_wrong(etc: Path) -> None:
    with pytest.raises(ConfigError, match="environment: WAKEQ_START_TIMEOUT must be a time span"):
        config(etc, WAKEQ_START_TIMEOUT="soon").common()


def test_says_which_option_is_wrong(etc: Path) -> None:
    with pytest.raises(UsageError, match="--start-timeout must be a time span"):
        config(etc, {"start_timeout": "soon"}).common()


def test_says_that_there_is_no_file(etc: Path) -> None:
    with pytest.raises(ConfigError, match=r"consumers/orders\.toml: there is no such file"):
        config(etc).consumer("orders")


def test_says_why_a_file_cannot_be_read(etc: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_file(str(etc))


@pytest.mark.parametrize("name", ["orders", "a.b-c_d", "Orders2", "orders:1", "orders:20"])
def test_takes_the_name_of_a_units_instance(name: str) -> None:
    assert instance_base(name) == name.partition(":")[0]


@pytest.mark.parametrize(
    "name", ["", ".x", "a/b", "../x", "a b", "ä", ":2", "a:", "a:b", "a:-1", "a:²", "a:1:2", "a@b"]
)
def test_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError):
        instance_base(name)


@pytest.mark.parametrize("kind", [Place, Common, Consumer, Wakeup])
def test_every_setting_is_described_and_takes_its_default(kind: type[Any]) -> None:
    for name, setting in kind.table.items():
        assert setting.help and not setting.help.endswith("."), name
        assert setting.describe, name
        # Empty means that there is none, which nobody can write.
        if setting.default not in ("", []):
            written = str(setting.default) if isinstance(setting.default, Growth) else None
            value = setting.parse(written) if written else setting.read(setting.default)
            assert value == setting.default or str(value) == written, name


def test_no_two_settings_have_one_variable() -> None:
    kinds = (Place, Common, Consumer, Wakeup)
    variables = [setting.variable for kind in kinds for setting in kind.table.values()]
    assert len(variables) == len(set(variables))


# -- nodes -----------------------------------------------------------------------------------


@pytest.fixture
def nodes(etc: Path) -> Path:
    (etc / "nodes").mkdir()
    return etc / "nodes"


def test_a_nodes_stream_and_group_are_named_after_it(etc: Path, nodes: Path) -> None:
    write(nodes, "", "clock.toml")
    section = config(etc).node("clock:2")
    assert (section.stream, section.group, section.list_) == ("clock", "clock", "")


def test_a_node_on_a_list_has_no_stream(etc: Path, nodes: Path) -> None:
    write(etc, '[node]\nstream = "s"\nworkers = 3\n')
    write(nodes, 'list = "queue"\nerror_list = "errors"\n', "clock.toml")
    section = config(etc).node("clock")
    assert (section.list_, section.error_list, section.workers) == ("queue", "errors", 3)
    assert section.stream == ""


def test_a_node_needs_no_file_if_anything_else_is_said_of_it(etc: Path) -> None:
    assert config(etc, {"interval": "1s"}, own=Node).node("clock").interval == 1.0
    with pytest.raises(ConfigError, match=r"nodes/clock\.toml: there is no such file"):
        config(etc, own=Node).node("clock")


def test_calendar_takes_an_interval_from_a_lower_place_back(etc: Path, nodes: Path) -> None:
    write(nodes, 'interval = "7s"\n', "clock.toml")
    section = config(etc, {"calendar": "hourly"}, own=Node).node("clock")
    assert (section.calendar, section.interval) == ("hourly", 0.5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stream = 's'\nlist = 'l'", "has both stream and list"),
        ("handler = 'm:f'\nexec = ['/bin/true']", "has both handler and exec"),
        ("interval = 1\ncalendar = 'hourly'", "has both interval and calendar"),
        ("generate = 'm:f'\ngenerate_exec = ['/bin/date']", "has both generate and generate_exec"),
        ("python = '/usr/bin/python3'", "python is for a handler or generate"),
        ("error_list = 'e'", "error_list is for a list, a stream has dead letters"),
        ("workers = 0", "workers must be 1 to 1000, not 0"),
        ("lease = '500ms'", "lease must be at least 1s"),
        ("missed = 'twice'", "missed must be 'skip' or 'once' or 'all'"),
        ("worker = 1", "unknown setting 'worker' (did you mean 'workers'?)"),
    ],
)
def test_says_what_is_wrong_with_a_nodes_file(
    etc: Path, nodes: Path, text: str, complaint: str
) -> None:
    write(nodes, text, "clock.toml")
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        config(etc).node("clock")


def test_two_options_that_contradict_each_other_are_refused(etc: Path) -> None:
    options = {"interval": "1s", "calendar": "hourly"}
    with pytest.raises(ConfigError, match="environment and options: has both"):
        config(etc, options, own=Node).node("clock")


def test_the_names_of_the_tables_are_those_of_the_sections() -> None:
    assert set(TABLE_NAMES) == set(TABLES)
