"""send-bulk-email: everybody once, whatever dies; who is left out, and why; the plan of a large file."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import hmac
import io
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from handlers.contracts.email import SLICE_ROWS, BulkSent, Recipient, RecipientFile, RecipientSlice, SendBulkEmail
from handlers.email import send_bulk_email
from handlers.kit import campaigns, rates, recipients
from handlers.kit.campaigns import State, States
from handlers.kit.failures import TemporaryFailure
from handlers.kit.recipients import Batch, Reader
from handlers.kit.settings import current
from handlers.kit.threads import Stop, Stopped
from runtime import Dead, Retry, Snooze, StoreUnavailable
from runtime.jobs import Job
from tests.builders import job_of
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, outcome
from tests.handlers.mailhost import DROP, HANG, Mailhost
from tests.handlers.marks import FolderMarks
from tests.handlers.test_email import until

pytestmark = pytest.mark.usefixtures("marks", "hung_up")
KEY = "a key of the sender's"


class Office:
    """A folder with lists, templates, and settings that permit what the tests need."""

    def __init__(self, folder: Path, host: Mailhost, configure: Configure) -> None:
        self.folder = folder
        self.host = host
        self._configure = configure
        (folder / "lists").mkdir()
        (folder / "key").write_text(KEY)
        self.template("Dear {{ name | default('you') }},\n{{ greeting | default('hello') }}\n")
        self.arrange()

    def arrange(self, sender: str = "", smtp: str = "connections = 4") -> None:
        self._configure(
            f'smtp.main = {{ url = "smtp://localhost:{self.host.port}", plain = true, timeout_s = 5, {smtp} }}\n'
            f'senders.default = {{ smtp = "main", address = "news@example.com", lists = ["lists"], '
            f"unsubscribe_key = 'file:{self.folder / 'key'}'{sender} }}\n"
            f"roots.lists = {{ path = '{self.folder / 'lists'}' }}\nroots.other = {{ path = '{self.folder / 'lists'}' }}\n"
            f"templates.path = '{self.folder / 'templates'}'\n"
        )

    def template(self, text: str, name: str = "news.txt") -> None:
        (self.folder / "templates" / name).write_text(text, "utf-8")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / "lists" / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def csv(self, rows: list[list[str]], name: str = "a.csv") -> Path:
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows(rows)
        return self.write(name, buffer.getvalue())

    @property
    def received(self) -> list[str]:
        """Who got a mail, in order."""
        return [recipients[0] for _, recipients, _ in self.host.envelopes]


@pytest.fixture
def office(host: Mailhost, configure: Configure, tmp_path: Path) -> Office:
    return Office(tmp_path, host, configure)


def people(count: int) -> list[Recipient]:
    return [Recipient(address=f"u{number}@example.org", params={"name": f"N{number}"}) for number in range(count)]


def campaign(to: Any = None, **fields: Any) -> SendBulkEmail:
    message = {"template": "news", "subject": "News", "list_id": "news", "recipients": people(3) if to is None else to, **fields}
    return SendBulkEmail(**message)


def a_file(path: str = "lists:a.csv", kind: Any = "csv") -> RecipientFile:
    return RecipientFile(path=path, format=kind)


async def send(message: SendBulkEmail, job: Job | None = None) -> BulkSent:
    result = await cast("Awaitable[object]", send_bulk_email(message, job or job_of(message)))
    assert isinstance(result, BulkSent)
    return result


# --- everybody, once -----------------------------------------------------------------------------------------------------


async def test_each_recipient_gets_a_mail_of_its_own(office: Office) -> None:
    message = campaign(common={"greeting": "Grüße", "name": "nobody"}, reply_to="me@x.org")
    job = job_of(message)
    result = await send(message, job)
    assert msgspec.structs.asdict(result) == {
        **{"accepted": 3, "refused": 0, "suppressed": 0, "unknown": 0, "duplicates": 0, "bad": 0, "problems": [], "slices": 0},
        "sha256": hashlib.sha256(msgspec.json.encode(message.recipients)).hexdigest(),
    }
    assert sorted(office.received) == [f"u{number}@example.org" for number in range(3)]
    for mail in office.host.messages:
        number = mail["To"][1]
        assert mail["To"] == f"u{number}@example.org"
        assert mail.get_content().splitlines() == [f"Dear N{number},", "Grüße"]
        assert mail["Message-ID"] == f"<{job.work}.{number}@example.com>"
        assert (mail["List-Id"], mail["Reply-To"], mail["Subject"]) == ("<news.example.com>", "me@x.org", "News")
    assert job.extras is not None
    progress = job.extras.said.progress
    assert progress is not None
    assert (progress.done, progress.total) == (3, 3)


async def test_a_repeat_sends_nothing_and_has_the_same_result(office: Office) -> None:
    message = campaign(people(20))
    first = await send(message)
    seen = list(office.host.seen)
    assert await send(message) == first
    assert office.host.seen == seen


async def test_a_link_to_unsubscribe_holds_a_token_and_no_address(office: Office) -> None:
    office.template("{{ unsubscribe_url }}")
    await send(campaign(unsubscribe="https://example.com/u/{token}?l=news"))
    assert all(b"\r\nList-Unsubscribe: <https://example.com/u/" in content for _, _, content in office.host.envelopes)
    tokens = set[str]()
    for mail in office.host.messages:
        digest = hmac.digest(KEY.encode(), f"news\n{mail['To']}".encode(), "sha256")
        token = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        assert mail["List-Unsubscribe"] == f"<https://example.com/u/{token}?l=news>"
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert mail.get_content().strip() == f"https://example.com/u/{token}?l=news"
        tokens.add(token)
    assert len(tokens) == 3


async def test_a_list_is_named_in_ascii(office: Office) -> None:
    office.arrange(sender=', name = "Bücher"')
    settings = (office.folder / "handlers.toml").read_text().replace("news@example.com", "news@bücher.example")
    (office.folder / "handlers.toml").write_text(settings)
    await send(campaign(people(1)))
    assert b"\r\nList-Id: <news.xn--bcher-kva.example>\r\n" in office.host.envelopes[0][2]


@pytest.mark.parametrize("key", ["", ", unsubscribe_key = 'env:NO_SUCH_KEY'"])
async def test_a_missing_key_is_waited_for(office: Office, configure: Configure, key: str) -> None:
    configure(
        f'smtp.main = {{ url = "smtp://localhost:{office.host.port}", plain = true }}\n'
        f'senders.default = {{ smtp = "main", address = "a@b.org"{key} }}\n'
        f"templates.path = '{office.folder / 'templates'}'\n"
    )
    with pytest.raises(Snooze, match="alias-missing: senders.default: unsubscribe_key"):
        await send(campaign(unsubscribe="https://example.com/u/{token}"))
    assert not office.host.seen


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sender": "nobody"}, "senders.nobody"),
        ({"template": "nothing"}, "templates.nothing"),
        ({"recipients": RecipientFile(path="gone:a.csv", format="csv")}, "roots.gone"),
        ({"suppress": "gone:a.csv"}, "roots.gone"),
    ],
)
async def test_a_missing_alias_is_waited_for(office: Office, fields: dict[str, Any], said: str) -> None:
    office.arrange(sender=', name = "News"')
    path = office.folder / "handlers.toml"
    path.write_text(path.read_text().replace('lists = ["lists"]', 'lists = ["lists", "gone"]'))
    with pytest.raises(Snooze, match=f"alias-missing: {said}"):
        await send(campaign(**{"to": fields.pop("recipients", None), **fields}))
    assert not office.host.seen


async def test_a_cancelled_plan_hands_on_nothing_and_ends_its_thread(office: Office) -> None:
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(20_000))])
    message = campaign(a_file())
    job = job_of(message)
    task = asyncio.create_task(send(message, job))
    await until(lambda: job.extras is not None and job.extras.said.progress is not None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not job.followers
    stop, settings = Stop(), current()
    stop.is_set = True
    with pytest.raises(Stopped):
        Reader(message, job, settings, settings.sender("default"), lambda row: row, stop).read()


# --- files ---------------------------------------------------------------------------------------------------------------


ROWS = [["name", "address"], ["Ada", "ada@example.org"], ['B"ob,\nthe 2nd', "bob@bücher.example"], ["", "c@x.org"]]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
async def test_a_file_of_csv_is_read_row_by_row(office: Office, bom: bytes) -> None:
    path = office.csv(ROWS)
    path.write_bytes(bom + path.read_bytes() + b"\r\n\r\n")
    result = await send(campaign(a_file()))
    assert (result.accepted, result.slices, result.bad) == (3, 0, 0)
    said = {mail["To"]: mail.get_content().splitlines()[0] for mail in office.host.messages}
    assert said == {"ada@example.org": "Dear Ada,", "bob@xn--bcher-kva.example": 'Dear B"ob,', "c@x.org": "Dear ,"}


async def test_a_file_of_json_lines_is_read_line_by_line(office: Office) -> None:
    office.write("a.jsonl", "\n".join(json.dumps({"address": f"u{n}@x.org", "params": {"name": n}}) for n in range(5)))
    assert (await send(campaign(a_file("lists:a.jsonl", "jsonl")))).accepted == 5
    assert sorted(office.received) == [f"u{n}@x.org" for n in range(5)]


BAD_CSV = ["no address here", "a@x.org,b,c", "not-an-address,x", '"a@x.org,x', "a..b@x.org,x", "a@x.org,\x07", "\xff@x.org,x"]
BAD_JSON = [
    *(
        "nonsense",
        "{}",
        '{"address": "x"}',
        '{"address": "a@x.org", "secret": 1}',
        '{"address": "a@x.org", "params": {"a": "\\u0007"}}',
    ),
    *("[" * 5000, '{"address": "a@straße.example"}'),
]


@pytest.mark.parametrize(("kind", "row"), [*(("csv", row) for row in BAD_CSV), *(("jsonl", row) for row in BAD_JSON)])
async def test_a_bad_row_is_counted_and_named_without_its_text(office: Office, kind: str, row: str) -> None:
    if kind == "csv":
        good = "address,name\n" + "".join(f"u{number}@x.org,n\n" for number in range(40))
    else:
        good = "".join(json.dumps({"address": f"u{number}@x.org"}) + "\n" for number in range(40))
    office.write(f"a.{kind}", (good + row).encode("latin-1"))
    result = await send(campaign(a_file(f"lists:a.{kind}", kind)))
    assert (result.accepted, result.bad) == (40, 1)
    (problem,) = result.problems
    assert problem.startswith("row 41: ")
    assert "secret" not in problem
    assert "not-an-address" not in problem


async def test_too_many_bad_rows_send_nothing(office: Office) -> None:
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(18)), ["bad"]])
    with pytest.raises(Dead, match="1 of 19 rows are bad, nothing was sent: row 19: ") as caught:
        await send(campaign(a_file()))
    assert caught.value.code == "bad-rows"
    assert not office.host.seen


async def test_a_template_that_fails_on_the_first_rows_sends_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "SAMPLE", 10)
    office.template("{{ missing }}")
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(1000))])
    with pytest.raises(Dead, match="'missing' is undefined") as caught:
        await send(campaign(a_file()))
    assert caught.value.code == "bad-rows"
    with pytest.raises(Dead, match="'missing' is undefined"):
        await send(campaign())
    assert not office.host.seen


async def test_a_template_that_fails_on_one_later_row_refuses_that_one(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "SAMPLE", 1)
    office.template("{{ 1 // (n | int) }}")
    result = await send(campaign([Recipient(address=f"u{number}@x.org", params={"n": 1 - number}) for number in range(2)]))
    assert (result.accepted, result.refused) == (1, 1)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        *[
            ("", "bad-rows"),
            ("name\nx\n", "bad-rows"),
            ("address,address\na@x.org,b\n", "bad-rows"),
            ("address,\na@x.org,b\n", "bad-rows"),
        ],
        *[
            ("address,a\x07\na@x.org,b\n", "bad-rows"),
            ("address\xff\n", "bad-rows"),
            ('address,"\n' + "x\n" * 40_000, "too-large"),
        ],
        *[("address\n" + "x" * 70_000, "too-large"), ('address\n"a\n' + "b\n" * 40_000, "too-large")],
    ],
)
async def test_a_file_that_is_no_list_sends_nothing(office: Office, content: str, code: str) -> None:
    office.write("a.csv", content.encode("latin-1"))
    with pytest.raises(Dead) as caught:
        await send(campaign(a_file()))
    assert caught.value.code == code
    assert not office.host.seen


@pytest.mark.parametrize("field", ["recipients", "suppress"])
@pytest.mark.parametrize(
    ("path", "said"),
    [("other:a.csv", "may not read recipients from roots.other"), ("lists:link", "roots.lists"), ("lists:up/key", "roots.lists")],
)
async def test_a_file_is_read_only_where_the_sender_may(office: Office, field: str, path: str, said: str) -> None:
    office.csv(ROWS)
    (office.folder / "lists" / "link").symlink_to(office.folder / "key")
    (office.folder / "lists" / "up").symlink_to(office.folder)
    with pytest.raises(Dead, match=said) as caught:
        await send(campaign(a_file(path)) if field == "recipients" else campaign(suppress=path))
    assert caught.value.code == "bad-path"
    assert not office.host.seen


async def test_a_file_that_is_not_there_is_waited_for_a_minute(office: Office) -> None:
    message = campaign(a_file())
    with pytest.raises(Retry, match="input-missing"):
        await send(message)
    with pytest.raises(Dead) as caught:
        await send(message, job_of(message, failed=2))
    assert caught.value.code == "input-missing"


async def test_a_file_that_was_changed_between_attempts_is_not_sent_on(office: Office) -> None:
    office.csv(ROWS)
    office.host.script = {"ada": ["451 later"]}
    message = campaign(a_file())
    with pytest.raises(TemporaryFailure):
        await send(message)
    for others in ([], [["", f"f{number}@x.org"] for number in range(5)], [["", f"g{number}@x.org"] for number in range(20_000)]):
        office.csv([["name", "address"], ["Eve", "eve@example.org"], *ROWS[2:], *others])
        with pytest.raises(Dead) as caught:
            await send(message)
        assert caught.value.code == "input-changed"
    assert "eve@example.org" not in office.received


# --- who is left out -----------------------------------------------------------------------------------------------------


async def test_an_address_gets_one_mail_however_it_is_written(office: Office) -> None:
    written = ["Ada@Example.org", "ada@example.org", "a@bücher.example", "a@xn--bcher-kva.EXAMPLE", "b@x.org"]
    result = await send(campaign([Recipient(address=each) for each in written]))
    assert (result.accepted, result.duplicates) == (3, 2)
    assert sorted(office.received) == ["Ada@Example.org", "a@xn--bcher-kva.example", "b@x.org"]


async def test_who_is_suppressed_gets_nothing_and_the_file_is_read_each_time(office: Office) -> None:
    office.host.script = {"u3": ["451 later"]}
    office.write("stop.txt", "\ufeffU0@EXAMPLE.ORG\r\n\nx@bücher.example\nnonsense\n")
    message = campaign([*people(4), Recipient(address="x@xn--bcher-kva.example")], suppress="lists:stop.txt")
    with pytest.raises(TemporaryFailure):
        await send(message)
    office.write("stop.txt", "u0@example.org\nu3@example.org\nx@bücher.example\n")
    result = await send(message)
    assert (result.accepted, result.suppressed) == (2, 3)
    assert sorted(office.received) == ["u1@example.org", "u2@example.org"]


async def test_who_may_not_be_written_to_is_refused(office: Office) -> None:
    office.arrange(sender=', to = ["*@example.org"]')
    result = await send(campaign([*people(2), Recipient(address="eve@evil.org")]))
    assert (result.accepted, result.refused) == (2, 1)
    assert "eve@evil.org" not in office.received


async def test_an_hour_that_is_used_up_stops_and_goes_on_later(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_hours", {})
    office.arrange(sender=", per_hour = 2")
    message = campaign(people(5))
    with pytest.raises(Snooze, match="rate-limited: senders.default: `per_hour`"):
        await send(message)
    assert len(office.received) == 2
    monkeypatch.setattr(rates, "_hours", {})
    office.arrange()
    assert (await send(message)).accepted == 5
    assert len(set(office.received)) == len(office.received) == 5


# --- what the server says ------------------------------------------------------------------------------------------------


async def test_refused_recipients_are_counted_and_not_tried_again(office: Office) -> None:
    office.host.script = {"u1": ["550 5.1.1 no such user"], "u2": ["451 4.2.1 later", "250 ok"]}
    message = campaign(people(4))
    with pytest.raises(TemporaryFailure, match="smtp-4xx: put off for 1 of 4"):
        await send(message)
    result = await send(message)
    assert (result.accepted, result.refused) == (3, 1)
    assert Counter(line for line in office.host.seen if line.startswith("RCPT"))["RCPT u1@example.org"] == 1
    assert len(office.received) == 3


async def test_a_server_that_greylists_sees_everybody_and_gets_pauses(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(campaigns, "MAX_PAUSE_S", 0.02)
    office.arrange(smtp="connections = 1")
    office.host.script = {f"u{number}": ["451 4.7.1 greylisted", "250 ok"] for number in range(30)}
    message = campaign(people(30))
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    with pytest.raises(TemporaryFailure, match="put off for 30 of 30"):
        await send(message)
    assert loop.time() - begun_s >= 5 * 0.01 + 20 * 0.02  # after the fifth, and after the tenth and those that follow
    assert (await send(message)).accepted == 30


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"MAIL": ["421 4.3.2 busy"]}, "rate-limited"),
        ({"u5": ["421 no"]}, "rate-limited"),
        ({"u5": ["530 login"]}, "auth-failed"),
    ],
)
async def test_a_server_that_refuses_us_ends_the_run_and_costs_no_attempt(
    office: Office, script: dict[str, list[str]], said: str
) -> None:
    office.host.script = script
    message = campaign(people(40), unknown="skip")
    with pytest.raises(Snooze, match=said):
        await send(message)
    assert len(office.received) < 40
    office.host.script = {}
    assert (await send(message)).accepted == 40
    assert len(office.received) == 40


async def test_one_lost_connection_is_an_accident(office: Office) -> None:
    office.host.script = {"DATA": ["250 ok", DROP, "250 ok"]}
    message = campaign(people(20))
    with pytest.raises(TemporaryFailure, match="put off for 1 of 20"):
        await send(message)
    assert (await send(message)).accepted == 20


async def test_a_server_that_is_gone_ends_the_run(office: Office) -> None:
    office.host.script = {"MAIL": [DROP]}
    message = campaign(people(100))
    with pytest.raises(TemporaryFailure, match="connection-lost"):
        await send(message)
    assert sum(line.startswith("MAIL") for line in office.host.seen) < 20


@pytest.mark.parametrize(("unknown", "deliveries", "counted"), [("resend", 20, 0), ("skip", 19, 1)])
async def test_what_may_have_been_sent_is_sent_again_or_counted(
    office: Office, unknown: str, deliveries: int, counted: int
) -> None:
    office.host.script = {"DATA": ["250 ok", DROP, "250 ok"]}
    message = campaign(people(20), unknown=unknown)
    if unknown == "resend":
        with pytest.raises(TemporaryFailure):
            await send(message)
    result = await send(message)
    assert (result.accepted, result.unknown) == (deliveries, counted)
    assert (await send(message)) == result
    assert len(office.received) == deliveries


@pytest.mark.parametrize("verb", ["MAIL", "u1"])
async def test_what_was_certainly_not_sent_is_not_unknown(office: Office, verb: str) -> None:
    office.host.script = {verb: [DROP, "250 ok"]}
    message = campaign(people(3), unknown="skip")
    with pytest.raises(TemporaryFailure):
        await send(message)
    assert (await send(message)).accepted == 3


async def test_mails_leave_at_the_rate_of_the_campaign(office: Office) -> None:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await send(campaign(people(5), per_second=40))
    assert loop.time() - begun_s >= 4 / 40  # never faster


# --- marks ---------------------------------------------------------------------------------------------------------------


async def test_states_take_two_bits_and_come_back(marks: FolderMarks) -> None:
    message = campaign()
    batch = Batch(rows=[], count=SLICE_ROWS, digest=b"d" * 32)
    states = States(job_of(message), batch)
    for at in range(SLICE_ROWS):
        states[at] = State(at * 7 % 4)
    states[5], states[6] = State.ACCEPTED, State.NONE
    await states.save()
    again = States(job_of(message), batch)
    await again.load()
    expected = [State(at * 7 % 4) for at in range(SLICE_ROWS)]
    expected[5], expected[6] = State.ACCEPTED, State.NONE
    assert [again[at] for at in range(SLICE_ROWS)] == expected
    assert len(await marks.marks_of(job_of(message).work) or b"") == 32 + SLICE_ROWS // 4


async def test_those_who_save_at_once_share_a_write(marks: FolderMarks) -> None:
    states = States(job_of(campaign()), Batch(rows=[], count=8, digest=b"d" * 32))
    await asyncio.gather(*(states.save() for _ in range(8)))
    assert marks.writes == 1


async def test_what_is_set_while_a_write_is_under_way_is_written_by_the_next(marks: FolderMarks) -> None:
    states = States(job_of(campaign()), Batch(rows=[], count=8, digest=b"d" * 32))
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(work: str, value: bytes) -> None:
        begun.set()
        await goes_on.wait()
        await FolderMarks.set_marks(marks, work, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "set_marks", slow)
        first = asyncio.create_task(states.save())
        await begun.wait()
        states[3] = State.ACCEPTED
        second = asyncio.create_task(states.save())
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(first, second)
    assert marks.writes == 2
    again = States(job_of(campaign()), Batch(rows=[], count=8, digest=b"d" * 32))
    await again.load()
    assert again[3] is State.ACCEPTED


async def test_a_run_that_has_taken_its_time_goes_on_in_another(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    message = campaign(people(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaigns, "RUN_S", -1.0)
        with pytest.raises(Snooze, match="the next one goes on"):
            await send(message)
    assert not office.received
    assert (await send(message)).accepted == 40


async def test_a_store_that_is_away_stops_the_run_before_a_mail(office: Office, marks: FolderMarks) -> None:
    async def away(work: str, value: bytes) -> None:
        if marks.writes >= 3:
            raise StoreUnavailable("away")
        await FolderMarks.set_marks(marks, work, value)

    message = campaign(people(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "set_marks", away)
        with pytest.raises(StoreUnavailable):
            await send(message)
    assert len(office.received) <= 3 * 4
    assert (await send(message)).accepted == 40
    assert len(office.received) - 40 <= 4  # at most one for each connection


async def test_a_cancelled_run_leaves_one_unknown_for_each_connection(office: Office) -> None:
    office.host.script = {f"u{number}": ["250 ok"] for number in range(10)} | {"DATA": [*["250 ok"] * 10, HANG]}
    message = campaign(people(40))
    task = asyncio.create_task(send(message))
    await until(lambda: sum(line == "DATA" for line in office.host.seen) >= 14)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: office.host.open_connections == 0)
    office.host.script = {}
    assert (await send(message)).accepted == 40
    assert len(office.received) == len(set(office.received)) == 40  # what hung was not accepted


async def stopped(message: SendBulkEmail, when: Callable[[], bool]) -> None:
    task = asyncio.create_task(send(message))
    await until(when)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_run_leaves_as_unknown_only_whose_content_was_sent(office: Office) -> None:
    office.arrange(smtp="connections = 2")
    office.host.script = {"u0": [HANG, "250 ok"], "DATA": [*["250 ok"] * 5, HANG, "250 ok"]}
    message = campaign(people(20), unknown="skip")
    await stopped(message, lambda: office.host.seen.count("DATA") == 6)
    result = await send(message)
    assert (result.accepted, result.unknown) == (19, 1)
    assert "u0@example.org" in office.received
    assert len(set(office.received)) == len(office.received) == 19


@pytest.mark.parametrize("unknown", ["resend", "skip"])
async def test_a_cancelled_run_writes_the_verdicts_that_were_to_be_written(
    office: Office, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    monkeypatch.setattr(campaigns, "SHARE_S", 0.2)
    office.arrange(smtp="connections = 1")
    message = campaign(people(3), unknown=unknown)
    await stopped(message, lambda: len(office.received) == 1)  # the next one waits to be written as begun
    monkeypatch.setattr(campaigns, "SHARE_S", 0.0)
    assert (await send(message)).accepted == 3
    assert len(office.received) == 3


async def test_a_store_that_hangs_does_not_hold_up_a_stop(
    office: Office, marks: FolderMarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(work: str, value: bytes) -> None:
        asked.set()
        await asyncio.get_running_loop().create_future()

    asked = asyncio.Event()
    monkeypatch.setattr(campaigns, "LEAVING_S", 0.05)
    monkeypatch.setattr(marks, "set_marks", hang)
    await stopped(campaign(), asked.is_set)


# --- slices --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Slices have few rows."""
    monkeypatch.setattr(recipients, "SLICE_ROWS", 16)
    return 16


