"""Sending mail by SMTP: pooled connections to a server, each of which sends one letter after another.

A server's answers to a letter are data (`Receipt`); a failure of the connection is an exception, chosen by who must act on it:
`TemporaryFailure` if time may heal it, `Snooze` if the settings must be fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import aiosmtplib
import msgspec

from handlers.kit.failures import TemporaryFailure, wait_for_operator
from handlers.kit.letters import Letter, mask, shown
from handlers.kit.rates import Pace
from handlers.kit.sections import Smtp
from runtime import ConfigError, Dead, Snooze

MAX_MESSAGES: Final = 100  # per connection, as Nodemailer's pool; many relays close a connection that carries more
IDLE_S: Final = 30.0  # a guess: far below the 5 minutes that RFC 5321 (4.5.3.2.7) has a server wait for a command
TAKE_S: Final = 10.0  # a guess: waiting for a connection and for a turn leaves `DATA_S` and some seconds of the job's 60
BUSY_S: Final = 5.0  # a guess: a job that found no connection comes back soon, since others end at any time
RSET_S: Final = 5.0  # a guess: RSET needs no work, so a server that is slower is as good as gone
DATA_S: Final = 40.0  # a guess: a server that scans mails is slow, and a missed answer means a second copy; below 60 s of the job
CLOSING_S: Final = 30.0  # a guess: after a 421, for the server to recover
CLOSING: Final = 421  # RFC 5321: the server is closing the connection
TOO_LARGE: Final = 552  # RFC 1870: the mail is larger than the server accepts
ACCESS: Final = frozenset({530, 534, 535, 538})  # RFC 4954: authentication is required, too weak, or failed
MAX_REPLY_CHARS: Final = 120  # a guess: a server's text as logs show it, a line at most
TAKEN: Final = 250  # RFC 5321: the server has the mail
START_INPUT: Final = 354  # RFC 5321: it waits for the mail
PIECE_BYTES: Final = 64 * 1024  # of a mail written at a time: a fraction of a ms of the loop

_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\d)")
_DOT: Final = re.compile(rb"(?m)^\.")
_ADDRESS_IN_TEXT: Final = re.compile(r"[^\s<>()\[\],;:\"@]+@[^\s<>()\[\],;:\"@]+")


# --- answers of the server ----------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One answer of a server, in a form that logs may show: `note` has no addresses."""

    code: int
    is_ok: bool
    note: str

    def __str__(self) -> str:
        return f"{self.code} {self.note}".strip()

    @property
    def is_final(self) -> bool:
        """Whether the refusal is permanent, so that a retry is pointless."""
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


class MaybeSent(TemporaryFailure):
    """The connection was lost after the content was begun: the server may have accepted the mail, or not."""


async def _ask(verb: str, command: Awaitable[aiosmtplib.SMTPResponse]) -> Reply:
    """Return the server's answer.

    Raises:
        TemporaryFailure: the connection was lost, or the answer is not SMTP; `connection-lost`. At DATA it is `MaybeSent`.
    """
    lost = MaybeSent if verb == "DATA" else TemporaryFailure
    try:
        response = await command
    except aiosmtplib.SMTPResponseException as error:
        if error.code < 0:
            raise lost(f"connection-lost: the answer to {verb} is not SMTP") from error
        return Reply(error.code, False, _note(verb, error.message))
    except (aiosmtplib.SMTPException, OSError) as error:
        raise lost(f"connection-lost: at {verb}: {type(error).__name__}") from error
    return Reply(response.code, True, _note(verb, response.message, is_ok=True))


def _note(verb: str, message: str, *, is_ok: bool = False) -> str:
    """Return what may be shown of an answer; of a refused DATA, which may quote the mail, only the enhanced code (RFC 3463)."""
    if verb == "DATA" and not is_ok:
        found = _ENHANCED.match(message)
        return found.group() if found else ""
    masked = _ADDRESS_IN_TEXT.sub(lambda found: mask(found.group()), message)
    return "".join(char if char.isprintable() else " " for char in masked)[:MAX_REPLY_CHARS]


async def _converse(client: aiosmtplib.SMTP, letter: Letter, begins: Callable[[], object]) -> Receipt:
    """Send one letter over an open connection: recipients one by one, then, after `begins()`, the content to those accepted."""
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
    begins()
    return Receipt(envelope, recipients, await _ask("DATA", _send_content(client, letter.content, patience_s)))


