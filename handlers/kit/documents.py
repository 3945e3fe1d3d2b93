"""Definitions of documents: read from a folder, and filled in. A definition is TOML; its texts are Jinja2, in a sandbox.

Data is only ever the value of a variable: `{{ 7 * 7 }}` in a payload is drawn as it is.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Generator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from msgspec.structs import replace

from handlers.contracts.deliveries import Page
from handlers.contracts.reports import MAX_TITLE_CHARS
from handlers.contracts.types import RootPath, is_line
from handlers.kit import blocks
from handlers.kit.blocks import AnyBlock, Definition, Document, Sheet, shown
from handlers.kit.definitions import MAX_BYTES, find
from handlers.kit.failures import wait_for_operator
from handlers.kit.files import source
from handlers.kit.settings import Settings
from handlers.kit.templates import FAULTS, Sandbox, what_is_missing
from runtime import Dead

SHIPPED: Final = Path(__file__).parents[1] / "documents"
MAX_READ_BYTES: Final = 20 * 2**20  # a guess: an image of as many pixels as we take is smaller
_EXPRESSION: Final = re.compile(r"\s*\{\{((?:(?!\}\}|\{\{).)*)\}\}\s*")

S = TypeVar("S", bound=AnyBlock)


# --- reading -------------------------------------------------------------------------------------------------------------


def load(settings: Settings, name: str) -> Definition:
    """Return the definition of this name, from the configured folder or else from those that are shipped.

    Raises:
        Snooze: there is none, or it cannot be read; `alias-missing`.
        Dead: it is no definition, `template-error`.
    """
    own = [settings.documents.path] if settings.documents else []
    text = find([*own, SHIPPED], name, f"documents.{name}")
    if text is None:
        raise wait_for_operator(f"documents.{name}", "alias-missing", f"no {name}.toml in `documents.path`")
    return _parsed(name, text)


def _parsed(name: str, text: bytes) -> Definition:
    if len(text) > MAX_BYTES:
        raise Dead(f"documents.{name}: must have at most {MAX_BYTES} bytes", "template-error")
    try:
        return msgspec.convert(tomllib.loads(text.decode()), Definition)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Dead(f"documents.{name}: {error}", "template-error") from None


def read_file(settings: Settings, path: str, attempt: int, limit_bytes: int = MAX_READ_BYTES) -> bytes:
    """Return a file below a root.

    Raises:
        Dead: it is no path below a root, or leads over a link, `bad-path`; it is `too-large`, or still `input-missing`.
        Retry: there is no such file yet; `input-missing`.
        Snooze: the root cannot be used; `alias-missing`.
    """
    try:
        msgspec.convert(path, RootPath)
    except msgspec.ValidationError:
        raise Dead("the path of an image must be `root:relative/path`", "bad-path") from None
    with source(settings, path, attempt) as descriptor, open(descriptor, "rb", closefd=False) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise Dead(f"{path} must have at most {limit_bytes} bytes", "too-large")
    return data


# --- filling in ------------------------------------------------------------------------------------------------------------


class Filler:
    """Fills in one definition, from `values` by their names, and from `tables`, whose names count more than those of values."""

    def __init__(self, name: str, values: Mapping[str, Any], tables: Mapping[str, Sheet], lang: str) -> None:
        self._name = name
        self._values = {**values, **{table.replace("-", "_"): rows for table, rows in tables.items()}, "lang": lang}
        self._tables = tables
        self._lang = lang
        self._plain = _environment(lang, is_marked=False)
        self._marked = _environment(lang, is_marked=True)

    def document(self, definition: Definition, title: str = "", page: Page = "A4") -> Document:
        """Return the document; blocks whose `when` is not true are left out.

        Raises:
            Dead: a variable, a table or a column is missing, or an expression fails on these values; `template-error`.
        """
        found: list[AnyBlock] = []
        tables: dict[int, Sheet] = {}
        for number, block in enumerate(definition.blocks, 1):
            with self._explained(f"block {number}", block):
                if not self._is_wanted(block):
                    continue
                if isinstance(block, blocks.Table | blocks.Chart):
                    tables[len(found)] = self._rows(block)
                found.append(self._filled(block))
        title = line_of(title or self.text(definition.title, "title")) or self._name
        return Document(title=title, blocks=found, tables=tables, page=page, lang=self._lang)

    def text(self, template: str, where: str) -> str:
        """Return a text with its values.

        Raises:
            Dead: as for `document`.
        """
        with self._explained(where, template):
            return self._plain.from_string(template).render(self._values)

    def params(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return parameters, in which a text of the form `{{ expression }}` keeps the type of its value.

        Raises:
            Dead: as for `document`.
        """
        with self._explained(where, given):
            return {name: self._typed(value) if isinstance(value, str) else value for name, value in given.items()}

    def _typed(self, text: str) -> Any:
        found = _EXPRESSION.fullmatch(text)
        return self._render(text) if found is None else _defined(self._expression(found[1])(self._values))

    def _render(self, text: str) -> str:
        return self._plain.from_string(text).render(self._values) if "{" in text else text

    def _expression(self, text: str) -> Callable[..., Any]:
        return self._plain.compile_expression(text, undefined_to_none=False)

    def _is_wanted(self, block: AnyBlock) -> bool:
        return not block.when or bool(self._plain.compile_expression(block.when)(self._values))

    def _filled(self, block: S) -> S:
        """Return a block with its texts filled in."""
        match block:
            case blocks.Heading():
                return replace(block, text=self._render(block.text))
            case blocks.Paragraph():
                return replace(block, text=self._marked.from_string(block.text).render(self._values))
            case blocks.Values() | blocks.Figures():
                return replace(block, rows=self._pairs(block.rows))
            case blocks.Image():
                return replace(block, path=self._render(block.path))
            case blocks.Chart():
                return replace(block, titles=[self._render(title) for title in block.titles])
            case blocks.Table():
                columns = [replace(column, title=self._render(column.title or column.name)) for column in block.columns]
                return replace(block, columns=columns, totals=self._pairs(block.totals), empty=self._render(block.empty))
            case blocks.Columns():
                return replace(
                    block, parts=[[self._filled(each) for each in part if self._is_wanted(each)] for part in block.parts]
                )
            case _:
                return block

    def _pairs(self, rows: blocks.Pairs) -> list[tuple[str, str]]:
        """Return labels with their values; those of a list in the data are no templates."""
        if not isinstance(rows, str):
            return [(self._render(label), self._render(value)) for label, value in rows]
        return [(shown(label, self._lang), self._amount(value)) for label, value in self._value(rows)]

    def _amount(self, value: Any) -> str:
        """Return a value of the data as a sum is written: numbers with a fraction have two decimals."""
        return shown(value, self._lang, 2 if isinstance(value, float | Decimal) else None)

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise Dead(f"documents.{self._name}: no table or list {name!r} in the data", "template-error")
        return self._values[name]

    def _rows(self, block: blocks.Table | blocks.Chart) -> Sheet:
        """Return the rows of a block: those of a table, or of a list in the data; and the columns that are worked out."""
        rows = self._tables.get(block.rows) or _listed(self._value(block.rows))
        columns = block.columns if isinstance(block, blocks.Table) else []
        made = {column.name: self._expression(column.value) for column in columns if column.value}
        if not made:
            return rows
        names = [name for name in rows.columns if name not in made]
        kept = [rows.at(name) for name in names]
        filled: list[tuple[Any, ...]] = []
        for row in rows.rows:
            known = dict(zip(rows.columns, row, strict=True))
            values = (_defined(make(self._values, row=known)) for make in made.values())
            filled.append((*(row[place] for place in kept), *values))
        return Sheet([*names, *made], filled)

    @contextlib.contextmanager
    def _explained(self, where: str, given: object) -> Generator[None]:
        """Turn what a template may raise into the end of the job; values are not shown, names only if they are `given`."""
        what = f"documents.{self._name}: {where}"
        try:
            yield
        except TemplateSyntaxError as error:
            raise Dead(f"{what}: line {error.lineno}: {error.message}", "template-error") from None
        except UndefinedError as error:
            raise Dead(f"{what}: {what_is_missing(error.message or '', str(given))}", "template-error") from None
        except FAULTS as error:
            raise Dead(f"{what}: {type(error).__name__}", "template-error") from None


def line_of(text: str) -> str:
    """Return a text as one line, fit for a title and for the subject of a mail."""
    return "".join(character if is_line(character) else " " for character in text)[:MAX_TITLE_CHARS].strip()


def _defined(value: Any) -> Any:
    if isinstance(value, StrictUndefined):
        str(value)  # raises, and says what is not defined
    return value


def _listed(value: Any) -> Sheet:
    """Return the rows of a list of objects; what one of them lacks is NULL."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in cast("list[Any]", value)):
        raise Dead("rows must be a list of objects", "template-error")
    found = cast("list[dict[str, Any]]", value)
    names = list(dict.fromkeys(name for row in found for name in row))
    return Sheet(names, [[row.get(name) for name in names] for row in found])


def _environment(lang: str, *, is_marked: bool) -> Sandbox:
    environment = Sandbox(undefined=StrictUndefined, autoescape=is_marked)
    environment.filters["number"] = partial(_number, lang)
    return environment


def _number(lang: str, value: Any, decimals: int = 2) -> str:
    return shown(value, lang, decimals)