def slices_of(job: Job, message: SendBulkEmail) -> list[tuple[str, SendBulkEmail]]:
    """Return the jobs that were handed on."""
    return [(one.head.id, msgspec.json.decode(one.data, type=SendBulkEmail)) for one in job.followers]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_a_large_file_becomes_jobs_for_its_slices(office: Office, few: int, kind: str) -> None:
    rows = [[f"u{number % 50}@x.org", f"N\n{number}"] for number in range(60)]
    rows[7][0] = "bad"
    if kind == "csv":
        office.csv([["address", "name"], *rows])
    else:
        lines = "".join(json.dumps({"address": address, "params": {"name": name}}) + "\n" for address, name in rows)
        office.write("a.jsonl", lines)
    message = campaign(a_file(f"lists:a.{kind}", kind), common={"greeting": "x"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipients, "MAX_BAD", 0.5)
        job = job_of(message)
        plan = await send(message, job)
        again = job_of(message, failed=3, first_ms=1_700_000_000_000)
        assert await send(message, again) == plan
    parts = slices_of(job, message)
    assert parts == slices_of(again, message)
    assert (plan.slices, plan.bad, plan.duplicates, plan.accepted) == (4, 1, 9, 0)
    assert [name for name, _ in parts] == [f"{job.work}:slice-{number}" for number in range(4)]
    assert {dict(zip(one.head.fields[::2], one.head.fields[1::2], strict=False)).get(b"group") for one in job.followers} == {
        "news"
    }
    assert not office.host.seen
    results = [await send(part, job_of(part, id=name)) for name, part in parts]
    assert sum(result.accepted for result in results) == 50
    assert sorted(office.received) == sorted({f"u{number}@x.org" for number in range(50)})
    said = {mail["To"]: mail.get_content().splitlines()[:2] for mail in office.host.messages}
    assert said["u49@x.org"] == ["Dear N", "49,"]
    ids = [mail["Message-ID"] for mail in office.host.messages]
    assert len(set(ids)) == 50


async def test_a_template_that_was_broken_after_the_plan_refuses_nobody(office: Office, few: int) -> None:
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(few + 1))])
    message = campaign(a_file())
    job = job_of(message)
    await send(message, job)
    (_, first), _ = slices_of(job, message)
    office.template("Dear {{ name }\n")
    with pytest.raises(Snooze, match="alias-missing: templates.news"):
        await send(first)
    office.template("Dear {{ nmae }}\n")
    with pytest.raises(Dead, match="fails on 16 of the first 16 rows: .*'nmae' is undefined") as caught:
        await send(first)
    assert caught.value.code == "bad-rows"
    assert not office.host.seen
    office.template("Hello\n")
    assert (await send(first)).accepted == few


