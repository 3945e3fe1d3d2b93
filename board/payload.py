"""PayloadPage shows what a job was sent with, and whether that fits its contract; or hands it out as a file."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from board.api import Answerer, Refused, Reply
from board.fits import is_checked_whole, problems_of
from board.jobrows import message_of
from board.jobs import Reads
from board.jsontext import indented
from board.payloads import shown_json, text_of
from board.redact import visible
from board.shapes import Payload, PayloadAsk, Problem
from board.viewer import Viewer
from runtime.store.lists import WHOLE_CUT

MAX_SHOWN: Final = 16 << 10  # characters, as the page says; all of it is in the file
LOG: Final = logging.getLogger("board")
GONE: Final = "it is not there any more: it has moved on, or has ended"


class PayloadPage:
    """Answers GET payload."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"GET payload": self.payload}

    async def payload(self, ask: PayloadAsk, viewer: Viewer) -> Payload | Reply:
        """Return the payload of a job or letter."""
        peek = await self._reads.lists.whole_at(ask.place)
        if peek is None:
            raise Refused(404, "gone", GONE)
        contracts = await self._reads.contracts.fresh()
        message = message_of(peek, WHOLE_CUT)
        exact = contracts.of(message.type, message.version)
        nearest = exact or contracts.of(message.type)
        text = text_of(message.data, is_msgpack=message.is_msgpack)
        if text is None:
            problem = Problem(path="", line=0, text="MessagePack that cannot be read")
            return _answer("", len(message.data), message.version, [problem], [], is_known=True)
        # A quarter of a megabyte takes a moment: the loop has other things to do.
        shown, hidden = await asyncio.to_thread(shown_json, text, nearest.schema if nearest else None, self._reads.rules)
        if ask.download:
            LOG.info("%s (%s) downloads the payload of %s", viewer.by, viewer.address or "-", ascii(ask.place))
            return Reply(shown, {"Content-Disposition": f'attachment; filename="{_file_name(message.id)}"'})
        pretty = indented(shown)
        schema = exact.schema if exact else None
        problems = await asyncio.to_thread(problems_of, text, schema, pretty) if schema else []
        is_known = schema is not None and (bool(problems) or is_checked_whole(schema))
        return _answer(pretty, len(message.data), message.version, problems, hidden, is_known=is_known)


def _answer(text: str, size: int, version: int, problems: list[Problem], hidden: list[str], *, is_known: bool) -> Payload:
    return Payload(
        text=text[:MAX_SHOWN],
        is_cut=len(text) > MAX_SHOWN,
        size=size,
        version=version,
        fits=not problems if is_known else None,
        problems=problems,
        redacted=[visible(path) for path in hidden],
    )


def _file_name(job_id: str) -> str:
    """Return a name for a file that no header and no shell misreads."""
    return (re.sub(r"[^A-Za-z0-9._-]", "_", job_id)[:100].lstrip(".") or "payload") + ".txt"
