"""Evidence of what jobs did: what they left in the roots that the settings name, as far as it is still what they left.

A backup has its `manifest.json`, a folder of a job its `.job.json`, a file its sidecar. Each says when, and has the digests of
what it is about: where a file is missing, or is another one by now, there is no evidence. Nothing here is signed: whoever may
write to a root can make all of it up, so its folder should be the worker's alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from handlers.contracts.compliance import ComplianceReported
from handlers.contracts.reports import ReportsGenerated
from handlers.contracts.threats import ThreatsAnalyzed
from handlers.contracts.vulnerabilities import Scanned
from handlers.kit import backups, folders
from handlers.kit.failures import wait_for_operator
from handlers.kit.files import MAX_SIDECAR_BYTES, PART, SIDECAR, Sidecar, explained, fingerprint, open_file, open_root
from handlers.kit.folders import Written
from handlers.kit.settings import Settings
from handlers.kit.sweep import Found, Tree, below, outcome_of
from handlers.kit.threads import Stop

# Guesses, all of them for one report:
MAX_FILES: Final = 1_000_000  # looked at: some seconds
MAX_FOLDERS: Final = 200_000  # entered
MAX_NOTES: Final = 200_000  # manifests and sidecars read: 300 a day for almost two years, in half a minute
MAX_CHECKED_BYTES: Final = 100 * 2**30  # of the files that they are about: four minutes at 400 MB/s, of the ten that a job has

BACKUP: Final = "backup-database"
RESULTS: Final[dict[str, type[msgspec.Struct]]] = {
    "generate-reports": ReportsGenerated,
    "scan-vulnerabilities": Scanned,
    "analyze-threats": ThreatsAnalyzed,
    "generate-compliance-report": ComplianceReported,
}
"""The results of the types that say in their sidecar or manifest what they are."""

_BROKEN: Final = (msgspec.MsgspecError, RecursionError)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """A trace of a job of a type: what it was about, when, and where the note is that says so, with its digest."""

    type: str
    subject: str
    at: datetime
    place: str
    href: str
    sha256: str
    result: Any


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of all roots, newest first.

    `partial` says of each root that was not looked at as a whole why. `changed` counts notes of each type, and of what they are
    about, whose files are not what they were.
    """

    evidence: list[Evidence]
    partial: dict[str, str]
    changed: dict[tuple[str, str], int]


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest or a sidecar, as it was read: what it says, and the files beside it that it speaks of."""

    evidence: Evidence
    folder: str
    files: list[Written]


def collect(settings: Settings, since: Mapping[str, datetime], until: datetime, stop: Stop) -> Collected:
    """Return the evidence in the roots that the settings name, of these types and from these times on, up to `until`.

    Raises:
        Snooze: a root is not configured, cannot be used, or may be purged; `alias-missing`.
        OSError: the disk does not answer.
    """
    found = Collected(evidence=[], partial={}, changed={})
    left = Counter(files=MAX_FILES, folders=MAX_FOLDERS, notes=MAX_NOTES, bytes=MAX_CHECKED_BYTES)
    for alias in dict.fromkeys(settings.compliance.evidence):
        root = settings.root(alias)
        if root.allows("purge"):
            raise wait_for_operator(f"roots.{alias}", "alias-missing", "evidence must be in a root that nobody may purge")
        with explained(alias), open_root(alias, root) as top:
            notes = [note for note in _notes(top, alias, left, found, stop) if _is_wanted(note.evidence, since, until)]
            notes.sort(key=lambda note: (note.evidence.at, note.evidence.place), reverse=True)
            for note in notes:
                _check(top, alias, note, left, found, stop)
    found.evidence.sort(key=lambda each: (each.at, each.place), reverse=True)
    return found


def _is_wanted(evidence: Evidence, since: Mapping[str, datetime], until: datetime) -> bool:
    return evidence.type in since and since[evidence.type] <= evidence.at <= until


def _check(top: int, alias: str, note: _Note, left: Counter[str], found: Collected, stop: Stop) -> None:
    """Keep a note's evidence if each file that it speaks of is what it was."""
    left["bytes"] -= sum(file.bytes for file in note.files)
    if left["bytes"] < 0:
        found.partial[alias] = f"more than {MAX_CHECKED_BYTES} bytes to check"
        return
    about = note.evidence.type, note.evidence.subject
    try:
        with below(top, note.folder) as place:
            is_same = all(_is_same(place, file, stop) for file in note.files)
    except OSError as error:
        if outcome_of(error) is None:
            raise
        is_same = False
    if is_same:
        found.evidence.append(note.evidence)
    else:
        found.changed[about] = found.changed.get(about, 0) + 1


