"""send-notification against a real HTTP server: what it puts on the wire, for whom, and what dies on the way."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from handlers.contracts.notifications import Notified, SendNotification, Target
from handlers.kit import http
from handlers.kit.circuits import FAULTS
from handlers.kit.failures import TemporaryFailure
from handlers.kit.sections import Channel
from handlers.kit.settings import load
from handlers.notifications import send_notification
from runtime import Backoff, BadPayload, ConfigError, Dead, Priority, Snooze
from runtime.jobs import Job, contract_of
from runtime.registry import find
from runtime.testing import Answered, run
from tests.builders import job as plain_job
from tests.builders import job_of
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, outcome
from tests.handlers.httphost import CUT, DROP, HANG, Httphost, Reply, Seen
from tests.handlers.mailhost import server_context
from tests.handlers.test_contracts import HEADER_ENDS, HOSTILE
from tests.servers import Server
from tests.workers import working

pytestmark = pytest.mark.usefixtures("web_hung_up")
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATH = "/T0/very-secret?x=1"


@pytest.fixture
def channel(web: Httphost, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the settings of the channel `ops`, with this kind and whatever else, and a key to sign by where it is a webhook."""
    monkeypatch.setenv("OPS_URL", web.url + PATH)
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setenv("OLD_KEY", "an old one")

    def write(kind: str = "webhook", more: str = 'keys.main = { secret = "env:KEY" }') -> None:
        reach = f'private = ["127.0.0.1"]\nports = [{web.port}]'
        configure(f'[channels.ops]\nkind = "{kind}"\nurl = "env:OPS_URL"\n{reach}\n{more if kind == "webhook" else ""}\n')

    write()
    return write


def note(**fields: Any) -> SendNotification:
    return SendNotification(**{"channel": "ops", "title": "Disk is full", "body": "On db1.", **fields})


async def send(message: SendNotification, job: Job | None = None) -> Notified:
    result = await send_notification(message, job or job_of(message))
    assert isinstance(result, Notified)
    return result


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """RFC 2104, by hand."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


def is_signed(seen: Seen, key: bytes) -> bool:
    """Verify as a receiver of Standard Webhooks does."""
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + seen.body
    wanted = base64.b64encode(hmac_sha256(key, text)).decode()
    return any(each == f"v1,{wanted}" for each in headers["webhook-signature"].split(" "))


# --- webhooks --------------------------------------------------------------------------------------------------------------


async def test_a_webhook_gets_the_notification_signed(web: Httphost, channel: Callable[..., None]) -> None:
    web.script = [Reply(202)]
    message = note(level="critical", link="https://example.org/?a=1&b=2", data={"host": "db1", "free": 0})
    job = job_of(message)
    result = await send(message, job)
    (seen,) = web.seen
    assert (seen.method, seen.path) == ("POST", PATH)
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.headers["webhook-id"] == seen.headers["Idempotency-Key"] == job.work == result.webhook_id
    assert is_signed(seen, base64.b64decode(KEY.removeprefix("whsec_")))
    assert not is_signed(seen, b"another")
    said = json.loads(seen.body)
    assert datetime.fromisoformat(said.pop("timestamp")).timestamp() == 1_700_000_000
    assert said == {
        "type": "notification",
        "data": {
            "title": "Disk is full",
            "body": "On db1.",
            "level": "critical",
            "link": "https://example.org/?a=1&b=2",
            "data": {"host": "db1", "free": 0},
        },
    }
    assert (result.channel, result.status) == ("ops", 202)
    assert 0 <= result.response_ms < 60_000


async def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks libraries."""
    from handlers.notifications import _secret_bytes, signed

    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [_secret_bytes(KEY)])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_repeat_sends_the_same_body_under_the_same_id(web: Httphost, channel: Callable[..., None]) -> None:
    message = note()
    await send(message, job_of(message, id="order-7"))
    await send(message, job_of(message, entry="1700000999999-4", id="order-7", failed=3, first_ms=1_700_000_000_000))
    await send(message, job_of(message, id="order-8"))
    first, again, other = web.seen
    assert first.body == again.body
    assert first.headers["webhook-id"] == again.headers["webhook-id"] != other.headers["webhook-id"]


