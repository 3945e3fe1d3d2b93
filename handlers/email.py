"""Handlers that send mail: `send-email` and `send-bulk-email`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from functools import partial

import msgspec

from handlers.contracts.email import BulkSent, Refused, SendBulkEmail, SendEmail, Sent
from handlers.kit.attachments import read_attachments
from handlers.kit.campaigns import Delivery, State, unsubscribe_token
from handlers.kit.failures import wait_for_operator
from handlers.kit.letters import Letter, compose, list_id, listed, mask, shown
from handlers.kit.mail import ACCESS, Receipt, Reply, check_receipt, pool, shown_replies
from handlers.kit.points import point
from handlers.kit.rates import give_back, rate_of, reserve
from handlers.kit.recipients import Plan, Reader, Row
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sections import Sender, read_secret
from handlers.kit.settings import Settings, current
from handlers.kit.templates import render
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, ConfigError, Dead, Job, handler

log = logging.getLogger("handlers.email")


@handler(SendEmail, timeout_s=60, retry=Backoff(base_s=30, cap_s=3600, attempts=12), result_ttl_s=RESULT_TTL_S)
async def send_email(message: SendEmail, job: Job) -> Sent:
    """Return when the server has accepted the mail for every recipient that it does not refuse permanently.

    May be repeated: a repeat sends the same bytes under the same Message-ID, and only to those whom the server has neither
    accepted nor refused. Its answers are in `job.marks`: where the process ends after the server has accepted a mail and before
    that is written, or the connection before the answer, its recipients get it once more.

    Raises:
        Dead: the job cannot succeed: `recipient-refused`, `message-refused`, `template-error`, `bad-path`, `too-large`,
            `input-missing`.
        Snooze: the settings must be fixed (alias, password, TLS), or more is sent than is allowed; no attempt is spent.
        TemporaryFailure: a failure that may pass; retried by the policy.
    """
    settings = current()
    sender = settings.sender(message.sender)
    server = settings.server(sender.smtp)
    make = partial(_letter, message, job.work, job.born, job.attempt, settings, sender)
    # Not with the threads that imports hold for an hour; a template of many loops must not hold the worker's loop.
    letter = await in_thread(make, waits=True) if message.attachments or message.template else make(Stop())
    _check_allowed(letter, message, sender)
    verdicts = _Verdicts.read(await job.marks.get(), letter)
    left = verdicts.left(letter)
    if left:
        reserve(message.sender, sender, len(left), time.monotonic())
        accepted = 0
        try:
            point("before-sending")
            receipt = await pool(sender.smtp, server).send(msgspec.structs.replace(letter, recipients=left))
            point("sent")
            accepted = verdicts.note(letter, receipt)
        finally:
            give_back(message.sender, len(left) - accepted)
        await job.marks.set(msgspec.json.encode(verdicts))
        point("marked")
        check_receipt(receipt, sender.smtp)
    return _sent(verdicts, letter, job.id)


def _letter(message: SendEmail, work: str, born_s: float, attempt: int, settings: Settings, sender: Sender, stop: Stop) -> Letter:
    text, html = _body(message, settings)
    return compose(
        sender=sender,
        to=message.all_to,
        cc=message.cc,
        bcc=message.bcc,
        reply_to=message.reply_to,
        subject=message.subject,
        text=text,
        html=html,
        work=work,
        born_s=born_s,
        headers=message.headers,
        lists=listed(message.unsubscribe) if message.unsubscribe else {},
        attached=read_attachments(message, sender, settings, attempt, stop),
    )


def _body(message: SendEmail, settings: Settings) -> tuple[str, str | None]:
    if message.template is None:
        return message.text or "", message.html
    return render(settings.template_folder(message.template), message.template, message.params, message.locale)


def _check_allowed(letter: Letter, message: SendEmail, sender: Sender) -> None:
    """Return if the settings let jobs write to all recipients in this name, and add these headers.

    Raises:
        Dead: they do not; `recipient-refused`, `message-refused`.
    """
    barred = [address for address in letter.recipients if not sender.may_write_to(address)]
    if barred:
        raise Dead(f"senders.{message.sender} may not write to {shown(barred)}; hint: `to` in its settings", "recipient-refused")
    for name in message.headers:
        if not sender.may_add(name):
            hint = "hint: `headers` in its settings"
            raise Dead(f"senders.{message.sender} may not add the header {name}; {hint}", "message-refused")


@handler(
    SendBulkEmail, timeout_s=3600, retry=Backoff(base_s=60, cap_s=3600, attempts=10), group_limit=1, result_ttl_s=RESULT_TTL_S
)
async def send_bulk_email(message: SendBulkEmail, job: Job) -> BulkSent:
    """Return when there is a last word of the server on every recipient; of a large file, when the jobs for its slices are sent.

    May be repeated: what became of each recipient is in `job.marks`, so that mail goes only to those without a last word, and a
    repeated plan sends the same slices. After a crash at most one recipient of each connection is unknown: with `resend` it gets
    the same mail again, with `skip` it is only counted. Slices of one list run one after another.

    Raises:
        Dead: the job cannot succeed: `bad-rows`, `bad-path`, `too-large`, `input-missing`, `input-changed`.
        Snooze: the settings must be fixed (alias, password, TLS), or more is sent than is allowed; no attempt is spent.
        TemporaryFailure: some recipients are put off, or the server was lost; retried by the policy, with those left.
    """
    settings = current()
    sender = settings.sender(message.sender)
    server = settings.server(sender.smtp)
    campaign = _Campaign(message, job, settings, sender)
    found = await in_thread(lambda stop: Reader(message, job, settings, sender, campaign.body, stop).read())
    if isinstance(found, Plan):
        if await job.marks.get():
            raise Dead("the recipients were changed since the job began: they were one slice", "input-changed")
        rate = rate_of(sender, server, message.per_second)
        for number, part in enumerate(found.slices):
            slice_message = msgspec.structs.replace(message, recipients=part)
            job.send(slice_message, suffix=f"slice-{number}", group=message.list_id, delay_s=part.first / rate)
        return BulkSent(
            duplicates=found.duplicates, bad=found.bad, problems=found.problems, slices=len(found.slices), sha256=found.sha256
        )
    delivery = Delivery(
        job,
        found,
        pool(sender.smtp, server),
        (message.sender, sender),
        lambda row: campaign.letter(row, found.first + row.at),
        per_second=message.per_second,
        resend=message.unknown == "resend",
    )
    await delivery.run()
    states = Counter(delivery.states[row.at] for row in found.rows)
    return BulkSent(
        accepted=states[State.ACCEPTED],
        refused=states[State.REFUSED],
        unknown=states[State.SENDING],
        suppressed=found.suppressed,
        duplicates=found.duplicates,
        bad=found.bad,
        problems=found.problems,
        sha256=found.digest.hex(),
    )


class _Campaign:
    """Makes the letter of each recipient."""

    def __init__(self, message: SendBulkEmail, job: Job, settings: Settings, sender: Sender) -> None:
        self._message = message
        self._job = job
        self._sender = sender
        self._folder = settings.template_folder(message.template)
        self._key = _unsubscribe_key(message, sender)
        self._list = list_id(message.list_id, sender)

    def body(self, row: Row) -> tuple[str, str | None]:
        """Return the body as text and as HTML; raise Dead where the template fails on what the recipient's row has."""
        url = {"unsubscribe_url": self._url(row)} if self._message.unsubscribe else {}
        params = {**self._message.common, **row.params, **url}
        return render(self._folder, self._message.template, params, self._message.locale)

    def letter(self, row: Row, ordinal: int) -> Letter:
        """Return the mail; raise Dead where there can be none for this recipient."""
        text, html = self.body(row)
        return compose(
            sender=self._sender,
            to=[row.address],
            reply_to=self._message.reply_to,
            subject=self._message.subject,
            text=text,
            html=html,
            work=f"{self._job.work}.{ordinal}",
            born_s=self._job.born,
            lists={**self._list, **(listed(self._url(row)) if self._message.unsubscribe else {})},
        )

    def _url(self, row: Row) -> str:
        token = unsubscribe_token(self._key, self._message.list_id, row.address)
        return (self._message.unsubscribe or "").replace("{token}", token)


