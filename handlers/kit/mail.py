"""Mail: the bytes of a letter, made once and the same in every attempt, and the connections that carry it.

What a server answers to a letter is data (`Receipt`); what happens to the connection is an exception, named here by who must act.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import format_datetime
from typing import Final, Self
from unicodedata import normalize

import aiosmtplib
import msgspec

from handlers.contracts.types import is_line
from handlers.kit.settings import Sender, Smtp, wait_for_operator
from runtime import BadPayload, ConfigError, Snooze

MAX_MESSAGES: Final = 100  # per connection: many relays end a connection that never ends by itself
IDLE_S: Final = 30.0
TAKE_S: Final = 20.0  # waiting for a connection must not use up the time of a job that has not begun
BUSY_S: Final = 5.0
RSET_S: Final = 5.0
DATA_S: Final = 40.0  # a server that scans mails takes its time, and an answer that is missed means a second copy
CLOSING_S: Final = 30.0  # after a 421: the server wants to be left alone
CLOSING: Final = 421
ACCESS: Final = frozenset({530, 534, 535, 538})  # RFC 4954: authentication is wanted, too weak, or failed
MAX_DATE_S: Final = 253_402_300_799.0  # 9999-12-31, the last day a Date header can say
PLAIN_CHARS: Final = 66  # with its name, a header line of less than 78 characters
MAX_REPLY_CHARS: Final = 120

POLICY: Final = WIRE.clone(cte_type="7bit")  # passes every relay, whatever extensions it has
_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\d)")
_ADDRESS_IN_TEXT: Final = re.compile(r"[^\s<>()\[\],;:\"@]+@[^\s<>()\[\],;:\"@]+")


class TemporaryFailure(Exception):
    """A fault of the world that time may heal: the job is tried again by its policy."""


# --- the letter ----------------------------------------------------------------------------------------------------------


class Letter(msgspec.Struct, frozen=True):
    """A mail as it goes over the wire: the envelope and the bytes."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    def __repr__(self) -> str:
        return f"<Letter to {shown(self.recipients)}, {len(self.content)} bytes>"


def compose(
    *,
    sender: Sender,
    to: Sequence[str],
    reply_to: str | None,
    subject: str,
    text: str,
    html: str | None,
    work: str,
    born_s: float,
) -> Letter:
    """Return the letter of a job: equal arguments, equal bytes. Date, Message-ID and boundary come from `born_s` and `work`.

    Raises:
        BadPayload: an address cannot be written in ASCII, or the subject on one line.
        Snooze: the address of the sender cannot.
    """
    if not is_line(subject):
        raise BadPayload("more than one line - at `$.subject`")
    author, recipients = _author(sender), _addresses(to, "to")
    message = EmailMessage(POLICY)
    headers = {
        "From": _mailbox(author),
        "To": _list(recipients),
        "Reply-To": _list(_addresses([reply_to], "reply_to")) if reply_to is not None else "",
        "Subject": _encoded(subject, "Subject"),
        "Date": format_datetime(datetime.fromtimestamp(min(born_s, MAX_DATE_S), UTC)),
        "Message-ID": f"<{work}@{author.domain}>",
    }
    for name, value in headers.items():
        if value or name == "Subject":
            message[name] = _Ready(name, value)
    message.set_content(text)
    if html is not None:
        message.make_alternative(boundary=f"=_{work}")  # a digest of this very text: nobody can write it into the text
        message.add_alternative(html, subtype="html")
    return Letter(author.addr_spec, tuple(each.addr_spec for each in recipients), message.as_bytes())


class _Ready(str):
    """A header's value that the mail library takes as it is: it asks a value that has a `name` to fold itself.

    Left to itself, it parses each value again, and decodes what looks like an encoded word: a line end that was hidden in one
    comes out as a line end (CVE-2024-6923).
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
    """Return one line of text as it may stand in a header: as it is where that is safe, else in encoded words (RFC 2047)."""
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


def _addresses(texts: Sequence[str], field: str) -> list[Address]:
    """Return each address once, in order."""
    found: dict[str, Address] = {}
    for position, text in enumerate(texts):
        try:
            address = _address(text)
        except ValueError as error:
            raise BadPayload(f"{error} - at `$.{field}`, address {position + 1}") from None
        found.setdefault(address.addr_spec, address)
    return list(found.values())


def _address(text: str, name: str = "") -> Address:
    """Return the address with its domain in ASCII; raises ValueError without the value."""
    local, _, domain = text.rpartition("@")
    domain = domain if domain.isascii() else _idna(domain)
    try:
        return Address(name, addr_spec=f"{local}@{domain}")
    except (MessageError, ValueError, LookupError) as error:
        raise ValueError("not one plain address") from error


def _idna(domain: str) -> str:
    """Return a domain in ASCII.

    Python's IDNA is that of 2003, which writes some letters as others (ß as ss), and that may be somebody else's domain: what
    does not come back unchanged is refused.
    """
    try:
        written = domain.encode("idna")
        if written.decode("idna") == normalize("NFC", domain).lower():
            return written.decode("ascii")
    except UnicodeError:
        pass
    raise ValueError("the domain has no certain ASCII form: write it as xn--…")


def mask(address: str) -> str:
    """Return an address as logs and errors may show it: a***@example.org."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}"


