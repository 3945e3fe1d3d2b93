"""Profiles of controls: which checks each control consists of, and what becomes of a control by what they found."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Line
from handlers.kit import deeds, postures
from handlers.kit.definitions import MAX_BYTES, find
from handlers.kit.judging import Check, Limits, Verdict
from handlers.kit.settings import Settings
from runtime import Dead

CHECKS: Final[dict[str, Check]] = {**deeds.CHECKS, **postures.CHECKS}
SHIPPED: Final = Path(__file__).parents[1] / "profiles"
MAX_CONTROLS: Final = 500  # a guess: NIST SP 800-53 at its high baseline has 370

# What OSCAL takes for an id ("token"), in ASCII.
Id = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,62}(?![\s\S])")]
Title = Annotated[Line, Meta(min_length=1)]


class Control(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A control, satisfied where each of its checks is met."""

    id: Id
    title: Title
    checks: Annotated[list[Alias], Meta(min_length=1, max_length=20)]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The controls that a report is about. `source` says for people which edition of what they are from."""

    title: Title
    source: Line = ""
    limits: Limits = Limits()
    controls: Annotated[list[Control], Meta(min_length=1, max_length=MAX_CONTROLS)]


class Read(msgspec.Struct, frozen=True):
    """A profile, and the digest of the file that it was read from."""

    profile: Profile
    sha256: str


def load(settings: Settings, name: str) -> Read:
    """Return the profile of this name, from the configured folder or else from those that are shipped.

    Raises:
        Dead: there is none, `bad-payload`; or it is no profile, or names a check that does not exist, `rule-error`.
        Snooze: it cannot be read; `alias-missing`.
    """
    own = [settings.compliance.path] if settings.compliance.path else []
    text = find([*own, SHIPPED], name, f"profiles.{name}")
    if text is None:
        raise Dead(f"no profile {name}; hint: {name}.toml in `compliance.path`", "bad-payload")
    if len(text) > MAX_BYTES:
        raise Dead(f"profiles.{name}: must have at most {MAX_BYTES} bytes", "rule-error")
    try:
        profile = msgspec.convert(tomllib.loads(text.decode()), Profile)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise Dead(f"profiles.{name}: {error}", "rule-error") from None
    _check(name, profile)
    return Read(profile, hashlib.sha256(text).hexdigest())


def _check(name: str, profile: Profile) -> None:
    seen: set[str] = set()
    for control in profile.controls:
        if control.id.lower() in seen:
            raise Dead(f"profiles.{name}: control {control.id} is there twice", "rule-error")
        seen.add(control.id.lower())
        if len(set(control.checks)) < len(control.checks):
            raise Dead(f"profiles.{name}: {control.id} names a check twice", "rule-error")
        for check in control.checks:
            if check not in CHECKS:
                raise Dead(f"profiles.{name}: {control.id}: no check {check}; hint: {', '.join(CHECKS)}", "rule-error")


def state_of(verdicts: Sequence[Verdict]) -> Literal["met", "not met", "no evidence"]:
    """Return what becomes of a control: what is wrong counts more than what is not known, and both more than what is right."""
    states = {verdict.state for verdict in verdicts}
    return "not met" if "not met" in states else "no evidence" if "no evidence" in states else "met"
