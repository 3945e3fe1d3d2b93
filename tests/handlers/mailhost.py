"""A real SMTP server on a loopback port, in a thread with a loop of its own, that answers as its script says."""

from __future__ import annotations

import asyncio
import ssl
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

from aiosmtpd.smtp import SMTP, AuthResult

from handlers.contracts.email import SendEmail

DROP = "drop the connection"
HANG = "never answer"


def mail(to: str | list[str] = "ada@example.org", **fields: Any) -> SendEmail:
    """Return a plain mail; `fields` replace what is in it."""
    return SendEmail(**{"to": to, "subject": "Hi", "text": "Hello.\n", **fields})


def parsed(content: bytes) -> EmailMessage:
    """Read a mail as a receiving server would."""
    return cast("EmailMessage", message_from_bytes(content, policy=policy.default))


class Mailhost:
    """Owns the server. `script` maps `MAIL`, `DATA` or a recipient's local part to replies; the last one stays."""

    def __init__(self, **options: Any) -> None:
        self.script: dict[str, list[str]] = {}
        self.envelopes: list[tuple[str, list[str], bytes]] = []
        self.seen: list[str] = []
        self.open_connections = 0
        self.transports: set[asyncio.BaseTransport] = set()
        self._options = {"hostname": "mailhost.test", **options}
        self._use_tls = self._options.pop("use_tls", None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(self._accept, "localhost", 0, ssl=self._use_tls)

    def _accept(self) -> SMTP:
        self.seen.append("connect")
        return _Counted(self, loop=self._loop, **self._options)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for _ in range(3):  # who is being let in has no transport yet, and a task that has not begun cannot clean up
            await asyncio.sleep(0)
        for transport in list(self.transports):
            cast("asyncio.Transport", transport).abort()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        while self.transports:
            await asyncio.sleep(0)

    @property
    def messages(self) -> list[EmailMessage]:
        """What was accepted."""
        return [parsed(content) for _, _, content in self.envelopes]

    async def _answer(self, server: SMTP, key: str, otherwise: str) -> str:
        replies = self.script.get(key, [otherwise])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply in (DROP, HANG):
            if reply == DROP:
                server.transport.abort()
            await self._loop.create_future()
        if reply.startswith("421"):
            self._loop.call_soon(lambda: server.transport and server.transport.close())
        return reply

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        self.seen.append(f"MAIL {address} {' '.join(options)}".strip())
        envelope.mail_from = address
        return await self._answer(server, "MAIL", "250 ok")

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        self.seen.append(f"RCPT {address}")
        reply = await self._answer(server, address.partition("@")[0], "250 ok")
        if reply.startswith("2"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_RSET(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.seen.append("RSET")
        return await self._answer(server, "RSET", "250 ok")

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.seen.append("DATA")
        reply = await self._answer(server, "DATA", "250 taken")
        if reply.startswith("250"):
            self.envelopes.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return reply


class _Counted(SMTP):
    """Tells the host how many connections are open."""

    def __init__(self, host: Mailhost, **options: Any) -> None:
        super().__init__(host, **options)
        self._host = host

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.transport is None:
            self._host.open_connections += 1
            self._host.transports.add(transport)
            self._raw = transport
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:
            self._host.open_connections -= 1
            self._host.transports.discard(self._raw)
        super().connection_lost(error)


class Doorkeeper:
    """Lets in who knows the password of the day."""

    def __init__(self, password: str) -> None:
        self.password = password

    def __call__(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=data.login == b"mailer" and data.password == self.password.encode(), handled=False)


def server_context(certificate: str) -> ssl.SSLContext:
    """Return the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
