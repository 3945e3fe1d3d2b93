"""Files below roots as attachments of a mail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from handlers.contracts.email import SendEmail
from handlers.kit.files import chunks_of, source
from handlers.kit.letters import attachment
from handlers.kit.sections import Sender
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead

MAX_ATTACHED_BYTES: Final = 10 * 2**20  # of a mail, a guess: with base64 14 MB, and many servers take 20 or 25


def read_attachments(message: SendEmail, sender: Sender, settings: Settings, attempt: int, stop: Stop) -> list[bytes]:
    """Return the parts for the attached files. Blocks: call it in a thread.

    Raises:
        Dead: the sender may not attach files of this root, or the path leads over a link, `bad-path`; they are `too-large`
            together; or one is `input-missing`.
        Retry: a file is not there yet.
        Snooze: a root must be fixed; `alias-missing`.
    """
    left_bytes, parts = MAX_ATTACHED_BYTES, list[bytes]()

    def bounded(file: int) -> Iterator[bytes]:
        nonlocal left_bytes
        for chunk in chunks_of(file, stop):
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise Dead(f"attachments must have at most {MAX_ATTACHED_BYTES} bytes together", "too-large")
            yield chunk

    for each in message.attachments:
        root, _, rest = each.path.partition(":")
        if root not in sender.attach:
            hint = f"hint: attach = ['{root}'] in its settings"
            raise Dead(f"senders.{message.sender} may not attach files of roots.{root}; {hint}", "bad-path")
        with source(settings, each.path, attempt) as file:
            parts.append(attachment(each.name or rest.rpartition("/")[2], bounded(file)))
    return parts
