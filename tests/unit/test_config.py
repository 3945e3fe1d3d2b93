"""Settings: precedence, bounds, and messages that name where a bad value came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.config import FILE, SETTINGS, Config, Setting, address_of, check_trace_url, default_data_dir, load, trace_url_of
from runtime.errors import ConfigError

# Four different good values of each setting: by flag, by environment, in the file, and what they become.
SAMPLES: dict[str, list[tuple[str, Any]]] = {
    "redis": [("redis://a", "redis://a"), ("redis://b", "redis://b"), ("redis://c", "redis://c")],
    "queue": [("a", "a"), ("b", "b"), ("c", "c")],
    "handlers": [("a", "a"), ("b,c", "b,c"), ("c", "c")],
    "concurrency": [("1", 1), ("500", 500), ("100000", 100_000)],
    "reserved": [("-1", -1), ("0", 0), ("99999", 99_999)],
    "strict": [("true", True), ("0", False), ("true", True)],
    "threads": [("1", 1), ("8", 8), ("10000", 10_000)],
    "processes": [("1", 1), ("4", 4), ("512", 512)],
    "max_rss_mb": [("0", 0), ("500", 500), ("1048576", 1_048_576)],
    "board": [("off", "off"), ("0.0.0.0:1", "0.0.0.0:1"), ("[::1]:65535", "[::1]:65535")],
    "app_version": [("1.4.2", "1.4.2"), ("a" * 40, "a" * 40), ("ü 1", "ü 1")],
    "board_pages": [("off", "off"), ("on", "on"), ("off", "off")],
    "board_token_file": [("a.toml", "a.toml"), ("b.toml", "b.toml"), ("c.toml", "c.toml")],
    "board_proxy": [("a.toml", "a.toml"), ("b.toml", "b.toml"), ("c.toml", "c.toml")],
    "board_send": [("true", True), ("0", False), ("true", True)],
    "board_insecure": [("true", True), ("0", False), ("true", True)],
    "board_host": [("a", "a"), ("a.example,b", "a.example,b"), ("c", "c")],
    "board_prefix": [("/a", "/a"), ("/a/b.c", "/a/b.c"), ("/_", "/_")],
    "board_label": [("a", "a"), ("a b=bad", "a b=bad"), ("c=ok", "c=ok")],
    "lease_s": [("0.3", 0.3), ("45", 45.0), ("3600", 3600.0)],
    "grace_s": [("0", 0.0), ("1.5", 1.5), ("86400", 86400.0)],
    "suspect_s": [("0.1", 0.1), ("3", 3.0), ("60", 60.0)],
    "max_block_s": [("0.5", 0.5), ("7", 7.0), ("86400", 86400.0)],
    "block_warn_ms": [("20", 20), ("250", 250), ("60000", 60_000)],
    "max_data_bytes": [("1", 1), ("1024", 1024), ("536870912", 536_870_912)],
    "unknown_after_s": [("1", 1.0), ("60", 60.0), ("2592000", 2_592_000.0)],
    "data_dir": [("/a", "/a"), ("/b", "/b"), ("/c", "/c")],
    "handlers_config": [("a.toml", "a.toml"), ("b.toml", "b.toml"), ("c.toml", "c.toml")],
    "child_env": [("A", "A"), ("SHOP_*, TOKEN", "SHOP_*, TOKEN"), ("*", "*")],
    "debuggable": [("true", True), ("0", False), ("true", True)],
    "embedded_port": [("0", 0), ("6380", 6380), ("65535", 65535)],
    "trace_url": [
        (url, url) for url in ("http://a/{trace_id}", "https://b:1/t?id={trace_id}&x=1", "http://[::1]/#/{trace_id}/x")
    ],
    "trace_join": [("link", "link"), ("child", "child"), ("link", "link")],
    "trace_trust": [("off", "off"), ("on", "on"), ("off", "off")],
    "trace_errors": [("class", "class"), ("full", "full"), ("class", "class")],
    "trace_spans_per_s": [("0", 0), ("7", 7), ("1000000", 1_000_000)],
    "trace_forced_per_s": [("0", 0), ("7", 7), ("1000000", 1_000_000)],
    "slow_ms": [("1", 1), ("500", 500), ("86400000", 86_400_000)],
    "log": [("auto", "auto"), ("plain", "plain"), ("json", "json")],
    "log_level": [("debug", "debug"), ("warning", "warning"), ("error", "error")],
}
BELOW_AND_ABOVE: dict[str, tuple[str, str]] = {
    "concurrency": ("0", "100001"),
    "reserved": ("-2", "100000"),
    "threads": ("0", "10001"),
    "processes": ("0", "513"),
    "max_rss_mb": ("-1", "1048577"),
    "lease_s": ("0.29", "3600.1"),
    "grace_s": ("-0.1", "86400.1"),
    "suspect_s": ("0.09", "61"),
    "max_block_s": ("0.49", "86400.1"),
    "block_warn_ms": ("19", "60001"),
    "max_data_bytes": ("0", "536870913"),
    "unknown_after_s": ("0.9", "2592000.1"),
    "embedded_port": ("-1", "65536"),
    "trace_spans_per_s": ("-1", "1000001"),
    "trace_forced_per_s": ("-1", "1000001"),
    "slow_ms": ("0", "86400001"),
}
NUMBERS = [name for name in Config.__struct_fields__ if type(getattr(Config(), name)) in (int, float)]
TEXTS = [name for name in Config.__struct_fields__ if isinstance(getattr(Config(), name), str)]
WHOLE = [name for name in NUMBERS if isinstance(getattr(Config(), name), int)]

MOST_LANES: dict[str, str | None] = {"concurrency": "100000"}  # so many that any number of them may be reserved

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)


def settings(folder: Path, flags: dict[str, str | None] | None = None, **environment: str) -> Config:
    return load(flags or {}, environment, folder)


def toml(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text, "utf-8")


def in_toml(setting: Setting, text: str) -> str:
    """Write a value as TOML would have it."""
    return f'{setting.key} = "{text}"' if setting.field in TEXTS else f"{setting.key} = {text}"


def complaint(folder: Path, flags: dict[str, str | None] | None = None, **environment: str) -> str:
    """Return the message of a refusal: one line, whatever was wrong."""
    with pytest.raises(ConfigError) as caught:
        settings(folder, flags, **environment)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message.splitlines()) == 1
    return message


# --- precedence --------------------------------------------------------------------------------------------------------------


@every_setting
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(setting: Setting, tmp_path: Path) -> None:
    (flag, from_flag), (variable, from_environment), (text, from_file) = SAMPLES[setting.field]
    toml(tmp_path, in_toml(setting, text))
    by_flag, by_environment = {**MOST_LANES, setting.field: flag}, {setting.variable: variable}
    not_by_flag: dict[str, str | None] = {name: value for name, value in MOST_LANES.items() if name != setting.field}
    assert getattr(settings(tmp_path, by_flag, **by_environment), setting.field) == from_flag
    assert getattr(settings(tmp_path, not_by_flag, **by_environment), setting.field) == from_environment
    assert getattr(settings(tmp_path, {**not_by_flag, setting.field: None}), setting.field) == from_file
    (tmp_path / FILE).unlink()
    if setting.field != "data_dir":
        assert getattr(settings(tmp_path), setting.field) == getattr(Config(), setting.field)


@every_setting
def test_the_type_of_a_value_is_the_same_wherever_it_came_from(setting: Setting, tmp_path: Path) -> None:
    kind = type(getattr(Config(), setting.field))
    (flag, _), (variable, _), (text, _) = SAMPLES[setting.field]
    toml(tmp_path, in_toml(setting, text))
    by_flag, by_environment = {**MOST_LANES, setting.field: flag}, {setting.variable: variable}
    for config in (settings(tmp_path, by_flag), settings(tmp_path, {}, **by_environment), settings(tmp_path, MOST_LANES)):
        assert type(getattr(config, setting.field)) is kind


@pytest.mark.parametrize("version", ["a" * 41, "1.4\n2", "\x1b[2J", "\u202e1"])
def test_a_version_of_the_code_is_one_short_line(version: str, tmp_path: Path) -> None:
    said = complaint(tmp_path, RUNTIME_APP_VERSION=version)
    assert said == "RUNTIME_APP_VERSION: must be at most 40 printable characters", "and is not repeated"


def test_an_empty_variable_counts_as_none(tmp_path: Path) -> None:
    toml(tmp_path, "concurrency = 7")
    assert settings(tmp_path, RUNTIME_CONCURRENCY="").concurrency == 7
    assert settings(tmp_path, REDIS_URL="").redis == ""


def test_redis_is_set_by_redis_url(tmp_path: Path) -> None:
    assert settings(tmp_path, REDIS_URL="redis://here").redis == "redis://here"
    assert settings(tmp_path, RUNTIME_REDIS="redis://elsewhere").redis == ""


def test_foreign_variables_are_let_pass(tmp_path: Path) -> None:
    assert settings(tmp_path, RUNTIME_NONSENSE="1", CONCURRENCY="9").concurrency == 100


def test_without_a_file_all_is_as_by_default(tmp_path: Path) -> None:
    config = settings(tmp_path, HOME="/home/ada")
    assert config == Config(data_dir="/home/ada/.local/share/backend-jobs")


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        settings(tmp_path).queue = "other"


# --- bounds ------------------------------------------------------------------------------------------------------------------


def test_every_number_has_bounds() -> None:
    assert set(BELOW_AND_ABOVE) == set(NUMBERS)


@pytest.mark.parametrize("name", BELOW_AND_ABOVE)
@pytest.mark.parametrize("side", [0, 1], ids=["below", "above"])
def test_a_number_out_of_its_bounds_is_refused_wherever_it_came_from(name: str, side: int, tmp_path: Path) -> None:
    setting = next(setting for setting in SETTINGS if setting.field == name)
    text = BELOW_AND_ABOVE[name][side]
    low, high = SAMPLES[name][0][0], SAMPLES[name][2][0]  # the samples of numbers begin and end at their bounds
    told = f"must be between {low} and {high}"
    assert complaint(tmp_path, {name: text}) == f"{setting.flag} {text}: {told}"
    assert told in complaint(tmp_path, {}, **{setting.variable: text})
    toml(tmp_path, in_toml(setting, text))
    assert told in complaint(tmp_path)


def test_reserved_lanes_are_5_percent_unless_told_otherwise(tmp_path: Path) -> None:
    def lanes(concurrency: int, **flags: str | None) -> int:
        return settings(tmp_path, {"concurrency": str(concurrency), **flags}).reserved_lanes

    assert [lanes(n) for n in (1, 19, 20, 39, 100, 500)] == [0, 0, 1, 1, 5, 25]
    assert lanes(10, reserved="9") == 9
    assert lanes(100, reserved="0") == 0
    assert lanes(100, reserved="-1") == 5


def test_not_all_lanes_can_be_reserved_and_the_message_names_where_that_was_set(tmp_path: Path) -> None:
    told = "must be less than the concurrency, 10"
    assert complaint(tmp_path, {"reserved": "10", "concurrency": "10"}) == f"--reserved 10: {told}"
    assert complaint(tmp_path, {"concurrency": "10"}, RUNTIME_RESERVED="11") == f"RUNTIME_RESERVED 11: {told}"
    toml(tmp_path, "reserved = 10")
    assert complaint(tmp_path, {"concurrency": "10"}) == f"{FILE}: reserved 10: {told}"


def test_what_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, {}, RUNTIME_STRICT="yes") == "RUNTIME_STRICT yes: must be true or false"
    for value in ('"x"', "2", "1.5", "[true]"):
        toml(tmp_path, f"strict = {value}")
        assert f"{FILE}: strict" in complaint(tmp_path)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused(name: str, tmp_path: Path) -> None:
    for text in ("", "x", "nan", "inf", "-inf", "1e400", "1 s", "0x10", "1,5", "true", "None"):
        complaint(tmp_path, {name: text})


@pytest.mark.parametrize("name", WHOLE)
def test_half_a_thing_is_refused(name: str, tmp_path: Path) -> None:
    assert "whole number" in complaint(tmp_path, {name: "1.5"})


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_in_the_file_is_refused(name: str, tmp_path: Path) -> None:
    setting = next(setting for setting in SETTINGS if setting.field == name)
    for value in ("true", "[1]", "{a = 1}", "nan", "inf", "1979-05-27", '"x"'):
        toml(tmp_path, f"{setting.key} = {value}")
        assert f"{FILE}: {setting.key}" in complaint(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("log", "xml"), ("log", "Plain"), ("log_level", "loud"), ("log_level", "")])
def test_a_choice_is_one_of_a_few_words(name: str, text: str, tmp_path: Path) -> None:
    assert "one of" in complaint(tmp_path, {name: text})


@pytest.mark.parametrize("value", ["5", "true", "[1]", "{a = 1}"])
def test_what_is_no_text_in_the_file_is_refused(value: str, tmp_path: Path) -> None:
    toml(tmp_path, f"queue = {value}")
    assert f"{FILE}: queue" in complaint(tmp_path)


# --- messages ----------------------------------------------------------------------------------------------------------------

BAD = {"concurrency": "many", "lease_s": "0", "log": "xml", "board": "nowhere", "embedded_port": "1.5"}


@pytest.mark.parametrize("name", BAD)
def test_a_message_names_the_source_of_the_bad_value_and_the_value(name: str, tmp_path: Path) -> None:
    setting = next(setting for setting in SETTINGS if setting.field == name)
    text = BAD[name]
    by_flag = complaint(tmp_path, {name: text})
    assert by_flag.startswith(setting.flag)
    assert f" {text}: must be " in by_flag
    by_environment = complaint(tmp_path, {}, **{setting.variable: text})
    assert by_environment.startswith(setting.variable)
    assert f" {text}: must be " in by_environment
    toml(tmp_path, f'{setting.key} = "{text}"')
    assert complaint(tmp_path).startswith(f"{FILE}: {setting.key}")


def test_a_value_with_line_breaks_makes_no_second_line(tmp_path: Path) -> None:
    complaint(tmp_path, {"concurrency": "1\n2\x1b[31m"})
    complaint(tmp_path, {"board": "a\nb"})
    assert complaint(tmp_path, {"board": ""}).startswith("--board '': must be ")


def test_an_unknown_key_in_the_file_is_refused_and_the_known_ones_are_told(tmp_path: Path) -> None:
    toml(tmp_path, "concurency = 5")
    message = complaint(tmp_path)
    assert str(tmp_path / FILE) in message
    assert "'concurency'" in message
    assert " concurrency," in message


def test_the_name_of_a_field_is_no_key_of_the_file(tmp_path: Path) -> None:
    toml(tmp_path, "lease_s = 5")
    assert "'lease_s'" in complaint(tmp_path)


@pytest.mark.parametrize("text", ["concurrency = ", "= 5", "concurrency = 1\nconcurrency = 2", "[", "\x00"])
def test_a_file_that_is_no_toml_is_refused_by_name(text: str, tmp_path: Path) -> None:
    toml(tmp_path, text)
    assert str(tmp_path / FILE) in complaint(tmp_path)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'queue = "\xff"')
    assert str(tmp_path / FILE) in complaint(tmp_path)


def test_a_file_that_everybody_may_write_is_refused_with_what_else_one_may_do(tmp_path: Path) -> None:
    toml(tmp_path, "concurrency = 7")
    (tmp_path / FILE).chmod(0o666)
    with pytest.raises(ConfigError, match=f"{FILE} cannot be trusted: everybody may write it.*with flags or variables"):
        settings(tmp_path)


def test_a_file_in_a_folder_that_everybody_may_write_is_refused_too(tmp_path: Path) -> None:
    toml(tmp_path, "concurrency = 7")
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{FILE} cannot be trusted: its folder, everybody may write it"):
        settings(tmp_path)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert str(tmp_path / FILE) in complaint(tmp_path)


# --- the table of settings ------------------------------------------------------------------------------------------------------


def test_every_field_has_one_setting_and_every_setting_its_field() -> None:
    assert sorted(setting.field for setting in SETTINGS) == sorted(Config.__struct_fields__) == sorted(SAMPLES)


def test_flags_variables_and_keys_are_told_apart() -> None:
    for names in (
        [setting.flag for setting in SETTINGS],
        [setting.variable for setting in SETTINGS],
        [setting.key for setting in SETTINGS],
    ):
        assert len(set(names)) == len(names)


@every_setting
def test_flag_variable_and_key_are_one_name(setting: Setting) -> None:
    assert setting.flag == "--" + setting.key.replace("_", "-")
    assert setting.variable == ("REDIS_URL" if setting.field == "redis" else f"RUNTIME_{setting.key.upper()}")
    assert setting.help
    assert setting.metavar.isupper() or (setting.metavar == "" and getattr(Config(), setting.field) is False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A=B", "must be names of variables"),
        ("A B", "must be names of variables"),
        ("A,REDIS_URL", "REDIS_URL is the worker's own, and no child gets it"),
        ("RUNTIME_BOARD_TOKEN_FILE", "is the worker's own"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "is the worker's own"),
    ],
)
def test_what_no_child_may_have_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in complaint(tmp_path, {"child_env": text})


# --- addresses and folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("off", None),
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address_is_host_and_port_or_off(text: str, address: tuple[str, int] | None) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", "8080", ":8080", "localhost", "localhost:", "a:http", "a:65536", "a:-1", "a:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        address_of(text)


@pytest.mark.parametrize(
    "template",
    [
        *(
            "http://a/trace/",
            "a/{trace_id}",
            "//a/{trace_id}",
            "ftp://a/{trace_id}",
            "javascript://a/{trace_id}",
            "http:///{trace_id}",
        ),
        *(
            "http://a/{trace_id}/{trace_id}",
            "http://a/{trace_id}/{span_id}",
            "http://a/{trace_id",
            "http://a/{trace_id}}",
            "http://a/{}",
        ),
        *("http://{trace_id}/", "http://a{trace_id}/", "http://a?id={trace_id}", "http://a/{trace_id:x}", "http://a/{TRACE_ID}"),
        *("http://ada:hunter2@a/{trace_id}", "http://hunter2@a/{trace_id}", "http://a\\@b/{trace_id}", "HTTP://a/{trace_id}"),
        *(
            "http://a/{trace_id}\n",
            " http://a/{trace_id}",
            "http://a/ {trace_id}",
            "http://a/{trace_id}\x00",
            "http://ä/{trace_id}",
        ),
        *(
            "http://a/{trace_id}ä",
            'http://a/{trace_id}"',
            "http://a/'{trace_id}",
            "http://a/<{trace_id}>",
            "http://a\t/{trace_id}",
        ),
    ],
)
def test_what_no_link_to_a_trace_can_be_made_of_is_refused_and_not_repeated(template: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be http://HOST/… or https://HOST/… with {trace_id} once") as caught:
        check_trace_url(template)
    assert "hunter2" not in str(caught.value)
    assert complaint(tmp_path, {"trace_url": template}).startswith("--trace-url: must be ")
    assert "hunter2" not in complaint(tmp_path, {}, RUNTIME_TRACE_URL=template)


def test_a_link_to_a_trace_is_made_of_32_hex_digits_and_of_nothing_else() -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    assert trace_url_of("https://a/trace/{trace_id}?x=1", trace_id) == f"https://a/trace/{trace_id}?x=1"
    assert trace_url_of("", trace_id) == ""
    for other in (
        "",
        trace_id[:-1],
        trace_id + "0",
        trace_id.upper(),
        trace_id[:-1] + "\n",
        trace_id[:-1] + "٣",
        "../" + trace_id[3:],
    ):
        assert trace_url_of("https://a/trace/{trace_id}", other) == ""


def test_data_goes_where_the_user_s_data_goes(tmp_path: Path) -> None:
    assert default_data_dir({"HOME": "/home/ada"}) == Path("/home/ada/.local/share/backend-jobs")
    assert default_data_dir({"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}) == Path("/data/backend-jobs")
    assert default_data_dir({"HOME": "/home/ada", "XDG_DATA_HOME": ""}) == Path("/home/ada/.local/share/backend-jobs")
    assert default_data_dir({}) == Path(os.path.expanduser("~")) / ".local/share/backend-jobs"
    assert settings(tmp_path, {"data_dir": "/mine"}, XDG_DATA_HOME="/data").data_dir == "/mine"
