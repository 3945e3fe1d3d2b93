"""Whether a payload fits the JSON schema of its contract, and what of it does not: bounded, whatever either of them is. Pure.

References out of a schema are not followed, and patterns are not tried: a stranger may have written both, and no clock would stop
one. No text of a problem repeats a value: it may be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import jsonschema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry

from board.jsontext import NotJson, Path, Reader, lines_by_path
from board.redact import visible
from board.shapes import Problem

MAX_STEPS: Final = 50_000  # of checks of one keyword on one value: measured, under half a second
MAX_DEEP: Final = 100  # of checks inside of checks; a guess: a payload of 30 levels, and four calls of Python each
MAX_PROBLEMS: Final = 20  # a guess: more than anybody mends at once
MAX_DIGITS: Final = 400  # of a number; a guess: what is longer is no number that a contract means
MAX_WORDS: Final = 120  # characters of a name or list that the contract says
_LONG_NUMBER: Final = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
NOT_TRIED: Final = frozenset(("pattern", "patternProperties", "format", "$dynamicRef", "propertyNames", "contentSchema"))


class TooCostly(Exception):
    """A check has taken all its steps."""


def problems_of(data: bytes | str, schema: Mapping[str, Any], lines_in: str | None = None) -> list[Problem]:
    """Return what of a payload does not fit a schema, at most MAX_PROBLEMS; an empty list where all of it fits.

    Args:
        data: JSON; of MessagePack what `payloads.text_of` makes of it.
        schema: a JSON schema, as a worker writes it.
        lines_in: the text whose lines are meant, where that is another one than `data`, such as an indented one.
    """
    text = data.decode(errors="backslashreplace") if isinstance(data, bytes) else data
    try:
        for _ in Reader(text):
            pass
    except NotJson as error:
        return [Problem(path="", line=text.count("\n", 0, error.at) + 1, text=f"no JSON: {visible(str(error))}")]
    if _LONG_NUMBER.search(text):
        return [Problem(path="", line=0, text=f"has a number of more than {MAX_DIGITS} digits")]
    lines = lines_by_path(text if lines_in is None else lines_in)
    try:
        return [_problem(error, lines) for error in _errors(json.loads(text), schema)]
    except TooCostly:
        return [Problem(path="", line=0, text="too much to be checked here: a worker checks it when it runs")]
    except Exception:  # of any kind, from a library that takes for granted that a schema is one
        return [Problem(path="", line=0, text="cannot be checked: the contract's schema cannot be read")]


def is_checked_whole(schema: Any) -> bool:
    """Return whether all that a schema says is looked at: patterns are not."""
    todo: list[Any] = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            members = cast("dict[str, Any]", node)
            if not NOT_TRIED.isdisjoint(members):
                return False
            todo += members.values()
        elif isinstance(node, list):
            todo += cast("list[Any]", node)
    return True


def _errors(payload: Any, schema: Mapping[str, Any]) -> list[ValidationError]:
    library = cast("Any", jsonschema)
    budget = _Budget()
    rules = {name: budget.counted(rule) for name, rule in _RULES.items()}
    checker = library.validators.extend(Draft202012Validator, rules)(dict(schema), registry=cast("Any", Registry)())
    found: list[ValidationError] = []
    for error in checker.iter_errors(payload):
        found.append(library.exceptions.best_match(iter([error])) or error)  # of alternatives the nearest
        if len(found) >= MAX_PROBLEMS:
            break
    return found


class _Budget:
    """What one check may take: the library knows no bound. Deep recursion must not reach its code in Rust, which panics."""

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self.deep = 0

    def counted(self, rule: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        """Return a rule of which each use counts."""

        def counted(*args: Any) -> Iterator[ValidationError]:
            self.left -= 1
            if self.left < 0 or self.deep >= MAX_DEEP:
                raise TooCostly
            self.deep += 1
            try:
                yield from rule(*args) or ()
            finally:
                self.deep -= 1

        return counted


def _not_tried(*_: Any) -> tuple[()]:
    return ()


def _unique(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    """Say that items repeat: by their text, which takes as long as they are, where comparing each with each would not end."""
    if wanted is True and isinstance(instance, list):
        items = cast("list[Any]", instance)
        if len({json.dumps(one, sort_keys=True) for one in items}) < len(items):
            yield ValidationError("items repeat")


_RULES: Final[dict[str, Callable[..., Any]]] = {
    **cast("dict[str, Any]", Draft202012Validator.VALIDATORS),
    **dict.fromkeys(NOT_TRIED, _not_tried),
    "uniqueItems": _unique,
}


def _problem(error: ValidationError, lines: Mapping[Path, int]) -> Problem:
    path = tuple(error.absolute_path)
    where = ".".join(map(str, path))
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 0)
    return Problem(path=visible(where)[:MAX_WORDS], line=line, text=_said(error))


def _said(error: ValidationError) -> str:
    """Return in words what is wrong, with what the contract wants and without what the payload has."""
    keyword, wanted = str(error.validator), cast("Any", error.validator_value)
    match keyword:
        case "type":
            return f"must be {_listed(wanted, ' or ')}"
        case "required":
            has = cast("Any", error.instance)
            missing = [name for name in _texts(wanted) if not isinstance(has, dict) or name not in has]
            return f"lacks {_listed(missing, ', ')}"
        case "additionalProperties" | "unevaluatedProperties":
            return "has members that the contract does not know"
        case "enum":
            return f"must be one of {_cut(json.dumps(wanted)[1:-1])}"
        case "anyOf" | "oneOf" if len(kinds := _kinds(wanted)) > 1:
            return f"must be {_listed(kinds, ' or ')}"
        case "const":
            return f"must be {_cut(json.dumps(wanted))}"
        case _:
            told = f" {_cut(json.dumps(wanted))}" if isinstance(wanted, int | float | str) and wanted is not True else ""
            return f"{_WORDS.get(keyword, 'does not fit ' + _cut(keyword))}{told}"


_WORDS: Final = {
    "minimum": "must be at least",
    "maximum": "must be at most",
    "exclusiveMinimum": "must be more than",
    "exclusiveMaximum": "must be less than",
    "multipleOf": "must be a multiple of",
    "minLength": "must have at least as many characters as",
    "maxLength": "must have no more characters than",
    "minItems": "must have at least as many items as",
    "maxItems": "must have no more items than",
    "minProperties": "must have at least as many members as",
    "maxProperties": "must have no more members than",
    "uniqueItems": "has an item twice",
    "anyOf": "fits none of what it may be",
    "oneOf": "does not fit one of what it may be, and only one",
    "False schema": "may not be there",
}


def _kinds(wanted: Any) -> list[str]:
    """Return the types of alternatives, where those are all that they say."""
    nodes: list[Any] = cast("list[Any]", wanted) if isinstance(wanted, list) else []
    told = [cast("dict[str, Any]", node).get("type") for node in nodes if isinstance(node, dict)]
    kinds = [kind for kind in told if isinstance(kind, str)]
    return kinds if len(kinds) == len(nodes) else []


def _texts(value: Any) -> list[str]:
    return [one for one in cast("list[Any]", value) if isinstance(one, str)] if isinstance(value, list) else []


def _listed(wanted: Any, between: str) -> str:
    return _cut(between.join(_texts(wanted))) if isinstance(wanted, list) else _cut(str(wanted))


def _cut(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= MAX_WORDS else shown[: MAX_WORDS - 1] + "…"
