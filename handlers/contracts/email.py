"""The payloads and the results of `send-email` and `send-bulk-email`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import (
    Address,
    Alias,
    FileName,
    HttpsUrl,
    Line,
    Locale,
    LoneAddress,
    OwnHeader,
    Params,
    RootPath,
    Text,
    check_params,
    check_path,
    is_address,
)
from runtime import Priority, contract

MAX_RECIPIENTS: Final = 50  # a guess, far above a team and far below a mailing list
MAX_LISTED: Final = 500  # recipients in a payload, a guess; more are a file
MAX_LISTED_BYTES: Final = 64 * 1024  # of them: a payload is small
MAX_COMMON_BYTES: Final = 4096  # a guess; each of up to 100 slices carries them, and a job hands on at most 1 MiB
MAX_ROWS: Final = 1_000_000  # of a file, as many as 100 slices hold
SLICE_ROWS: Final = 10_000  # two bits for each are 2.5 KB of `job.marks`, written up to 100 times a second
MAX_SLICE_BYTES: Final = 8 * 2**20  # a guess: a slice is read into memory
MAX_ROW_BYTES: Final = 64 * 1024  # a guess, far above a name and a few words
MAX_ATTACHMENTS: Final = 10  # a guess; how large they may be, the worker says


class Attachment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file below a root, sent under its own name or another one. What it is, receivers are told by the end of the name."""

    path: RootPath
    name: FileName | None = None

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ValueError: it is not in composed form (NFC).
        """
        check_path(self.path, "path")


@contract("send-email", priority=Priority.HIGH)
class SendEmail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send one mail to one address, or to a few. Those in `to` and `cc` see each other, nobody sees those in `bcc`.

    The body is either `text`, optionally with `html`, or a `template` of the worker with its `params`, in the language `locale`
    where it has that one. `sender` is an alias of the worker's settings, never an address; they also say to whom it may write,
    which `headers` it may add, and from which roots it may attach files.
    """

    to: LoneAddress | Annotated[list[Address], Meta(min_length=1, max_length=MAX_RECIPIENTS)]
    cc: Annotated[list[Address], Meta(max_length=MAX_RECIPIENTS)] = []
    bcc: Annotated[list[Address], Meta(max_length=MAX_RECIPIENTS)] = []
    subject: Line
    text: Text | None = None
    html: Text | None = None
    template: Alias | None = None
    params: Params = {}
    locale: Locale | None = None
    sender: Alias = "default"
    reply_to: Address | None = None
    attachments: Annotated[list[Attachment], Meta(max_length=MAX_ATTACHMENTS)] = []
    unsubscribe: HttpsUrl | None = None
    headers: Annotated[dict[OwnHeader, Line], Meta(max_length=10)] = {}

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: no single address, too many of them, no body or two bodies, or `params` that cannot be used.
        """
        if isinstance(self.to, str) and not is_address(self.to):
            raise ValueError("must be one mail address - at `$.to`")
        if len(self.all_to) + len(self.cc) + len(self.bcc) > MAX_RECIPIENTS:
            raise ValueError(f"`to`, `cc` and `bcc` must have at most {MAX_RECIPIENTS} addresses together")
        if (self.text is None) == (self.template is None):
            raise ValueError("must have either `text` or `template`")
        if self.template is not None and self.html is not None:
            raise ValueError("`html` goes with `text`; a template brings its own")
        if self.template is None and (self.params or self.locale):
            raise ValueError("`params` and `locale` go with `template`")
        if self.params:
            check_params(self.params)

    @property
    def all_to(self) -> list[str]:
        """`to` as a list."""
        return [self.to] if isinstance(self.to, str) else self.to


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A recipient whom the server refuses for good, masked, with its code."""

    to: str
    code: int


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a mail: how many recipients it was accepted for, who is refused, and what the server said last."""

    message_id: str
    accepted: int
    refused: list[Refused]
    bytes: int
    reply: str


class Recipient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One who gets a mail, with what the template says to nobody else."""

    address: Address
    params: Params = {}

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: they are nested too deep, too many, too large, or hold control characters.
        """
        if self.params:
            check_params(self.params)


class RecipientFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="file"):
    """A file of recipients below a root, in UTF-8: CSV whose first line names the columns, one of them `address`, the others
    those of `params`; or lines of JSON, each a recipient as in a payload.
    """

    path: RootPath
    format: Literal["csv", "jsonl"]

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ValueError: it is not in composed form (NFC).
        """
        check_path(self.path, "recipients.path")


