"""TypesPage tells of job types: how they run, what rules they have, and what a payload of each looks like."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from board import words
from board.api import Answerer, Refused
from board.contracts import Contract, Contracts
from board.jobrows import PRIORITIES
from board.jobs import Reads
from board.redact import pointed, visible
from board.rows import type_row, type_rows
from board.sampler import Sampler
from board.series import series
from board.shapes import Fact, Group, Nothing, Pri, Type, TypeAsk, TypeRow, Types
from board.viewer import Viewer
from runtime.codec import summary
from runtime.jobs import STREAMS
from runtime.rules import ALL
from runtime.store.lists import TYPE_CUT, JobLists

LOOKED_AT: Final = 250  # oldest and newest entries of a priority whose types are counted; measured: 500 take 34 ms of the server
COUNTED_S: Final = 30.0
GROUPS: Final = 100  # newest groups among which those of one type are looked for
SHOWN_GROUPS: Final = 5
MAX_DEEP: Final = 6  # levels of an example; a guess: enough to begin with
MAX_PARTS: Final = 200  # values of an example


class Waiting:
    """Counts about how many jobs of each type wait: of the oldest and newest of each priority, every half a minute."""

    def __init__(self, lists: JobLists, clock: Callable[[], float] = time.monotonic) -> None:
        self._lists = lists
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._until_s = -1.0
        self._counting = asyncio.Lock()

    async def by_type(self) -> Mapping[str, int]:
        """Return about how many wait, counted within the last COUNTED_S.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        async with self._counting:
            if self._clock() >= self._until_s:
                self._counts = await self._count()
                self._until_s = self._clock() + COUNTED_S
            return self._counts

    async def _count(self) -> dict[str, int]:
        unread, last = (await self._lists.survey()).unread, await self._lists.last_delivered()
        total: Counter[str] = Counter()
        for stream in range(len(STREAMS)):
            seen: dict[str, str] = {}
            for is_newest in (False, True):
                for peek in await self._lists.unread(stream, last[stream], LOOKED_AT, is_newest=is_newest, cut=TYPE_CUT):
                    seen[peek.entry] = summary(peek.fields).type_name
            part = max(1.0, unread[stream] / len(seen)) if seen else 1.0
            for name, n in Counter(seen.values()).items():
                total[name] += round(n * part)
        return dict(total)


class TypesPage:
    """Answers GET types and GET type."""

    def __init__(self, sampler: Sampler, reads: Reads) -> None:
        self._sampler = sampler
        self._contracts: Contracts = reads.contracts
        self._waiting = Waiting(reads.lists)

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"GET types": self.types, "GET type": self.type}

    async def types(self, ask: Nothing, viewer: Viewer) -> Types:
        """Return all types."""
        picture, waiting = await self._sampler.picture(), await self._waiting.by_type()
        rows = type_rows(picture, self._sampler.limits)
        seen = {row.type for row in rows}
        rows += [type_row(picture, name, self._sampler.limits) for name in sorted(waiting) if name not in seen]
        return Types(types=[self._whole(row, waiting) for row in rows])

    async def type(self, ask: TypeAsk, viewer: Viewer) -> Type:
        """Return one type."""
        picture, waiting = await self._sampler.picture(), await self._waiting.by_type()
        contract = (await self._contracts.fresh()).of(ask.type)
        known = contract is not None or ask.type in picture.known or ask.type in waiting
        row = type_row(picture, ask.type, self._sampler.limits)
        if not known and not any(row.runs_hour):
            raise Refused(
                404, "unknown", f"no worker knows {words.name(ask.type)}, and nothing of it waits or ran in the last hour"
            )
        rules, now_ms = picture.people.rules, picture.sample.now_ms
        schema = contract.schema if contract else None
        return Type(
            row=self._whole(row, waiting),
            series=series(picture.history, ask.range, ask.type),
            groups=self._groups(ask.type, viewer),
            policy=policy_of(contract) if contract else [],
            version=contract.version if contract else None,
            schema=None if schema is None else json.dumps(schema, indent=2, ensure_ascii=False),
            example=json.dumps(example_of(schema), indent=2, ensure_ascii=False),
            pri=_priority(contract) or row.pri or "medium",
            is_paused=any(name in rules.pauses and not rules.pauses[name].is_over(now_ms) for name in (ask.type, ALL)),
        )

    def _whole(self, row: TypeRow, waiting: Mapping[str, int]) -> TypeRow:
        pri = _priority(self._contracts.of(row.type)) or row.pri
        letters = self._sampler.letters.by_type()
        dead = None if letters is None else letters.get(row.type, 0)
        return msgspec.structs.replace(row, type=visible(row.type), pri=pri, waiting=waiting.get(row.type, 0), dead=dead)

    def _groups(self, type_name: str, viewer: Viewer) -> list[Group]:
        found = self._sampler.letters.newest(GROUPS, has_messages=viewer.can("payload"))
        return [group for group in found if group.type == type_name][:SHOWN_GROUPS]