async def test_two_keys_sign_during_a_rotation(
    web: Httphost, channel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel(more='keys.main = { secret = "env:KEY", old = "env:OLD_KEY" }')
    await send(note())
    assert is_signed(web.seen[0], base64.b64decode(KEY.removeprefix("whsec_")))
    assert is_signed(web.seen[0], b"an old one")
    monkeypatch.setenv("KEY", "a new one")
    await send(note())
    assert is_signed(web.seen[1], b"a new one")


async def test_a_webhook_without_a_key_is_not_signed(web: Httphost, channel: Callable[..., None]) -> None:
    channel(more="")
    await send(note())
    assert "webhook-id" in web.seen[0].headers
    assert "webhook-signature" not in web.seen[0].headers


async def test_it_is_done_with_its_result_and_its_client_is_closed_by_the_lifespan(
    web: Httphost, channel: Callable[..., None]
) -> None:
    found = find(["handlers"])
    assert http.clients in found.lifespans
    done = await run(send_notification, note(), lifespans=[http.clients])
    assert isinstance(done, Answered)
    assert done.result["status"] == 200
    end_s = time.monotonic() + 60
    while not web.is_left:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)


# --- chats -----------------------------------------------------------------------------------------------------------------

HOSTILE_CHAT = "<!channel> <@U1> @here <https://evil.example|click> & *b* [x](https://evil.example) <at>all</at>"


async def test_slack_gets_plain_text_that_names_nobody(web: Httphost, channel: Callable[..., None]) -> None:
    channel("slack")
    await send(
        note(title=HOSTILE_CHAT, body=HOSTILE_CHAT * 38, level="warning", link="https://example.org/?a=1&b=2", data={"n": [1]})
    )
    said = json.loads(web.seen[0].body)
    assert "<" not in said["text"]
    assert "@here" not in said["text"]
    header, *sections, link = said["blocks"]
    assert header == {"type": "header", "text": {"type": "plain_text", "emoji": False, "text": f"WARNING: {HOSTILE_CHAT}"[:150]}}
    assert {each["text"]["type"] for each in sections} == {"plain_text"}
    assert "".join(each["text"]["text"] for each in sections) == HOSTILE_CHAT * 38 + "\nn: [1]"
    assert max(len(each["text"]["text"]) for each in sections) <= 3000
    assert link["text"] == {"type": "mrkdwn", "text": "<https://example.org/?a=1&amp;b=2>"}
    assert "webhook-id" not in web.seen[0].headers


async def test_teams_gets_runs_of_text_without_markup(web: Httphost, channel: Callable[..., None]) -> None:
    channel("teams")
    await send(note(title=HOSTILE_CHAT, body=f"one\n\n{HOSTILE_CHAT}", level="error", link="https://example.org/"))
    (attachment,) = json.loads(web.seen[0].body)["attachments"]
    card = attachment["content"]
    assert [block["type"] for block in card["body"]] == ["RichTextBlock"] * 3
    assert [run["text"] for block in card["body"] for run in block["inlines"]] == [f"ERROR: {HOSTILE_CHAT}", "one", HOSTILE_CHAT]
    assert card["actions"] == [{"type": "Action.OpenUrl", "title": "Open", "url": "https://example.org/"}]
    assert "msteams" not in card


