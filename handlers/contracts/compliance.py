"""The payload and the result of `generate-compliance-report`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.deliveries import Delivery, Page, ReportFile
from handlers.contracts.types import Alias, RootPath, check_path
from handlers.contracts.windows import Window
from runtime import Priority, contract

Format = Literal["oscal", "pdf", "csv"]


def default_formats() -> list[Format]:
    """Return the formats of a report that names none."""
    return ["oscal", "pdf"]


@contract("generate-compliance-report", priority=Priority.MEDIUM)
class GenerateComplianceReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Check the controls of a profile against what the settings say and what other jobs have left, and write down what was found.

    The report is about the end of the window: by then, evidence must be there, and no older than the profile allows. It is in a
    folder of its own, `profile/window/work`, below the folder `to`.
    """

    profile: Alias
    window: Window
    to: RootPath
    formats: Annotated[list[Format], Meta(min_length=1, max_length=3)] = msgspec.field(default_factory=default_formats)
    deliver: Delivery | None = None
    page: Page = "A4"

    def __post_init__(self) -> None:
        """Check the path and the formats.

        Raises:
            ValueError: the path is not in composed form (NFC), or a format is named twice.
        """
        check_path(self.to, "to")
        if len(set(self.formats)) < len(self.formats):
            raise ValueError("must name each format once - at `$.formats`")


class ComplianceReported(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and the folder that holds it; `delivered` is the id of the job that tells people of it.

    Each of the `controls` is in one of the three counts; OSCAL calls those `without_evidence` not satisfied, too. `sha256` is of
    the OSCAL document, whether it was asked for or not.
    """

    title: str
    folder: str
    files: list[ReportFile]
    controls: int
    satisfied: int
    not_satisfied: int
    without_evidence: int
    sha256: str
    delivered: str | None = None
