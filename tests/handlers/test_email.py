"""send-email against a real SMTP server: what it puts on the wire, and what each answer means for the job."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers.contracts.email import SendEmail, Sent
from handlers.contracts.types import is_line
from handlers.email import send_email
from handlers.kit import mail as kit
from handlers.kit.failures import TemporaryFailure
from handlers.kit.letters import Letter, compose, mask
from handlers.kit.mail import pool
from handlers.kit.sections import Sender, Smtp
from handlers.kit.settings import current
from runtime import Dead, Snooze
from runtime.jobs import Job
from tests.builders import NOW_MS, job_of
from tests.handlers.conftest import Configure, Start, hang_up, sockets
from tests.handlers.mailhost import DROP, HANG, Doorkeeper, Mailhost, mail, parsed, server_context
from tests.handlers.marks import FolderMarks

pytestmark = pytest.mark.usefixtures("marks", "hung_up")
SHOP = Sender(smtp="main", address="shop@example.com")
SETTINGS = """
smtp.main = {{ url = "smtp://localhost:{port}", plain = true }}
senders.default = {{ smtp = "main", address = "a@b.org" }}
"""


NUMBER = itertools.count()


async def send(message: SendEmail, job: Job | None = None) -> Sent:
    """Run the job once; without one, it is another one in each call."""
    answer = send_email(message, job or job_of(message, f"{NOW_MS}-{next(NUMBER)}"))
    result = await cast("Awaitable[object]", answer)
    assert isinstance(result, Sent)
    return result


async def until(is_true: Callable[[], bool]) -> None:
    """Poll until it holds."""
    end_s = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)


# --- what goes over the wire -----------------------------------------------------------------------------------------------


async def test_a_mail_arrives_as_it_was_given(host: Mailhost) -> None:
    text = "Grüße,\n.a line with a dot\n" + "long " * 300 + "\nFrom here\n\ttab\r\nend"
    message = mail(
        ["ada@example.org", "bob@bücher.example", "ada@example.org"], subject="Grüße 😀", text=text, reply_to="me@x.org"
    )
    job = job_of(message)
    await send(message, job)
    ((sender, recipients, content),) = host.envelopes
    assert sender == "no-reply@example.com"
    assert recipients == ["ada@example.org", "bob@xn--bcher-kva.example"]
    (received,) = host.messages
    assert received["From"].addresses[0].display_name == 'Müller, "A"'
    assert received["From"].addresses[0].addr_spec == "no-reply@example.com"
    assert [address.addr_spec for address in received["To"].addresses] == recipients
    assert received["Reply-To"] == "me@x.org"
    assert received["Subject"] == "Grüße 😀"
    assert received["Date"].datetime.timestamp() == 1700000000
    assert received["Message-ID"] == f"<{job.work}@example.com>"
    assert received.get_content_type() == "text/plain"
    assert received.get_content().splitlines() == text.splitlines()
    assert content.isascii()
    assert max(len(line) for line in content.splitlines()) <= 998
    assert sorted(name.lower() for name in received) == sorted(
        ["from", "to", "reply-to", "subject", "date", "message-id", "mime-version", "content-type", "content-transfer-encoding"]
    )


async def test_html_goes_beside_the_text(host: Mailhost) -> None:
    message = mail(html="<p>Hällo</p>")
    job = job_of(message)
    await send(message, job)
    (received,) = host.messages
    plain, html = received.iter_parts()
    assert received.get_content_type() == "multipart/alternative"
    assert received.get_boundary() == f"=_{job.work}"
    assert plain.get_content().strip() == "Hello."
    assert html.get_content().strip() == "<p>Hällo</p>"


async def test_two_runs_send_equal_bytes(host: Mailhost, marks: FolderMarks) -> None:
    message = mail(subject="Grüße " * 20, html="<p>x</p>", text="ä" * 100)
    first = job_of(message, id="order-7")
    again = job_of(message, entry="1700000999999-4", id="order-7", failed=3, first_ms=NOW_MS)
    await send(message, first)
    await marks.delete_marks(first.work)
    await send(message, again)
    assert host.envelopes[0] == host.envelopes[1]
    other = job_of(message, id="order-8")
    await send(message, other)
    assert host.messages[2]["Message-ID"] != host.messages[0]["Message-ID"]


async def test_the_server_is_told_the_size(host: Mailhost) -> None:
    await send(mail())
    assert f"MAIL no-reply@example.com SIZE={len(host.envelopes[0][2])}" in host.seen


@pytest.mark.parametrize(
    "subject",
    [
        "=?x?q?=0D=0ABcc: eve@example.org?=",
        "=?utf-8?b?DQpCY2M6IGV2ZUBleGFtcGxlLm9yZw==?=",
        "a =?utf-8?q?b?= c",
        "Bcc: eve@example.org",
        " spaces  inside and around ",
        "x" * 500,
        "ä" * 500,
        "👩‍👩‍👧‍👦 famille\u00a0!",
        "",
    ],
)
async def test_a_subject_arrives_as_typed_and_is_only_a_subject(host: Mailhost, subject: str) -> None:
    await send(mail(subject=subject))
    (received,) = host.messages
    assert received["Bcc"] is None
    assert len(received.keys()) == 8
    assert received["Subject"] == subject


LINE = st.text(st.characters(codec="utf-8").filter(is_line), max_size=200)
SAME = settings(max_examples=60, derandomize=True, database=None, deadline=None)


@SAME
@given(LINE)
def test_any_line_is_a_subject(subject: str) -> None:
    letter = composed(subject=subject)
    received = parsed(letter.content)
    assert received["Subject"] == subject
    assert len(received.keys()) == 8
    assert letter.content.isascii()
    assert max(len(line) for line in letter.content.split(b"\r\n")) <= 998


ATOM = "abcXYZ019!#$%&'*+/=?^_`{|}~-"


@SAME
@given(st.lists(st.text(ATOM, min_size=1, max_size=9), min_size=1, max_size=4).map(".".join))
def test_an_address_stays_one_address(local: str) -> None:
    try:
        letter = composed(to=[f"{local}@example.org", "ada@example.org"])
    except Dead:
        assert "=?" in local  # looks like an encoded word
        return
    assert letter.recipients[0] == f"{local}@example.org"
    received = parsed(letter.content)
    assert len(received.keys()) == 8
    assert re.sub(r"\s", "", str(received["To"])) == f"{local}@example.org,ada@example.org"


def composed(**changes: object) -> Letter:
    fields = {"sender": SHOP, "to": ["ada@example.org"], "reply_to": None, "subject": "Hi", "text": "x", "html": None}
    return compose(**{**fields, "work": "w" * 26, "born_s": 1.7e9, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["to", "reply_to"])
@pytest.mark.parametrize(
    "address",
    [
        *("a@x.org, b@y.org", "a@x.org\nBcc: b@y.org", "a..b@x.org", "a@x..org", "a@x.org>", "=?utf-8?q?=0D=0AX:?=@x.org"),
        *("ada@straße.example", "ada@ex\u00adample.org", "ada@" + "ü" * 70 + ".org"),
    ],
)
def test_an_address_that_is_not_certainly_one_is_refused_without_its_value(field: str, address: str) -> None:
    with pytest.raises(Dead, match=rf"\$\.{field}") as caught:
        composed(**{field: [address] if field == "to" else address})
    assert "b@y.org" not in str(caught.value)


def test_a_subject_of_two_lines_is_refused_even_without_the_contract() -> None:
    for subject in ("a\nb", "a\r", "a\x85b", "a\u2028b"):
        with pytest.raises(Dead, match=r"\$\.subject"):
            composed(subject=subject)


@SAME
@given(LINE)
@example('Ada "A", <x> (y) \\ z')
@example("=?x?q?=0D=0ABcc:_eve?=")
def test_any_line_is_the_name_of_a_sender(name: str) -> None:
    received = parsed(composed(sender=Sender(smtp="main", address="shop@example.com", name=name)).content)
    (address,) = received["From"].addresses
    assert address.addr_spec == "shop@example.com"
    assert address.display_name.split() == name.split()
    assert len(received.keys()) == 8


def test_a_sender_with_a_long_domain_keeps_its_message_id() -> None:
    domain = ".".join(["x" * 60] * 4)
    letter = composed(sender=Sender(smtp="main", address=f"a@{domain}"), born_s=9e15)
    assert parsed(letter.content)["Message-ID"] == f"<{'w' * 26}@{domain}>"


def test_a_mask_leaves_the_first_letter() -> None:
    assert mask("ada.lovelace@example.org") == "a***@example.org"
    assert "lovelace" not in repr(composed(to=["ada.lovelace@example.org"]))


# --- templates -------------------------------------------------------------------------------------------------------------


def template(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / "templates" / name).write_text(body, "utf-8")


def templated(**params: object) -> SendEmail:
    return SendEmail(to="ada@example.org", subject="Hi", template="order", params=params)


async def test_a_template_is_filled_and_html_is_escaped(host: Mailhost, tmp_path: Path) -> None:
    template(tmp_path, "order.txt", "Dear {{ name }},\n{{ order.goods | join(', ') }}\n")
    template(tmp_path, "order.html", "{% include 'head.html' %}<p>{{ name }}</p>")
    template(tmp_path, "head.html", "<h1>{{ name }}</h1>")
    await send(templated(name="<b>{{ 7*7 }}</b> & co", order={"goods": ["a", "b"]}))
    plain, html = host.messages[0].iter_parts()
    assert plain.get_content().splitlines() == ["Dear <b>{{ 7*7 }}</b> & co,", "a, b"]
    safe = "&lt;b&gt;{{ 7*7 }}&lt;/b&gt; &amp; co"
    assert html.get_content().strip() == f"<h1>{safe}</h1><p>{safe}</p>"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ nobody }}", "'nobody' is undefined"),
        ("{{ name.first.second }}", "has no attribute 'first'"),
        ("{{ code[name] }}", "a value is missing"),
        ("unconfidentially {{ code[name] }}", "a value is missing"),
        ("12 {{ code[number] }}", "a value is missing"),
        ("{% include name %}", "a template that does not exist"),
        ("{{ name + 1 }}", "TypeError"),
        ("{{ 1 // zero }}", "ZeroDivisionError"),
        ("{{ name.index('q') }}", "ValueError"),
        ("{{ name.__class__.__mro__ }}", "SecurityError"),
        ("{{ '{0.__class__}'.format(name) }}", "SecurityError"),
        ("{{ items.append(1) }}", "SecurityError"),
        ("{% for a in range(999999) %}{% endfor %}", "OverflowError"),
        ("{% for a in range(99999) %}xxx{% endfor %}", "at most 200000"),
        ("{{ 'x' * 200001 }}", "OverflowError"),
        ("{{ number ** 1200 }}", "OverflowError"),
        ("{{ [number] * 200001 }}", "OverflowError"),
        *((f"{{{{ name | {name}(999) }}}}", "OverflowError") for name in ("center", "indent")),
        *((f"{{{{ name.{name}(999) }}}}", "OverflowError") for name in ("center", "ljust", "rjust", "zfill")),
    ],
)
async def test_a_template_that_fails_kills_the_job_and_shows_no_value(
    host: Mailhost, tmp_path: Path, body: str, said: str
) -> None:
    template(tmp_path, "order.txt", body)
    with pytest.raises(Dead, match=re.escape(said)) as caught:
        await send(templated(name="confidential", zero=0, items=[], code={}, number=12))
    assert caught.value.code == "template-error"
    assert "confidential" not in str(caught.value)
    assert not host.seen


async def test_a_template_may_compute_and_pad(host: Mailhost, tmp_path: Path) -> None:
    template(
        tmp_path,
        "order.txt",
        "{{ 3 * 4 }} {{ 1.5 * 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ '-' * 3 }} {{ n.rjust(3) }} {{ n | center(3) }}",
    )
    await send(templated(n="x"))
    assert host.messages[0].get_content().strip() == "12 3.0 1024 0.5 ---   x  x"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{% include 'none.txt' %}", "includes none.txt"),
        (b"{% include '../handlers.toml' %}", "handlers.toml"),
        (b"one\n{{ two", "line 2"),
        (b"{{ name | uper }}", "uper"),
        (b"Gr\xfc\xdfe", "must be UTF-8"),
    ],
)
async def test_a_template_that_is_broken_is_waited_for(host: Mailhost, tmp_path: Path, body: bytes, said: str) -> None:
    (tmp_path / "templates" / "order.txt").write_bytes(body)
    with pytest.raises(Snooze, match=f"alias-missing: templates.order.txt: .*{re.escape(said)}"):
        await send(templated(name="confidential"))
    assert not host.seen


async def test_a_template_or_its_folder_that_is_missing_is_waited_for(host: Mailhost, configure: Configure) -> None:
    with pytest.raises(Snooze, match=r"alias-missing: templates.order: no order.txt"):
        await send(templated())
    configure(SETTINGS.format(port=host.port))
    with pytest.raises(Snooze, match=r"alias-missing: templates.order"):
        await send(templated())


# --- what the server's answers mean ----------------------------------------------------------------------------------------


async def test_every_recipient_refused_is_death(host: Mailhost) -> None:
    host.script = {"gone": ["550 5.1.1 <gone@example.org>: no such user"], "full": ["552 5.2.2 full"]}
    with pytest.raises(Dead, match=r"g\*\*\*@example.org \(550 5.1.1 <g\*\*\*@example.org>: no such user\)") as caught:
        await send(mail("gone@example.org"))
    assert caught.value.code == "recipient-refused"
    with pytest.raises(Dead, match=r"g\*\*\*@example.org, f\*\*\*@example.org \(550, 552\)"):
        await send(mail(["gone@example.org", "full@example.org"]))
    assert not host.envelopes


async def test_some_recipients_refused_is_done_and_said(host: Mailhost, caplog: pytest.LogCaptureFixture) -> None:
    host.script = {"gone": ["550 5.1.1 no such user"]}
    with caplog.at_level(logging.WARNING):
        await send(mail(["ada@example.org", "gone@example.org"], subject="secret subject", text="secret text"))
    assert host.envelopes[0][1] == ["ada@example.org"]
    (said,) = [record.getMessage() for record in caplog.records if record.name == "handlers.email"]
    assert "1 of 2 recipients refused: g***@example.org (550 5.1.1 no such user)" in said
    assert "secret" not in caplog.text
    assert "ada@" not in said


async def test_a_recipient_put_off_is_tried_again_alone_under_the_same_bytes(host: Mailhost) -> None:
    host.script = {"busy": ["451 4.2.1 later", "250 ok"], "gone": ["550 5.1.1 no such user"]}
    message = mail(["ada@example.org", "busy@example.org", "gone@example.org"])
    job = job_of(message)
    with pytest.raises(TemporaryFailure, match=r"put off for 1 of 3: b\*\*\*@example.org \(451"):
        await send(message, job)
    result = await send(message, job)
    assert [recipients for _, recipients, _ in host.envelopes] == [["ada@example.org"], ["busy@example.org"]]
    assert host.envelopes[0][2] == host.envelopes[1][2]
    assert host.seen.count("RCPT gone@example.org") == 1
    assert (result.accepted, [(each.to, each.code) for each in result.refused]) == (2, [("g***@example.org", 550)])


async def test_a_job_that_is_done_sends_nothing_more_and_has_its_result(host: Mailhost) -> None:
    message = mail(["ada@example.org", "bob@example.org"])
    job = job_of(message)
    first = await send(message, job)
    seen = list(host.seen)
    assert await send(message, job) == first
    assert host.seen == seen
    assert (first.message_id, first.accepted, first.refused) == (f"<{job.work}@example.com>", 2, [])
    assert (first.bytes, first.reply) == (len(host.envelopes[0][2]), "250 taken")


async def test_what_was_refused_for_good_stays_refused(host: Mailhost) -> None:
    host.script = {"gone": ["550 5.1.1 no such user", "250 ok"]}
    message = mail("gone@example.org")
    job = job_of(message)
    for _ in range(2):
        with pytest.raises(Dead, match="550 5.1.1 no such user"):
            await send(message, job)
    assert not host.envelopes


@pytest.mark.parametrize("marks_left", [b"nonsense", b"{}", b'{"replies": [null]}', b'{"replies": "x"}', b"\xff"])
async def test_marks_of_something_else_are_no_verdict(host: Mailhost, marks: FolderMarks, marks_left: bytes) -> None:
    message = mail(["ada@example.org", "bob@example.org"])
    job = job_of(message)
    await marks.set_marks(job.work, marks_left)
    assert (await send(message, job)).accepted == 2


async def test_put_off_and_refused_without_an_accepted_one_is_tried_again(host: Mailhost) -> None:
    host.script = {"busy": ["451 later"], "gone": ["550 no"]}
    with pytest.raises(TemporaryFailure, match="put off for 1 of 2"):
        await send(mail(["gone@example.org", "busy@example.org"]))
    assert "DATA" not in host.seen


@pytest.mark.parametrize("verb", ["MAIL", "ada", "DATA"])
async def test_a_421_leaves_the_server_alone(host: Mailhost, verb: str) -> None:
    host.script = {verb: ["421 4.3.2 shutting down"]}
    with pytest.raises(Snooze, match="rate-limited") as caught:
        await send(mail(["ada@example.org", "bob@example.org"]))
    assert caught.value.delay_s == 30
    host.script = {}
    await send(mail())
    assert host.seen.count("connect") == 2


@pytest.mark.parametrize("reply", ["552 5.3.4 too big", "554 5.6.0 no", "550 5.7.1 spam: you wrote 'Hello.' to ada@example.org"])
async def test_a_mail_refused_for_good_is_death_without_a_quotation(host: Mailhost, reply: str) -> None:
    host.script = {"DATA": [reply]}
    with pytest.raises(Dead) as caught:
        await send(mail())
    assert caught.value.code == "message-refused"
    assert str(caught.value) == f"the server refuses the mail: {reply[:9]}"


async def test_a_mail_that_is_larger_than_announced_is_death(start: Start, configure: Configure) -> None:
    small = start(data_size_limit=300)
    configure(SETTINGS.format(port=small.port))
    with pytest.raises(Dead) as caught:
        await send(mail(text="x" * 1000))
    assert caught.value.code == "message-refused"


@pytest.mark.parametrize(("verb", "reply"), [("MAIL", "451 4.3.0 later"), ("DATA", "452 4.3.1 disk full"), ("DATA", "350 what")])
async def test_other_answers_are_tried_again(host: Mailhost, verb: str, reply: str) -> None:
    host.script = {verb: [reply]}
    with pytest.raises(TemporaryFailure, match=f"{verb}: {reply[:3]}"):
        await send(mail())
    assert not host.envelopes


@pytest.mark.parametrize("verb", ["MAIL", "ada"])
async def test_a_server_that_wants_a_login_is_a_fault_of_the_settings(host: Mailhost, verb: str) -> None:
    host.script = {verb: ["530 5.7.0 authentication required"]}
    with pytest.raises(Snooze, match=r"auth-failed: smtp.main: the server answered 530"):
        await send(mail())


async def test_a_missing_login_is_no_verdict_on_a_recipient(host: Mailhost) -> None:
    host.script = {"ada": ["530 5.7.0 authentication required", "250 ok"]}
    message = mail(["ada@example.org"])
    job = job_of(message)
    with pytest.raises(Snooze, match="auth-failed"):
        await send(message, job)
    assert (await send(message, job)).accepted == 1


async def test_a_sender_that_is_refused_is_a_fault_of_the_settings(host: Mailhost) -> None:
    host.script = {"MAIL": ["553 5.7.1 not yours"]}
    with pytest.raises(Snooze, match=r"refuses the sender: 553 5.7.1 not yours"):
        await send(mail())


@pytest.mark.parametrize("verb", ["MAIL", "ada", "DATA"])
async def test_a_lost_connection_is_tried_again(host: Mailhost, verb: str) -> None:
    host.script = {verb: [DROP, "250 ok"]}
    with pytest.raises(TemporaryFailure, match="connection-lost"):
        await send(mail())
    await send(mail())
    assert len(host.envelopes) == 1


async def test_a_server_that_is_not_there_is_tried_again(host: Mailhost, unused_tcp_port: int, configure: Configure) -> None:
    configure(SETTINGS.format(port=unused_tcp_port))
    with pytest.raises(TemporaryFailure, match=r"smtp.main"):
        await send(mail())


async def test_a_server_that_is_silent_is_tried_again(host: Mailhost, configure: Configure) -> None:
    configure(SETTINGS.format(port=host.port).replace("plain", "timeout_s = 0.3, plain"))
    host.script = {"ada": [HANG]}
    with pytest.raises(TemporaryFailure, match="at RCPT: SMTPReadTimeoutError"):
        await send(mail())


@pytest.mark.parametrize("greeting", [b"554 5.3.2 go away\r\n", b"421 4.3.2 full\r\n", b"450 not now\r\n", b"nonsense\r\n"])
async def test_a_refusal_at_the_door_is_not_the_fault_of_the_job(configure: Configure, greeting: bytes) -> None:
    gone = asyncio.Event()

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(slam, "localhost", 0) as server:
        configure(SETTINGS.format(port=server.sockets[0].getsockname()[1]))
        code = greeting[:3]
        with pytest.raises(Snooze if code in (b"554", b"421") else TemporaryFailure):
            await send(mail())
        await gone.wait()


async def test_a_server_that_says_yes_without_taking_the_mail_has_not_got_it(configure: Configure) -> None:
    gone = asyncio.Event()

    async def nod(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while await reader.readline():
            writer.write(b"250 yes\r\n")
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(nod, "localhost", 0) as server:
        configure(SETTINGS.format(port=server.sockets[0].getsockname()[1]))
        with pytest.raises(TemporaryFailure, match="DATA: 250"):
            await send(mail())
        kit.close_pools()
        await gone.wait()


# --- who may come in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["shop", "default"])
async def test_a_missing_alias_is_waited_for(configure: Configure, alias: str) -> None:
    configure('senders.default = { smtp = "none", address = "a@b.org" }')
    with pytest.raises(Snooze, match=r"alias-missing") as caught:
        await send(mail(sender=alias))
    assert caught.value.delay_s == 60


async def test_a_rotated_password_costs_no_attempt(start: Start, configure: Configure, tmp_path: Path) -> None:
    doorkeeper = Doorkeeper("new")
    host = start(authenticator=doorkeeper, auth_require_tls=False)
    secret = tmp_path / "password"
    secret.write_text("old-hunter2\n")
    configure(
        SETTINGS.format(port=host.port)
        .replace("smtp://", "smtp://mailer@")
        .replace("plain", f"password = 'file:{secret}', plain")
    )
    with pytest.raises(Snooze, match=r"auth-failed: smtp.main: the server refuses us with 535") as caught:
        await send(mail())
    assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)
    secret.unlink()
    with pytest.raises(Snooze, match=r"auth-failed: smtp.main: password: .*No such file"):
        await send(mail())
    secret.write_text("new")
    await send(mail())
    assert len(host.envelopes) == 1


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(new_loop: NewLoop, *messages: SendEmail) -> None:
    """Send on a loop of this kind, as a worker does."""

    async def all_of_them() -> None:
        before = sockets()
        try:
            for message in messages:
                await send(message)
        finally:
            await hang_up(before)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(all_of_them())


@LOOPS
@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
def test_a_trusted_certificate_lets_mail_through_encrypted(
    start: Start, configure: Configure, certificate: str, monkeypatch: pytest.MonkeyPatch, new_loop: NewLoop, scheme: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    context = server_context(certificate)
    host = start(use_tls=context) if scheme == "smtps" else start(tls_context=context, require_starttls=True)
    configure(SETTINGS.format(port=host.port).replace("smtp:", f"{scheme}:").replace(", plain = true", ""))
    run(new_loop, mail(), mail())
    assert len(host.envelopes) == 2
    assert host.seen.count("connect") == 1


@LOOPS
@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
def test_a_certificate_that_nobody_vouches_for_stops_the_mail(
    start: Start, configure: Configure, certificate: str, new_loop: NewLoop, scheme: str
) -> None:
    context = server_context(certificate)
    host = start(use_tls=context) if scheme == "smtps" else start(tls_context=context)
    configure(SETTINGS.format(port=host.port).replace("smtp:", f"{scheme}:").replace(", plain = true", ""))
    with pytest.raises(Snooze, match=r"auth-failed: smtp.main: TLS: .*CERTIFICATE_VERIFY_FAILED"):
        run(new_loop, mail())
    assert not [line for line in host.seen if line != "connect"]


@LOOPS
def test_a_server_without_starttls_gets_no_plain_text(start: Start, configure: Configure, new_loop: NewLoop) -> None:
    host = start(authenticator=Doorkeeper("x"), auth_require_tls=False)
    configure(SETTINGS.format(port=host.port).replace("smtp:", "smtp+starttls:").replace(", plain = true", ""))
    with pytest.raises(Snooze, match=r"auth-failed: smtp.main: .*STARTTLS"):
        run(new_loop, mail())
    assert host.seen == ["connect"]


@LOOPS
def test_a_connection_dropped_after_the_mail_is_tried_again_on_either_loop(host: Mailhost, new_loop: NewLoop) -> None:
    host.script = {"DATA": [DROP]}
    with pytest.raises(TemporaryFailure, match="connection-lost: at DATA"):
        run(new_loop, mail())


# --- connections -------------------------------------------------------------------------------------------------------------


async def test_connections_are_few_and_used_again(host: Mailhost, configure: Configure) -> None:
    configure(SETTINGS.format(port=host.port).replace("plain", "connections = 2, plain"))
    await asyncio.gather(*(send(mail(subject=str(number))) for number in range(20)))
    assert len(host.envelopes) == 20
    assert host.seen.count("connect") == 2
    assert host.seen.count("RSET") == 18
    assert repr(pool("main", current().server("main"))).startswith("<Pool main: 2 idle, <Smtp smtp://localhost:")


async def test_a_connection_carries_a_hundred_mails(host: Mailhost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "MAX_MESSAGES", 3)
    for _ in range(7):
        await send(mail())
    assert host.seen.count("connect") == 3
    assert len(host.envelopes) == 7


async def test_an_idle_connection_is_closed(host: Mailhost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "IDLE_S", 0.02)
    await send(mail())
    await until(lambda: host.open_connections == 0)
    await send(mail())
    assert host.seen.count("connect") == 2


async def test_a_connection_that_went_stale_costs_no_attempt(host: Mailhost) -> None:
    await asyncio.gather(send(mail()), send(mail()))
    host.script = {"RSET": [DROP]}
    await send(mail())
    assert len(host.envelopes) == 3


async def test_a_job_that_finds_no_free_connection_waits_outside(
    host: Mailhost, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "TAKE_S", 0.02)
    configure(SETTINGS.format(port=host.port).replace("plain", "connections = 1, plain"))
    host.script = {"DATA": [HANG, "250 ok"]}
    first = asyncio.create_task(send(mail()))
    await until(lambda: "DATA" in host.seen)
    with pytest.raises(Snooze, match=r"rate-limited: smtp.main: all 1 connections are in use"):
        await send(mail())
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await send(mail())  # the place is free again, on a fresh connection
    assert host.seen.count("connect") == 2
    await until(lambda: host.open_connections == 1)


async def test_who_has_waited_for_a_connection_has_less_time_to_wait_for_a_turn(
    host: Mailhost, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "TAKE_S", 1.5)
    configure(SETTINGS.format(port=host.port).replace("plain", "connections = 1, per_second = 0.5, plain"))
    host.script = {"DATA": [HANG, "250 ok"]}
    loop = asyncio.get_running_loop()
    first = asyncio.create_task(send(mail()))
    begun_s = loop.time()
    await until(lambda: "DATA" in host.seen)
    second = asyncio.create_task(send(mail()))
    await until(lambda: loop.time() > begun_s + 0.7)  # the turn is 1.3 s away, the second's end 0.8 s
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(Snooze, match=r"more is to be sent than `per_second` allows"):
        await second
    assert not host.envelopes


@pytest.mark.parametrize("verb", ["MAIL", "ada", "DATA"])
async def test_a_cancelled_job_leaves_no_connection_behind(host: Mailhost, verb: str) -> None:
    host.script = {verb: [HANG]}
    job = asyncio.create_task(send(mail()))
    await until(lambda: any(line.startswith("RCPT" if verb == "ada" else verb) for line in host.seen))
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await until(lambda: host.open_connections == 0)


async def test_changed_settings_bring_a_new_pool(host: Mailhost) -> None:
    smtp = current().server("main")
    first = pool("main", smtp)
    assert pool("main", smtp) is first
    await send(mail())
    assert pool("main", Smtp(url=smtp.url, plain=True, connections=2)) is not first
    await until(lambda: host.open_connections == 0)
