"""What `doctor --handlers` finds: each alias is tried on the real thing, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.checks import CHECKS
from handlers.reports import CHECKS as CHECK_REPORTS
from runtime import Finding
from tests.handlers.conftest import Configure, Start
from tests.handlers.disks import Disk
from tests.handlers.mailhost import Doorkeeper
from tests.handlers.postgres import PgDatabase, tools


def errors(found: list[Finding]) -> str:
    return "\n".join(finding.what for finding in found if finding.level == "error")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    for name in ("out", "logs", "db", "templates"):
        (tmp_path / name).mkdir()
    made = Disk(tmp_path)
    made.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, at TEXT)")
    (tmp_path / "secret").write_text("whsec_ZGVtbw==")
    (tmp_path / "signing").write_text("0" * 64)
    (tmp_path / "hook").write_text("https://hooks.example.org/1")
    (tmp_path / "resources.toml").write_text(
        '[contacts]\npath = "c"\ndb = "shop"\ntable = "t"\nkey = "id"\nupdated = "at"\npaging = "link"\n'
        'columns = [{ to = "id", type = "int" }, { to = "at", type = "timestamp" }]\n'
    )
    return made


def whole(disk: Disk, port: int) -> str:
    """Return settings in which nothing is wrong."""
    folder, resources = disk.folder, disk.folder / "resources.toml"
    return f"""
roots.out = {{ path = '{disk.out}', mode = 'write' }}
roots.logs = {{ path = '{disk.logs}', mode = 'purge' }}
roots.db = {{ path = '{folder / "db"}', mode = 'write' }}
databases.shop = {{ sqlite = 'db:shop.db', queries = '{folder / "db"}', tables = ['t'], writable = ['t'] }}
smtp.main = {{ url = 'smtp://mailer@localhost:{port}', plain = true, password = 'file:{folder / "secret"}' }}
senders.default = {{ smtp = 'main', address = 'a@example.org', attach = ['out'] }}
templates.path = '{folder / "templates"}'
channels.ops = {{ kind = 'webhook', url = 'file:{folder / "hook"}', keys.a = {{ secret = 'file:{folder / "secret"}' }} }}
crm.sales = {{ base_url = 'https://crm.example.org', token = 'file:{folder / "secret"}', resources = '{resources}' }}
backups.shop = {{ to = 'out:backups' }}
reports.orders = {{ to = 'out' }}
models = {{ root = 'out', key = 'file:{folder / "signing"}' }}
"""


def test_each_alias_is_tried(disk: Disk, configure: Configure, start: Start, postgres: PgDatabase) -> None:
    host = start(authenticator=Doorkeeper("today"), auth_require_tls=False)
    (disk.folder / "secret").write_text("today")
    configure(
        whole(disk, host.port)
        + f"databases.pg = {{ url = '{postgres.url}' }}\n"
        + f"backups.pg = {{ to = 'out:backups', tools = '{tools()}' }}\n"
    )
    before = disk.names(disk.folder)
    found = {finding.what.partition(":")[0]: finding for finding in (*CHECKS(), *CHECK_REPORTS())}
    assert {finding.level for finding in found.values()} == {"ok"}, errors(list(found.values()))
    assert set(found) == {
        *("roots.out", "roots.logs", "roots.db", "smtp.main", "senders.default", "databases.shop", "databases.pg", "templates"),
        *("channels.ops", "crm.sales", "backups.shop", "backups.pg", "reports", "models"),
    }
    assert "PostgreSQL 1" in found["databases.pg"].what
    assert "pg_restore 1" in found["backups.pg"].what
    assert not host.envelopes
    assert disk.names(disk.folder) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("roots.out = { path = '", "roots.out = { path = '/nowhere", "roots.out: /nowhere"),
        ("@localhost:", "@127.0.0.9:", "smtp.main: Connection refused"),
        ("secret'", "none'", "none: No such file"),
        ("smtp = 'main'", "smtp = 'other'", "smtp.other"),
        ("attach = ['out']", "attach = ['other']", "roots.other"),
        ("tables = ['t']", "tables = ['t', 'u']", "databases.shop: no table u"),
        ("queries = '", "queries = '/nowhere", "databases.shop: No such file"),
        ("'db:shop.db'", "'db:none.db'", "databases.shop: db:none.db: No such file or directory (alias-missing)"),
        ("templates.path = '", "templates.path = '/nowhere", "templates: No such file"),
        ("resources.toml", "none.toml", "crm.sales: No such file"),
        ("writable = ['t']", "writable = []", "crm.sales: [contacts]: databases.shop must have t in `writable`"),
        ("https://crm.example.org", "http://crm.example.org", "crm.sales: must be https"),
        ("reports.orders = {", "reports.none = {", "documents.none: no none.toml"),
        ("signing'", "unsigned'", "models.key: "),
        ("models = { root = 'out'", "models = { root = 'other'", "roots.other"),
    ],
)
def test_what_is_wrong_is_named_with_its_alias(
    disk: Disk, configure: Configure, start: Start, old: str, new: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = start(authenticator=Doorkeeper("whsec_ZGVtbw=="), auth_require_tls=False)
    text = whole(disk, host.port)
    assert old in text
    configure(text.replace(old, new))
    assert said in errors([*CHECKS(), *CHECK_REPORTS()])
    assert "handlers" not in {record.name for record in caplog.records}, "a finding says it"


def test_tools_that_are_missing_are_a_finding(disk: Disk, configure: Configure, postgres: PgDatabase) -> None:
    configure(
        f"roots.out = {{ path = '{disk.out}', mode = 'write' }}\ndatabases.pg = {{ url = '{postgres.url}' }}\n"
        f"backups.pg = {{ to = 'out:backups', tools = '{disk.out}' }}\n"
    )
    assert "pg_dump is not in" in errors(CHECKS())


def test_a_secret_is_never_shown(disk: Disk, configure: Configure, start: Start) -> None:
    host = start(authenticator=Doorkeeper("another"), auth_require_tls=False)
    configure(whole(disk, host.port))
    found = [*CHECKS(), *CHECK_REPORTS()]
    assert "smtp.main" in errors(found)
    told = "\n".join(finding.what for finding in found)
    assert "ZGVtbw" not in told
    assert "hooks.example.org" not in told