async def _send_content(client: aiosmtplib.SMTP, content: bytes, patience_s: float) -> aiosmtplib.SMTPResponse:
    """Send the content piece by piece: aiosmtplib does it in one step, which holds the loop for 160 ms with 10 MiB (measured)."""
    answer = await client.execute_command(b"DATA")
    if answer.code != START_INPUT:
        raise aiosmtplib.SMTPDataError(answer.code, answer.message)
    for piece in _pieces(content):
        if client.protocol is None:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost")
        client.protocol.write(piece)
        await asyncio.sleep(0)
    answer = await client.execute_command(b".", timeout=patience_s)
    if answer.code != TAKEN:
        raise aiosmtplib.SMTPDataError(answer.code, answer.message)
    return answer


def _pieces(content: bytes) -> Iterator[bytes]:
    """Yield whole lines, of which none is a dot alone (RFC 5321, 4.5.2)."""
    at = 0
    while at < len(content):
        end = content.find(b"\n", at + PIECE_BYTES) + 1 or len(content)
        yield _DOT.sub(b"..", content[at:end])
        at = end


def check_receipt(receipt: Receipt, alias: str) -> None:
    """Return if there is a last word on every recipient.

    Raises:
        Dead: the mail is refused permanently; `message-refused`.
        Snooze: the server refuses us, not the mail.
        TemporaryFailure: a recipient or the mail is deferred.
    """
    for reply in receipt.replies:
        if reply.code == CLOSING:
            raise Snooze(CLOSING_S, f"rate-limited: smtp.{alias} answered 421")
        if reply.code in ACCESS:
            raise wait_for_operator(f"smtp.{alias}", "auth-failed", f"the server answered {reply}")
    _check_envelope(receipt.envelope, alias)
    if receipt.content is not None and not receipt.content.is_ok:
        if receipt.content.is_final:
            raise Dead(f"the server refuses the mail: {receipt.content}", "message-refused")
        raise TemporaryFailure(f"smtp-4xx: DATA: {receipt.content}")
    deferred = {address: reply for address, reply in receipt.recipients.items() if not reply.is_ok and not reply.is_final}
    if deferred:
        raise TemporaryFailure(f"smtp-4xx: put off for {len(deferred)} of {len(receipt.recipients)}: {shown_replies(deferred)}")


def _check_envelope(reply: Reply, alias: str) -> None:
    if reply.is_ok:
        return
    if reply.code == TOO_LARGE:
        raise Dead(f"the server refuses the mail: {reply}", "message-refused")
    if reply.is_final:
        raise wait_for_operator(f"smtp.{alias}", "auth-failed", f"the server refuses the sender: {reply}")
    raise TemporaryFailure(f"smtp-4xx: MAIL: {reply}")


def shown_replies(replies: dict[str, Reply]) -> str:
    """Return the masked addresses with their codes; with the server's text if there is one recipient."""
    if len(replies) == 1:
        ((address, reply),) = replies.items()
        return f"{mask(address)} ({reply})"
    codes = ", ".join(str(code) for code in sorted({reply.code for reply in replies.values()}))
    return f"{shown(list(replies))} ({codes})"


# --- connections ---------------------------------------------------------------------------------------------------------


class _Connection:
    """An open connection, with the number of letters sent over it, and the time since when it is idle."""

    __slots__ = ("client", "idle_since_s", "letters")

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self.client = client
        self.letters = 0
        self.idle_since_s = 0.0

    def quit(self) -> None:
        """Send QUIT and close, without waiting for the answer."""
        with contextlib.suppress(aiosmtplib.SMTPException):
            if self.client.protocol is not None:
                self.client.protocol.write(b"QUIT\r\n")
        self.client.close()


