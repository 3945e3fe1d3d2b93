"""Attacks in events of logs: too many of a kind from one subject in a sliding window, and what no client asks for in good faith.

Pure, and one event at a time. What is remembered of a subject is bounded, and so is the number of subjects: where there are more,
the one that was quiet for longest is forgotten, and counted if that can have hidden something.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import OrderedDict
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
import re2  # pyright: ignore[reportMissingTypeStubs]
from msgspec import Meta

from handlers.contracts.threats import LEVELS, Detection, Level
from handlers.kit.logs import Event, printable
from handlers.kit.sections import Thresholds

MAX_SUBJECTS: Final = 100_000
EACH: Final = 10  # times or names are remembered of each, where there are so many subjects
MAX_FOUND: Final = 10_000  # a guess: findings of a run; what is more is counted
MAX_TARGET_CHARS: Final = 8192  # what nginx and Apache take in a request line
QUIET_S: Final = 3600.0  # a guess: an attack that pauses for so long is another one
PREFIX_BITS: Final = 64  # whoever has one IPv6 address has all of its /64 (RFC 6177)
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses, in their last 32 bits (RFC 6052)

BLIND: Final = "subjects-forgotten"
# What was not looked at, which is a finding, too.
BLINDNESS: Final[dict[str, Level]] = {
    BLIND: "medium",
    "findings-dropped": "medium",
    "log-unparsed": "high",
    "log-lines-lost": "low",
    "log-unread": "high",
    "source-unreadable": "high",
    "rules-failed": "high",
}
LEVEL_OF: Final[dict[str, Level]] = {
    "ssh-brute-force": "high",
    "ssh-success-after-failures": "critical",
    "ssh-spraying": "high",
    "ssh-distributed": "high",
    "web-traversal": "high",
    "web-sql-injection": "high",
    "web-xss": "medium",
    "web-command-injection": "critical",
    "web-secret-file": "medium",
    "web-scanner": "medium",
    "web-4xx-burst": "medium",
    "web-5xx-burst": "medium",
    **BLINDNESS,
}


class Hit(msgspec.Struct):
    """A finding of a run: what was found about whom, when for the first and the last time, and how often.

    `before` are the events that were not yet too many; they count where no earlier run has counted them.
    """

    rule: str
    subject: str
    level: Level
    count: int
    before: int
    first: float
    last: float


class Hits:
    """The findings of a run. What comes within an hour is one of them; what is further apart is two."""

    def __init__(self) -> None:
        self.dropped = 0
        self._found: dict[tuple[str, str], list[Hit]] = {}
        self._kept: dict[Level, list[Hit]] = {level: [] for level in LEVELS}  # those that count for `MAX_FOUND`

    def __iter__(self) -> Iterator[Hit]:
        return (hit for hits in self._found.values() for hit in hits)

    def add(self, rule: str, subject: str, level: Level, first: float, last: float, count: int = 1, before: int = 0) -> None:
        """Note that a rule holds for a subject, from its first event to its last."""
        subject = printable(subject)
        hits = self._found.get((rule, subject), [])
        for hit in reversed(hits):
            if hit.first - QUIET_S <= last and first <= hit.last + QUIET_S:
                hit.first, hit.last, hit.count = min(hit.first, first), max(hit.last, last), hit.count + count
                return
        hit = Hit(rule, subject, level, count, before, first, last)
        if rule not in BLINDNESS:
            if sum(map(len, self._kept.values())) >= MAX_FOUND:
                self.dropped += 1
                if not self._displace(level):
                    return
            self._kept[level].append(hit)
        self._found.setdefault((rule, subject), []).append(hit)

    def _displace(self, level: Level) -> bool:
        """Return whether there was a finding of a lower level, which is dropped."""
        for lower in LEVELS[: LEVELS.index(level)]:
            if self._kept[lower]:
                hit = self._kept[lower].pop()
                self._found[hit.rule, hit.subject] = [each for each in self._found[hit.rule, hit.subject] if each is not hit]
                return True
        return False


# --- sliding windows -------------------------------------------------------------------------------------------------------


class Window:
    """What is remembered of each subject: `most` times of its last events (`Rate`), or whom it met last and when (`Meetings`)."""

    remembers: Any

    def __init__(self, most: int, window_s: float, subjects: int = MAX_SUBJECTS) -> None:
        self.forgotten = 0
        self._most = most
        self._most_subjects = subjects
        self._window_s = window_s
        self._subjects: OrderedDict[str, Any] = OrderedDict()  # the one that was quiet for longest is the first
        self._remembered = 0

    @property
    def subjects(self) -> dict[str, Any]:
        """What is remembered of each subject, as msgspec writes it."""
        return dict(self._subjects)

    def restore(self, subjects: dict[str, Any]) -> None:
        """Remember what an earlier run did; nothing if it remembered something else."""
        with contextlib.suppress(msgspec.ValidationError):
            self._subjects = OrderedDict(msgspec.convert(subjects, dict[str, self.remembers]))
            self._remembered = sum(map(len, self._subjects.values()))

    def last_of(self, remembered: Any) -> float:
        """Return when the last event of a subject was, of which this is remembered."""
        raise NotImplementedError

    def _make_room(self, at: float) -> None:
        while len(self._subjects) > self._most_subjects or self._remembered > EACH * self._most_subjects:
            _, remembered = self._subjects.popitem(last=False)
            self._remembered -= len(remembered)
            self.forgotten += at - self.last_of(remembered) <= self._window_s


class Rate(Window):
    """Whether a subject has so many events in the window."""

    remembers = Annotated[list[float], Meta(min_length=1)]

    def add(self, subject: str, at: float, times: int = 1) -> None:
        """Note an event."""
        seen: list[float] = self._subjects.pop(subject, None) or []
        self._subjects[subject] = seen
        before = len(seen)
        seen.extend([at] * min(times, self._most))
        del seen[: -self._most]
        self._remembered += len(seen) - before
        self._make_room(at)

    def forget(self, subject: str) -> None:
        """Forget a subject's events."""
        self._remembered -= len(self._subjects.pop(subject, ()))

    def begin(self, subject: str, at: float, least: int) -> float | None:
        """Return when the first of the subject's events in the window was, if they are so many; None else."""
        recent = [each for each in self._subjects.get(subject, ()) if abs(at - each) <= self._window_s]
        return min(recent) if len(recent) >= least else None

    def last_of(self, remembered: list[float]) -> float:
        """Return when the last event was."""
        return remembered[-1]


