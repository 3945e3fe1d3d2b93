"""Contracts as JSON Schema, for producers in other languages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from runtime.jobs import Contract


def json_schemas(contracts: Iterable[Contract]) -> dict[str, Any]:
    """Return one document with a schema per job type (JSON Schema 2020-12), sorted by type, so that it can be compared."""
    by_type = {contract.type: contract for contract in sorted(contracts, key=lambda contract: contract.type)}
    schemas, components = msgspec.json.schema_components(
        [contract.payload for contract in by_type.values()], ref_template="#/$defs/{name}"
    )
    jobs = {
        contract.type: {"version": contract.version, "priority": contract.priority.name.lower(), "payload": schema}
        for contract, schema in zip(by_type.values(), schemas, strict=True)
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "jobs": jobs, "$defs": components}