async def test_ntfy_gets_a_message_for_its_topic(
    web: Httphost, channel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel("ntfy")
    monkeypatch.setenv("OPS_URL", f"{web.url}/alerts?auth=abc")
    await send(note(body="ä" * 4000, level="critical", link="https://example.org/"))
    (seen,) = web.seen
    assert seen.path == "/?auth=abc"
    said = json.loads(seen.body)
    assert said == {
        "topic": "alerts",
        "title": "Disk is full",
        "message": "ä" * 2048,
        "priority": 5,
        "click": "https://example.org/",
    }


@pytest.mark.parametrize("kind", ["webhook", "slack", "teams", "ntfy"])
async def test_two_runs_send_equal_bytes_whatever_the_kind(web: Httphost, channel: Callable[..., None], kind: str) -> None:
    channel(kind)
    for _ in range(2):
        await send(note(body="", data={"a": {"b": [1, None]}}))
    assert web.seen[0].body == web.seen[1].body


# --- where a job says where it goes ----------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def customer(certificate: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Httphost]:
    """A server with a certificate for `localhost`, and a channel that lets jobs say that a notification goes there."""
    monkeypatch.setenv("KEY", "the key")
    running = Httphost(server_context(certificate))
    configure(
        f"""
        [channels.customers]
        kind = "webhook"
        dynamic = true
        hosts = ["localhost", "*.shop.example", "127.0.0.1"]
        private = ["127.0.0.1", "::1"]
        ports = [{running.port}]
        ca_file = "{certificate}"
        keys.k1 = {{ secret = "env:KEY", hosts = ["localhost"] }}
        keys.k2 = {{ secret = "env:KEY", hosts = ["*.shop.example"] }}
        """
    )
    yield running
    await http.close_clients()
    await asyncio.to_thread(running.stop)


def to(customer: Httphost, host: str = "localhost", key: str | None = "k1") -> SendNotification:
    return note(channel="customers", to=Target(url=f"https://{host}:{customer.port}/hook", key=key))


async def test_a_job_may_say_where_it_goes_and_by_which_key(customer: Httphost) -> None:
    await send(to(customer))
    assert is_signed(customer.seen[0], b"the key")
    await send(to(customer, "LOCALHOST"))
    await send(to(customer, key=None))
    assert "webhook-signature" not in customer.seen[2].headers


@pytest.mark.parametrize(
    ("host", "key", "said"),
    [
        ("evil.example", "k1", "does not allow this host"),
        ("shop.example", None, "does not allow this host"),
        ("localhost.evil.example", None, "does not allow this host"),
        ("xshop.example", None, "does not allow this host"),
        ("localhost", "k2", "the key does not sign for this host"),
        ("a.shop.example", "k1", "the key does not sign for this host"),
    ],
)
async def test_a_job_gets_nothing_signed_for_a_host_that_the_settings_do_not_name(
    customer: Httphost, host: str, key: str | None, said: str
) -> None:
    with pytest.raises(Dead, match=said) as caught:
        await send(to(customer, host, key))
    assert caught.value.code == "egress-blocked"
    assert "example" not in str(caught.value)
    assert customer.seen == []


async def test_a_host_that_is_named_is_guarded_all_the_same(customer: Httphost, configure: Configure, certificate: str) -> None:
    configure('[channels.customers]\nkind = "webhook"\ndynamic = true\nhosts = ["*"]\n')
    for host in ("localhost", "127.0.0.1", "169.254.169.254", "0x7f000001"):
        with pytest.raises(Dead) as caught:
            await send(to(customer, host, None))
        assert caught.value.code == "egress-blocked"
    assert customer.seen == []


async def test_what_a_job_says_and_what_the_channel_needs_must_fit(
    web: Httphost, channel: Callable[..., None], configure: Configure
) -> None:
    with pytest.raises(Dead, match="has its own url") as caught:
        await send(note(to=Target(url="https://example.org/")))
    assert caught.value.code == "egress-blocked"
    configure('[channels.ops]\nkind = "webhook"\ndynamic = true\nhosts = ["*"]\n')
    with pytest.raises(Dead, match=r"\$\.to") as caught:
        await send(note())
    assert caught.value.code == "bad-payload"
    with pytest.raises(Snooze, match="alias-missing: channels.ops.keys.k9"):
        await send(note(to=Target(url="https://example.org/", key="k9")))
    assert web.seen == []


async def test_the_customers_credentials_are_the_jobs_own(customer: Httphost) -> None:
    customer.script = [Reply(401)]
    with pytest.raises(Dead) as caught:
        await send(to(customer))
    assert caught.value.code == "http-refused"


async def test_one_customer_that_is_down_does_not_hold_up_the_others(customer: Httphost) -> None:
    customer.script = [Reply(500)]
    for _ in range(FAULTS):
        with pytest.raises(TemporaryFailure):
            await send(to(customer))
    with pytest.raises(Snooze, match="circuit-open"):
        await send(to(customer))
    with pytest.raises(TemporaryFailure, match="TLS"):
        await send(to(customer, "127.0.0.1", None))  # another host: it is asked, and has no certificate for this name


# --- what goes wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(400), Dead, "http-refused"),
        (Reply(410), Dead, "http-refused"),
        (Reply(302, {"Location": "https://example.org/"}), Dead, "redirect-refused"),
        (Reply(403), Snooze, "auth-failed"),
        (Reply(429, {"Retry-After": "7"}), Snooze, "rate-limited"),
        (Reply(503, {"Retry-After": "7"}), Snooze, "rate-limited"),
        (Reply(503), TemporaryFailure, "http-5xx"),
        (Reply(instead=DROP), TemporaryFailure, "connection-lost"),
        (Reply(instead=CUT), TemporaryFailure, "connection-lost"),
    ],
)
async def test_each_answer_has_its_outcome_and_shows_no_secret(
    web: Httphost, channel: Callable[..., None], caplog: pytest.LogCaptureFixture, reply: Reply, kind: type[Exception], said: str
) -> None:
    reply.body = b"the receiver says a secret"
    web.script = [reply]
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        await send(note(title="secret", data={"secret": "secret"}))
    code = caught.value.code if isinstance(caught.value, Dead) else str(caught.value).partition(":")[0]
    assert code == said
    assert "secret" not in f"{caught.value} {caplog.text}"
    assert "OPS_URL" not in str(caught.value)
    assert ("channels.ops" in caplog.text) == (kind is not TemporaryFailure and said != "rate-limited")


