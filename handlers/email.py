"""Handlers that send mail: `send-email`."""

from __future__ import annotations

import logging

from handlers.contracts.email import SendEmail
from handlers.kit.failures import TemporaryFailure, wait_for_operator
from handlers.kit.mail import ACCESS, CLOSING, CLOSING_S, Receipt, Reply, compose, mask, pool, shown
from handlers.kit.settings import Settings, current
from handlers.kit.templates import render
from runtime import Backoff, Dead, Job, Snooze, handler

log = logging.getLogger("handlers.email")

TOO_LARGE = 552  # RFC 1870: the mail is larger than the server accepts


@handler(SendEmail, timeout_s=60, retry=Backoff(base_s=30, cap_s=3600, attempts=12))
async def send_email(message: SendEmail, job: Job) -> None:
    """Return when the server has accepted the mail for every recipient that it does not refuse permanently.

    May be repeated: a repeat sends the same bytes under the same Message-ID. Accepted recipients are not remembered between
    attempts: where the server accepts some and defers others, or the connection ends before its answer, those accepted get the
    mail again with each retry.

    Raises:
        Dead: the job cannot succeed: `recipient-refused`, `message-refused`, `template-error`.
        Snooze: the settings must be fixed (alias, password, TLS), or the server limits our rate; no attempt is spent.
        TemporaryFailure: a failure that may pass; retried by the policy.
    """
    settings = current()
    sender = settings.sender(message.sender)
    server = settings.server(sender.smtp)
    text, html = _body(message, settings)
    letter = compose(
        sender=sender,
        to=[message.to] if isinstance(message.to, str) else message.to,
        reply_to=message.reply_to,
        subject=message.subject,
        text=text,
        html=html,
        work=job.work,
        born_s=job.born,
    )
    receipt = await pool(sender.smtp, server).send(letter)
    _check_receipt(receipt, sender.smtp)
    refused = {address: reply for address, reply in receipt.recipients.items() if not reply.is_ok}
    if refused:
        log.warning("job %s: %d of %d recipients refused: %s", job.id, len(refused), len(receipt.recipients), _listed(refused))


def _body(message: SendEmail, settings: Settings) -> tuple[str, str | None]:
    if message.template is None:
        return message.text or "", message.html
    return render(settings.template_folder(message.template), message.template, message.params)


def _check_receipt(receipt: Receipt, alias: str) -> None:
    """Return if the server has accepted the mail, and every recipient that did not get it is refused permanently.

    Raises:
        Dead: the mail or every recipient is refused permanently.
        Snooze: the server refuses us, not the mail.
        TemporaryFailure: a recipient or the mail is deferred.
    """
    for reply in receipt.replies:
        if reply.code == CLOSING:
            raise Snooze(CLOSING_S, f"rate-limited: smtp.{alias} answered 421")
        if reply.code in ACCESS:
            raise wait_for_operator(f"smtp.{alias}", "auth-failed", f"the server answered {reply}")
    _check_envelope(receipt.envelope, alias)
    if receipt.content is not None and not receipt.content.is_ok:
        if receipt.content.is_final:
            raise Dead(f"the server refuses the mail: {receipt.content}", "message-refused")
        raise TemporaryFailure(f"smtp-4xx: DATA: {receipt.content}")
    deferred = {address: reply for address, reply in receipt.recipients.items() if not reply.is_ok and not reply.is_final}
    if deferred:
        raise TemporaryFailure(f"smtp-4xx: put off for {len(deferred)} of {len(receipt.recipients)}: {_listed(deferred)}")
    if receipt.content is None:
        raise Dead(f"the server refuses every recipient: {_listed(receipt.recipients)}", "recipient-refused")


def _check_envelope(reply: Reply, alias: str) -> None:
    if reply.is_ok:
        return
    if reply.code == TOO_LARGE:
        raise Dead(f"the server refuses the mail: {reply}", "message-refused")
    if reply.is_final:
        raise wait_for_operator(f"smtp.{alias}", "auth-failed", f"the server refuses the sender: {reply}")
    raise TemporaryFailure(f"smtp-4xx: MAIL: {reply}")


def _listed(replies: dict[str, Reply]) -> str:
    """Return the masked addresses with their codes; with the server's text if there is one recipient."""
    if len(replies) == 1:
        ((address, reply),) = replies.items()
        return f"{mask(address)} ({reply})"
    codes = ", ".join(str(code) for code in sorted({reply.code for reply in replies.values()}))
    return f"{shown(list(replies))} ({codes})"
