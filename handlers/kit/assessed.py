"""What people read of an assessment: a summary to print, and a table, both made of the OSCAL document and of nothing else."""

from __future__ import annotations

from typing import Final, Literal

from handlers.kit import blocks
from handlers.kit.blocks import Document, Sheet
from handlers.kit.oscal import AssessmentResults, Finding, Observation, Result
from handlers.kit.tables import CsvText

STATES: Final = {"pass": "satisfied", "fail": "not satisfied", "no-evidence": "no evidence"}
MET: Final = {"pass": "met", "fail": "not met", "no-evidence": "no evidence"}
TIME: Final = "%Y-%m-%d %H:%M UTC"
COLUMNS: Final = ("control", "title", "state", "reason", "check", "met", "found", "evidence")


def summary(results: AssessmentResults, page: Literal["A4", "letter"]) -> Document:
    """Return the summary: how many controls are satisfied, which are not and why, and the evidence with its digests."""
    (result,) = results.assessment_results.results
    reasons = [finding.target.status.reason for finding in result.findings]
    figures = [("Controls", str(len(reasons)))]
    figures += [(text.capitalize(), str(reasons.count(reason))) for reason, text in STATES.items()]
    controls = Sheet(["id", "title", "state"], [_control(finding) for finding in result.findings])
    checks = Sheet(["check", "state", "found"], [_check(each) for each in result.observations])
    notes = results.assessment_results.back_matter.resources
    evidence = Sheet(["file", "sha256"], [(note.title, note.rlinks[0].hashes[0].value) for note in notes])
    shown: list[blocks.AnyBlock] = [
        blocks.Heading(text=result.title, level=1),
        blocks.Paragraph(text=f"{result.start:{TIME}} to {result.end:{TIME}}", style="lead"),
        blocks.Figures(rows=figures),
        blocks.Heading(text="Controls"),
        _table("controls", id="Control", title="", state="State"),
        blocks.Heading(text="What was checked"),
        _table("checks", check="Check", state="State", found="Found"),
        blocks.Heading(text="Evidence"),
        _table("evidence", file="File", sha256="SHA-256"),
    ]
    return Document(title=result.title, blocks=shown, tables={4: controls, 6: checks, 8: evidence}, page=page)


def _table(rows: str, **titles: str) -> blocks.Table:
    return blocks.Table(rows=rows, columns=[blocks.Column(name=name, title=title) for name, title in titles.items()])


def _control(finding: Finding) -> tuple[str, str, str]:
    return finding.props[0].value, finding.title, STATES[finding.target.status.reason]


def _check(observation: Observation) -> tuple[str, str, str]:
    check, reason = (each.value for each in observation.props)
    return f"{observation.title} ({check})", MET[reason], observation.description


def csv_file(results: AssessmentResults) -> bytes:
    """Return a row for each check of each control, in which no text is a formula."""
    (result,) = results.assessment_results.results
    text = CsvText(delimiter=",", null="", formulas="escape", encoding="utf-8")
    return text.head(COLUMNS) + b"".join(text.chunks(_rows(result)))


def _rows(result: Result) -> list[tuple[str | int, ...]]:
    known = {each.uuid: each for each in result.observations}
    rows: list[tuple[str | int, ...]] = []
    for finding in result.findings:
        status = finding.target.status
        for related in finding.related_observations:
            each = known[related.observation_uuid]
            check, reason = (prop.value for prop in each.props)
            found = each.description
            rows.append(
                (*_control(finding)[:2], status.state, status.reason, check, reason, found, len(each.relevant_evidence) - 1)
            )
    return rows