@pytest.mark.parametrize("url", ["https://127.1/very-secret", "https://very-secret.invalid/", "https://127.0.0.1:{}/very-secret"])
async def test_a_traceback_shows_no_url(
    web: Httphost, channel: Callable[..., None], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("OPS_URL", url.format(web.port))
    with pytest.raises((Snooze, TemporaryFailure, Dead)) as caught:
        await send(note())
    assert "very-secret" not in "".join(traceback.format_exception(caught.value))


async def test_an_answer_that_was_lost_is_asked_for_again_under_the_same_id(web: Httphost, channel: Callable[..., None]) -> None:
    web.script = [Reply(instead=CUT), Reply()]
    message = note()
    with pytest.raises(TemporaryFailure):
        await send(message)
    await send(message, job_of(message, failed=1))
    assert web.seen[0].headers["webhook-id"] == web.seen[1].headers["webhook-id"]
    assert web.seen[0].body == web.seen[1].body


async def test_a_long_answer_does_not_matter(web: Httphost, channel: Callable[..., None]) -> None:
    web.script = [Reply(body=b"x" * 2**20)]
    for _ in range(2):
        assert (await send(note())).status == 200
    assert len(web.open_connections) == 2  # it is not read to its end


@pytest.mark.parametrize("point", ["before-post", "after-post"])
async def test_killed_at_a_point_and_run_again_the_receiver_has_one_notification(
    web: Httphost, channel: Callable[..., None], tmp_path: Path, point: str
) -> None:
    message = note()
    process = await asyncio.to_thread(child, Disk(tmp_path), message, point=point)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == -9
    assert len(web.seen) == (point == "after-post")
    said = await asyncio.to_thread(lambda: outcome(child(Disk(tmp_path), message)))
    assert json.loads(said)["status"] == 200
    assert len({(seen.headers["webhook-id"], seen.body) for seen in web.seen}) == 1


async def test_a_cancelled_job_leaves_no_connection(web: Httphost, channel: Callable[..., None]) -> None:
    web.script = [Reply(instead=HANG)]
    task = asyncio.create_task(send(note()))
    end_s = time.monotonic() + 60
    while not web.seen:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not web.is_left:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"OPS_URL": ""}, "url: variable OPS_URL is empty"),
        ({"KEY": ""}, "keys: variable KEY is empty"),
        ({"KEY": "whsec_"}, "keys: must be longer than whsec_"),
        ({"OPS_URL": "ftp://very-secret"}, "url must be an https URL"),
        ({"OPS_URL": "http://hooks.example/very-secret"}, "url must be https"),
        ({"OPS_URL": "https://very-secret:0/"}, "url must be an https URL"),
        ({"KEY": "whsec_very-secret!"}, "keys: must be base64 after whsec_"),
        ({"OPS_URL": None}, "url: variable OPS_URL is not set"),
        ({"KEY": None}, "keys: variable KEY is not set"),
    ],
)
async def test_settings_that_cannot_be_used_make_jobs_wait(
    web: Httphost, channel: Callable[..., None], monkeypatch: pytest.MonkeyPatch, names: dict[str, str | None], said: str
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    with pytest.raises(Snooze, match=f"alias-missing: channels.ops: {said}") as caught:
        await send(note())
    assert "very-secret" not in str(caught.value)
    assert web.seen == []
    with pytest.raises(Snooze, match="alias-missing: channels.none"):
        await send(note(channel="none"))


async def test_certificates_that_cannot_be_read_make_jobs_wait(
    web: Httphost, channel: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("bad.pem", "none.pem"):
        channel(more=f'ca_file = "{tmp_path / name}"')
        with pytest.raises(Snooze, match="alias-missing: channels.ops: ca_file"):
            await send(note())
    assert web.seen == []


# --- in a worker -----------------------------------------------------------------------------------------------------------


async def test_sent_by_a_plain_xadd_each_arrives_though_one_in_ten_is_refused(
    web: Httphost, channel: Callable[..., None], valkey: Server
) -> None:
    web.script = [Reply(500 if number % 10 == 9 else 200) for number in range(220)] + [Reply()]
    client = valkey.client()
    for number in range(200):
        client.xadd("{jobs}:high", {"type": "send-notification", "data": msgspec.json.encode(note(data={"n": number}))})
    patient = dataclasses.replace(send_notification, retry=Backoff(base_s=0.05, cap_s=0.2, attempts=10))

    def arrived() -> set[int]:
        return {json.loads(seen.body)["data"]["data"]["n"] for seen in list(web.seen)}

    async with working(valkey.url, patient, lifespans=[http.clients]):
        end_s = time.monotonic() + 60
        while len(web.seen) < 220 or len(arrived()) < 200:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.01)
    assert len({seen.headers["webhook-id"] for seen in web.seen}) == 200
    assert client.xlen("{jobs}:dead") == 0
    client.close()


# --- the contract and the settings -----------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "channel": "ops",
    "title": "t",
    "body": "b",
    "level": "info",
    "link": "https://example.org/",
    "data": {"a": "b"},
    "to": {"url": "https://example.org/", "key": "k1"},
}


