"""The quick reader of TOML says what tomllib says, or leaves it to tomllib."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq import toml

LINES = st.sampled_from(
    [
        'stream = "orders"', "concurrency = 4", "discover = true", "# a comment", "", "[consumer]",
        "[wakeup]", 'a = "x" # why', "a = 1.5", "a = 007", "a = 0", "a = -1",
        'a = "\\n"', "a.b = 1",
        'exec = ["/bin/true"]', "a = 'x'", 'a = """x"""', "[[a]]", "[a.b]", "a =", "= 1", 'b="y"',
        "\ta\t=\t1\t", 'a = "\u00e9"', 'a = "\u2028"', 'a = "\x0b"', 'a = "\x85"', '"a" = 1',
        "a = 1\r", "a = 1_000", "a = \u00b2", "a = True", 'a = "', "[a]", "[ a ]", "a = 1979-05-27",
        'a = "\ufeff"', "\ufeffa = 1", 'a = "\x7f"', "# \x07",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(LINES, st.text(max_size=12)), max_size=8))
def test_means_what_tomllib_means(lines: list[str]) -> None:
    text = "\n".join(lines)
    quick = toml._loads_simple(text)
    if quick is None:
        return
    assert quick == tomllib.loads(text)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.one_of(
    st.booleans(), st.integers(0, 10**9), st.from_regex(r"[a-z/:. ]{0,20}", fullmatch=True),
)))  # fmt: skip
def test_reads_plain_lines_without_tomllib(values: dict[str, object]) -> None:
    lines = [
        f"{key} = " + (f'"{value}"' if isinstance(value, str) else str(value).lower())
        for key, value in values.items()
    ]
    assert toml._loads_simple("\n".join(lines)) == values


def test_leaves_what_is_not_simple_to_tomllib() -> None:
    assert toml.loads('exec = ["/bin/cat", "-n"]') == {"exec": ["/bin/cat", "-n"]}
    with pytest.raises(ValueError, match="line 1"):
        toml.loads("a = = 1")