def _is_same(place: int, file: Written, stop: Stop) -> bool:
    # The size first: what has grown is not read.
    return os.stat(file.name, dir_fd=place, follow_symlinks=False).st_size == file.bytes and (
        fingerprint(place, file.name, stop) == (file.bytes, file.sha256)
    )


# --- finding notes --------------------------------------------------------------------------------------------------------


def _notes(top: int, alias: str, left: Counter[str], found: Collected, stop: Stop) -> Iterator[_Note]:
    """Yield what manifests and sidecars of a root say, until a limit is met."""

    def enters(name: str) -> bool:
        left["folders"] -= 1
        return left["folders"] >= 0 and not (name.startswith(".") or name.endswith(PART))

    tree = Tree(top, recurse=True, enters=enters, stop=stop)
    for file in tree:
        is_note = file.name == backups.MANIFEST or file.name.endswith(SIDECAR)
        left["files"] -= 1
        left["notes"] -= is_note
        if min(left["files"], left["notes"], left["folders"]) < 0:
            break
        if is_note:
            try:
                note = _note(top, alias, file)
            except OSError as error:
                if outcome_of(error) is None:
                    raise
                tree.failed += outcome_of(error) == "failed"
                continue
            if note is not None:
                yield note
    over = [f"more than {limit} {name}" for name, limit in _limits() if left[name] < 0]
    if over or tree.failed:
        found.partial[alias] = ", ".join(over) or f"{tree.failed} folders or files cannot be read"


def _limits() -> tuple[tuple[str, int], ...]:
    return ("files", MAX_FILES), ("folders", MAX_FOLDERS), ("notes", MAX_NOTES)


def _note(top: int, alias: str, file: Found) -> _Note | None:
    """Return what a file says; None if it is no note of a job whose results count as evidence."""
    with below(top, file.folder) as place:
        limit_bytes = backups.MAX_MANIFEST_BYTES if file.name == backups.MANIFEST else MAX_SIDECAR_BYTES
        descriptor = open_file(place, file.name)
        if descriptor is None:
            return None
        with open(descriptor, "rb") as opened:
            data = opened.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        return None
    with contextlib.suppress(*_BROKEN):
        type_, at, result, files = _said(file.name, data)
        if at is not None and at.tzinfo is not None and files and all(map(_is_name, files)):
            path = f"{file.folder}/{file.name}".lstrip("/")
            evidence = Evidence(
                type=type_,
                subject=_subject(result),
                at=at,
                place=printable(f"{alias}:{path}"),
                href=f"{alias}/{quote(os.fsencode(path))}",
                sha256=hashlib.sha256(data).hexdigest(),
                result=result,
            )
            return _Note(evidence=evidence, folder=file.folder, files=files)
    return None


def _said(name: str, data: bytes) -> tuple[str, datetime | None, Any, list[Written]]:
    """Return the type, the time, the result and the files of a note; no time where it is not evidence.

    Raises:
        MsgspecError, RecursionError: it is no note.
    """
    if name == backups.MANIFEST:
        made = msgspec.json.decode(data, type=backups.Manifest)
        files = [Written(name=made.file, bytes=made.compressed, sha256=made.sha256)]
        return BACKUP, made.taken, msgspec.structs.replace(made, tables={}), files
    if name == folders.MANIFEST:
        manifest = msgspec.json.decode(data, type=folders.Manifest)
        type_, born, raw, files = manifest.type, manifest.born, manifest.result, manifest.files
    else:
        sidecar = msgspec.json.decode(data, type=Sidecar)
        type_, born, raw = sidecar.type, sidecar.born, sidecar.result
        files = [Written(name=name.removesuffix(SIDECAR), bytes=sidecar.size, sha256=sidecar.sha256)]
    if type_ not in RESULTS:
        return type_, None, None, []
    return type_, born, msgspec.json.decode(raw, type=RESULTS[type_]), files


def _is_name(file: Written) -> bool:
    """Return whether a note speaks of a file beside it."""
    return file.name not in ("", ".", "..") and "/" not in file.name and "\x00" not in file.name and file.bytes >= 0


def _subject(result: Any) -> str:
    """Return what a result is about: the name of a backup, a report, a profile or an analysis; or the folder of scans."""
    match result:
        case backups.Manifest(backup=alias):
            return alias
        case ReportsGenerated(folder=folder):
            return folder.partition(":")[2].partition("/")[0]
        case ThreatsAnalyzed(report=path):
            return path.partition(":")[2].partition("/")[0]
        case Scanned(folder=folder):
            return folder.rpartition("/")[0]
        case ComplianceReported(folder=folder):
            return "/".join(folder.split("/")[-3:-2])
        case _:
            return ""


def printable(text: str) -> str:
    """Return a text that may stand in a line, whatever the names of files are."""
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in shown)