async def test_a_slice_of_a_file_that_was_changed_sends_nothing(office: Office, few: int) -> None:
    path = office.csv([["address", "name"], *([f"u{number}@x.org", "n"] for number in range(40))])
    message = campaign(a_file())
    job = job_of(message)
    await send(message, job)
    (_, first), (_, second), _ = slices_of(job, message)
    path.write_bytes(path.read_bytes().replace(b"u20@", b"e20@"))
    assert (await send(first)).accepted == 16
    with pytest.raises(Dead) as caught:
        await send(second)
    assert caught.value.code == "input-changed"
    path.write_bytes(path.read_bytes().replace(b"address,name", b"name,address"))
    with pytest.raises(Dead):
        await send(first, job_of(first, id="another"))
    assert len(office.received) == 16


async def test_a_slice_that_somebody_has_made_up_sends_nothing(office: Office, few: int) -> None:
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(40))])
    message = campaign(a_file())
    job = job_of(message)
    await send(message, job)
    (_, first), *_ = slices_of(job, message)
    for change in ({"rows": 15}, {"end": cast("RecipientSlice", first.recipients).end + 1}, {"sha256": "0" * 64}):
        part = msgspec.structs.replace(cast("RecipientSlice", first.recipients), **change)
        with pytest.raises(Dead) as caught:
            await send(msgspec.structs.replace(first, recipients=part))
        assert caught.value.code == "input-changed"
    assert not office.host.seen