class Meetings(Window):
    """Whether a subject met so many others in the window."""

    remembers = Annotated[dict[str, float], Meta(min_length=1)]

    def add(self, subject: str, other: str, at: float) -> float | None:
        """Note that it met another, and return when the window with too many of them began; None if they are not too many."""
        met: dict[str, float] = self._subjects.pop(subject, None) or {}
        self._subjects[subject] = met
        before = len(met)
        met.pop(other, None)
        met[other] = at
        while len(met) > self._most or abs(at - next(iter(met.values()))) > self._window_s:
            del met[next(iter(met))]
        self._remembered += len(met) - before
        self._make_room(at)
        return min(met.values()) if len(met) == self._most else None

    def last_of(self, remembered: dict[str, float]) -> float:
        """Return when it met the last one."""
        return next(reversed(remembered.values()))


# --- what no client asks for in good faith -----------------------------------------------------------------------------------

# `&` between parameters is the byte 0x1f here, so that one that was encoded can be told from it.
_COMMANDS: Final = (
    rb"(?:cat|id|ls|dir|whoami|uname|wget|curl|nc|ncat|netcat|bash|sh|zsh|ping|sleep|python[23]?|perl|php|powershell|cmd|echo|rm"
    rb"|chmod|nslookup|dig|tftp|busybox|printenv)"
)
# A path, an option, a variable, a host, a file: none of what people write behind the name of a thing.
_ARGUMENT: Final = rb"(?:-[a-z]{1,3}\b|--\w|\.{0,2}/[\w.*]|~/|\$[a-z({@]|\*|https?:|\d+(?:\.\d+){3}|[a-z][\w-]*\.[a-z]\w)"
_BIN: Final = rb"/(?:usr/)?(?:local/)?s?bin/"
_GAP: Final = rb"(?:\s|\(|/\*!?\d{0,6}|\*/)"  # what parts two words of SQL; MySQL runs `/*!50000 this */`
_SECRETS: Final = (
    rb"(?:^|/)\.(?:env|git|svn|hg|aws|ssh|htpasswd|htaccess|npmrc|docker|dockercfg|kube|ds_store|bash_history|vscode)(?:[/?.\x1f~]|$)",
    rb"/(?:wp-config\.php|web\.config|config\.(?:php|ya?ml|json)\.(?:bak|old|save)|database\.ya?ml|secrets?\.(?:json|ya?ml|toml)"
    rb"|phpinfo\.php|id_(?:rsa|dsa|ecdsa|ed25519)|(?:dump|backup|database|db)\.(?:sql|zip|gz|tar|tgz|tar\.gz|sql\.gz)"
    rb"|actuator/(?:env|heapdump|configprops))(?:[?/\x1f~]|$)",
    rb"/server-status(?:[/\x1f~]|$)",  # with a query, it is monitoring
    rb"/etc/(?:passwd|shadow|hosts|sudoers)|/proc/self/|c:/windows/|boot\.ini|win\.ini",
)
_TARGETS: Final[dict[Detection, tuple[bytes, ...]]] = {
    "web-traversal": (rb"(?:^|[/=?;:\x1f])\.\.(?:[/;]|$)", rb"\.\.;/", rb"\bfile:/"),
    "web-sql-injection": (
        rb"(?:\b|/\*!\d{0,6})union\b" + _GAP + rb"+(?:(?:all|distinct)" + _GAP + rb"+)?select\b",
        rb"""['"`)]\s*(?:or|and|\|\||&&|xor)\s*\(?\s*(?:not\s+)?['"`(]?[\w%]+['"`]?\s*(?:=|<|>|r?like\b)""",
        rb"\b(?:or|and)\s+\(?\d+\s*(?:=|<|>)\s*\d+",
        rb"""['"`)\d]\s*\b(?:or|and|xor)\s+(?:not\s+)?\(*(?:(?:substr(?:ing)?|ascii|ord|mid|length|hex|char|concat|if|version"""
        rb"""|database|user)\(|(?:exists\s*|\()\s*\(?select\b)""",
        rb"""(?:=\s*-?\d+|['"])[)'"]*\s*\b(?:or|and)\s+(?:not\s+)?(?:true|false)\s*(?:--|[#;)\x1f]|$)""",
        rb";\s*select\s+(?:\*\s|[\w.]+\(|[\w.,\s]{1,80}\sfrom\s+[\w.]+\s*(?:--|[#;]|where\b|limit\b))",
        rb"['\"0-9]\s*;\s*(?:drop|insert|update|delete|alter|create|truncate|exec|declare|shutdown)\s",
        rb"\b(?:pg_)?sleep\s*\(\s*[\d.]+\s*\)|\b(?:benchmark|extractvalue|updatexml|load_file|dbms_\w+\.\w+)\s*\(",
        rb"\bwaitfor\s+delay\b|\bxp_cmdshell\b|\binformation_schema\b|\binto\s+(?:out|dump)file\b|\bsqlite_master\b|\bpg_catalog\b",
        rb"'\s*(?:--|#|/\*|;\s*--)",
        rb"\border\s+by\s+\d+\s*(?:--|#)",
    ),
    "web-xss": (
        rb"<\s*/?\s*(?:script|iframe|object|embed|svg|img|body|math|video|audio|link|style|meta|base|form|input|details|marquee)"
        rb"(?:[\s/>]|$)",
        rb"(?:javascript|vbscript)\s*:|data:text/html",
        rb"""[\s/"'<>]on(?:error|load|click|mouse\w+|focus|blur|toggle|begin|animation\w+|pointer\w+|key\w+|submit|start)\s*=""",
        rb"\bdocument\s*\.\s*(?:cookie|location|write|domain)\b|\balert\s*[(`]",
    ),
    "web-command-injection": (
        # Names of commands are words, which stand in lists and in what people search for.
        rb"(?:`|\$\(|<\()\s*(?:" + _BIN + rb")?" + _COMMANDS + rb"(?:[\s/;|&`)<>$]|$)",
        rb"[;|&\n]\s*" + _BIN + _COMMANDS + rb"(?:[\s/;|&`)<>$]|$)",
        rb"[;|&\n]\s*" + _COMMANDS + rb"(?:\s*[<>]{1,2}(?:\s?[/&]|\w)|\s+" + _ARGUMENT + rb")",
        rb"(?:&&|\|\|)\s*" + _COMMANDS + rb"\s+\w|[;|&\n]\s*sleep\s+\d|[;|&\n]\s*echo\s+[\"']",
        rb"""=[\d.]*['")]*\s*(?:;|\|{1,2}|&{1,2}|\n)\s*""" + _COMMANDS + rb"\s*(?:[;|&#\x1f]|$)",  # behind a number, or nothing
        rb"\$\{(?:jndi|env|lower|upper|sys|::-)|\$\{ifs\}|\$ifs\b",
        rb"/bin/(?:ba|z|da)?sh\b|\(\)\s*\{|\bcmd(?:\.exe)?\s*/c\b|/dev/tcp/",
    ),
    "web-secret-file": _SECRETS,
}
_HEADERS: Final[dict[Detection, tuple[bytes, ...]]] = {
    "web-command-injection": (rb"\$\{(?:jndi|env|lower|upper|::-)", rb"\(\)\s*\{"),
    "web-scanner": (
        rb"\b(?:sqlmap|nikto|nmap|masscan|zgrab|nuclei|gobuster|dirbuster|dirb|wpscan|acunetix|nessus|openvas|w3af|ffuf|feroxbuster"
        rb"|hydra|burp\w*|arachni|whatweb|havij|netsparker|joomscan|fimap|wfuzz|xsser|commix|jaeles|interactsh|l9explore|zmeu)\b",
    ),
}