def decode(payload: dict[str, Any]) -> SendNotification:
    handler = find(["handlers"]).registry[b"send-notification"]
    return handler.decode(plain_job("send-notification", data=msgspec.json.encode(payload)))


def test_what_the_contract_says() -> None:
    assert contract_of(SendNotification).priority is Priority.HIGH
    assert (send_notification.timeout_s, send_notification.retry.attempts) == (30, 10)
    assert (send_notification.retry.base_s, send_notification.retry.cap_s) == (10, 1800)
    assert decode(FULL).to == Target(url="https://example.org/", key="k1")
    assert decode({"channel": "ops", "title": "t"}).level == "info"
    assert decode({**FULL, "body": "a\n\tb\r\n😀"}).body == "a\n\tb\r\n😀"
    assert decode({**FULL, "link": "https://example.org:8443/a%20b?c=d&e=(f)#g"}).link is not None


@pytest.mark.parametrize("tail", HOSTILE + HEADER_ENDS)
@pytest.mark.parametrize("field", ["channel", "title", "level", "link", "url", "key"])
def test_nothing_that_could_end_a_line_passes_a_field_of_one_line(field: str, tail: str) -> None:
    place = {**FULL["to"], field: FULL["to"][field] + tail} if field in ("url", "key") else FULL.get(field, "") + tail
    with pytest.raises(BadPayload, match=r"\$\."):
        decode({**FULL, "to" if field in ("url", "key") else field: place})


