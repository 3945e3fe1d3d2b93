"""`python -m tests.faults.old_sender`, within the last release: its own sender, with numbers and handlers for a storm of two.

This file is laid into the last release, and all that it imports is there. Nothing in this tree imports it, and what is renamed in
this tree keeps its old name in it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from random import Random

import msgspec

import runtime
from runtime import Message
from tests.faults.ledger import Try
from tests.faults.ported import OLD, STYLES, TYPE_OF, fate_of, key_of
from tests.faults.sender import Sender


class OldSender(Sender):
    """Sends numbers from `OLD` on, to the handlers that both releases know."""

    def _typed_one(self, n: int, fate: str) -> tuple[Try, Message]:
        sent, message = super()._typed_one(n + OLD, fate_of(n, fate))
        if message.key:
            sent.fields["key"] = key_of(n)
            message = msgspec.structs.replace(message, key=key_of(n))
        style = Random(n).choices([None, *STYLES], [100 - sum(STYLES.values()), *STYLES.values()])[0]
        if style is None:
            return sent, message
        plain = message.payload
        payload = style(n=plain.n, ms=plain.ms, failures=plain.failures)
        fields = {**sent.fields, "type": TYPE_OF[style], "data": msgspec.json.encode(payload).decode()}
        return msgspec.structs.replace(sent, fields=fields), msgspec.structs.replace(message, payload=payload)

    def _plain_one(self, n: int, fate: str) -> Try:
        return super()._plain_one(n + OLD, fate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("history", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    print(Path(runtime.__file__).parent, flush=True)
    asyncio.run(OldSender(options.url, options.history, Random(options.seed)).run(options.jobs, options.seconds))