class _Patterns:
    """Which detections hold for a text; in time that grows with the text, whatever it is."""

    def __init__(self, patterns: dict[Detection, tuple[bytes, ...]]) -> None:
        library: Any = re2  # it has no types
        options = library.Options()
        options.encoding = options.Encoding.LATIN1  # of bytes, whatever they are
        self._set = library.Set.SearchSet(options)
        self._of: list[Detection] = []
        for detection, texts in patterns.items():
            for text in texts:
                self._set.Add(text)
                self._of.append(detection)
        self._set.Compile()

    def found(self, text: bytes) -> set[Detection]:
        """Return the detections of which a pattern is in the text."""
        return {self._of[number] for number in self._set.Match(text) or ()}


_of_targets = _Patterns(_TARGETS)
_of_headers = _Patterns(_HEADERS)
WEB: Final = (*_TARGETS, "web-scanner")


def normal(target: str) -> bytes:
    """Return what a server makes of a target, and what is behind it may make of that: percent-decoded twice, in lower case."""
    raw = target[:MAX_TARGET_CHARS].encode("utf-8", "backslashreplace").replace(b"&", b"\x1f").replace(b"+", b" ")
    for _ in range(2):
        if b"%" not in raw:
            break
        raw = unquote_to_bytes(raw)
    raw = raw.lower().replace(b"\\", b"/").replace(b"\x00", b"")
    raw = raw.replace(b"\xc0\xae", b".").replace(b"\xc0\xaf", b"/")  # longer forms that some decoders take
    while b"/./" in raw or b"//" in raw:
        raw = raw.replace(b"/./", b"/").replace(b"//", b"/")
    return raw.replace(b"/**/", b" ")


