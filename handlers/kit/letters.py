"""Letters: mails as they are sent. A job makes equal bytes in every attempt, whatever the machine and the time."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Final, Self
from unicodedata import normalize
from urllib.parse import quote

import msgspec

from handlers.contracts.types import is_line
from handlers.kit.failures import BAD_PAYLOAD, wait_for_operator
from handlers.kit.sections import Sender
from runtime import Dead

MAX_DATE_S: Final = 253_402_300_799.0  # 9999-12-31, the last day of Python's datetime
PLAIN_CHARS: Final = 66  # RFC 5322: a header line has at most 78 characters; 12 are left for its name
MAX_SHOWN: Final = 5  # a guess: addresses as logs show them, a line at most
ENCODED_BYTES: Final = 57 * 1024  # of a file at a time, in lines of 76 characters: a fraction of a ms, in which the loop may wait

POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")  # passes every relay, with or without 8BITMIME
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_TYPES: Final = mimetypes.MimeTypes()  # Python's own table, not this machine's: equal bytes on every worker
_WRAPPED: Final = ("message", "multipart")  # RFC 2046: these must not be base64


class Letter(msgspec.Struct, frozen=True):
    """A mail as it is sent: the envelope and the bytes."""

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    content: bytes

    def __repr__(self) -> str:
        return f"<Letter to {shown(self.recipients)}, {len(self.content)} bytes>"


def compose(
    *,
    sender: Sender,
    to: Sequence[str],
    subject: str,
    text: str,
    html: str | None,
    work: str,
    born_s: float,
    cc: Sequence[str] = (),
    bcc: Sequence[str] = (),
    reply_to: str | None = None,
    headers: Mapping[str, str] = {},
    lists: Mapping[str, str] = {},
    attached: Sequence[bytes] = (),
) -> Letter:
    """Return the letter of a job: equal arguments make equal bytes. Date, Message-ID, boundaries come from `born_s` and `work`.

    Those in `bcc` are recipients, and stand in no header. `headers` come after ours; their values are encoded where they must be.
    `lists` are headers about a mailing list, in ASCII, which stay as they are: nobody decodes a URL. `attached` are what
    `attachment` returns.

    Raises:
        Dead: an address has no ASCII form, or the subject or a header has more than one line.
        Snooze: the sender's address has no ASCII form; `alias-missing`.
    """
    for field, line in {
        "subject": subject,
        **{f"headers.{name}": value for name, value in [*headers.items(), *lists.items()]},
    }.items():
        if not is_line(line):
            raise Dead(f"must be one line - at `$.{field}`", BAD_PAYLOAD)
    author = _author(sender)
    seen_by_all = {"To": _addresses(to, "to"), "Cc": _addresses(cc, "cc")}
    recipients = [*seen_by_all["To"], *seen_by_all["Cc"], *_addresses(bcc, "bcc")]
    message_id = f"<{work}@{author.domain}>"
    ours = {
        "From": _mailbox(author),
        **{name: _list(addresses) for name, addresses in seen_by_all.items()},
        "Reply-To": _list(_addresses([reply_to], "reply_to")) if reply_to is not None else "",
        "Subject": _encoded(subject, "Subject"),
        "Date": format_datetime(datetime.fromtimestamp(min(born_s, MAX_DATE_S), UTC)),
        "Message-ID": message_id,
    }
    message = EmailMessage(POLICY)
    for name, value in ours.items():
        if value or name == "Subject":
            message[name] = _Ready(name, value)
    for name, value in headers.items():
        message[name] = _Ready(name, _encoded(value, name))
    for name, value in lists.items():
        message[name] = _Ready(name, value)
    message.set_content(text)
    if html is not None:
        message.make_alternative(boundary=f"=_{work}")  # a digest of the payload, so that the payload cannot contain it
        message.add_alternative(html, subtype="html")
    envelope = tuple({address.addr_spec: None for address in recipients})
    return Letter(author.addr_spec, envelope, message_id, _with_attached(message, attached, f"=_m.{work}"))


def list_id(name: str, sender: Sender) -> dict[str, str]:
    """Return the header that names a mailing list (RFC 2919).

    Raises:
        Snooze: the sender's address has no ASCII form; `alias-missing`.
    """
    return {"List-Id": f"<{name}.{_author(sender).domain}>"}


def listed(url: str) -> dict[str, str]:
    """Return the headers by which a mail program offers to unsubscribe, in one click where it can (RFC 2369, RFC 8058)."""
    return {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def attachment(name: str, chunks: Iterable[bytes]) -> bytes:
    """Return a file as a part of a mail: its headers, and its content in base64.

    It is encoded here, and piece by piece: `email` does each of its steps on all of the content, in which the interpreter, and
    with it the loop, stands still.
    """
    kind = _TYPES.guess_type(name, strict=True)
    media = kind[0] if kind[0] and not kind[1] and kind[0].split("/")[0] not in _WRAPPED else "application/octet-stream"
    is_plain = not _UNSAFE.search(name)
    filename = f'filename="{name}"' if is_plain else f"filename*=UTF-8''{quote(name, safe='')}"  # RFC 2231
    part = bytearray(
        f"Content-Type: {media}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment;\r\n {filename}\r\n\r\n".encode()
    )
    rest = b""
    for chunk in chunks:
        rest += chunk
        whole = len(rest) - len(rest) % ENCODED_BYTES
        for at in range(0, whole, ENCODED_BYTES):
            part += _base64(rest[at : at + ENCODED_BYTES])
        rest = rest[whole:]
    return bytes(part + _base64(rest))


def _base64(data: bytes) -> bytes:
    return base64.encodebytes(data).replace(b"\n", b"\r\n")


def _with_attached(message: EmailMessage, attached: Sequence[bytes], boundary: str) -> bytes:
    """Return the bytes of the message with these parts behind its body, and each line end as mail has it."""
    if attached:
        message.make_mixed(boundary=boundary)
    content = _LINE_END.sub(b"\r\n", message.as_bytes())
    if not attached:
        return content if content.endswith(b"\r\n") else content + b"\r\n"
    end = f"--{boundary}--\r\n".encode()
    between = f"--{boundary}\r\n".encode()
    return b"".join([content.removesuffix(end), *(each for part in attached for each in (between, part)), end])


class _Ready(str):
    """A header's value that `email` takes as it is: it lets a value that has a `name` fold itself.

    Any other value it parses again, and decodes what looks like an encoded word: a line end that was hidden in one becomes a line
    end of the mail (CVE-2024-6923).
    """

    name: str

    def __new__(cls, name: str, value: str) -> Self:
        """Return the value, with the name of its header."""
        ready = super().__new__(cls, value)
        ready.name = name
        return ready

    def fold(self, *, policy: object) -> str:
        """Return the header with its line ends."""
        return f"{self.name}: {self}\r\n"


def _encoded(text: str, header: str) -> str:
    """Return one line of text in the form that a header takes: unchanged where that is safe, else as encoded words (RFC 2047)."""
    is_plain = text.isascii() and len(text) <= PLAIN_CHARS and "=?" not in text and text == " ".join(text.split())
    return text if is_plain else Header(text, "utf-8", 76, header).encode(linesep="\r\n")


def _mailbox(address: Address) -> str:
    """Return an address with its display name."""
    name = _encoded(address.display_name, "From")
    return str(address) if name == address.display_name else f"{name}\r\n <{address.addr_spec}>"


def _list(addresses: Sequence[Address]) -> str:
    return ",\r\n ".join(address.addr_spec for address in addresses)


def _author(sender: Sender) -> Address:
    try:
        return _address(sender.address, sender.name)
    except ValueError as error:
        raise wait_for_operator(f"sender {sender.address}", "alias-missing", str(error)) from None


def plain_address(text: str) -> str:
    """Return the address with its domain in ASCII.

    Raises:
        ValueError: it is not one plain address; the text does not show it.
    """
    return _address(text).addr_spec


def _addresses(texts: Sequence[str], field: str) -> list[Address]:
    """Return each address once, in order.

    Raises:
        Dead: one is not a plain address; the text names its position, not its value.
    """
    found: dict[str, Address] = {}
    for position, text in enumerate(texts):
        try:
            address = _address(text)
        except ValueError as error:
            raise Dead(f"{error} - at `$.{field}`, address {position + 1}", BAD_PAYLOAD) from None
        found.setdefault(address.addr_spec, address)
    return list(found.values())


def _address(text: str, name: str = "") -> Address:
    """Return the address with its domain in ASCII.

    Raises:
        ValueError: it is not one plain address; the text does not show it.
    """
    local, _, domain = text.rpartition("@")
    domain = domain if domain.isascii() else _idna(domain)
    try:
        return Address(name, addr_spec=f"{local}@{domain}")
    except (MessageError, ValueError, LookupError) as error:
        raise ValueError("must be one plain address") from error


def _idna(domain: str) -> str:
    """Return a domain in ASCII.

    Python's IDNA is that of 2003, which maps some letters to others (ß to ss), and the result may be a domain of another owner: a
    domain that does not decode to itself is refused.

    Raises:
        ValueError: it has no ASCII form, or not a certain one.
    """
    try:
        written = domain.encode("idna")
        if written.decode("idna") == normalize("NFC", domain).lower():
            return written.decode("ascii")
    except UnicodeError:
        pass
    raise ValueError("the domain has no certain ASCII form; hint: write it as xn--…")


def mask(address: str) -> str:
    """Return an address in the form that logs and errors may show: a***@example.org."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}"


def shown(addresses: Sequence[str]) -> str:
    """Return the first addresses, masked, and the number of the rest."""
    rest = f" and {len(addresses) - MAX_SHOWN} more" if len(addresses) > MAX_SHOWN else ""
    return ", ".join(mask(address) for address in addresses[:MAX_SHOWN]) + rest
