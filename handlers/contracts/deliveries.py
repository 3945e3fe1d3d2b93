"""What all reports have: how people hear of one, the files that it consists of, and the paper they are laid out for."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Address, Alias

Page = Literal["A4", "letter"]


class Mail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="mail"):
    """Send the report by mail, with its files attached if they are small enough."""

    to: Annotated[list[Address], Meta(min_length=1, max_length=20)]
    sender: Alias = "default"
    attach: bool = True


class Notification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="notification"):
    """Say in a channel that the report is there."""

    channel: Alias


Delivery = Mail | Notification


class ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a report, by its name in the folder."""

    name: str
    bytes: int
    sha256: str