def _priority(contract: Contract | None) -> Pri | None:
    return next((name for name in PRIORITIES if contract is not None and name == contract.priority), None)


def policy_of(contract: Contract) -> list[Fact]:
    """Return what rules a type has, as its newest contract says."""
    plain = {
        "timeout": "" if contract.timeout_ms is None else words.duration(contract.timeout_ms),
        "attempts": "" if contract.attempts is None else words.figure(contract.attempts),
        "pauses between attempts": contract.retry,
        **{name.replace("_", " "): str(value) for name, value in contract.limits.items()},
        "about": contract.doc,
    }
    codes = {"handler": contract.location, "version of the code": contract.app, "told by": contract.by}
    facts = [Fact(name=visible(name)[:60], text=visible(text)[:300], is_code=False) for name, text in plain.items() if text]
    return facts + [Fact(name=name, text=visible(text)[:300], is_code=True) for name, text in codes.items() if text]


# --- a payload to begin with -------------------------------------------------------------------------------------------------


def example_of(schema: Any) -> Any:
    """Return a payload that has what a schema asks for; an empty object where there is none."""
    made = _example(schema, schema, 0, [MAX_PARTS]) if isinstance(schema, dict) else None
    return {} if made is None else made


def _example(node: Any, schema: Any, deep: int, left: list[int]) -> Any:
    left[0] -= 1
    if not isinstance(node, dict) or deep > MAX_DEEP or left[0] < 0:
        return None
    known = cast("dict[str, Any]", node)
    reference = known.get("$ref")
    if isinstance(reference, str):
        return _example(pointed(schema, reference), schema, deep + 1, left)
    for name in ("const", "default"):
        if name in known:
            return known[name]
    for name in ("examples", "enum"):
        if isinstance(known.get(name), list) and known[name]:
            return known[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(known.get(name), list) and known[name]:
            return _example(known[name][0], schema, deep + 1, left)
    return _of_kind(known, schema, deep, left)


def _of_kind(node: dict[str, Any], schema: Any, deep: int, left: list[int]) -> Any:
    told: Any = node.get("type")
    kinds = cast("list[Any]", told) if isinstance(told, list) else [told]
    match kinds[0] if kinds else None:
        case "string":
            return "" if not isinstance(node.get("minLength"), int) else "x" * min(node["minLength"], 100)
        case "integer" | "number":
            least = node.get("minimum", node.get("exclusiveMinimum"))
            more = 1 if "minimum" not in node else 0
            return least + more if isinstance(least, int) else 0
        case "boolean":
            return False
        case "array":
            return [_example(node.get("items"), schema, deep + 1, left)] if node.get("minItems") else []
        case "object":
            members = node.get("properties")
            wanted = node.get("required")
            names = [name for name in cast("list[Any]", wanted) if isinstance(name, str)] if isinstance(wanted, list) else []
            of = cast("dict[str, Any]", members) if isinstance(members, dict) else {}
            return {name: _example(of.get(name), schema, deep + 1, left) for name in names[:MAX_PARTS]}
        case _:
            return None