def _unsubscribe_key(message: SendBulkEmail, sender: Sender) -> str:
    if message.unsubscribe is None:
        return ""
    try:
        if sender.unsubscribe_key is not None:
            return read_secret(sender.unsubscribe_key)
        reason = "not set"
    except ConfigError as error:
        reason = str(error)
    raise wait_for_operator(f"senders.{message.sender}", "alias-missing", f"unsubscribe_key: {reason}")


# --- what the server has said --------------------------------------------------------------------------------------------


class _Verdicts(msgspec.Struct):
    """The server's last word on each recipient, in the order of the letter; None while there is none."""

    replies: list[Reply | None]
    content: Reply | None = None

    @classmethod
    def read(cls, marks: bytes | None, letter: Letter) -> _Verdicts:
        """Return what earlier attempts have written; nothing, where it is of another letter."""
        with contextlib.suppress(msgspec.MsgspecError):
            found = msgspec.json.decode(marks or b"", type=cls)
            if len(found.replies) == len(letter.recipients):
                return found
        return cls([None] * len(letter.recipients))

    def left(self, letter: Letter) -> tuple[str, ...]:
        """Return the recipients without a word."""
        return tuple(address for address, reply in zip(letter.recipients, self.replies, strict=True) if reply is None)

    def note(self, letter: Letter, receipt: Receipt) -> int:
        """Take over what a receipt settles, and return for how many the mail was accepted."""
        is_taken, accepted = receipt.content is not None and receipt.content.is_ok, 0
        for at, address in enumerate(letter.recipients):
            reply = receipt.recipients.get(address)
            if reply is not None and (is_taken if reply.is_ok else reply.is_final and reply.code not in ACCESS):
                self.replies[at] = reply
                accepted += reply.is_ok
        self.content = receipt.content if is_taken else self.content
        return accepted


def _sent(verdicts: _Verdicts, letter: Letter, job_id: str) -> Sent:
    """Return the result, once there is a word on every recipient.

    Raises:
        Dead: nobody was accepted; `recipient-refused`.
    """
    found = zip(letter.recipients, verdicts.replies, strict=True)
    refused = {address: reply for address, reply in found if reply is not None and not reply.is_ok}
    total = len(letter.recipients)
    if len(refused) == total:
        raise Dead(f"the server refuses every recipient: {shown_replies(refused)}", "recipient-refused")
    if refused:
        log.warning("job %s: %d of %d recipients refused: %s", job_id, len(refused), total, shown_replies(refused))
    return Sent(
        message_id=letter.message_id,
        accepted=total - len(refused),
        refused=[Refused(to=mask(address), code=reply.code) for address, reply in refused.items()],
        bytes=len(letter.content),
        reply=str(verdicts.content or ""),
    )
