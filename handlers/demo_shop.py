"""The shop of the demo: its databases, folders and templates, and the settings of the handlers that name them."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from handlers.demo_partner import TOKEN

ORDERS: Final = 20_000  # a guess: about 600 rows for each export
DAYS: Final = 35  # so that the last week and the last month have some
STATES: Final = ("paid", "paid", "paid", "sent", "sent", "returned")
SIGNING_KEY: Final = "whsec_ZGVtbw=="
TEMPLATES: Final = {
    "order.txt": "Hello {{ name }},\n\nyour order {{ order.number }} is on its way.\n",
    "order.html": "<p>Hello <b>{{ name }}</b>,</p><p>your order {{ order.number }} is on its way.</p>\n",
    "news.txt": "Hello {{ name }},\n\n{{ offer }}\n\nNo more of this: {{ unsubscribe_url }}\n",
    "news.html": '<p>Hello <b>{{ name }}</b>,</p><p>{{ offer }}</p><p><a href="{{ unsubscribe_url }}">No more of this</a></p>\n',
}
SECURITY: Final = ("traffic", "rules", "state", "evidence")
CUSTOMERS: Final = 400
MODEL_KEY: Final = "64656d6f" * 8
# The two parameters are the ends of the report's time.
_SPAN: Final = "-- :since text\n-- :until text\n"
QUERIES: Final = {
    "orders-per-day": "SELECT substr(at, 1, 10) AS day, count(*) AS orders, round(sum(total), 2) AS revenue FROM orders"
    " WHERE at >= :since AND at < :until GROUP BY day ORDER BY day",
    "orders-by-status": "SELECT status, count(*) AS orders, round(sum(total), 2) AS revenue FROM orders"
    " WHERE at >= :since AND at < :until GROUP BY status ORDER BY revenue DESC",
    "largest-orders": "SELECT id, at, customer, total FROM orders"
    " WHERE at >= :since AND at < :until ORDER BY total DESC LIMIT 10",
}
RESOURCES: Final = """[contacts]
path = "contacts"
db = "warehouse"
table = "contacts"
key = "id"
updated = "updated_at"
items = "/items"
paging = "cursor"
next = "/next"
page_param = "cursor"
columns = [
  { to = "id", required = true },
  { to = "name" },
  { to = "mail" },
  { to = "updated_at", type = "timestamp", required = true },
]
"""
# What the shop's web site runs on, and what is known of that: invented packages and advisories.
LOCK_FILE: Final = "lampstand==2.3.9\nshopfront==4.1.0\nchairs==1.0.2\n"
ADVISORIES: Final = {
    "DEMO-2026-1": ("lampstand", "2.4.0", "HIGH"),
    "DEMO-2026-2": ("shopfront", "4.0.7", "CRITICAL"),
    "DEMO-2026-3": ("chairs", "1.1.0", "LOW"),
}
RULE: Final = """title: somebody looks for the stock of tomorrow
logsource: {category: webserver}
detection: {sel: {cs-uri-stem|startswith: /internal/}, condition: sel}
level: medium
"""
SETTINGS: Final = """[senders.default]
smtp = "main"
name = "Example Shop"
address = "shop@example.com"
attach = ["reports"]
lists = ["inbox"]
unsubscribe_key = "file:{folder}/secrets/unsubscribe"

[channels.ops]
kind = "webhook"
url = "file:{folder}/secrets/hook"
keys = {{ shop = {{ secret = "file:{folder}/secrets/signing" }} }}
private = ["127.0.0.1"]
ports = [{partner}]

[crm.partner]
base_url = "http://127.0.0.1:{partner}/api"
token = "file:{folder}/secrets/token"
resources = "{folder}/resources.toml"
requests_per_second = 50
private = ["127.0.0.1"]
ports = [{partner}]

[databases]
shop = {{ sqlite = "shop:store.db", tables = ["orders"], queries = "{folder}/shop/queries" }}
warehouse = {{ sqlite = "warehouse:warehouse.db", tables = ["*"], writable = ["stock", "contacts"] }}

[roots]
shop = {{ path = "{folder}/shop" }}
warehouse = {{ path = "{folder}/warehouse", mode = "write" }}
inbox = {{ path = "{folder}/inbox" }}
exports = {{ path = "{folder}/exports", mode = "write", overwrite = true }}
reports = {{ path = "{folder}/reports", mode = "write" }}
backups = {{ path = "{folder}/backups", mode = "write" }}
logs-shop = {{ path = "{folder}/traffic" }}
sigma = {{ path = "{folder}/rules" }}
state = {{ path = "{folder}/state", mode = "write" }}
models = {{ path = "{folder}/models", mode = "write" }}
logs-web = {{ path = "{folder}/logs", mode = "purge", force = true }}
code = {{ path = "{folder}/code" }}
evidence = {{ path = "{folder}/evidence", mode = "write" }}

[smtp]
main = {{ url = "smtp://127.0.0.1:{smtp}", plain = true }}

[templates]
path = "{folder}/templates"

[models]
root = "models"
key = "file:{folder}/secrets/models"
promote = ["churn"]

