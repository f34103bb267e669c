"""What a Redis URL may not say, because the connection could not do it or a log would show it."""

from __future__ import annotations

import pytest

from wakeq.errors import ConfigError
from wakeq.redis_url import RedisURL


@pytest.mark.parametrize(
    "url",
    [
        "redis://:ge?heim@h",
        "redis://app:ge?heim@h:6379/1",
        "redis+sentinel://:ge?heim@a,b/main",
        "unix://:ge?heim@/run/redis.sock",
        "rediss://:ge?heim@h?ca=/a",
    ],
)
def test_a_question_mark_in_a_password_is_an_error_that_shows_nothing(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisURL(url)
    assert str(caught.value) == ("redis_url must write ? in a password as %3F, @ in a file as %40")


def test_a_password_may_have_any_letter_written_with_percent() -> None:
    url = RedisURL("rediss://:%3F%40%2F%25%3A@h?ca=/a%40b")
    assert (url.password, url.ca) == ("?@/%:", "/a@b")


@pytest.mark.parametrize("path", ["/run/redis@main.sock", "/run/a:b@c/redis.sock"])
def test_the_path_of_a_socket_may_have_an_at_sign(path: str) -> None:
    url = RedisURL(f"unix://{path}?db=1")
    assert (url.path, url.username, url.password, url.db) == (path, "", "", 1)


@pytest.mark.parametrize("scheme", ["redis://h", "unix:///s", "redis+cluster://h"])
@pytest.mark.parametrize("option", ["ca=/a", "cert=/a", "key=/a", "verify=no"])
def test_what_belongs_to_tls_is_an_error_without_it(scheme: str, option: str) -> None:
    with pytest.raises(ConfigError, match="must begin with rediss://"):
        RedisURL(f"{scheme}?{option}")


def test_a_cluster_has_no_databases_however_they_are_named() -> None:
    for url in ("redis+cluster://h/1", "redis+cluster://h?db=1"):
        with pytest.raises(ConfigError, match="must not name a database"):
            RedisURL(url)
