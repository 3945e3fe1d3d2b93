"""The settings: refused when wrong, never a secret in them, fixed without a restart."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec.structs import FieldInfo, fields

from handlers.contracts.maintenance import CleanupLogs
from handlers.kit import failures, settings
from handlers.kit.mail import Pool
from handlers.kit.sections import Database, Sender, Smtp, read_secret
from handlers.kit.settings import Settings, current, load
from runtime import ConfigError, Snooze
from tests.handlers.conftest import Configure

GOOD = """
smtp.main = { url = "smtp+starttls://mailer@smtp.example.org", password = "file:/run/secrets/smtp", connections = 8 }
smtp.other-one = { url = "smtps://smtp.example.org" }
senders.default = { smtp = "main", name = "Example", address = "no-reply@example.org" }
templates.path = "/srv/templates"
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "handlers.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_file_becomes_settings(tmp_path: Path) -> None:
    found = load(written(tmp_path, GOOD), {})
    endpoint = found.server("main").endpoint
    assert (endpoint.scheme, endpoint.host, endpoint.port, endpoint.user) == ("smtp+starttls", "smtp.example.org", 587, "mailer")
    assert found.server("other-one").endpoint.port == 465
    assert found.sender("default").address == "no-reply@example.org"
    assert found.template_folder("order") == "/srv/templates"


def test_a_missing_file_says_nothing(tmp_path: Path) -> None:
    assert load(str(tmp_path / "none.toml"), {}) == load("", {}) == settings.Settings()


