"""What a Redis URL says, what of it may be shown, and what a sentinel answers: of which server it speaks, or that it is none."""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError
from runtime.store.resp import ServerError
from runtime.store.urls import SentinelUrl, master_in, parse_sentinel_url, redis_cli, without_password


def master(**told: str) -> list[bytes]:
    known = {"name": "kept", "ip": "::1", "port": "6379", "flags": "master", **told}
    return [word.encode() for pair in known.items() for word in pair]


def test_the_master_is_the_one_of_the_service_and_lives():
    masters = [
        master(name="other", port="1"),
        master(flags="master,s_down", port="2"),
        master(flags="s_down,master,o_down", port="3"),
    ]
    assert master_in(masters, b"kept") is None
    assert master_in([*masters, master()], b"kept") == ("::1", 6379)


@pytest.mark.parametrize(
    "answer",
    [
        *(ServerError("NOAUTH Authentication required."), None, 7, b"PONG", [], [b"PONG"], [[b"name"]], [[[], []]], [None]),
        *([[b"name", b"kept"]], [master(port="many")], [[*master(), b"ip"]], [[*master()[:3], b"\xff", *master()[4:]]]),
    ],
)
def test_whatever_else_answers_in_the_place_of_a_sentinel_knows_no_master(answer):
    assert master_in(answer, b"kept") is None


# --- urls ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("sentinel://a:1/kept", SentinelUrl([("a", 1)], "kept", 0, None, None)),
        ("sentinel://a:1,[::1]:2,c:3/kept/4", SentinelUrl([("a", 1), ("::1", 2), ("c", 3)], "kept", 4, None, None)),
        ("sentinel://jobs:ge%40heim@a:1/kept", SentinelUrl([("a", 1)], "kept", 0, "jobs", "ge@heim")),
        ("sentinel://:p@q@a:1/kept%20here/", SentinelUrl([("a", 1)], "kept here", 0, None, "p@q")),
    ],
)
def test_the_parts_of_a_url_of_sentinels(url, parts):
    assert parse_sentinel_url(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "sentinel:///kept",
        "sentinel://geheim@a:1",
        "sentinel://u:geheim@a:1/",
        "sentinel://u:geheim@a/kept",
        "sentinel://u:geheim@:1/kept",
        "sentinel://u:geheim@a:1,b/kept",
        "sentinel://u:geheim@a:x/kept",
        "sentinel://u:geheim@a:1/kept/x",
        "sentinel://u:geheim@a:1/kept?db=1",
        "sentinel://u:geheim@a:1/kept#1",
        "sentinel:kept",
    ],
)
def test_a_url_of_sentinels_that_is_none_says_how_one_looks_and_shows_no_password(url):
    with pytest.raises(ConfigError, match="sentinel://host:26379,host:26379/mymaster") as caught:
        parse_sentinel_url(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:geheim@host:1", "redis://***@host:1"),
        ("rediss://jobs:ge@heim@host:1", "rediss://***@host:1"),
        ("unix://jobs:geheim@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("jobs:geheim@host:1", "***@host:1"),
        ("redis:jobs:geheim@host:1", "***@host:1"),
        ("redis://host:1/0?password=geheim&db=2", "redis://host:1/0?password=***&db=2"),
        ("redis://host:1/0?password=ge@heim", "redis://host:1/0?password=***"),
        ("unix:///run/redis.sock?password=geheim", "unix:///run/redis.sock?password=***"),
    ],
)
def test_a_url_is_shown_without_its_user_and_password(url, shown):
    assert without_password(url) == shown


FIND = "redis-cli -h a -p 1 SENTINEL GET-MASTER-ADDR-BY-NAME kept | xargs printf -- '-h %s -p %s'"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://host:1", "redis-cli -u redis://host:1"),
        ("redis://:geheim@host:1", 'redis-cli -u "$REDIS_URL"'),
        ("redis://host:1?password=geheim", 'redis-cli -u "$REDIS_URL"'),
        ("unix:///run/redis.sock", "redis-cli -s /run/redis.sock"),
        ("unix:///run/redis.sock?db=2", "redis-cli -s /run/redis.sock"),
        ("sentinel://a:1,b:2/kept", f"redis-cli $({FIND})"),
        ("sentinel://:geheim@a:1/kept", f'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli $({FIND})'),
        ("sentinel://jobs:geheim@a:1/kept", f'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli --user jobs $({FIND})'),
    ],
)
def test_the_command_that_is_shown_reaches_the_server_and_leaves_the_password_to_the_environment(url, command):
    assert redis_cli(url) == command
