"""The assessment results of OSCAL 1.2.1 (NIST), as far as reports of compliance need them.

Equal findings make equal documents: each id is made of the job and of what it is the id of, and each time is the job's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal
from uuid import UUID, uuid5

import msgspec

from handlers.kit.controls import CHECKS, Control, Profile, state_of
from handlers.kit.evidence import Evidence
from handlers.kit.judging import Verdict

VERSION: Final = "1.2.1"
NAMESPACE: Final = UUID("226b9bf8-76fb-4a9c-8ae0-61cecececd99")  # a random one, of all that is ours
PROPERTIES: Final = "https://github.com/backend-jobs/backend-jobs/oscal"  # names nothing but whose they are

Reason = Literal["pass", "fail", "no-evidence"]
REASONS: Final[dict[str, Reason]] = {"met": "pass", "not met": "fail", "no evidence": "no-evidence"}


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True, forbid_unknown_fields=True):
    """A part of a document: its names have hyphens, and what is empty is left out, since OSCAL has no empty lists."""


class Property(Part, frozen=True, kw_only=True):
    """A name and its value."""

    name: str
    ns: str
    value: str


class Metadata(Part, frozen=True, kw_only=True):
    """Of the document itself."""

    title: str
    last_modified: datetime
    version: str
    oscal_version: str


class Import(Part, frozen=True, kw_only=True):
    """What was to be assessed."""

    href: str


class ControlId(Part, frozen=True, kw_only=True):
    """A control that was assessed."""

    control_id: str


class Selection(Part, frozen=True, kw_only=True):
    """The controls that were assessed."""

    include_controls: list[ControlId]


class Reviewed(Part, frozen=True, kw_only=True):
    """The controls that were assessed, in all."""

    control_selections: list[Selection]


class RelevantEvidence(Part, frozen=True, kw_only=True):
    """By what something is known; `href` leads to a resource at the end of the document."""

    href: str
    description: str


class Observation(Part, frozen=True, kw_only=True):
    """What a check found."""

    uuid: UUID
    title: str
    description: str
    props: list[Property]
    methods: list[Literal["EXAMINE", "TEST"]]
    relevant_evidence: list[RelevantEvidence]
    collected: datetime


class Status(Part, frozen=True, kw_only=True):
    """What became of a control."""

    state: Literal["satisfied", "not-satisfied"]
    reason: Reason
    remarks: str = ""


class Target(Part, frozen=True, kw_only=True):
    """The objective of a control, and its status."""

    type: Literal["objective-id"]
    target_id: str
    status: Status


class Related(Part, frozen=True, kw_only=True):
    """An observation that a finding goes by."""

    observation_uuid: UUID


class Finding(Part, frozen=True, kw_only=True):
    """What was found of a control."""

    uuid: UUID
    title: str
    description: str
    props: list[Property]
    target: Target
    related_observations: list[Related]


class Result(Part, frozen=True, kw_only=True):
    """All findings about a time."""

    uuid: UUID
    title: str
    description: str
    start: datetime
    end: datetime
    reviewed_controls: Reviewed
    observations: list[Observation]
    findings: list[Finding]


class Hash(Part, frozen=True, kw_only=True):
    """A digest, in hexadecimal."""

    algorithm: str
    value: str


class Rlink(Part, frozen=True, kw_only=True):
    """Where a resource is, and its digest."""

    href: str
    hashes: list[Hash]


class Resource(Part, frozen=True, kw_only=True):
    """A file that the document speaks of."""

    uuid: UUID
    title: str
    rlinks: list[Rlink]


class BackMatter(Part, frozen=True, kw_only=True):
    """The files that the document speaks of."""

    resources: list[Resource]


class Results(Part, frozen=True, kw_only=True):
    """The content of a document."""

    uuid: UUID
    metadata: Metadata
    import_ap: Import
    results: list[Result]
    back_matter: BackMatter


class AssessmentResults(Part, frozen=True, kw_only=True):
    """A document."""

    assessment_results: Results

    def encode(self) -> bytes:
        """Return it as JSON for people, too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a document is made of, beside what checks found: the job, the time that it is about, and two digests."""

    name: str
    profile: Profile
    profile_sha256: str
    settings_sha256: str
    work: str
    born: datetime
    begin: datetime
    end: datetime


def document(basis: Basis, verdicts: Mapping[str, Verdict]) -> AssessmentResults:
    """Return the document of what the checks of a profile found, by their names."""
    ids = _Ids(basis.work)
    profile = _resource(ids, "profile", f"Profile {basis.name}", f"profiles/{basis.name}.toml", basis.profile_sha256)
    settings = _resource(ids, "settings", "Settings of the worker, as JSON", "handlers.toml", basis.settings_sha256)
    notes = {each.href: each for verdict in verdicts.values() for each in verdict.evidence}
    resources = [_resource(ids, f"evidence/{each.href}", each.place, each.href, each.sha256) for each in notes.values()]
    controls = basis.profile.controls
    result = Result(
        uuid=ids.of("result"),
        title=basis.profile.title,
        description=f"{len(controls)} controls, checked against the settings of the worker and what its jobs have left.",
        start=basis.begin,
        end=basis.end,
        reviewed_controls=Reviewed(
            control_selections=[Selection(include_controls=[ControlId(control_id=control.id) for control in controls])]
        ),
        observations=[_observation(ids, name, verdict, settings, basis.born) for name, verdict in verdicts.items()],
        findings=[_finding(ids, control, [verdicts[name] for name in control.checks]) for control in controls],
    )
    content = Results(
        uuid=ids.of("document"),
        metadata=Metadata(
            title=basis.profile.title, last_modified=basis.born, version=basis.profile_sha256[:16], oscal_version=VERSION
        ),
        import_ap=Import(href=f"#{profile.uuid}"),
        results=[result],
        back_matter=BackMatter(resources=[profile, settings, *resources]),
    )
    return AssessmentResults(assessment_results=content)


class _Ids:
    """Makes the ids of a document, which are those of a repeat of its job, too."""

    def __init__(self, work: str) -> None:
        self._space = uuid5(NAMESPACE, work)

    def of(self, what: str) -> UUID:
        return uuid5(self._space, what)


def _resource(ids: _Ids, what: str, title: str, href: str, sha256: str) -> Resource:
    return Resource(uuid=ids.of(what), title=title, rlinks=[Rlink(href=href, hashes=[Hash(algorithm="SHA-256", value=sha256)])])


def _observation(ids: _Ids, name: str, verdict: Verdict, settings: Resource, born: datetime) -> Observation:
    check = CHECKS[name]
    evidence = [RelevantEvidence(href=f"#{settings.uuid}", description="The settings of the worker.")]
    evidence += [_relevant(ids, each) for each in verdict.evidence]
    return Observation(
        uuid=ids.of(f"observation/{name}"),
        title=check.title,
        description=verdict.text,
        props=[_property("check", name), _property("reason", REASONS[verdict.state])],
        methods=[check.method],
        relevant_evidence=evidence,
        collected=born,
    )


def _relevant(ids: _Ids, each: Evidence) -> RelevantEvidence:
    description = f"{each.type} {each.subject}, {each.at:%Y-%m-%dT%H:%M:%SZ}".replace(" ,", ",")
    return RelevantEvidence(href=f"#{ids.of(f'evidence/{each.href}')}", description=description)


def _finding(ids: _Ids, control: Control, verdicts: Sequence[Verdict]) -> Finding:
    state = state_of(verdicts)
    wrong = [f"{name}: {each.text}" for name, each in zip(control.checks, verdicts, strict=True) if each.state != "met"]
    return Finding(
        uuid=ids.of(f"finding/{control.id}"),
        title=control.title,
        description="\n".join(wrong) or "Each check of this control is met.",
        props=[_property("control", control.id)],
        target=Target(
            type="objective-id",
            target_id=f"{control.id}_obj",
            status=Status(
                state="satisfied" if state == "met" else "not-satisfied",
                reason=REASONS[state],
                remarks="no evidence" if state == "no evidence" else "",
            ),
        ),
        related_observations=[Related(observation_uuid=ids.of(f"observation/{name}")) for name in control.checks],
    )


def _property(name: str, value: str) -> Property:
    return Property(name=name, ns=PROPERTIES, value=value)
