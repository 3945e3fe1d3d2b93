"""Contracts as JSON Schema: for producers in other languages, and as a worker writes them down for those who only look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from runtime.jobs import STREAMS, TYPE_NAME, Contract, Handler
from runtime.said import Count

MARK: Final = "writeOnly"  # JSON Schema's own word for what is given and never shown
MAX_CONTRACT_BYTES: Final = 64 << 10  # of what is written of one; a guess: ten times what a large contract has
MAX_DOC_CHARS: Final = 200  # a guess: one line


def json_schemas(contracts: Iterable[Contract]) -> dict[str, Any]:
    """Return one document with a schema per job type (JSON Schema 2020-12), sorted by type, so that it can be compared."""
    by_type = {contract.type: contract for contract in sorted(contracts, key=lambda contract: contract.type)}
    schemas, components = msgspec.json.schema_components(
        [contract.payload for contract in by_type.values()], ref_template="#/$defs/{name}"
    )
    jobs = {
        contract.type: {
            "version": contract.version,
            "priority": contract.priority.name.lower(),
            **({"queue": contract.queue} if contract.queue else {}),
            "payload": schema,
        }
        for contract, schema in zip(by_type.values(), schemas, strict=True)
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "jobs": jobs, "$defs": components}


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """A contract and its handler as a worker has them, which has written this at `at_ms` by its clock.

    `schema` is that of the payload, as JSON Schema 2020-12, and empty where there is none or it is too long; what has `writeOnly`
    there is secret. `location` is the file and line of the function, `doc` the first line of its docstring; `app` the version of
    the code, `by` the worker.
    """

    type: str = ""
    version: Count = 0
    schema: str = ""
    priority: str = ""
    timeout_s: float = 0.0
    attempts: Count = 0
    retry_base_s: float = 0.0
    retry_cap_s: float = 0.0
    limits: dict[str, int | str] = {}
    location: str = ""
    doc: str = ""
    app: str = ""
    by: str = ""
    at_ms: Count = 0

    @property
    def field(self) -> str:
        """Under which name it stands in Redis."""
        return f"{self.type}@{self.version}"

    def __bytes__(self) -> bytes:
        told = msgspec.structs.asdict(self)
        named = {name: value for name, value in told.items() if name not in ("type", "version", "schema")}
        plain = msgspec.json.encode(named)
        whole = b'{"schema":%b,%b' % (self.schema.encode(), plain[1:]) if self.schema else plain
        return whole if len(whole) <= MAX_CONTRACT_BYTES else plain


def declared(handler: Handler[Any], app: str, by: str, at_ms: int) -> Declared:
    """Return what a worker writes of a handler; of what users' own objects do not tell, nothing."""
    contract = handler.contract
    return Declared(
        type=contract.type,
        version=contract.version,
        schema=_schema_of(contract),
        priority=contract.priority.name.lower(),
        timeout_s=handler.timeout_s,
        attempts=handler.retry.attempts,
        retry_base_s=handler.retry.base_s,
        retry_cap_s=handler.retry.cap_s,
        limits=handler.limits.told,
        location=_told(lambda: handler.line),
        doc=_told(lambda: _first_line(handler.function)),
        app=app,
        by=by,
        at_ms=at_ms,
    )


def read_declared(field: str, text: bytes) -> Declared | None:
    """Return what stands under a name in Redis; None for what cannot be read: a stranger may have written it."""
    type_name, _, version = field.rpartition("@")
    if not TYPE_NAME.match(type_name.encode(errors="replace")) or len(text) > MAX_CONTRACT_BYTES:
        return None
    try:
        parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        schema = bytes(parts.pop("schema", b"")).decode()
        told = {name: msgspec.json.decode(part) for name, part in parts.items() if name in Declared.__struct_fields__}
        named = {**told, "type": type_name, "version": int(version) if version.isascii() else -1, "schema": schema}
        one = msgspec.convert(named, Declared)
    except (ValueError, RecursionError):
        return None
    return one if one.priority in STREAMS and one.schema[:1] in ("", "{") else None


def _schema_of(contract: Contract) -> str:
    """Return the schema of a contract's payloads; empty where there is none, as of a type that only its own code can tell of."""
    try:
        schema = msgspec.json.schema(contract.payload)
        if any(map(_hides_in_union, _types_in(inspect.type_info(contract.payload)))):
            schema = {MARK: True, **schema}
        return msgspec.json.encode(schema).decode()
    except Exception:  # it asks the user's types for their annotations
        return ""


def _types_in(root: object) -> Iterator[inspect.Type]:
    """Return all types that a type is made of; one may hold itself."""
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if isinstance(node, tuple):
            left += cast("tuple[object, ...]", node)
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            left += [getattr(node, name) for name in node.__struct_fields__]
            if isinstance(node, inspect.Type):
                yield node


def _hides_in_union(node: inspect.Type) -> bool:
    """Return whether one of a union that has a name is marked as secret: msgspec leaves that mark out. All is secret then."""
    return isinstance(node, inspect.UnionType) and any(
        isinstance(one, inspect.Metadata) and isinstance(one.type, _NAMED) and MARK in (cast("Any", one).extra_json_schema or ())
        for one in node.types
    )


# What a schema refers to by its name.
_NAMED: Final = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType, inspect.EnumType)


def _told(ask: Callable[[], str]) -> str:
    """Return a text that a user's object is asked for, as UTF-8 can write it: the name of a file may hold other bytes."""
    try:
        return ask().encode(errors="replace").decode()
    except Exception:  # an object that is called, with attributes of its own
        return ""


def _first_line(function: object) -> str:
    doc = getattr(function, "__doc__", None)
    lines = doc.split("\n", 1) if type(doc) is str else [""]
    return " ".join(lines[0][:MAX_DOC_CHARS].split())
