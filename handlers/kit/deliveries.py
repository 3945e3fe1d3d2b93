"""Telling people that a report is there: by a mail with its files, or in a channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from handlers.contracts.deliveries import Delivery, Mail, Notification, ReportFile
from handlers.contracts.email import MAX_ATTACHMENTS, Attachment, SendEmail
from handlers.contracts.notifications import SendNotification
from handlers.kit.failures import BAD_PAYLOAD
from handlers.kit.settings import Settings
from runtime import ConfigError, Dead, Job

MAX_ATTACHED_BYTES: Final = 7 * 2**20  # together: 10 MB as mail, which many servers take no more of


def check_channel(settings: Settings, alias: str | None, field: str) -> None:
    """Return if people can be told in a channel, before anything is done of which they should hear; if there is none to be told.

    Raises:
        Dead: it is for jobs that say where a notification goes; `bad-payload`.
        Snooze: there is none of that name; `alias-missing`.
    """
    if alias is not None and settings.channel(alias).dynamic:
        raise Dead(f"channels.{alias} is dynamic: must be one with a url - at `$.{field}`", BAD_PAYLOAD)


def check_delivery(settings: Settings, how: Delivery | None) -> None:
    """Return if people can be told so; as `check_channel`, also of a sender."""
    match how:
        case Mail(sender=sender):
            settings.sender(sender)
        case Notification(channel=channel):
            check_channel(settings, channel, "deliver.channel")
        case None:
            pass


def check_scheduled_channel(place: str, settings: Settings, alias: str | None) -> None:
    """Return if what the settings send again and again can tell people in this channel; if there is none to be told.

    Raises:
        ConfigError: it cannot.
    """
    channel = settings.channels.get(alias) if alias is not None else None
    if alias is not None and (channel is None or channel.dynamic):
        raise ConfigError(f"{place}: channel {alias!r}: must be in `channels`, and have a url")


def check_scheduled(place: str, settings: Settings, how: Delivery | None) -> None:
    """Return if what the settings send again and again can tell people.

    Raises:
        ConfigError: it cannot.
    """
    match how:
        case Mail(sender=sender) if sender not in settings.senders:
            raise ConfigError(f"{place}: sender {sender!r}: must be in `senders`")
        case Notification(channel=alias):
            check_scheduled_channel(place, settings, alias)
        case _:
            pass


def deliver(job: Job, how: Delivery | None, title: str, text: str, folder: str, files: Sequence[ReportFile]) -> str | None:
    """Hand on the job that tells people of these files in this folder, and return its id; None where nobody is to be told.

    It is sent in the step in which the job is done, and has an id made of it: people are told once.
    """
    body = f"{title}\n{text}\n\n{folder}\n" + "".join(f"  {file.name}\n" for file in files)
    match how:
        case Mail(to=to, sender=sender, attach=attach):
            small = _small(files) if attach else []
            attachments = [Attachment(path=f"{folder}/{file.name}", name=file.name) for file in small]
            return job.send(SendEmail(to=to, sender=sender, subject=title, text=body, attachments=attachments), suffix="mail")
        case Notification(channel=channel):
            return job.send(SendNotification(channel=channel, title=title, body=body), suffix="notification")
        case None:
            return None


def _small(files: Sequence[ReportFile]) -> list[ReportFile]:
    """Return the files, in their order, that a mail has room for."""
    found: list[ReportFile] = []
    for file in files:
        if sum(each.bytes for each in found) + file.bytes <= MAX_ATTACHED_BYTES and len(found) < MAX_ATTACHMENTS:
            found.append(file)
    return found