class RecipientSlice(RecipientFile, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="slice"):
    """Some of the rows of a file. The job that has read all of it makes these: nobody else needs to.

    The rows are in the bytes from `begin` to `end`, after a head of `head_bytes` at the file's beginning; `sha256` is of head and
    rows. Each bit of `skip` is a row, the lowest of a byte first, that is bad or one more of an address.
    """

    head_bytes: Annotated[int, Meta(ge=0, le=MAX_ROW_BYTES)]
    begin: Annotated[int, Meta(ge=0)]
    end: Annotated[int, Meta(ge=0)]
    first: Annotated[int, Meta(ge=0, lt=MAX_ROWS)]
    rows: Annotated[int, Meta(ge=1, le=SLICE_ROWS)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(?![\s\S])")]
    skip: Annotated[bytes, Meta(max_length=SLICE_ROWS // 8)]

    def __post_init__(self) -> None:
        """Check the bytes.

        Raises:
            ValueError: they are too many, or the path is not in composed form (NFC).
        """
        check_path(self.path, "recipients.path")
        if not 0 <= self.end - self.begin <= MAX_SLICE_BYTES:
            raise ValueError(f"a slice must have at most {MAX_SLICE_BYTES} bytes")


@contract("send-bulk-email", priority=Priority.MEDIUM)
class SendBulkEmail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send a mail of its own to each of many recipients, who do not see each other: those of a list in the payload, or of a file.

    `template` gets `common` and the `params` of the recipient, which win. `unsubscribe` is a URL in which `{token}` stands for
    what tells one recipient of the list `list_id` from the others, made with the sender's key; the template has it as
    `unsubscribe_url`. `suppress` is a file with an address a line, to which nothing is sent. What is `unknown` after a crash,
    since the server may have accepted it or not, is sent once more, or not.
    """

    template: Alias
    subject: Line
    recipients: Annotated[list[Recipient], Meta(min_length=1, max_length=MAX_LISTED)] | RecipientFile | RecipientSlice
    list_id: Alias
    sender: Alias = "default"
    reply_to: Address | None = None
    common: Params = {}
    locale: Locale | None = None
    unsubscribe: HttpsUrl | None = None
    suppress: RootPath | None = None
    per_second: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    unknown: Literal["resend", "skip"] = "resend"

    def __post_init__(self) -> None:
        """Check the sizes and the URL.

        Raises:
            ValueError: they are too large, or the URL has no place for the token.
        """
        check_params(self.common)
        if len(msgspec.json.encode(self.common)) > MAX_COMMON_BYTES:
            raise ValueError(f"`common` must have at most {MAX_COMMON_BYTES} bytes")
        if isinstance(self.recipients, list) and len(msgspec.json.encode(self.recipients)) > MAX_LISTED_BYTES:
            raise ValueError(f"must have at most {MAX_LISTED_BYTES} bytes; hint: a file - at `$.recipients`")
        if self.unsubscribe is not None and self.unsubscribe.count("{token}") != 1:
            raise ValueError("must have `{token}` in it, once - at `$.unsubscribe`")
        if self.suppress is not None:
            check_path(self.suppress, "suppress")


class BulkSent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the recipients; each row of a file is counted once over the job that has read it and its slices.

    `bad` rows are no recipients; `problems` names the first of them. `unknown` ones may have got the mail or not.
    """

    accepted: int = 0
    refused: int = 0
    suppressed: int = 0
    unknown: int = 0
    duplicates: int = 0
    bad: int = 0
    problems: list[str] = []
    slices: int = 0
    sha256: str
