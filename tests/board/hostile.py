"""What strangers may write, in each place of a queue: markup, schemes, templates, signs that turn a text around."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis

from runtime.codec import DEAD_FIELDS, SENT_FIELDS
from runtime.said import Report, pack_reports
from runtime.store.base import GROUP, WorkerRow
from runtime.tries import Try, pack_tries
from tests.servers import Server

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_BOX: Final = "alert(1)"
_TEXTS: Final[dict[str, str]] = {
    "script": f"<script>{_BOX}</script>",
    "closing": f"</script><script>{_BOX}</script>",
    "out-of-title": f"</title></textarea></style><script>{_BOX}</script>",
    "image": f"<img src=x onerror={_BOX}>",
    "quoted": f'"><img src=x onerror={_BOX}>',
    "attribute": f"' autofocus onfocus={_BOX} tabindex=0 x='",
    "backtick": f"`-{_BOX}-`",
    "svg": f"<svg/onload={_BOX}>",
    "animate": f"<svg><animate onbegin={_BOX} attributeName=x dur=1s><set><use href=//evil.example#x>",
    "math": f'<math><mi//xlink:href="data:x,<script>{_BOX}</script>">',
    "srcdoc": f'<iframe srcdoc="<script>{_BOX}</script>">',
    "frame": f"<iframe src=javascript:{_BOX}>",
    "object": "<object data=data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==><embed src=//evil.example>",
    "refresh": '<meta http-equiv=refresh content="0;url=//evil.example">',
    "base": "<base href=//evil.example/>",
    "sheet": "<link rel=stylesheet href=//evil.example/x.css><style>@import'//evil.example';</style>",
    "css": f";background:url(//evil.example/x);width:expression({_BOX})",
    "form": f"<form action=//evil.example><input name=attributes autofocus onfocus={_BOX}>",
    "details": f"<details open ontoggle={_BOX}><summary>x",
    "clobber": f"<a id=main name=main href=javascript:{_BOX}><x-x id=app onclick={_BOX}>",
    "mutation": f'<noscript><p title="</noscript><img src=x onerror={_BOX}>">',
    "cdata": f"<![CDATA[<!--><script>{_BOX}</script>--!>]]>",
    "javascript": f"javascript:{_BOX}//",
    "hidden-scheme": f"\x01java\tscript:{_BOX}",
    "data": f"data:text/html,<script>{_BOX}</script>",
    "outside": "//evil.example/%2e%2e",
    "http": "https://evil.example/?x={trace_id}#x",
    "backslashes": "\\\\evil.example\\x",
    "braces": f"{{{{constructor.constructor('{_BOX}')()}}}}",
    "dollar": f"${{{_BOX}}}#{{7*7}}<%= 7*7 %>[[7*7]]",
    "escapes": "\\u003cscript\\u003ealert(1)\\x3c/script\\x3e",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt;&#x3c;b&colon;",
    "format": "%s%n%x{0}{0.__class__}%(x)s",
    "bidi": "\u202e\u2066gnp\u2069.exe\u200f\u200b\ufeff\u2060",
    "controls": "\x00\x07\x08\x1b[31m\x1b]0;x\x07\x7f\x9b",
    "lines": f"a\r\nSet-Cookie: x=1\r\n\r\n<script>{_BOX}</script>\u2028\u2029\x85",
    "stacked": "Z" + "\u0351\u036b\u0343\u036a" * 100,
    "wide": "\ufdfd" * 60 + "\U0001f3f4\u200d\u2620\ufe0f" * 30,
    "huge": "A" * 2_000 + "<b>",
    "path": "../../../etc/passwd",
    "number": "-1e999",
    "digits": "9" * 400,
    "null": "null",
    "space": "   ",
    "proto": "__proto__",
    "constructor": "constructor",
    "to-string": "toString",
    "own": "hasOwnProperty",
}
# As bytes stand in Redis: among them some that are no UTF-8, as halves of surrogate pairs.
CORPUS: Final[dict[str, bytes]] = {name: text.encode() for name, text in _TEXTS.items()} | {
    "surrogates": "\ud83d<b>\udc00".encode("utf-8", "surrogatepass"),
    "no-text": b"\xff\xfe\xc0\xbc\x80<b>",
}
_P: Final = b"{jobs}:"


class Writer:
    """Writes all of this into a queue, past every check of a producer, a worker and a person."""

    def __init__(self, client: redis.Redis) -> None:
        self._pipe: Any = client.pipeline(transaction=False)
        self._client: Any = client
        self.now_ms = int(time.time() * 1000)

    def fill(self) -> None:
        """Write jobs of every shape, workers, types, schedules, orders, operations, what was done and what was said."""
        for stream in (b"high", b"low"):
            self._client.xgroup_create(_P + stream, GROUP, "0", mkstream=True)
        self._good()
        for at, text in enumerate(CORPUS.values()):
            for write in (self._claimed, self._delayed, self._letters, self._worker, self._type, self._schedule, self._order):
                write(at, text)
            for write in (self._operation, self._told):
                write(at, text)
        self._pipe.execute()
        for at, text in enumerate(CORPUS.values()):  # behind what was fetched
            self._pipe.xadd(_P + b"low", _message(at, text))
        self._pipe.execute()

    def _claimed(self, at: int, text: bytes) -> None:
        """Write jobs with an owner that lives, and one that is gone or a lot."""
        for owner in (text, (b"gone ", b"~t:", b"~g:", b"~")[at % 4] + text):
            self._pipe.xadd(_P + b"high", _message(at, text))
            self._pipe.xreadgroup(GROUP, owner, {_P + b"high": ">"}, count=1)

    def _delayed(self, at: int, text: bytes) -> None:
        member = b"due-%d " % at + text
        self._pipe.zadd(_P + b"due", {member: 2**60 if at % 10 == 9 else self.now_ms + 3_600_000 + at})
        words = [b"stream", b"low", b"id", member, *[word for pair in _message(at, text).items() for word in pair]]
        self._pipe.hset(_P + b"msg", member, b"\xdc" + len(words).to_bytes(2, "big") + b"".join(map(_packed, words)))

    def _letters(self, at: int, text: bytes) -> None:
        """Write letters and letters in the trash: of a type that nobody knows, and of one whose contract they do not fit."""
        notes = dict.fromkeys(DEAD_FIELDS, text) | {b"dead_at": str(self.now_ms - 1000 * at).encode()}
        notes |= {b"dead_error": text + b": " + text, b"dead_stack": _stack(text), b"dead_trace": _traceparent()}
        known = {b"type": b"t%d" % at, b"id": b"j%d" % at, b"v": b"1"}
        self._pipe.xadd(_P + b"dead", _message(at, text) | notes)
        self._pipe.xadd(_P + b"dead", _message(at, text) | notes | known)
        self._pipe.xadd(_P + b"trash", _message(at, text) | notes | (known if at % 2 else {}))

    def _worker(self, at: int, text: bytes) -> None:
        said = text.decode(errors="replace")
        words = dict.fromkeys(("host", "stage", "version", "app"), said)
        jobs = [(f"high/{at}-{n}", self.now_ms - 90_000, said) for n in range(2)]
        row = WorkerRow(
            30_000,
            **words,
            pid=at,
            lanes=10,
            running={said: 2},
            types={said: 1, f"t{at}": 1},
            limits={said: {said: said}},
            schedules={said: self.now_ms},
            blocked={said: 3},
            blocked_ms={said: 5000},
            where={said: said},
            since=1,
            lag=2000,
            jobs=jobs,
        )
        self._pipe.zadd(_P + b"workers", {text: self.now_ms + 3_600_000})
        self._pipe.hset(_P + b"workers:rows", text, str(row))
        report = Report(
            place=jobs[0][0], id=said, type=said, attempt=1, since_ms=1, at_ms=self.now_ms, text=said, lines=[said] * 3
        )
        self._pipe.set(_P + b"progress:" + text, pack_reports([report]))

    def _type(self, at: int, text: bytes) -> None:
        said = text.decode(errors="replace")
        told = {"title": said, "description": said, "default": said, "examples": [said], "enum": [said], "type": "string"}
        schema = {
            "$ref": f"#/$defs/{said}",
            "title": said,
            "description": said,
            "$defs": {said: {"type": "object", "properties": {said: told, "n": {"type": "integer"}}, "required": [said, "n"]}},
        }
        words = dict.fromkeys(("location", "doc", "app", "by"), said)
        declared = {"priority": "high", "timeout_s": 30, "attempts": 5, "schema": schema, "limits": {said: said}, **words}
        self._pipe.hset(_P + b"contracts", b"t%d@1" % at, json.dumps(declared))
        self._pipe.hset(_P + b"contracts", text + b"@1", json.dumps(declared))
        for name in (text[:60], b"t%d" % at):
            for counter, n in ((b"done", 30), (b"retry", 25), (b"dead", 20), (b"run12", 50), (text[:20], 5)):
                self._pipe.hset(_P + b"stats:%d" % (self.now_ms // 60_000), name + b" high " + counter, n)

    def _schedule(self, at: int, text: bytes) -> None:
        said = text.decode(errors="replace")
        for key, name in ((b"cron", text), (b"cron", b"s%d" % at), (b"cron:code", text), (b"cron:code", b"c%d" % at)):
            told = {"type": said, "when": said, "tz": said, "data": {said: said}, "missed": said, "overlap": said}
            self._pipe.hset(_P + key, name, json.dumps(told))
        self._pipe.hset(_P + b"cron:state", text, b"1 " + text + b" 1f" + text)

    def _order(self, at: int, text: bytes) -> None:
        self._pipe.hset(_P + b"control", b"pause:t%d" % at, b"0 1 " + text.replace(b" ", b"_") + b" " + text)
        for kind in (b"pause:", b"limit:", b"worker:", b"op:", b""):
            if kind + text not in (b"v", b""):
                self._pipe.hset(_P + b"control", kind + text, text)
        self._pipe.hset(_P + b"control", b"worker:" + text, b"quiet")
        self._pipe.xadd(_P + b"audit", {"at": self.now_ms - at, "by": text, "reason": text, "what": text + b"\n" + text})

    def _operation(self, at: int, text: bytes) -> None:
        words = (b"verb", b"state", b"argument", b"only", b"by", b"reason", b"error", b"source", b"text", b"is:type", b"is:key")
        counts = {b"total": b"10", b"done": b"3", b"refused:" + text: b"2", b"created": str(self.now_ms).encode()}
        for name, state in ((text, text), (b"op-%d" % at, b"held")):
            self._pipe.zadd(_P + b"operations", {name: self.now_ms + at})
            self._pipe.hset(_P + b"operation:" + name, mapping=dict.fromkeys(words, text) | {b"state": state} | counts)

    def _told(self, at: int, text: bytes) -> None:
        """Write how runs ended, what they answered, and what they wrote of themselves."""
        for job_id in (text, b"j%d" % at):
            words = dict.fromkeys((b"id", b"type", b"outcome", b"by", b"app", b"error", b"frame", b"trace"), text)
            times = {b"attempt": b"1", b"at": str(self.now_ms - at).encode(), b"wait": b"5", b"run": b"7"}
            self._pipe.xadd(_P + b"events", words | {b"id": job_id, b"place": b"high/%d-%d" % (at, len(job_id))} | times)
            answer = {"state": "done", "at": 1, "value": {text.decode(errors="replace"): text.decode(errors="replace")}}
            self._pipe.set(_P + b"results:" + job_id, json.dumps(answer))
            words = dict.fromkeys((b"id", b"type", b"place", b"outcome", b"text", b"error"), text)
            self._pipe.xadd(_P + b"logs", words | {b"id": job_id, b"attempt": b"1", b"at": times[b"at"]})

    def _good(self) -> None:
        """Write one of each that is as it should be, beside all of the others."""
        self._pipe.xadd(_P + b"low", {"type": "t0", "data": "{}", "id": "good-1", "traceparent": _traceparent()})
        schedule = {"type": "t0", "when": "* * * * *", "tz": "UTC", "data": {}}
        self._pipe.hset(_P + b"cron", b"every-minute", json.dumps(schedule))


def _message(at: int, text: bytes) -> dict[bytes, bytes]:
    """Return a message of which all fields say this, some of those that people read in a form in which they are shown."""
    said = text.decode(errors="replace")
    tries = [Try(n, 1_764_000_000_000 + n, 20, said, said, f"{said}: {said}", said, TRACE) for n in (1, 2)]
    fields = dict.fromkeys(SENT_FIELDS, text) | {b"x-header": text, text or b"empty": text, b"x-" + text: text}
    data = json.dumps({said: said, "n": [said], "token": said}).encode() if at % 2 else text
    return fields | {b"data": data, b"traceparent": _traceparent(), b"x-origin": text, b"tried": text, b"e": pack_tries(tries)}


def _traceparent() -> bytes:
    return f"00-{TRACE}-00f067aa0ba902b7-01".encode()


def _stack(text: bytes) -> bytes:
    frames = b"".join(b'  File "/srv/%b/%b.py", line 3, in %b\n    %b\n' % ((text.replace(b"\n", b" "),) * 4) for _ in range(3))
    return b"Traceback (most recent call last):\n" + frames + text + b": " + text


def _packed(word: bytes) -> bytes:
    """Return a text as MessagePack."""
    return b"\xdb" + len(word).to_bytes(4, "big") + word


@contextmanager
def filled() -> Iterator[Server]:
    """Run a server with a queue in which strangers have written all they can."""
    server = Server("valkey")
    try:
        with server.client() as client:
            Writer(client).fill()
        yield server
    finally:
        server.stop()
