"""The resources of a CRM: what a definition says, which page to ask for, and which records are in one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
from msgspec import Meta

from handlers.contracts.data import Column
from handlers.contracts.types import Alias, Ident, Line
from handlers.kit.failures import TemporaryFailure, wait_for_operator
from handlers.kit.http import Answer
from handlers.kit.sections import Crm
from runtime import Dead

OVERLAP: Final = timedelta(minutes=5)  # a guess: clocks of a CRM's machines differ, and what it commits late has an earlier time
MAX_CURSOR_CHARS: Final = 4000  # a guess: a URL that most servers take
MAX_PAGE_BYTES: Final = 2 * 2**20  # to decode it holds up the loop for 15 ms (measured), since it cannot be done in pieces
MAX_FILE_BYTES: Final = 2**20  # a guess: far above what a person writes

_PATH: Final = r"^(?!/)(?!.*//)(?!(?:.*/)?\.\.?(?:/|(?![\s\S])))[A-Za-z0-9._~%/@:!$&'()*+,;=-]{1,500}(?![\s\S])"
_POINTER: Final = r"^(?:/[^/\x00-\x1f]{1,100}){0,10}(?![\s\S])"
_LINK: Final = re.compile(r"<([^<>]{1,4000})>([^<]*)")
_NEXT: Final = re.compile(r";\s*rel\s*=\s*\"?(?:[^\";,]*\s)?next(?:[\s\";,]|(?![\s\S]))", re.IGNORECASE)

Pointer = Annotated[
    str, Meta(pattern=_POINTER, description="a JSON pointer, such as `/paging/next`; empty for the whole document")
]

_decode: Final = msgspec.json.Decoder(float_hook=Decimal).decode


class Resource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of records, and the table that holds them.

    `from` of a column is a field of a record, or a JSON pointer. `updated` is the column with the time of the last change,
    `deleted` that which says that a record is gone: where `tombstone` points to something that is true, and in a full sync where
    the CRM has none. A CRM says that a cursor is too old by the status `expired`.
    """

    path: Annotated[str, Meta(pattern=_PATH)]
    db: Alias
    table: Ident
    key: Ident
    updated: Ident
    columns: Annotated[list[Column], Meta(min_length=2, max_length=200)]
    deleted: Ident | None = None
    tombstone: Pointer | None = None
    items: Pointer = ""
    paging: Literal["cursor", "link", "page", "offset"] = "cursor"
    next: Pointer = ""
    params: dict[Line, Line] = {}
    page_param: Line = ""
    size_param: Line = "limit"
    page_size: Annotated[int, Meta(ge=1, le=10_000)] = 100
    first_page: int = 1
    since_param: Line = ""
    expired: Annotated[int, Meta(ge=400, le=499)] = 410

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: a column is missing, or how pages follow each other is not said.
        """
        kinds = {column.to: column.type for column in self.columns}
        if len(kinds) != len(self.columns):
            raise ValueError("columns: must be different")
        if self.key not in kinds or kinds.get(self.updated) != "timestamp":
            raise ValueError("columns: must have that of `key`, and that of `updated` with type = 'timestamp'")
        if self.deleted in kinds or (self.tombstone is not None and self.deleted is None):
            raise ValueError("deleted: must be a column of its own, and be there with `tombstone`")
        if self.paging == "cursor" and not self.next:
            raise ValueError("next: must point to the next cursor")

    @property
    def parameter(self) -> str:
        """The query parameter that says which page."""
        return self.page_param or self.paging


class Page(msgspec.Struct, frozen=True):
    """One page: its records, each a JSON object; and which comes next, None for the last."""

    records: list[dict[str, Any]]
    next: str | None
    etag: str


def read_resource(subject: str, crm: Crm, alias: str) -> Resource:
    """Return the definition of a resource. Blocks.

    Raises:
        Snooze: it is missing, or cannot be used; `alias-missing`.
    """
    try:
        with Path(crm.resources).open("rb") as file:
            found = tomllib.loads(file.read(MAX_FILE_BYTES).decode()).get(alias)
        if found is not None:
            return msgspec.convert(found, Resource)
        text = f"no [{alias}] in {crm.resources}"
    except OSError as error:
        text = f"{crm.resources}: {error.strerror}"
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        text = f"{crm.resources}: {error}"
    except msgspec.ValidationError as error:
        text = f"{crm.resources}: [{alias}]: {error}"
    raise wait_for_operator(subject, "alias-missing", text)


def url_of(crm: Crm, resource: Resource, position: str, since: str) -> str:
    """Return the URL of a page; its position is empty for the first one."""
    if resource.paging == "link" and position:
        return position
    query = dict(resource.params)
    if resource.size_param:
        query[resource.size_param] = str(resource.page_size)
    if since and resource.since_param:
        query[resource.since_param] = since
    if position:
        query[resource.parameter] = position
    elif resource.paging == "page":
        query[resource.parameter] = str(resource.first_page)
    path = f"{crm.base_url.rstrip('/')}/{resource.path}"
    return f"{path}?{urlencode(query)}" if query else path


def page_of(subject: str, resource: Resource, answer: Answer, url: str, position: str) -> Page:
    """Return what is in an answer. May take some time for a large one.

    Raises:
        Dead: the body is `too-large`, or the next page is elsewhere, `egress-blocked`.
        TemporaryFailure: it is not what the definition says, as a page of errors.
    """
    if answer.body is None:
        raise Dead(f"{subject}: a page is too large; hint: page_size", "too-large")
    try:
        document = _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        raise TemporaryFailure(f"bad-page: {subject}: a page is not JSON") from None
    items = pointed(document, resource.items)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in cast("list[Any]", items)):
        raise TemporaryFailure(f"bad-page: {subject}: no list of records at `{resource.items or '/'}`")
    records = cast("list[dict[str, Any]]", items)
    following = _following(subject, resource, document, answer.headers, url, position, len(records))
    if following is not None and (following == position or len(following) > MAX_CURSOR_CHARS):
        raise TemporaryFailure(f"bad-page: {subject}: the next page is the same one, or its cursor is too long")
    return Page(records, following, answer.headers.get("ETag", ""))


def _following(
    subject: str, resource: Resource, document: Any, headers: Mapping[str, str], url: str, position: str, count: int
) -> str | None:
    match resource.paging:
        case "page":  # until one is empty: a server may give less than was asked for
            return str(int(position or resource.first_page) + 1) if count else None
        case "offset":
            return str(int(position or 0) + count) if count else None
        case "cursor":
            return _text(pointed(document, resource.next))
        case "link":
            found = _text(pointed(document, resource.next)) if resource.next else _linked(headers.get("Link", ""))
            return _same_origin(subject, url, found) if found else None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _linked(header: str) -> str | None:
    """Return the next page that a header names (RFC 8288)."""
    return next((found[1] for found in _LINK.finditer(header) if _NEXT.search(found[2])), None)


def _same_origin(subject: str, url: str, link: str) -> str:
    try:
        found = urljoin(url, link)
        here, there = urlsplit(url), urlsplit(found)
        is_same = (here.scheme, here.netloc) == (there.scheme, there.netloc)
    except ValueError:
        is_same, found = False, ""
    if not is_same or not found.isascii() or not found.isprintable() or " " in found:
        raise Dead(f"{subject}: the next page must be on the same server", "egress-blocked")
    return found


def pointed(document: Any, pointer: str) -> Any:
    """Return what a JSON pointer (RFC 6901) leads to, or what a field of that name holds; None where there is nothing."""
    if not pointer.startswith("/"):
        return document.get(pointer) if pointer else document
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = cast("dict[str, Any]", document).get(name)
        elif isinstance(document, list) and name.isdecimal() and len(name) < 10 and int(name) < len(cast("list[Any]", document)):
            document = cast("list[Any]", document)[int(name)]
        else:
            return None
    return document


def time_of(value: Any) -> datetime | None:
    """Return a time in UTC; None for what is none."""
    try:
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def since_of(high_water: str) -> str:
    """Return from when on to ask for changes: somewhat before the newest that has come; empty for everything."""
    newest = time_of(high_water)
    return (newest - OVERLAP).isoformat(timespec="seconds").replace("+00:00", "Z") if newest else ""