async def test_a_file_with_more_than_fits_is_refused(office: Office, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "MAX_SLICES", 3)
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(16 * 3 + 1))])
    message = campaign(a_file())
    with pytest.raises(Dead) as caught:
        await send(message)
    assert caught.value.code == "too-large"
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(16 * 3))])
    assert (await send(message)).slices == 3


@pytest.mark.parametrize(
    ("sender", "smtp", "per_second", "rate"),
    [
        (", per_hour = 36", "", None, 0.01),
        ("", ", per_second = 0.02", None, 0.02),
        (", per_hour = 36", ", per_second = 0.02", 0.005, 0.005),
    ],
)
async def test_slices_come_when_it_is_their_turn(
    office: Office, few: int, sender: str, smtp: str, per_second: float | None, rate: float
) -> None:
    office.arrange(sender=sender, smtp=f"connections = 4{smtp}")
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(40))])
    message = campaign(a_file(), per_second=per_second)
    job = job_of(message)
    begun_ms = time.time() * 1000
    assert (await send(message, job)).slices == 3
    first, *others = (one.head.due_ms for one in job.followers)
    assert first == 0
    for number, due_ms in enumerate(others, 1):
        assert due_ms >= begun_ms + number * few / rate * 1000 - 1


async def test_no_slice_needs_longer_than_jobs_may_wait(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "SLICE_S", 3600.0)
    office.arrange(sender=", per_hour = 15")
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(40))])
    message = campaign(a_file())
    job = job_of(message)
    await send(message, job)
    assert [cast("RecipientSlice", part.recipients).rows for _, part in slices_of(job, message)] == [15, 15, 10]