def shown(addresses: Sequence[str]) -> str:
    """Return a few of the addresses, masked, and the number of the rest."""
    rest = f" and {len(addresses) - 5} more" if len(addresses) > 5 else ""
    return ", ".join(mask(address) for address in addresses[:5]) + rest


# --- what the server said ------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One answer of a server, as logs may show it: `note` has no addresses."""

    code: int
    is_ok: bool
    note: str

    def __str__(self) -> str:
        return f"{self.code} {self.note}".strip()

    @property
    def is_final(self) -> bool:
        """Return whether asking again is pointless."""
        return not self.is_ok and 500 <= self.code <= 599


class Receipt(msgspec.Struct, frozen=True):
    """A server's answers to a letter. `content` is None where no recipient was accepted, so that nothing was sent."""

    envelope: Reply
    recipients: dict[str, Reply]
    content: Reply | None

    @property
    def replies(self) -> list[Reply]:
        """All answers, in the order of the conversation."""
        return [self.envelope, *self.recipients.values(), *([self.content] if self.content else [])]


async def _ask(verb: str, command: Awaitable[aiosmtplib.SMTPResponse]) -> Reply:
    """Return the server's answer.

    Raises:
        TemporaryFailure: there was none, or nonsense.
    """
    try:
        response = await command
    except aiosmtplib.SMTPResponseException as error:
        if error.code < 0:
            raise TemporaryFailure(f"connection-lost: the answer to {verb} is not SMTP") from error
        return Reply(error.code, False, _note(verb, error.message))
    except (aiosmtplib.SMTPException, OSError) as error:
        raise TemporaryFailure(f"connection-lost: at {verb}: {type(error).__name__}") from error
    return Reply(response.code, True, "")


def _note(verb: str, message: str) -> str:
    """Return what may be shown of an answer. The one to DATA may quote the mail: of that, only the enhanced code (RFC 3463)."""
    if verb == "DATA":
        found = _ENHANCED.match(message)
        return found.group() if found else ""
    masked = _ADDRESS_IN_TEXT.sub(lambda found: mask(found.group()), message)
    return "".join(char if char.isprintable() else " " for char in masked)[:MAX_REPLY_CHARS]


async def _converse(client: aiosmtplib.SMTP, letter: Letter) -> Receipt:
    """Send one letter over an open connection; recipients are asked one by one, the content goes to those who were accepted."""
    options = [f"SIZE={len(letter.content)}"] if client.supports_extension("size") else []
    envelope = await _ask("MAIL", client.mail(letter.sender, options=options))
    recipients: dict[str, Reply] = {}
    if envelope.is_ok:
        for address in letter.recipients:
            recipients[address] = await _ask("RCPT", client.rcpt(address))
            if recipients[address].code == CLOSING:
                break
    is_closing = any(reply.code == CLOSING for reply in recipients.values())
    if is_closing or not any(reply.is_ok for reply in recipients.values()):
        return Receipt(envelope, recipients, None)
    patience_s = max(DATA_S, client.timeout or 0.0)
    return Receipt(envelope, recipients, await _ask("DATA", client.data(letter.content, timeout=patience_s)))


# --- connections ---------------------------------------------------------------------------------------------------------


class _Line:
    """An open connection: how many letters it has carried, and since when it is idle."""

    __slots__ = ("client", "idle_since_s", "letters")

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self.client = client
        self.letters = 0
        self.idle_since_s = 0.0

    def hang_up(self) -> None:
        """Take leave and close; the server's answer is not waited for."""
        with contextlib.suppress(aiosmtplib.SMTPException):
            if self.client.protocol is not None:
                self.client.protocol.write(b"QUIT\r\n")
        self.client.close()