@pytest.mark.parametrize("tail", HOSTILE)
def test_control_characters_do_not_pass_a_text(tail: str) -> None:
    for payload in ({**FULL, "body": tail}, {**FULL, "data": {"a": tail}}, {**FULL, "data": {tail: "a"}}):
        with pytest.raises(BadPayload):
            decode(payload)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://example.org/",
            "https://",
            "https:///x",
            "https://u@example.org/",
            "https://u:p@example.org/",
            "https://[::1]/",
        ),
        *("https://example.org/a b", "https://example.org/<x>", "https://example.org/|x", "https://exämple.org/", "javascript:x"),
        *("https://example.org\\@evil.example/", "https://example.org:x/", "//example.org/", "HTTPS://example.org", ""),
        "https://example.org/" + "x" * 2000,
    ],
)
def test_a_url_is_one_of_https_in_ascii_without_a_user(url: str) -> None:
    for payload in ({**FULL, "link": url}, {**FULL, "to": {"url": url}}):
        with pytest.raises(BadPayload) as caught:
            decode(payload)
        assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"title": ""},
        {"title": "x" * 201},
        {"body": "x" * 4001},
        {"level": "fatal"},
        {"data": {"a": "x" * 8192}},
        {"data": {str(number): 1 for number in range(65)}},
        {"url": "https://example.org/"},
        {"to": {"url": "https://example.org/", "method": "GET"}},
        {"channel": "Ops"},
        {"channel": None},
    ],
)
def test_a_notification_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "mail"\nurl = "env:A"', "kind"),
        ('kind = "webhook"\nurl = "https://example.org/very-secret"', "regex"),
        ('kind = "webhook"', "either a url"),
        ('kind = "webhook"\nurl = "env:A"\nhosts = ["*"]', "either a url"),
        ('kind = "webhook"\nurl = "env:A"\ndynamic = true\nhosts = ["*"]', "either a url"),
        ('kind = "webhook"\ndynamic = true', "either a url"),
        ('kind = "slack"\ndynamic = true\nhosts = ["*"]', "only for kind = 'webhook'"),
        ('kind = "slack"\nurl = "env:A"\nkeys.a = { secret = "env:A" }', "only for kind = 'webhook'"),
        ('kind = "webhook"\nurl = "env:A"\nkeys.a = { secret = "env:A" }\nkeys.b = { secret = "env:A" }', "must be one"),
        ('kind = "webhook"\ndynamic = true\nhosts = ["a.example"]\nkeys.a = { secret = "env:A" }', "must have hosts"),
        (
            'kind = "webhook"\ndynamic = true\nhosts = ["*"]\nkeys.a = { secret = "env:A", hosts = ["a.example"] }',
            "at least a domain",
        ),
        ('kind = "webhook"\ndynamic = true\nhosts = ["a.b"]\nkeys.a = { secret = "env:A", hosts = ["*"] }', "at least a domain"),
        (
            'kind = "webhook"\ndynamic = true\nhosts = ["a.b"]\nkeys.a = { secret = "env:A", hosts = ["*.com"] }',
            "at least a domain",
        ),
        (
            'kind = "webhook"\ndynamic = true\nhosts = ["a.b"]\nkeys.a = { secret = "env:A", hosts = ["*a.com"] }',
            "at least a domain",
        ),
        ('kind = "webhook"\nurl = "env:A"\nprivate = ["10.0.0.0/8"]', "each by itself"),
        ('kind = "webhook"\nurl = "env:A"\nprivate = ["localhost"]', "each by itself"),
        ('kind = "webhook"\nurl = "env:A"\nports = [0]', "ports"),
    ],
)
def test_a_channel_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "handlers.toml"
    path.write_text(f"[channels.ops]\n{text}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load(str(path), {})
    assert "very-secret" not in str(caught.value)


def test_settings_come_from_the_environment_too() -> None:
    names = {"KIND": "ntfy", "URL": "env:A", "PRIVATE": '["10.0.0.7"]', "PORTS": "[443, 8443]"}
    found = load("", {f"RUNTIME_HANDLERS__CHANNELS__OPS__{name}": value for name, value in names.items()}).channel("ops")
    assert found == Channel(kind="ntfy", url="env:A", private=("10.0.0.7",), ports=(443, 8443))