[cleanups]
logs-web = {{ include = ["*.log.*"], older_than = "30d" }}

[backups]
shop = {{ to = "backups:shop", keep_daily = 3, channel = "ops" }}

[reports]
orders = {{ every = "day" }}

[advisories]
osv = {{ path = "code:advisories" }}

[scans]
shop = {{ targets = ["code:requirements.txt"], to = "evidence:scans", notify = "ops" }}

[compliance]
evidence = ["backups", "reports", "evidence"]

[audits]
soc-2 = {{ to = "reports:audits", every = "week" }}

[logs]
web = {{ root = "logs-shop", glob = "access.log*", format = "combined" }}
auth = {{ root = "logs-shop", glob = "auth.log*", format = "sshd" }}

[rules]
shop = {{ root = "sigma" }}

[threats]
shop = {{ sources = ["web", "auth"], rules = "shop", notify = "ops" }}
"""


def prepare(folder: Path, smtp_port: int, partner_port: int) -> None:
    """Write templates, databases, folders, secrets, and the settings that name them, the mail server and the partner.

    Args:
        folder: of the demo; what is in it from an earlier run stays.
        smtp_port: of the mail server.
        partner_port: of the CRM and of the webhook.
    """
    for name in (
        "templates",
        "shop/queries",
        "warehouse",
        "inbox",
        "exports",
        "reports",
        "backups",
        "logs",
        "code",
        "models",
        *SECURITY,
    ):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    hook = f"http://127.0.0.1:{partner_port}/hook"
    keys = {"signing": SIGNING_KEY, "models": MODEL_KEY, "unsubscribe": "demo"}
    for name, text in {"hook": hook, "token": TOKEN, **keys}.items():
        (secrets / name).write_text(text, "utf-8")
        (secrets / name).chmod(0o600)
    for name, text in TEMPLATES.items():
        (folder / "templates" / name).write_text(text, "utf-8")
    for name, text in QUERIES.items():
        (folder / "shop" / "queries" / f"{name}.sql").write_text(f"{_SPAN}{text}\n", "utf-8")
    (folder / "rules" / "stock.yml").write_text(RULE, "utf-8")
    (folder / "resources.toml").write_text(RESOURCES, "utf-8")
    _write_code(folder / "code")
    _make(folder / "shop" / "store.db", _fill_shop)
    _make(folder / "warehouse" / "warehouse.db", _fill_warehouse)
    (folder / "inbox" / "customers.csv").write_text("".join(_customers()), "utf-8")
    escaped = json.dumps(str(folder))[1:-1]
    (folder / "handlers.toml").write_text(SETTINGS.format(folder=escaped, smtp=smtp_port, partner=partner_port), "utf-8")


def _write_code(folder: Path) -> None:
    """Write the lock file, and advisories in OSV's JSON that were changed today, so that they are never too old."""
    (folder / "requirements.txt").write_text(LOCK_FILE, "utf-8")
    (folder / "advisories").mkdir(exist_ok=True)
    today = f"{datetime.now(UTC):%Y-%m-%dT00:00:00Z}"
    for name, (package, fixed, severity) in ADVISORIES.items():
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]
        affected = {"package": {"ecosystem": "PyPI", "name": package}, "ranges": ranges}
        known = {"id": name, "modified": today, "affected": [affected], "database_specific": {"severity": severity}}
        (folder / "advisories" / f"{name}.json").write_text(json.dumps(known), "utf-8")


def _make(path: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Make a database, unless it exists; it is there only when it is whole."""
    if path.exists():
        return
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(part)) as database:
        fill(database)
        database.commit()
    part.rename(path)


def _fill_shop(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, day INTEGER, at TEXT, customer TEXT, status TEXT, total REAL)")
    database.executemany("INSERT INTO orders (day, at, customer, status, total) VALUES (?, ?, ?, ?, ?)", _orders())


def _orders() -> Iterator[tuple[int, str, str, str, float]]:
    rng = random.Random(11)  # noqa: S311 -- rows, not a secret
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    for _ in range(ORDERS):
        at = now - timedelta(seconds=rng.randrange(DAYS * 86_400))
        total = round(rng.uniform(5, 500), 2)
        yield at.day, f"{at.isoformat()}Z", f"customer {rng.randrange(900)}", rng.choice(STATES), total


def _customers() -> Iterator[str]:
    """Yield lines about customers: who orders often and complains seldom stays, more or less."""
    rng = random.Random(12)  # noqa: S311 -- rows, not a secret
    yield "age,orders,complaints,country,stays\n"
    for _ in range(CUSTOMERS):
        orders, complaints = rng.randrange(20), rng.randrange(6)
        stays = orders - 3 * complaints + rng.gauss(0, 2) > 0
        yield f"{rng.randrange(18, 90)},{orders},{complaints},{rng.choice(('AT', 'CH', 'DE'))},{'yes' if stays else 'no'}\n"


def _fill_warehouse(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE stock (sku TEXT PRIMARY KEY, count INTEGER, price NUMERIC)")
    database.execute("CREATE TABLE contacts (id TEXT PRIMARY KEY, name TEXT, mail TEXT, updated_at TEXT)")
