"""send-email: what it attaches, who is written to and how often, and what is left where its process is killed."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as tested
from hypothesis import strategies as st

from handlers.contracts.email import Attachment, SendEmail
from handlers.contracts.types import MAX_NAME_CHARS, is_line
from handlers.kit import attachments, letters, rates
from handlers.kit import mail as kit
from handlers.kit.letters import attachment, compose
from handlers.kit.rates import Hour
from handlers.kit.sections import Sender
from runtime import Dead, Retry, Snooze
from tests.builders import job_of as email_job
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, job_of, outcome
from tests.handlers.mailhost import Mailhost, mail, parsed
from tests.handlers.marks import FolderMarks
from tests.handlers.test_email import send

pytestmark = pytest.mark.usefixtures("marks", "hung_up")
SHOP = Sender(smtp="main", address="shop@example.com")


@pytest.fixture
def office(host: Mailhost, configure: Configure, tmp_path: Path) -> Path:
    """A folder from which the sender may attach, with a mail server and all other permissions."""
    folder = tmp_path / "reports"
    folder.mkdir()
    (tmp_path / "secret").write_text("root:x", "utf-8")
    arrange(configure, host, folder)
    return folder


def arrange(configure: Configure, host: Mailhost, folder: Path, sender: str = "", smtp: str = "") -> None:
    configure(
        f'smtp.main = {{ url = "smtp://localhost:{host.port}", plain = true{smtp} }}\n'
        f'senders.default = {{ smtp = "main", address = "no-reply@example.com", attach = ["out"], headers = ["x-*"]{sender} }}\n'
        f"roots.out = {{ path = '{folder}', mode = 'write' }}\nroots.other = {{ path = '{folder}' }}\n"
        f"templates.path = '{folder.parent / 'templates'}'\n"
    )


def files(*paths: str, **fields: Any) -> SendEmail:
    return mail(attachments=[Attachment(path=path) for path in paths], **fields)


# --- cc, bcc, headers ----------------------------------------------------------------------------------------------------


async def test_copies_are_seen_and_blind_copies_are_not(host: Mailhost) -> None:
    await send(mail(["a@x.org"], cc=["b@x.org", "a@x.org"], bcc=["c@x.org", "b@x.org"]))
    assert host.envelopes[0][1] == ["a@x.org", "b@x.org", "c@x.org"]
    (received,) = host.messages
    assert (received["To"], received["Cc"], received["Bcc"]) == ("a@x.org", "b@x.org, a@x.org", None)
    assert b"c@x.org" not in host.envelopes[0][2]


async def test_a_link_to_unsubscribe_works_in_one_click(host: Mailhost) -> None:
    await send(mail(unsubscribe="https://example.com/u?list=news&who=" + "7" * 200))
    (received,) = host.messages
    url = "https://example.com/u?list=news&who=" + "7" * 200
    assert f"\r\nList-Unsubscribe: <{url}>\r\n".encode() in host.envelopes[0][2]
    assert received["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


async def test_headers_of_the_job_come_through_as_typed(office: Path, host: Mailhost) -> None:
    values = {"X-Order": "7", "x-long": "ä" * 300, "X-Odd": "=?utf-8?q?=0D=0ABcc:_eve@x.org?=", "X-Space": " a  b "}
    await send(mail(headers=values))
    (received,) = host.messages
    assert {name: received[name] for name in values} == values
    assert received["Bcc"] is None
    assert max(len(line) for line in host.envelopes[0][2].splitlines()) <= 998


@tested(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.text(st.characters(codec="utf-8").filter(is_line), max_size=200))
def test_any_line_is_the_value_of_a_header_and_only_that(value: str) -> None:
    received = parsed(compose(**plain(headers={"X-Note": value})).content)
    assert received["X-Note"] == value
    assert len(received.keys()) == 9


def test_a_header_of_two_lines_is_refused_even_without_the_contract() -> None:
    with pytest.raises(Dead, match=r"\$\.headers.X-Note"):
        compose(**plain(headers={"X-Note": "a\r\nBcc: eve@x.org"}))


def plain(**fields: Any) -> dict[str, Any]:
    return {
        **{"sender": SHOP, "to": ["ada@example.org"], "subject": "Hi", "text": "x", "html": None, "work": "w" * 26},
        "born_s": 1.7e9,
        **fields,
    }


# --- attachments ---------------------------------------------------------------------------------------------------------


async def test_files_are_attached_as_they_are(office: Path, host: Mailhost) -> None:
    content = {"a.csv": b"a,b\r\n1,2\n", "Bücher 😀.pdf": os.urandom(200_000), "b.eml": b"From: x\n\n.\n", "none": b""}
    for name, data in content.items():
        (office / name).write_bytes(data)
    sheet = Attachment(path="out:a.csv", name="März.csv")
    message = mail(html="<p>x</p>", attachments=[sheet, *(Attachment(path=f"out:{name}") for name in [*content][1:])])
    await send(message)
    (received,) = host.messages
    assert received.get_content_type() == "multipart/mixed"
    assert received.get_body(("html",)).get_content().strip() == "<p>x</p>"  # pyright: ignore[reportOptionalMemberAccess]
    assert received.get_body(("plain",)).get_content().strip() == "Hello."  # pyright: ignore[reportOptionalMemberAccess]
    found = list(received.iter_attachments())
    assert [part.get_filename() for part in found] == ["März.csv", "Bücher 😀.pdf", "b.eml", "none"]
    assert [part.get_payload(decode=True) for part in found] == list(content.values())
    assert [part.get_content_type() for part in found] == ["text/csv", "application/pdf", *["application/octet-stream"] * 2]
    assert max(len(line) for line in host.envelopes[0][2].splitlines()) <= 998
    assert not [part.defects for part in received.walk() if part.defects]


async def test_two_runs_attach_equal_bytes(office: Path, host: Mailhost, marks: FolderMarks) -> None:
    (office / "a.bin").write_bytes(os.urandom(300_001))
    message = files("out:a.bin")
    job = email_job(message)
    await send(message, job)
    await marks.delete_marks(job.work)
    await send(message, job)
    assert host.envelopes[0] == host.envelopes[1]


NAME = st.text(st.characters(codec="utf-8").filter(lambda each: is_line(each) and each not in "/\\"), min_size=1)


@tested(max_examples=60, derandomize=True, database=None, deadline=None)
@given(NAME.map(lambda name: name[:MAX_NAME_CHARS]))
@example('a"; filename="b.exe')
@example("=?utf-8?q?=0D=0AX:?=.txt")
@example("😀" * MAX_NAME_CHARS)
def test_any_name_is_the_name_of_the_file_and_only_that(name: str) -> None:
    content = compose(**plain(attached=[attachment(name, [b"x"])])).content
    (part,) = parsed(content).iter_attachments()
    assert part.get_filename() == name
    assert sorted(part.keys()) == ["Content-Disposition", "Content-Transfer-Encoding", "Content-Type"]
    assert max(len(line) for line in content.split(b"\r\n")) <= 998


@pytest.mark.parametrize(
    "sizes", [[], [1], [letters.ENCODED_BYTES], [letters.ENCODED_BYTES - 1, 2], [1, letters.ENCODED_BYTES * 2]]
)
def test_a_file_is_the_same_however_it_is_read(sizes: list[int]) -> None:
    data = os.urandom(sum(sizes))
    places = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    chunks = [data[begin:end] for begin, end in itertools.pairwise(places)]
    assert attachment("a", chunks) == attachment("a", [data])
    (part,) = parsed(compose(**plain(attached=[attachment("a", chunks)])).content).iter_attachments()
    assert part.get_payload(decode=True) == data


@pytest.mark.parametrize("path", ["out:link.csv", "out:folder", "out:pipe", "out:link/a.csv", "out:a.csv/b"])
async def test_only_plain_files_are_attached_and_no_link_is_followed(office: Path, host: Mailhost, path: str) -> None:
    (office / "a.csv").write_text("x")
    (office / "folder").mkdir()
    os.mkfifo(office / "pipe")
    (office / "link").symlink_to(office.parent)
    (office / "link.csv").symlink_to(office.parent / "secret")
    with pytest.raises(Dead) as caught:
        await send(files(path))
    assert caught.value.code == "bad-path"
    assert not host.seen


async def test_a_root_from_which_the_sender_may_not_attach_is_refused(office: Path, host: Mailhost) -> None:
    (office / "a.csv").write_text("x")
    with pytest.raises(Dead, match=r"may not attach files of roots.other; hint: attach = \['other'\]") as caught:
        await send(files("other:a.csv"))
    assert caught.value.code == "bad-path"
    assert not host.seen


async def test_a_file_that_is_not_there_is_waited_for_a_minute(office: Path, host: Mailhost) -> None:
    message = files("out:late.csv")
    for failed in (0, 1):
        with pytest.raises(Retry, match="input-missing") as caught:
            await send(message, email_job(message, failed=failed))
        assert caught.value.delay_s == 20
    with pytest.raises(Dead) as dead:
        await send(message, email_job(message, failed=2))
    assert dead.value.code == "input-missing"
    (office / "late.csv").write_text("x")
    await send(message, email_job(message, failed=1))
    assert len(host.envelopes) == 1


async def test_files_that_are_too_large_together_are_refused(
    office: Path, host: Mailhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "MAX_ATTACHED_BYTES", 1000)
    (office / "a.bin").write_bytes(b"x" * 501)
    (office / "b.bin").write_bytes(b"x" * 499)
    await send(files("out:a.bin", "out:b.bin"))
    with pytest.raises(Dead) as caught:
        await send(files("out:a.bin", "out:a.bin"))
    assert caught.value.code == "too-large"
    assert len(host.envelopes) == 1


async def test_a_mail_of_many_pieces_arrives_whole(office: Path, host: Mailhost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "PIECE_BYTES", 100)
    text = "\n".join([".", "..", "x" * 60 + ".", "." * 70] * 50) + "\n.\n"
    (office / "a.bin").write_bytes(os.urandom(5000))
    await send(files("out:a.bin", text=text))
    (received,) = host.messages
    assert received.get_body(("plain",)).get_content().splitlines() == text.splitlines()  # pyright: ignore[reportOptionalMemberAccess]
    assert next(received.iter_attachments()).get_payload(decode=True) == (office / "a.bin").read_bytes()


# --- templates in a language ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("locale", "said", "html"),
    [
        ("de-CH", "Hallo", None),
        ("de", "Hallo", None),
        ("de-AT", "Servus", "<p>Servus</p>"),
        ("fr", "Hello", "<p>Hello</p>"),
        (None, "Hello", "<p>Hello</p>"),
    ],
)
async def test_a_template_speaks_the_language_asked_for(
    host: Mailhost, tmp_path: Path, locale: str | None, said: str, html: str | None
) -> None:
    texts = {"hi.txt": "Hello", "hi.html": "<p>Hello</p>", "hi.de.txt": "Hallo", "hi.de-AT.txt": "Servus"}
    for name, text in {**texts, "hi.de-AT.html": "<p>Servus</p>"}.items():
        (tmp_path / "templates" / name).write_text(text, "utf-8")
    await send(SendEmail(to="a@x.org", subject="Hi", template="hi", locale=locale))
    (received,) = host.messages
    found = received.get_body(("html",))
    assert (found.get_content().strip() if found else None) == html
    assert received.get_body(("plain",)).get_content().strip() == said  # pyright: ignore[reportOptionalMemberAccess]


# --- what the sender's settings permit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["to", "cc", "bcc"])
async def test_a_recipient_that_the_settings_do_not_name_is_refused(
    office: Path, host: Mailhost, configure: Configure, field: str
) -> None:
    arrange(configure, host, office, sender=', to = ["*@example.org"]')
    await send(mail(["ada@example.org", "Bob@EXAMPLE.org"]))
    fields: dict[str, Any] = {"to": ["ada@example.org"], field: ["eve.secret@evil.org"]}
    with pytest.raises(Dead, match=r"senders.default may not write to e\*\*\*@evil.org; hint: `to`") as caught:
        await send(mail(**fields))
    assert caught.value.code == "recipient-refused"
    assert len(host.envelopes) == 1


async def test_a_header_that_the_settings_do_not_name_is_refused(host: Mailhost) -> None:
    with pytest.raises(Dead, match="may not add the header X-SMTPAPI; hint: `headers`") as caught:
        await send(mail(headers={"X-SMTPAPI": "{}"}))
    assert caught.value.code == "message-refused"
    assert not host.seen


@pytest.fixture
def _new_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_hours", {})


@pytest.mark.usefixtures("_new_hours")
async def test_an_hour_sees_no_more_recipients_than_the_sender_may_have(
    office: Path, host: Mailhost, configure: Configure
) -> None:
    arrange(configure, host, office, sender=", per_hour = 3")
    host.script = {"gone": ["550 no"]}
    await send(mail(["a@x.org", "gone@x.org"]))  # who is refused does not count
    await send(mail(["c@x.org", "d@x.org"]))
    with pytest.raises(Snooze, match=r"rate-limited: senders.default: `per_hour`") as caught:
        await send(mail("e@x.org"))
    assert 3600 <= caught.value.delay_s <= 3660
    with pytest.raises(Dead, match="4 recipients are more than `per_hour`") as dead:
        await send(mail(["e@x.org", "f@x.org", "g@x.org", "h@x.org"]))
    assert dead.value.code == "recipient-refused"
    assert sum(len(recipients) for _, recipients, _ in host.envelopes) == 3


@pytest.mark.usefixtures("_new_hours")
async def test_what_could_not_be_sent_does_not_count(
    office: Path, host: Mailhost, configure: Configure, unused_tcp_port: int
) -> None:
    arrange(configure, host, office, sender=", per_hour = 1")
    message = mail()
    host.script = {"DATA": ["451 later", "250 ok"]}
    with pytest.raises(Exception, match="smtp-4xx"):
        await send(message)
    await send(message)
    assert len(host.envelopes) == 1


def test_no_hour_sees_more_than_its_bound() -> None:
    hour, taken = Hour(), list[tuple[float, int]]()
    for step in range(3000):
        now_s = step * 7.3
        count = 1 + step % 4
        wait_s = hour.take(count, 50, now_s)
        if not wait_s:
            taken.append((now_s, count))
        else:
            assert copy.deepcopy(hour).take(count, 50, now_s + wait_s - 0.1) > 0
            assert copy.deepcopy(hour).take(count, 50, now_s + wait_s) == 0
    begins = [at_s for at_s, _ in taken]
    assert max(sum(count for at_s, count in taken if begin <= at_s < begin + 3600) for begin in begins) <= 50


def test_an_hour_takes_back_what_was_not_used() -> None:
    hour = Hour()
    assert [hour.take(2, 5, at_s) for at_s in (0.0, 61.0)] == [0, 0]
    assert hour.take(2, 5, 62.0) > 0
    hour.give_back(3)
    assert hour.take(4, 5, 63.0) == 0
    hour.give_back(9)
    assert hour.take(5, 5, 64.0) == 0


async def test_mails_leave_as_far_apart_as_the_server_wants(
    office: Path, host: Mailhost, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange(configure, host, office, smtp=", per_second = 20, connections = 8")
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await asyncio.gather(*(send(mail(subject=str(number))) for number in range(5)))
    assert loop.time() - begun_s >= 4 / 20  # never faster; how much slower, the machine says
    monkeypatch.setattr(kit, "TAKE_S", 0.0)
    arrange(configure, host, office, smtp=", per_second = 0.001")
    await send(mail())
    with pytest.raises(Snooze, match=r"rate-limited: smtp.main: more is to be sent than `per_second` allows") as caught:
        await send(mail())
    assert caught.value.delay_s > 900


# --- killed ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "copies"), [("before-sending", 1), ("sent", 2), ("marked", 1)])
def test_a_worker_killed_at_a_point_leaves_what_the_next_run_completes(
    office: Path, host: Mailhost, tmp_path: Path, point: str, copies: int
) -> None:
    (office / "a.csv").write_text("x")
    message = files("out:a.csv", to=["ada@example.org", "gone@example.org"])
    host.script = {"gone": ["550 5.1.1 no"]}
    disk = Disk(tmp_path)
    first = child(disk, message, point=point, marks=str(tmp_path))
    first.communicate(timeout=60)
    assert first.returncode == -9
    said = outcome(child(disk, message, marks=str(tmp_path)))
    assert f'"message_id":"<{job_of(message).work}@example.com>","accepted":1,"refused":[{{"to":"g***@example.org"' in said
    assert len(host.envelopes) == copies
    assert len({content for _, _, content in host.envelopes}) == 1  # the window: a second copy is the same mail
