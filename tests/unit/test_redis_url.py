"""Redis URLs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wakeq.errors import ConfigError
from wakeq.redis_url import RedisURL


@pytest.mark.parametrize(
    ("url", "hosts", "db"),
    [
        ("redis://", [("127.0.0.1", 6379)], 0),
        ("redis://db.example", [("db.example", 6379)], 0),
        ("redis://db.example:7000/3", [("db.example", 7000)], 3),
        ("redis://db.example/", [("db.example", 6379)], 0),
        ("redis://[::1]:7000/1", [("::1", 7000)], 1),
        ("redis://[fe80::1]", [("fe80::1", 6379)], 0),
        ("rediss://db.example", [("db.example", 6379)], 0),
        ("redis+sentinel://a,b:7000/main", [("a", 26379), ("b", 7000)], 0),
        ("redis+sentinel://a/main/2", [("a", 26379)], 2),
        ("redis+cluster://a:1,b:2", [("a", 1), ("b", 2)], 0),
    ],
)
def test_reads_servers_and_database(url: str, hosts: list[tuple[str, int]], db: int) -> None:
    parsed = RedisURL(url)
    assert (parsed.hosts, parsed.db) == (hosts, db)


def test_reads_a_socket() -> None:
    url = RedisURL("unix:///run/redis.sock?db=3")
    assert (url.scheme, url.path, url.db, url.hosts) == ("unix", "/run/redis.sock", 3, [])


def test_reads_the_masters_name() -> None:
    assert RedisURL("redis+sentinel://a,b/my%20main/1").service == "my main"


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("redis://:secret@h", "", "secret"),
        ("redis://app:secret@h", "app", "secret"),
        ("redis://app@h", "app", ""),
        ("redis://a%40b:p%3A%2F%C3%A4@h", "a@b", "p:/ä"),
        ("redis://app:p@ss@h", "app", "p@ss"),
        ("unix://app:secret@/run/redis.sock", "app", "secret"),
    ],
)
def test_reads_user_and_password(url: str, username: str, password: str) -> None:
    parsed = RedisURL(url)
    assert (parsed.username, parsed.password) == (username, password)


def test_reads_what_tls_needs() -> None:
    url = RedisURL("rediss://h?ca=/a/ca.pem&cert=/a/b%20c&key=/k&verify=no")
    assert (url.ca, url.cert, url.key, url.verify) == ("/a/ca.pem", "/a/b c", "/k", False)
    assert RedisURL("rediss://h").verify


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must begin with"),
        ("localhost:6379", "must begin with"),
        ("http://h", "not 'http'"),
        ("redis:/h", "must begin with"),
        ("redis://a,b", "must name one server after redis://"),
        ("redis://h:port", "must have a number up to 65535, not 'port'"),
        ("redis://h:65536", "must have a number up to 65535"),
        ("redis://h:-1", "must have a number"),
        ("redis://h/zero", "must have a number"),
        ("redis://h/0/1", "must end after the database number"),
        ("redis+cluster://h/1", "must not name a database"),
        ("redis+sentinel://h", "must end with the name of the master"),
        ("redis+sentinel://h/", "must end with the name of the master"),
        ("unix://run/redis.sock", "must name a socket by its full path"),
        ("unix://", "must name a socket by its full path"),
        ("redis://h?timeout=5", "must not have ?timeout="),
        ("redis://h?db=x", "must have a number"),
        ("redis://:%zz@h", "a % that is not followed by two hex digits"),
        ("redis://:%ff@h", "a % that is not followed by"),
        ("redis://:%@h", "a % that is not followed by"),
    ],
)
def test_says_what_is_wrong(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisURL(url)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://u:geheim@h", "redis://u:geheim@h:x", "redis://u:geheim@h/x", "geheim://h",
     "redis://u:geheim@h?x=1", "unix://u:geheim@run", "u:geheim@h"],
)  # fmt: skip
def test_an_error_never_shows_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisURL(url)
    assert "geheim" not in str(caught.value).replace("'geheim'", "", int(url.startswith("geheim")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:geheim@h/2", "redis://h:6379/2"),
        ("redis://:geheim@[::1]", "redis://[::1]:6379"),
        ("unix://u:geheim@/run/r.sock?db=1", "unix:///run/r.sock?db=1"),
        ("redis+sentinel://:geheim@a,b/main/1", "redis+sentinel://a:26379,b:26379/main/1"),
        ("rediss://:geheim@h?key=/k", "rediss://h:6379"),
    ],
)
def test_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert str(RedisURL(url)) == shown


def test_a_credential_goes_before_the_password_of_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wakeq.redis-password").write_text("better\n")
    (tmp_path / "wakeq.redis-username").write_text("app")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    url = RedisURL("redis://u:worse@h")
    assert (url.username, url.password) == ("app", "better")


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_wrong(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}", f"unix://{text}"):
        with suppress(ConfigError):
            str(RedisURL(url))