@lru_cache(maxsize=4096)  # of short ones, below: half a MiB
def _agent_of(agent: str) -> frozenset[Detection]:
    return frozenset(_of_headers.found(agent.lower().encode("utf-8", "backslashreplace")))


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return who stands behind an address: itself, the IPv4 address in an IPv6 one, or the network of that."""
    if ":" not in address:
        return address
    try:
        known = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if known.ipv4_mapped is not None or known in NAT64:
        return str(ipaddress.IPv4Address(int(known) & 0xFFFFFFFF))
    return str(ipaddress.IPv6Network((int(known), PREFIX_BITS), strict=False))


def asked_for(event: Event) -> set[Detection]:
    """Return which detections hold for a request by itself."""
    found = _of_targets.found(normal(event.target))
    if event.agent and len(event.agent) <= 128 and not event.agent.isspace():
        found |= _agent_of(event.agent)
    elif event.agent:
        found |= _of_headers.found(event.agent.lower().encode("utf-8", "backslashreplace")[:MAX_TARGET_CHARS])
    if "${" in event.referer or "()" in event.referer:
        found |= _of_headers.found(event.referer.lower().encode("utf-8", "backslashreplace")[:MAX_TARGET_CHARS])
    return found


# --- all of them -----------------------------------------------------------------------------------------------------------


class Detections:
    """The detections of an analysis. `add` each event, then `finish`; what is found goes to `hits`."""

    def __init__(self, wanted: Collection[Detection], thresholds: Thresholds, hits: Hits) -> None:
        self._wanted = frozenset(wanted)
        self._is_web_wanted = not self._wanted.isdisjoint(WEB)
        self._hits = hits
        self._least = thresholds
        self._failures = Rate(thresholds.failures, thresholds.failures_s)
        self._guesses = Rate(thresholds.before_success, thresholds.failures_s)  # of one user's password, from one address
        self._users = Meetings(thresholds.users, thresholds.users_s)
        self._addresses = Meetings(thresholds.addresses, thresholds.addresses_s)
        self._client_errors = Rate(thresholds.client_errors, thresholds.client_errors_s)
        self._server_errors = Rate(thresholds.server_errors, thresholds.server_errors_s)
        self.windows: dict[str, Rate | Meetings] = {
            "failures": self._failures,
            "guesses": self._guesses,
            "users": self._users,
            "addresses": self._addresses,
            "client-errors": self._client_errors,
            "server-errors": self._server_errors,
        }

    def add(self, event: Event) -> None:
        """Look at an event."""
        if event.action == "request":
            self._request(event)
        elif event.action:
            self._login(event)

    def _note(self, rule: Detection, subject: str, first: float | None, last: float, least: int = 1, times: int = 1) -> None:
        if first is not None and rule in self._wanted:
            self._hits.add(rule, subject, LEVEL_OF[rule], min(first, last), max(first, last), times, max(least - times, 0))

    def _login(self, event: Event) -> None:
        at, src, user, least = event.at, network_of(printable(event.src)), printable(event.user), self._least
        if event.action == "accepted":
            begin = self._guesses.begin(f"{user} {src}", at, least.before_success)
            if begin is None:
                begin = self._failures.begin(src, at, least.failures)
            self._note("ssh-success-after-failures", src, begin, at)
            self._guesses.forget(f"{user} {src}")  # people who mistype do so again
            return
        if event.action == "failed":
            self._guesses.add(f"{user} {src}", at, event.times)
            self._failures.add(src, at, event.times)
            begin = self._failures.begin(src, at, least.failures)
            self._note("ssh-brute-force", src, begin, at, least.failures, event.times)
            self._note("ssh-distributed", user, self._addresses.add(user, src, at), at, least.addresses)
        self._note("ssh-spraying", src, self._users.add(src, user, at), at, least.users)

    def _request(self, event: Event) -> None:
        at = event.at
        found = asked_for(event) if self._is_web_wanted else ()
        if not found and event.status < 400:
            return
        src = network_of(printable(event.src))
        for rule in found:
            self._note(rule, src, at, at)
        if event.status >= 500:
            self._burst("web-5xx-burst", self._server_errors, src, at, self._least.server_errors)
        elif event.status >= 400:
            self._burst("web-4xx-burst", self._client_errors, src, at, self._least.client_errors)

    def _burst(self, rule: Detection, errors: Rate, src: str, at: float, least: int) -> None:
        errors.add(src, at)
        self._note(rule, src, errors.begin(src, at, least), at, least)

    def finish(self) -> None:
        """Note how many subjects were forgotten, of which something could have been found."""
        for name, window in self.windows.items():
            if window.forgotten:
                last = max(map(window.last_of, window.subjects.values()))
                self._hits.add(BLIND, name, LEVEL_OF[BLIND], last, last, window.forgotten)