def test_each_value_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "RUNTIME_HANDLERS__SMTP__MAIN__CONNECTIONS": "3",
        "RUNTIME_HANDLERS__SMTP__OTHER_ONE__TIMEOUT_S": "2.5",
        "RUNTIME_HANDLERS__SMTP__LOCAL__URL": "smtp://127.0.0.1:2525",
        "RUNTIME_HANDLERS__SMTP__LOCAL__PLAIN": "true",
        "RUNTIME_HANDLERS__TEMPLATES__PATH": "/elsewhere",
        "RUNTIME_HANDLERS_CONFIG": "not an override",
    }
    found = load(written(tmp_path, GOOD), environment)
    assert found.server("main").connections == 3
    assert found.server("main").password == "file:/run/secrets/smtp"
    assert found.server("other-one").timeout_s == 2.5
    assert found.server("local").plain
    assert found.template_folder("order") == "/elsewhere"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('smtp.a = { url = "smtp://mail.example.org" }', "smtp:// needs plain = true"),
        ('smtp.a = { url = "smtp://mail.example.org", plain = true }', "loopback"),
        ('smtp.a = { url = "smtps://localhost", plain = true }', "plain = true needs smtp://"),
        ('smtp.a = { url = "https://mail.example.org" }', "smtp.a: url: must be one of smtp://"),
        ('smtp.a = { url = "smtps://" }', "url: must be one of"),
        ('smtp.a = { url = "smtps://mail.example.org/path" }', "url: must be one of"),
        ('smtp.a = { url = "smtps://u:hunter2@mail.example.org" }', "must not hold a password"),
        ('smtp.a = { url = "smtps://u:hunter2" }', "not a URL"),
        ('smtp.a = { url = "smtps://u@mail.example.org", password = "hunter2" }', "smtp.a: .*password"),
        ('smtp.a = { url = "smtps://u@mail.example.org", password = "env:A\\n" }', "smtp.a: .*password"),
        ('smtp.a = { url = "smtps://u@h.org", password_file = "/x" }', "unknown field `password_file`"),
        ("databases.a = { }", "must have sqlite"),
        ('databases.a = { sqlite = "r:a.db", url = "postgresql://u@h/n" }', "must have sqlite"),
        ('databases.a = { url = "mysql://u@h/n" }', "url: must be postgresql://"),
        ('databases.a = { url = "postgresql://u:hunter2@h/n" }', "must not hold a password"),
        ('databases.a = { url = "postgresql://u@h/n?sslmode=disable" }', "url: must be postgresql://"),
        ('databases.a = { url = "postgresql://u@db.example.org/n", tls = "off" }', "only for a server on the loopback"),
        ('smtp.a = { url = "smtps://u@mail.example.org" }', "or neither"),
        ('smtp.a = { url = "smtps://mail.example.org", password = "env:A" }', "or neither"),
        ('smtp.a = { url = "smtps://mail.example.org", hunter = 2 }', "smtp.a: .*unknown field `hunter`"),
        ('smtp.a = { url = "smtps://mail.example.org", connections = 0 }', "connections"),
        ('smtp.a = { url = "smtps://mail.example.org", timeout_s = 0 }', "timeout_s"),
        ('smtp."A b" = { url = "smtps://mail.example.org" }', "smtp: .*key"),
        ("smtp = 3", "smtp: Expected `object`"),
        ('senders.a = { smtp = "main", address = "Ada <ada@example.org>" }', "senders.a: .*address"),
        ('senders.a = { smtp = "main", address = "a@example.org", name = "a\\nb" }', "senders.a: .*name"),
        ("[odd]\nkey = 1", "unknown section 'odd'"),
        ("smtp.a = {", "handlers.toml: "),
        ('cleanups.logs = { include = ["*.log"] }', "cleanups.logs: Object missing required field `older_than`"),
        ('cleanups.logs = { include = ["*"], older_than = "9y" }', "cleanups.logs: "),
        ('cleanups.logs = { include = ["*"], older_than = "9d", every = 5 }', "cleanups.logs: "),
        ("cleanups.logs = 5", "cleanups.logs: "),
    ],
)
def test_what_cannot_work_is_refused_with_its_place_and_without_its_value(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(written(tmp_path, text), {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["RUNTIME_HANDLERS__SMTP", "RUNTIME_HANDLERS__ODD__A__B", "RUNTIME_HANDLERS__SMTP__MAIN__ODD"])
def test_an_override_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        load(written(tmp_path, GOOD), {name: "x"})


def test_loopback_has_several_names() -> None:
    for host in ("localhost", "127.0.0.1", "127.8.0.9", "[::1]"):
        assert Smtp(url=f"smtp://{host}:25", plain=True).endpoint.port == 25
    for host in ("0.0.0.0", "10.0.0.1", "localhost.example.org"):
        with pytest.raises(ValueError, match="loopback"):
            Smtp(url=f"smtp://{host}", plain=True)


async def test_a_secret_is_read_when_wanted_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    monkeypatch.setenv("MAIL_PASSWORD", "hunter3")
    from_file = Smtp(url="smtps://me@h.org", password=f"file:{secret}")
    from_variable = Smtp(url="smtps://me@h.org", password="env:MAIL_PASSWORD")
    assert (from_file.read_password(), from_variable.read_password()) == ("hunter2", "hunter3")
    secret.write_text("hunter4")
    assert from_file.read_password() == "hunter4"
    found = settings.Settings(smtp={"a": from_file, "b": from_variable})
    shown = f"{found!r} {found} {from_file} {from_variable!r} {Pool('a', from_file)!r}"
    assert "hunter" not in shown
    assert "MAIL_PASSWORD" not in shown
    assert "password ***" in shown


def test_a_secret_that_cannot_be_read_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    for smtp in (
        Smtp(url="smtps://me@h.org", password=f"file:{tmp_path}/none"),
        Smtp(url="smtps://me@h.org", password="env:NO_SUCH_VARIABLE_HERE"),
    ):
        with pytest.raises(ConfigError):
            smtp.read_password()


@pytest.mark.parametrize("text", ["", "\n", " \r\n"])
def test_a_secret_that_is_empty_is_a_fault_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    monkeypatch.setenv("SECRET", text)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/secret is empty$"):
        read_secret(f"file:{tmp_path}/secret")
    with pytest.raises(ConfigError, match="^variable SECRET is empty$"):
        read_secret("env:SECRET")


def test_a_variable_that_a_child_process_does_not_get_is_told_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="^variable SHOP_KEY is not set$"):
        read_secret("env:SHOP_KEY")
    monkeypatch.setenv("RUNTIME_IN_CHILD", "1")
    with pytest.raises(ConfigError, match="hint: .*--child-env SHOP_KEY"):
        read_secret("env:SHOP_KEY")


def test_a_fixed_file_is_read_without_a_restart(configure: Configure) -> None:
    with pytest.raises(Snooze, match=r"alias-missing: senders.default"):
        current().sender("default")
    configure(GOOD)
    assert current().sender("default").smtp == "main"
    assert current() is current()
    configure("smtp = 3")
    with pytest.raises(Snooze, match="smtp: Expected"):
        current()


def test_a_sender_writes_only_to_whom_it_may() -> None:
    sender = Sender(smtp="main", address="a@example.org", to=["*@example.org", "ada@example.com"])
    assert sender.may_write_to("Bob@EXAMPLE.org")
    assert sender.may_write_to("ada@example.com")
    assert not sender.may_write_to("bob@example.com")
    assert not sender.may_write_to("bob@example.org.evil.example")
    assert Sender(smtp="main", address="a@example.org").may_write_to("bob@example.com")


def test_the_url_of_a_database_leads_to_a_host_or_a_socket() -> None:
    there = Database(url="postgresql://jobs@db.example.org:5433/shop").endpoint
    assert (there.host, there.port, there.user, there.name) == ("db.example.org", 5433, "jobs", "shop")
    here = Database(url="postgresql://jobs@/shop?host=/run/postgresql&port=5434").endpoint
    assert (here.host, here.port) == ("/run/postgresql", 5434)


def test_a_list_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = {"RUNTIME_HANDLERS__DATABASES__SHOP__TABLES": '["orders", "items"]'}
    found = load(written(tmp_path, 'databases.shop = { sqlite = "r:a.db" }'), environment)
    assert found.database("shop").tables == ["orders", "items"]


def test_a_missing_alias_is_logged_once_a_minute(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for alias in ("one", "one", "two", "one"):
            with pytest.raises(Snooze) as caught:
                current().server(alias)
            assert caught.value.delay_s == failures.WAIT_S
    assert [record.args[0] for record in caplog.records if record.args] == ["smtp.one", "smtp.two"]
    [one, _] = failures._logged_s
    failures._logged_s[one] -= failures.LOG_EVERY_S
    with caplog.at_level(logging.ERROR), pytest.raises(Snooze):
        current().server("one")
    assert len(caplog.records) == 3
    for number in range(2 * failures.MAX_FAULTS):
        with pytest.raises(Snooze):
            current().server(f"alias-{number}")
    assert len(failures._logged_s) <= failures.MAX_FAULTS


def test_two_faults_of_one_alias_are_both_logged(caplog: pytest.LogCaptureFixture) -> None:
    failures._logged_s.clear()
    with caplog.at_level(logging.ERROR):
        for text in ("no such query", "no such query", "the role may not log in"):
            failures.wait_for_operator("databases.shop", "alias-missing", text)
    assert [record.args[2] for record in caplog.records if record.args] == ["no such query", "the role may not log in"]


def test_a_file_that_is_named_must_be_there_when_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"none\.toml: no such file; hint: --handlers-config"):
        settings.at_start()
    monkeypatch.delenv(settings.VARIABLE)
    assert settings.at_start() == Settings()


def test_the_page_says_every_key_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "handlers-settings.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\.ALIAS)?\.(\w+)` \| (.*?) \|", page, re.MULTILINE)
    told = {(section, key): text for section, key, text in rows}
    known = {(section, field.name): default_of(section, field) for section, field in keys()}
    assert known == told


def keys() -> Iterator[tuple[str, FieldInfo]]:
    """Yield each section with each of its keys; those of a cleanup that its job has are said where the job is."""
    for section in fields(Settings):
        kinds = [kind for kind in (section.type, *get_args(section.type)) if getattr(kind, "__struct_fields__", None)]
        for field in fields(kinds[0]):
            if section.name != "cleanups" or field.name not in set(CleanupLogs.__struct_fields__) - {"root"}:
                yield section.name, field


# Whose alias is the value of this key, where it has none.
NAMED = {"cleanups": "root", "syncs": "resource", "backups": "db", "reports": "report", "audits": "profile"}


def default_of(section: str, field: FieldInfo) -> str:
    if NAMED.get(section) == field.name:
        return "the alias"
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        return "required"
    if isinstance(value, msgspec.Struct):
        return "see right"
    return "none" if value is None else f"`{json.dumps(value)}`"
