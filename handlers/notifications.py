"""Handlers that tell people and programs what has happened: `send-notification`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from handlers.contracts.notifications import Notified, SendNotification
from handlers.kit.failures import BAD_PAYLOAD, wait_for_operator
from handlers.kit.http import Answer, Request, ask, clients
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sections import Channel, SigningKey, read_secret
from handlers.kit.settings import current
from runtime import Backoff, ConfigError, Dead, Job, handler

__all__ = ["clients", "send_notification"]  # the worker closes the clients, since it finds them here

log = logging.getLogger("handlers.notifications")

ANSWER_BYTES: Final = 64 * 1024  # a guess: of a receiver's answer only the status counts; what is longer costs its connection
SLACK_TITLE_CHARS: Final = 150  # of Slack's blocks: header
SLACK_TEXT_CHARS: Final = 3000  # of Slack's blocks: section
NTFY_BYTES: Final = 4096  # ntfy makes a file of a longer message
NTFY_PRIORITIES: Final = {"info": 3, "warning": 4, "error": 4, "critical": 5}
TEAMS_COLORS: Final = {"info": "default", "warning": "warning", "error": "attention", "critical": "attention"}


@handler(SendNotification, timeout_s=30, retry=Backoff(base_s=10, cap_s=1800, attempts=10), result_ttl_s=RESULT_TTL_S)
async def send_notification(message: SendNotification, job: Job) -> Notified:
    """Return when the receiver has taken the notification.

    May be repeated: a repeat sends the same body under the same `webhook-id`, by which a receiver drops it. A chat shows it
    twice if the first answer was lost.

    Raises:
        Dead: the job cannot succeed: `http-refused`, `redirect-refused`, `egress-blocked`.
        Snooze: the settings must be fixed, or the receiver limits our rate or does not answer; no attempt is spent.
        TemporaryFailure: a failure that may pass; retried by the policy.
    """
    channel = current().channel(message.channel)
    subject = f"channels.{message.channel}"
    url, key = _receiver(subject, channel, message)
    url, content = _shaped(channel, message, job, url)
    headers = {"Content-Type": "application/json", "Idempotency-Key": job.work}
    if channel.kind == "webhook":
        headers |= signed(job.work, int(time.time()), content, _secrets(subject, key))
    request = Request(
        subject=subject,
        circuit=f"{subject} ({urlsplit(url).hostname})" if channel.dynamic else subject,
        method="POST",
        url=url,
        headers=headers,
        body=content,
        max_bytes=ANSWER_BYTES,
        is_ours=not channel.dynamic,
    )
    point("before-post")
    answer = await _post(request, channel)
    point("after-post")
    return Notified(channel=message.channel, status=answer.status, response_ms=answer.took_ms, webhook_id=job.work)


async def _post(request: Request, channel: Channel) -> Answer:
    try:
        return await ask(request, channel)
    except Dead as error:
        log.error("%s", error)  # a channel that is gone: each notification of it is lost until somebody hears of that
        raise


def _receiver(subject: str, channel: Channel, message: SendNotification) -> tuple[str, SigningKey | None]:
    """Return the URL, and the key that signs.

    Raises:
        Dead: the job says where it goes and the channel does not let it, `egress-blocked`; or it does not say, `bad-payload`.
        Snooze: the URL or the key is missing; `alias-missing`.
    """
    if channel.url is not None:
        if message.to is not None:
            raise Dead(f"{subject} has its own url; hint: dynamic = true lets jobs say where it goes", "egress-blocked")
        try:
            return read_secret(channel.url), next(iter(channel.keys.values()), None)
        except ConfigError as error:
            raise wait_for_operator(subject, "alias-missing", f"url: {error}") from error
    if message.to is None:
        raise Dead(f"{subject} is dynamic: must say where it goes - at `$.to`", BAD_PAYLOAD)
    host = urlsplit(message.to.url).hostname or ""
    if not channel.allows(host):
        raise Dead(f"{subject} does not allow this host; hint: `hosts` in its settings", "egress-blocked")
    if message.to.key is None:
        return message.to.url, None
    key = channel.keys.get(message.to.key)
    if key is None:
        raise wait_for_operator(f"{subject}.keys.{message.to.key}", "alias-missing", "not in the settings")
    if not key.signs_for(host):
        raise Dead(f"{subject}: the key does not sign for this host; hint: `hosts` of the key", "egress-blocked")
    return message.to.url, key


# --- signing -------------------------------------------------------------------------------------------------------------


def _secrets(subject: str, key: SigningKey | None) -> list[bytes]:
    """Return what signs: the secret, and during a rotation the old one, too.

    Raises:
        Snooze: one cannot be read, or is no secret; `alias-missing`.
    """
    try:
        return [_secret_bytes(read_secret(each)) for each in (key.secret, key.old) if each] if key else []
    except (ConfigError, binascii.Error) as error:
        reason = error if isinstance(error, ConfigError) else "must be base64 after whsec_"
        raise wait_for_operator(subject, "alias-missing", f"keys: {reason}") from error


def _secret_bytes(text: str) -> bytes:
    prefix, found, rest = text.partition("whsec_")
    secret = base64.b64decode(rest, validate=True) if found and not prefix else text.encode()
    if not secret:
        raise ConfigError("must be longer than whsec_")
    return secret


def signed(webhook_id: str, now_s: int, content: bytes, secrets: list[bytes]) -> dict[str, str]:
    """Return the headers of Standard Webhooks: a signature for each secret, over id, time and content."""
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(now_s)}
    if secrets:
        digests = [hmac.digest(secret, f"{webhook_id}.{now_s}.".encode() + content, hashlib.sha256) for secret in secrets]
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(each).decode()}" for each in digests)
    return headers


# --- what each kind of channel takes -------------------------------------------------------------------------------------


def _shaped(channel: Channel, message: SendNotification, job: Job, url: str) -> tuple[str, bytes]:
    """Return where to send, and what: equal jobs make equal bytes. In a chat, all text is only text: it names nobody."""
    match channel.kind:
        case "webhook":
            return url, msgspec.json.encode(_webhook(message, job.born))
        case "slack":
            return url, msgspec.json.encode(_slack(message))
        case "teams":
            return url, msgspec.json.encode(_teams(message))
        case "ntfy":
            base, _, topic = url.partition("?")[0].rpartition("/")
            query = url.partition("?")[2]
            return f"{base}/?{query}" if query else f"{base}/", msgspec.json.encode(_ntfy(message, topic))


def _webhook(message: SendNotification, born_s: float) -> dict[str, Any]:
    fields = {name: getattr(message, name) for name in ("title", "body", "level", "link", "data")}
    return {"type": "notification", "timestamp": datetime.fromtimestamp(int(born_s), UTC), "data": fields}


def _slack(message: SendNotification) -> dict[str, Any]:
    """Return blocks of plain text, in which Slack reads no mention and no markup; the first line is what a telephone shows."""
    text = _body(message)
    parts = [text[at : at + SLACK_TEXT_CHARS] for at in range(0, len(text), SLACK_TEXT_CHARS)]
    blocks: list[dict[str, Any]] = [{"type": "header", "text": _plain(_titled(message)[:SLACK_TITLE_CHARS])}]
    blocks += [{"type": "section", "text": _plain(part)} for part in parts]
    if message.link:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"<{message.link.replace('&', '&amp;')}>"}})
    escaped = _titled(message).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")
    return {"text": escaped, "blocks": blocks}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _teams(message: SendNotification) -> dict[str, Any]:
    """Return an Adaptive Card of runs of text, in which Teams reads no Markdown; a mention needs an entity beside it."""
    color = TEAMS_COLORS[message.level]
    title = {"type": "TextRun", "text": _titled(message), "weight": "bolder", "size": "medium", "color": color}
    lines = [line for line in _body(message).split("\n") if line]
    card: dict[str, Any] = {
        "type": "AdaptiveCard",
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "version": "1.4",
    }
    card["body"] = [
        {"type": "RichTextBlock", "inlines": [run]} for run in (title, *({"type": "TextRun", "text": each} for each in lines))
    ]
    if message.link:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Open", "url": message.link}]
    return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}]}


def _ntfy(message: SendNotification, topic: str) -> dict[str, Any]:
    text = _body(message).encode()[:NTFY_BYTES].decode(errors="ignore")
    fields: dict[str, Any] = {"topic": topic, "title": message.title, "message": text, "priority": NTFY_PRIORITIES[message.level]}
    return {**fields, "click": message.link} if message.link else fields


def _titled(message: SendNotification) -> str:
    return message.title if message.level == "info" else f"{message.level.upper()}: {message.title}"


def _body(message: SendNotification) -> str:
    """Return the text with the data below it, a line for each."""
    lines = [
        f"{name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for name, value in message.data.items()
    ]
    return "\n".join([message.body, *lines] if message.body else lines)
