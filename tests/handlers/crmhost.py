"""A CRM on a loopback port: records in pages of each kind, and trouble at the requests that a test names."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.handlers.httphost import Httphost, Reply, Seen

FIRST = datetime(2023, 1, 1, tzinfo=UTC)
TOKEN = "token-of-the-crm"


def record(number: int, seconds: float = 0, **fields: Any) -> dict[str, Any]:
    """Return a record that was last changed so many seconds after the first day."""
    changed = (FIRST + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    return {
        "id": number,
        "properties": {"email": f"user{number}@example.org", "amount": number / 4},
        "changed": changed,
        **fields,
    }


class Crmhost(Httphost):
    """Holds `records` by their ids. `trouble` are replies to the so-manyth request, from 1, in place of a page."""

    def __init__(self, count: int = 0) -> None:
        self.records = {number: record(number, number) for number in range(1, count + 1)}
        self.trouble: dict[int, Reply] = {}
        self.order = 1
        super().__init__()

    @property
    def pages(self) -> list[dict[str, str]]:
        """The queries of the requests, each parameter once."""
        return [{name: value for name, (value,) in parse_qs(urlsplit(seen.path).query).items()} for seen in self.seen]

    def answer(self, seen: Seen) -> Reply:
        if seen.headers.get("Authorization") != f"Bearer {TOKEN}" and seen.headers.get("X-Token") != TOKEN:
            return Reply(401)
        if len(self.seen) in self.trouble:
            return self.trouble[len(self.seen)]
        path, _, _ = seen.path.partition("?")
        return {"cursor": self._by_cursor, "link": self._by_link, "page": self._by_number, "offset": self._by_offset}[
            path.rpartition("/")[2]
        ](seen)

    def _found(self) -> tuple[list[dict[str, Any]], dict[str, str], int]:
        query = self.pages[-1]
        since = query.get("since", "")
        changed = [each for each in self.records.values() if each["changed"] >= since]
        return sorted(changed, key=lambda each: self.order * each["id"]), query, int(query.get("limit", 10))

    def _by_cursor(self, seen: Seen) -> Reply:
        found, query, limit = self._found()
        start = int(base64.b64decode(query["cursor"])) if "cursor" in query else 0
        following = base64.b64encode(str(start + limit).encode()).decode() if start + limit < len(found) else None
        body = json.dumps({"data": found[start : start + limit], "paging": {"next": following}}).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if seen.headers.get("If-None-Match") == etag:
            return Reply(304, {"ETag": etag}, b"")
        return Reply(headers={"ETag": etag, "Content-Type": "application/json"}, body=body)

    def _by_link(self, seen: Seen) -> Reply:
        found, query, limit = self._found()
        start = int(query.get("after", 0))
        links = f'<{self.url}/api/link?after=0>; rel="first"'
        if start + limit < len(found):
            links += f', <{self.url}/api/link?after={start + limit}&limit={limit}>; rel="next"'
        return Reply(headers={"Link": links}, body=json.dumps({"data": found[start : start + limit]}).encode())

    def _by_number(self, seen: Seen) -> Reply:
        found, query, limit = self._found()
        start = (int(query["page"]) - 1) * limit
        return Reply(body=json.dumps({"data": found[start : start + limit]}).encode())

    def _by_offset(self, seen: Seen) -> Reply:
        found, query, limit = self._found()
        start = int(query.get("offset", 0))
        return Reply(body=json.dumps({"data": found[start : start + limit]}).encode())
