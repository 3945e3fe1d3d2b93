"""The payload, the result and the report of `analyze-threats`."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias
from handlers.contracts.windows import Window
from runtime import Priority, contract

MAX_SOURCES: Final = 20
MAX_TOP: Final = 20  # of the findings in a result; as many as fit into 4 KiB
MAX_REPORTED: Final = 1000  # a guess: of the findings and of the rules in a report; no person reads more

Level = Literal["low", "medium", "high", "critical"]
LEVELS: Final[tuple[Level, ...]] = ("low", "medium", "high", "critical")
Detection = Literal[
    "ssh-brute-force",
    "ssh-success-after-failures",
    "ssh-spraying",
    "ssh-distributed",
    "web-traversal",
    "web-sql-injection",
    "web-xss",
    "web-command-injection",
    "web-secret-file",
    "web-scanner",
    "web-4xx-burst",
    "web-5xx-burst",
]
DETECTIONS: Final[tuple[Detection, ...]] = get_args(Detection)
Work = Annotated[str, Meta(pattern=r"^(?:[a-z2-7]{26})?(?![\s\S])", description="the `work` of a job")]
Sources = Annotated[list[Alias], Meta(max_length=MAX_SOURCES)]
Detections = Annotated[list[Detection], Meta(max_length=12)]


@contract("analyze-threats", priority=Priority.CRITICAL)
class AnalyzeThreats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Look for attacks in the logs of one of the analyses that the worker's settings define.

    Without a `window`, in the lines that were written since the last run. With one, in all lines of that time; then `sources` and
    `detections` may be fewer than those of the settings. `confirm` is set by the handler, in the job that notes that alerts were
    sent.
    """

    analysis: Alias
    window: Window | None = None
    sources: Sources = []
    detections: Detections = []
    confirm: Work = ""

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: fewer sources or detections were asked for without a window: the other lines would never be looked at.
        """
        if self.window is None and (self.sources or self.detections):
            raise ValueError("`sources` and `detections` need a `window`")


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """A finding: how often, and when for the first and the last time, in seconds. `subject` is printable text."""

    rule: str
    subject: str
    level: Level
    count: int
    first: int
    last: int


class ThreatsAnalyzed(msgspec.Struct, frozen=True, kw_only=True):
    """What `analyze-threats` read and found. The report has all of it; `top` are the worst findings.

    `unreadable` are sources that could not be read, or not as a whole. `blind` are the findings that say that something was not
    looked at, by their names, such as `log-unparsed`: where there is one, that nothing was found means little. A run `raced`
    where another one of the same analysis read the same lines: this one did nothing. `confirmed` are alerts known to be sent.
    `gap_s` is that of the report.
    """

    lines: int = 0
    parsed: int = 0
    unparsed: int = 0
    findings: dict[Level, int] = {}
    top: list[Top] = []
    unreadable: list[str] = []
    blind: list[str] = []
    failed_rules: int = 0
    gap_s: int | None = None
    report: str = ""
    raced: bool = False
    confirmed: int = 0


class SourceRead(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a source. `left_bytes` wait for the next run; `faults` say what could not be read, and why."""

    source: str
    files: int = 0
    bytes: int = 0
    lines: int = 0
    parsed: int = 0
    unparsed: int = 0
    oversized: int = 0
    left_bytes: int = 0
    faults: list[str] = []


class RuleFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A file of rules that was not used, or a rule of it, and why."""

    rule: str
    reason: str


class Reported(Top, frozen=True, kw_only=True):
    """A finding in a report. `is_new` is one that no run before this one knew."""

    id: str
    is_new: bool


class ThreatReport(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a report: evidence of what was looked at, and when.

    `born` is when the job was sent (RFC 3339). `gap_s` is how long before that the last run without a window was; None for the
    first one, and with a window. `begin` and `end` are those of the window.
    """

    kind: Literal["analyze-threats"] = "analyze-threats"
    analysis: str
    work: str
    born: str
    gap_s: int | None = None
    begin: str | None = None
    end: str | None = None
    lines: int
    parsed: int
    unparsed: int
    sources: list[SourceRead]
    findings: list[Reported]
    findings_in_all: int
    rules: int = 0
    failed_rules: list[RuleFailed] = []
