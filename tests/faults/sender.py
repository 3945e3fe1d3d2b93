"""The sender of a storm: jobs of every fate, evenly over a time, each written down before and after its sending."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from runtime import Message, Producer
from runtime.errors import QueueFull, StoreUnavailable
from runtime.jobs import contract_of
from tests.contract.snapshot import STREAMS
from tests.faults.jobs import Scripted
from tests.faults.ledger import ANY_RUNS, SENDER, Answer, Pen, Try, now_s
from tests.faults.people import Told
from tests.faults.poison import Deadly

CHUNK = 25
ATTEMPTS = 3  # of the scripted handler
# What a job is, and how many in a hundred are: the fates that a job can have.
FATES = {"ok": 44, "long": 4, "retry": 15, "fail": 8, "delayed": 11, "keyed": 3, "expired": 2, "plain": 8, "malformed": 5}
LONG_MS = (300.0, 1200.0)
SHORT_MS = (5.0, 200.0)
UNREADABLE = (
    ({"foo": "bar"}, "unreadable"),
    ({"type": "scripted", "data": "{"}, "unreadable"),
    ({"type": "scripted", "data": '{"n":"x"}'}, "bad-payload"),
)
FULL_S = 0.2  # after a refusal, as a producer would wait: or a storm would be mostly refusals
PATIENCE_S = 2.5  # shorter than the longest outages: some sends stay unknown
SILENCE_S = 4.0


class Sender:
    """Owns the numbers: each is sent once, whatever the answer."""

    def __init__(
        self,
        url: str,
        history: Path,
        rng: Random,
        styles: Mapping[type[Told], int] = {},
        long_ms: tuple[float, float] = LONG_MS,
        killers_ms: Sequence[float] = (),
        pad_bytes: int = 0,
    ) -> None:
        self._url = url
        self._pen = Pen(history / SENDER)
        self._rng = rng
        self._styles: dict[type[Scripted | Told], int] = {Scripted: 100 - sum(styles.values()), **styles}
        self._long_ms = long_ms
        self._killers_ms = killers_ms
        self._pad = "x" * pad_bytes
        self._plain = Redis.from_url(
            url, protocol=2, retry=Retry(NoBackoff(), 0), retry_on_error=[], socket_timeout=SILENCE_S, health_check_interval=0
        )

    async def run(self, jobs: int, seconds: float) -> None:
        """Send numbers 0 to `jobs` evenly over `seconds`; after an outage, catch up."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        chunk: list[tuple[Try, Message]] = []
        async with Producer.connect(self._url, patience_s=PATIENCE_S) as producer:
            chunk += [self._killer(jobs + at, ms) for at, ms in enumerate(self._killers_ms)]
            for n in range(jobs):
                fate = self._rng.choices(list(FATES), list(FATES.values()))[0]
                if fate in ("plain", "malformed"):
                    await self._send_plain(self._plain_one(n, fate))
                else:
                    chunk.append(self._typed_one(n, fate))
                if len(chunk) >= CHUNK:
                    await self._send_chunk(producer, chunk)
                    chunk.clear()
                ahead_s = seconds * n / jobs - (loop.time() - began_s)
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
            await self._send_chunk(producer, chunk)
        await self._plain.aclose()
        self._pen.close()

    def _ms(self, fate: str) -> float:
        return round(self._rng.uniform(*(self._long_ms if fate == "long" else SHORT_MS)), 1)

    def _typed_one(self, n: int, fate: str) -> tuple[Try, Message]:
        failures = {"retry": self._rng.choice([1, 2]), "fail": 99}.get(fate, 0)
        style = self._rng.choices(list(self._styles), list(self._styles.values()))[0]
        payload = style(n=n, ms=self._ms(fate), failures=failures, pad=self._pad)
        fields = {"type": contract_of(type(payload)).type, "data": msgspec.json.encode(payload).decode()}
        runs, reason = min(failures + 1, ATTEMPTS), "attempts" if fate == "fail" else ""
        message = Message(payload=payload, id=f"shared-{n % 50}" if n % 40 == 0 else "")
        match fate:
            case "delayed":
                message = msgspec.structs.replace(message, delay_s=self._rng.uniform(0.1, 3))
            case "keyed":
                message = msgspec.structs.replace(message, key=f"key-{self._rng.randrange(20)}")
                fields["key"] = message.key
            case "expired":
                message = msgspec.structs.replace(message, exp=time.time() - 1)
                runs, reason = 0, "expired"
            case _:
                pass
        return Try(n, runs, reason, fields), message

    def _killer(self, n: int, ms: float) -> tuple[Try, Message]:
        """A job that must be found to be poison, however late it kills."""
        payload = Deadly(n=n, how="kill", ms=ms)
        fields = {"type": "deadly", "data": msgspec.json.encode(payload).decode()}
        return Try(n, ANY_RUNS, "poison", fields), Message(payload=payload)

    def _plain_one(self, n: int, fate: str) -> Try:
        if fate == "malformed":
            fields, reason = self._rng.choice(UNREADABLE)
            return Try(n, 0, reason, {**fields, "x-n": str(n)})
        fields = {"type": "scripted", "data": f'{{"n":{n},"ms":{self._ms(fate)},"pad":"{self._pad}"}}'}
        if n % 2:
            fields["at"] = str(int(time.time() * 1000) + 500)
        return Try(n, 1, "", fields)

    async def _send_chunk(self, producer: Producer, chunk: list[tuple[Try, Message]]) -> None:
        """Send a chunk: stored whole, refused whole, or nobody knows."""
        if not chunk:
            return
        at_s = now_s()
        self._pen.note(*[msgspec.structs.replace(one, at_s=at_s) for one, _ in chunk])
        numbers = [one.n for one, _ in chunk]
        try:
            sent = await producer.send_many([message for _, message in chunk])
        except QueueFull:
            self._pen.note(Answer("refused", numbers, now_s()))
            await asyncio.sleep(FULL_S)
        except StoreUnavailable:
            self._pen.note(Answer("unknown", numbers, now_s()))
        else:
            stored = [n for n, one in zip(numbers, sent, strict=True) if one.new]
            dropped = [n for n, one in zip(numbers, sent, strict=True) if not one.new]
            self._pen.note(Answer("ok", stored, now_s()), Answer("dropped", dropped, now_s()))

    async def _send_plain(self, one: Try) -> None:
        """Add an entry as any client would, with no second try."""
        self._pen.note(msgspec.structs.replace(one, at_s=now_s()))
        try:
            await self._plain.xadd(f"{{jobs}}:{self._rng.choice(STREAMS)}", dict(one.fields))
        except ResponseError:
            what = "refused"
        except (RedisError, OSError):
            what = "unknown"
        else:
            what = "ok"
        self._pen.note(Answer(what, [one.n], now_s()))