class Pool:
    """Owns the connections from one event loop to one mail server: at most as many as its settings allow, closed when idle."""

    def __init__(self, alias: str, smtp: Smtp) -> None:
        self.alias = alias
        self.smtp = smtp
        self._slots = asyncio.Semaphore(smtp.connections)
        self._pace = Pace(smtp.per_second)
        self._idle: list[_Connection] = []
        self._closing_timer: asyncio.TimerHandle | None = None
        self._own_name = ""
        self._trust: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.alias}: {len(self._idle)} idle, {self.smtp!r}>"

    async def send(
        self, letter: Letter, patience_s: float | None = None, *, begins: Callable[[], object] = lambda: None
    ) -> Receipt:
        """Send the letter and return the server's answers.

        Args:
            letter: the mail.
            patience_s: how long to wait for a connection and the turn that the server's rate gives, together; None for `TAKE_S`.
            begins: called right before the content is sent: until then, the server cannot have accepted the mail.

        Raises:
            TemporaryFailure: the server cannot be reached, or the connection was lost; the server may have accepted the letter.
            Snooze: the server refuses us, `auth-failed`; or connections or the rate stay in use, `rate-limited`.
        """
        patience_s = TAKE_S if patience_s is None else patience_s
        clock = asyncio.get_running_loop().time
        end_s = clock() + patience_s
        await self._enter(patience_s)
        try:
            await self._pace.turn(max(0.0, end_s - clock()), f"smtp.{self.alias}")
            connection = await self._take()
            is_sound = False
            try:
                receipt = await _converse(connection.client, letter, begins)
                is_sound = True  # after a 421 as well: whether the server has closed it, RSET will show
                return receipt
            finally:
                self._give_back(connection, is_sound)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.quit()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
            self._closing_timer = None

    async def _enter(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Snooze(BUSY_S, f"rate-limited: smtp.{self.alias}: all {self.smtp.connections} connections are in use") from None

    async def _take(self) -> _Connection:
        """Return an open connection with an empty envelope: the last one used if it still answers, else a new one."""
        while self._idle:
            connection = self._idle.pop()
            is_sound = False
            try:
                is_sound = (await _ask("RSET", connection.client.rset(timeout=RSET_S))).is_ok
            except TemporaryFailure:
                self.close()  # the others have been idle for as long or longer, so they are lost as well
            finally:
                if not is_sound:
                    connection.client.close()
            if is_sound:
                return connection
        return await self._open()

    async def _open(self) -> _Connection:
        endpoint = self.smtp.endpoint
        try:
            password = self.smtp.read_password()
        except ConfigError as error:
            raise self._refused(f"password: {error}") from error
        if not self._own_name:
            self._own_name, self._trust = await asyncio.to_thread(_own_identity, self.smtp.plain)
        client = aiosmtplib.SMTP(
            hostname=endpoint.host,
            port=endpoint.port,
            username=endpoint.user or None,
            password=password,
            local_hostname=self._own_name,
            timeout=self.smtp.timeout_s,
            use_tls=endpoint.scheme == "smtps",
            start_tls=endpoint.scheme == "smtp+starttls",  # False, never None: with None, aiosmtplib falls back to plain text
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
        return _Connection(client)

    def _give_back(self, connection: _Connection, is_sound: bool) -> None:
        connection.letters += 1
        if not is_sound or not connection.client.is_connected:
            connection.client.close()  # without QUIT, which in the middle of DATA would be part of the mail
            return
        if connection.letters >= MAX_MESSAGES:
            connection.quit()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)
        if self._closing_timer is None:
            self._closing_timer = asyncio.get_running_loop().call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - IDLE_S
        stale = [each for each in self._idle if each.idle_since_s <= oldest_s]
        self._idle = [each for each in self._idle if each.idle_since_s > oldest_s]
        for connection in stale:
            connection.quit()
        self._closing_timer = loop.call_at(self._idle[0].idle_since_s + IDLE_S, self._close_idle) if self._idle else None

    def _why_closed(self, error: Exception) -> Exception:
        """Return the outcome for an error before MAIL, which is about us or the server, never about the job."""
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return self._refused(f"TLS: {error.__cause__ or error}")
        match error:
            case aiosmtplib.SMTPResponseException(code=421):
                return Snooze(CLOSING_S, f"rate-limited: smtp.{self.alias} answered 421 on connecting")
            case aiosmtplib.SMTPResponseException(code=code) if 500 <= code <= 599 or self._is_starttls(error):
                return self._refused(f"the server refuses us with {code} {_note('connect', error.message)}")
            case aiosmtplib.SMTPResponseException(code=code):
                return TemporaryFailure(f"smtp.{self.alias} answered {code} on connecting")
            case OSError():
                return TemporaryFailure(f"smtp.{self.alias}: {error}")
            case _:  # the server offers no STARTTLS or no AUTH, or the host's name is invalid
                return self._refused(str(error))

    @staticmethod
    def _is_starttls(error: aiosmtplib.SMTPResponseException) -> bool:
        """Return whether STARTTLS was refused: aiosmtplib has no class for that refusal alone."""
        return type(error) is aiosmtplib.SMTPResponseException and error.code > 0

    def _refused(self, text: str) -> Snooze:
        return wait_for_operator(f"smtp.{self.alias}", "auth-failed", text)


def _own_identity(is_plain: bool) -> tuple[str, ssl.SSLContext | None]:
    """Return this host's name and the certificates it trusts. Blocks: for the resolver, and to read the certificates."""
    name = socket.getfqdn()
    is_name = name.isascii() and name.isprintable() and " " not in name
    return name if is_name and name else "localhost", None if is_plain else ssl.create_default_context()


_pools: dict[asyncio.AbstractEventLoop, dict[str, Pool]] = {}


def pool(alias: str, smtp: Smtp) -> Pool:
    """Return the running loop's pool for a mail server, replaced when its settings have changed."""
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
