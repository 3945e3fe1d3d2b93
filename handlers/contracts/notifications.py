"""The payload and the result of `send-notification`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Line, Params, Text, check_params
from runtime import Priority, contract

# Guesses: what a person reads on a telephone, and data that a program takes in at once.
MAX_TITLE_CHARS: Final = 200
MAX_BODY_CHARS: Final = 4000
MAX_DATA_BYTES: Final = 8 * 1024

# RFC 3986 without user, address in brackets and what it does not allow at all, such as `<`, `>` and `|`, which would end a
# link in a chat. A host of other letters is written as xn--….
_HTTPS_URL: Final = r"^https://[A-Za-z0-9._-]{1,253}(?::[0-9]{1,5})?(?:[/?#][A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*)?(?![\s\S])"

HttpsUrl = Annotated[str, Meta(pattern=_HTTPS_URL, max_length=2000, description="an https URL in ASCII, without a user")]


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a notification goes, of a channel that lets jobs say so; `key` is the channel's key that signs it."""

    url: HttpsUrl
    key: Alias | None = None


@contract("send-notification", priority=Priority.HIGH)
class SendNotification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send one message to a channel: a webhook, or a room of a chat.

    `data` is for programs that receive it. `to` is only for a channel of the worker's settings that lets jobs say where it goes.
    """

    channel: Alias
    title: Line
    body: Text = ""
    level: Literal["info", "warning", "error", "critical"] = "info"
    link: HttpsUrl | None = None
    data: Params = {}
    to: Target | None = None

    def __post_init__(self) -> None:
        """Check the lengths, and the data.

        Raises:
            ValueError: one is too long, or `data` are nested too deep, too many, or hold control characters.
        """
        if not 1 <= len(self.title) <= MAX_TITLE_CHARS:
            raise ValueError(f"must have 1 to {MAX_TITLE_CHARS} characters - at `$.title`")
        if len(self.body) > MAX_BODY_CHARS:
            raise ValueError(f"must have at most {MAX_BODY_CHARS} characters - at `$.body`")
        if self.data:
            check_params(self.data)
            if len(msgspec.json.encode(self.data)) > MAX_DATA_BYTES:
                raise ValueError(f"must have at most {MAX_DATA_BYTES} bytes - at `$.data`")


class Notified(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver has answered, and how long that took. A receiver drops a `webhook_id` that it has seen."""

    channel: str
    status: int
    response_ms: int
    webhook_id: str
