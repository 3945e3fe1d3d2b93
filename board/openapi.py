"""The OpenAPI document of the board's API, made of the table of routes and of what they are asked and answer.

`python -m board.openapi` prints it; the types of the pages are made of it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, cast

import msgspec

import runtime
from board import shapes
from board.routes import ROUTES, Route

PREFIX: Final = "#/components/schemas/"
_EXTRA: Final = (shapes.Failure, shapes.Tick, shapes.EventsAsk)  # of no route of the table: of every error, and of the stream


@cache
def document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    named = [*[route.answers for route in ROUTES], *[route.asks for route in ROUTES], *_EXTRA]
    _, schemas = msgspec.json.schema_components(named, ref_template=PREFIX + "{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(f"/api/{route.path}", {})[route.verb.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "backend-jobs board", "version": runtime.__version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def text() -> str:
    """Return the document as it is served and kept: JSON, indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1).decode() + "\n"


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    answers = {"description": "OK", "content": _json(route.answers.__name__)}
    failure = {"description": "refused", "content": _json("Failure")}
    found: dict[str, Any] = {
        "operationId": f"{route.verb.lower()}_{route.path.replace('/', '_')}",
        "summary": route.about,
        "x-right": route.right,
        "responses": {"200": answers, "default": failure},
    }
    if route.verb == "POST":
        found["requestBody"] = {"required": True, "content": _json(route.asks.__name__)}
    else:
        asked = cast("dict[str, Any]", schemas[route.asks.__name__])
        needed = cast("list[str]", asked.get("required", []))
        members = cast("dict[str, Any]", asked.get("properties", {}))
        found["parameters"] = [
            {"name": name, "in": "query", "required": name in needed, "schema": schema} for name, schema in members.items()
        ]
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": PREFIX + name}}}


if __name__ == "__main__":
    print(text(), end="")
