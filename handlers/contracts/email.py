"""Mail: what a producer fills in."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from handlers.contracts.types import Address, Alias, Line, LoneAddress, Params, Text, check_params, is_address
from runtime import Priority, contract


@contract("send-email", priority=Priority.HIGH)
class SendEmail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mail to one address or to a few that may see each other.

    The body is either `text`, perhaps with `html` beside it, or a `template` of the worker with its `params`. `sender` is an
    alias of the worker's configuration, never an address.
    """

    to: LoneAddress | Annotated[list[Address], Meta(min_length=1, max_length=50)]
    subject: Line
    text: Text | None = None
    html: Text | None = None
    template: Alias | None = None
    params: Params = {}
    sender: Alias = "default"
    reply_to: Address | None = None

    def __post_init__(self) -> None:
        """Refuse a mail to nobody, without a body, or with two.

        Raises:
            ValueError: as the text says.
        """
        if isinstance(self.to, str) and not is_address(self.to):
            raise ValueError("not one mail address - at `$.to`")
        if (self.text is None) == (self.template is None):
            raise ValueError("a mail has either `text` or `template`")
        if self.template is not None and self.html is not None:
            raise ValueError("`html` goes with `text`; a template brings its own")
        if self.template is None and self.params:
            raise ValueError("`params` goes with `template`")
        if self.params:
            check_params(self.params)
