"""The payload of `send-email`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from handlers.contracts.types import Address, Alias, Line, LoneAddress, Params, Text, check_params, is_address
from runtime import Priority, contract


@contract("send-email", priority=Priority.HIGH)
class SendEmail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send one mail to one address, or to a few that see each other.

    The body is either `text`, optionally with `html`, or a `template` of the worker with its `params`. `sender` is an alias of
    the worker's settings, never an address.
    """

    # 50 recipients: a guess, far above a team and far below a mailing list
    to: LoneAddress | Annotated[list[Address], Meta(min_length=1, max_length=50)]
    subject: Line
    text: Text | None = None
    html: Text | None = None
    template: Alias | None = None
    params: Params = {}
    sender: Alias = "default"
    reply_to: Address | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: no single address, no body or two bodies, or `params` that cannot be used.
        """
        if isinstance(self.to, str) and not is_address(self.to):
            raise ValueError("must be one mail address - at `$.to`")
        if (self.text is None) == (self.template is None):
            raise ValueError("must have either `text` or `template`")
        if self.template is not None and self.html is not None:
            raise ValueError("`html` goes with `text`; a template brings its own")
        if self.template is None and self.params:
            raise ValueError("`params` goes with `template`")
        if self.params:
            check_params(self.params)