class Pool:
    """Owns the connections from one event loop to one mail server: never more than its settings allow, idle ones closed."""

    def __init__(self, alias: str, smtp: Smtp) -> None:
        self.alias = alias
        self.smtp = smtp
        self._slots = asyncio.Semaphore(smtp.connections)
        self._idle: list[_Line] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._own_name = ""
        self._trust: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.alias}: {len(self._idle)} idle, {self.smtp!r}>"

    async def send(self, letter: Letter) -> Receipt:
        """Return the server's answers to this letter.

        Raises:
            TemporaryFailure: the server cannot be reached, or the connection was lost on the way; it may have taken the letter.
            Snooze: it does not let us in, or all connections are in use.
        """
        await self._enter()
        try:
            line = await self._take()
            is_sound = False
            try:
                receipt = await _converse(line.client, letter)
                is_sound = True  # after a 421 as well: if the server has not closed it, RSET will tell
                return receipt
            finally:
                self._give_back(line, is_sound)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for line in idle:
            line.hang_up()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(TAKE_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Snooze(BUSY_S, f"rate-limited: smtp.{self.alias}: all {self.smtp.connections} connections are in use") from None

    async def _take(self) -> _Line:
        """Return an open connection with an empty envelope: the last one used if it still answers, else a new one."""
        while self._idle:
            line = self._idle.pop()
            is_sound = False
            try:
                is_sound = (await _ask("RSET", line.client.rset(timeout=RSET_S))).is_ok
            except TemporaryFailure:
                self.close()  # idle for as long or longer, so the others are gone as well
            finally:
                if not is_sound:
                    line.client.close()
            if is_sound:
                return line
        return await self._open()

    async def _open(self) -> _Line:
        endpoint = self.smtp.endpoint
        try:
            password = self.smtp.read_password()
        except ConfigError as error:
            raise self._locked_out(f"password: {error}") from error
        if not self._own_name:
            self._own_name, self._trust = await asyncio.to_thread(_look_around, self.smtp.plain)
        client = aiosmtplib.SMTP(
            hostname=endpoint.host,
            port=endpoint.port,
            username=endpoint.user or None,
            password=password,
            local_hostname=self._own_name,
            timeout=self.smtp.timeout_s,
            use_tls=endpoint.scheme == "smtps",
            start_tls=endpoint.scheme == "smtp+starttls",  # False, never None: None falls back to plain text
            tls_context=self._trust,
        )
        is_open = False
        try:
            await client.connect()
            if client.is_ehlo_or_helo_needed:
                await client.ehlo()
            is_open = True
        except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
            raise self._why_closed(error) from error
        finally:
            if not is_open:
                client.close()
        return _Line(client)

    def _give_back(self, line: _Line, is_sound: bool) -> None:
        line.letters += 1
        if not is_sound or not line.client.is_connected:
            line.client.close()  # no leave-taking in the middle of a conversation: it would be read as part of a mail
            return
        if line.letters >= MAX_MESSAGES:
            line.hang_up()
            return
        line.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(line)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_S, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - IDLE_S
        stale = [line for line in self._idle if line.idle_since_s <= oldest_s]
        self._idle = [line for line in self._idle if line.idle_since_s > oldest_s]
        for line in stale:
            line.hang_up()
        self._sweeper = loop.call_at(self._idle[0].idle_since_s + IDLE_S, self._sweep) if self._idle else None

    def _why_closed(self, error: Exception) -> Exception:
        """Say who must act: what goes wrong before MAIL is about us, not about the job."""
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return self._locked_out(f"TLS: {error.__cause__ or error}")
        match error:
            case aiosmtplib.SMTPResponseException(code=421):
                return Snooze(CLOSING_S, f"rate-limited: smtp.{self.alias} answered 421 at the store")
            case aiosmtplib.SMTPResponseException(code=code) if 500 <= code <= 599 or self._is_starttls(error):
                return self._locked_out(f"the server refuses us with {code} {_note('connect', error.message)}")
            case aiosmtplib.SMTPResponseException(code=code):
                return TemporaryFailure(f"smtp.{self.alias} answered {code} at the store")
            case OSError():
                return TemporaryFailure(f"smtp.{self.alias}: {error}")
            case _:  # STARTTLS or AUTH is not on offer, or the host's name is none
                return self._locked_out(str(error))

    @staticmethod
    def _is_starttls(error: aiosmtplib.SMTPResponseException) -> bool:
        """Return whether STARTTLS was refused: the one refusal at the store that has no class of its own."""
        return type(error) is aiosmtplib.SMTPResponseException and error.code > 0

    def _locked_out(self, text: str) -> Snooze:
        return wait_for_operator(f"smtp.{self.alias}", "auth-failed", text)


def _look_around(is_plain: bool) -> tuple[str, ssl.SSLContext | None]:
    """Return this host's name and the certificates it trusts; both may take a while to find."""
    name = socket.getfqdn()
    is_name = name.isascii() and name.isprintable() and " " not in name
    return name if is_name and name else "localhost", None if is_plain else ssl.create_default_context()


_pools: dict[asyncio.AbstractEventLoop, dict[str, Pool]] = {}


def pool(alias: str, smtp: Smtp) -> Pool:
    """Return the running loop's pool for a mail server; a new one when its settings have changed."""
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        for closed in [each for each in _pools if each.is_closed()]:
            del _pools[closed]
    pools = _pools.setdefault(loop, {})
    found = pools.get(alias)
    if found is None or found.smtp != smtp:
        if found is not None:
            found.close()
        found = pools[alias] = Pool(alias, smtp)
    return found


def close_pools() -> None:
    """Close the idle connections of the running loop."""
    for each in _pools.pop(asyncio.get_running_loop(), {}).values():
        each.close()