async def test_long_rows_make_shorter_slices(office: Office, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "MAX_SLICE_BYTES", 100)
    office.csv([["address"], *([f"u{number}@x.org"] for number in range(20))])
    message = campaign(a_file())
    job = job_of(message)
    await send(message, job)
    parts = [part.recipients for _, part in slices_of(job, message)]
    assert all(isinstance(part, RecipientSlice) and part.end - part.begin <= 100 for part in parts)
    for name, part in slices_of(job, message):
        await send(part, job_of(part, id=name))
    assert len(set(office.received)) == len(office.received) == 20


# --- killed --------------------------------------------------------------------------------------------------------------


POINTS = [("sending", 1), ("sending", 7), ("sent", 1), ("sent", 9), ("saved", 1)]


@pytest.mark.parametrize(("point", "times"), POINTS)
@pytest.mark.parametrize("unknown", ["resend", "skip"])
def test_a_worker_killed_at_a_point_leaves_what_the_next_run_completes(
    office: Office, tmp_path: Path, point: str, times: int, unknown: str
) -> None:
    message = campaign(people(24), unknown=unknown)
    disk = Disk(tmp_path)
    first = child(disk, message, point=point, times=times, marks=str(tmp_path))
    first.communicate(timeout=60)
    assert first.returncode == -9
    said = msgspec.json.decode(outcome(child(disk, message, marks=str(tmp_path))), type=BulkSent)
    got = Counter(office.received)
    assert said.accepted + said.unknown == 24
    if unknown == "resend":
        assert said.unknown == 0
        assert len(got) == 24
        assert sum(got.values()) - 24 <= 4  # at most one for each connection
    else:
        assert said.unknown <= 4
        assert max(got.values()) == 1
        assert len(got) >= said.accepted
    by_id = {
        (mail["Message-ID"], content) for mail, (_, _, content) in zip(office.host.messages, office.host.envelopes, strict=True)
    }
    assert len(by_id) == len(got)  # a second copy is the same mail
