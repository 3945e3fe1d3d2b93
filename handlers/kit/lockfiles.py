"""What lock files say is installed: packages with one exact version, and everything about which they leave that open.

No file is run, no link is followed, nothing outside of the root is opened, whatever a file names, and no text of a file is passed
on that is not a name or a version.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar
from unicodedata import normalize

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name

from handlers.contracts.types import RootPath
from handlers.contracts.vulnerabilities import Reason
from handlers.kit.failures import MISSING_TRIES
from handlers.kit.files import source
from handlers.kit.settings import Settings
from runtime import Dead

MAX_FILE_BYTES: Final = 16 * 2**20  # a guess: the lock file of a large workspace has 2 MB
MAX_FILES: Final = 200  # a guess: of one target, by `-r` and `-c`
MAX_PACKAGES: Final = 100_000  # a guess: fifty times those of a large workspace
MAX_GAPS: Final = 1000  # that are listed; all are counted
MAX_NAME_CHARS: Final = 214  # of npm's own rule
MAX_LINE_CHARS: Final = 32 * 1024  # a guess: a requirement with a hundred hashes has 8,000

MAX_KEY_DOTS: Final = 16  # of one key in TOML, a guess: the lock files that we know have 3

Ecosystem = Literal["PyPI", "npm"]
T = TypeVar("T")

_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_~-]{0,127}(?![\s\S])")
_NPM_NAME: Final = re.compile(r"(?:@[A-Za-z0-9~_-][A-Za-z0-9._~-]*/)?[A-Za-z0-9~_-][A-Za-z0-9._~-]*(?![\s\S])")
_COMMENT: Final = re.compile(r"(?<!\S)#.*")  # as pip reads it: a `#` within a word is none
_INCLUDE: Final = re.compile(r"(-r|--requirement|-c|--constraint)(?:\s*=\s*|\s*)(.+)")
_INSTALLER: Final = re.compile(  # what says how to install, not what
    r"(?:-i|--index-url|--extra-index-url|--no-index|-f|--find-links|--no-binary|--only-binary|--prefer-binary|--require-hashes"
    r"|--pre|--trusted-host|--use-feature)(?:[\s=]|(?![\s\S]))"
)
_BEGIN: Final = re.compile(r"\"\"\"|'{3}|[\"'#]")  # of a text in TOML, or of a comment
_END: Final = {  # of each of these, or an escape
    '"""': re.compile(r'\\[\s\S]|"{3,5}'),
    "'''": re.compile(r"'{3,5}"),
    '"': re.compile(r'\\.|["\n]'),
    "'": re.compile(r"['\n]"),
    "#": re.compile(r"(?=\n)"),
}
_DEEP_KEY: Final = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_DOTS + 1}}}")
_FROM_URL: Final = re.compile(r"[./]|[^\s\[]*(?::/|\\|\.(?:whl|zip|tar\.\w+|tgz)(?![\w.]))", re.IGNORECASE)


class Package(NamedTuple):
    """A package as a lock file pins it; the name as its registry compares it."""

    ecosystem: Ecosystem
    name: str
    version: str


class Gap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something in a file could not be judged: where it stands, and of which package, where that is known."""

    reason: Reason
    path: str
    line: int = 0
    package: str = ""


class Inventory:
    """The packages, each with the targets that have it; the gaps, and how many there are; each file that was read."""

    def __init__(self) -> None:
        self.packages: dict[Package, list[str]] = {}
        self.gaps: list[Gap] = []
        self.counts: Counter[Reason] = Counter()
        self.files: dict[str, str] = {}
        self._targets: set[str] = set()

    def has_any(self, target: str) -> bool:
        """Return whether a target has any package."""
        return target in self._targets

    @property
    def sha256(self) -> str:
        """The digest of all files, with their paths."""
        return hashlib.sha256(msgspec.json.encode(sorted(self.files.items()))).hexdigest()

    def add(self, target: str, package: Package) -> None:
        """Note a package of a target.

        Raises:
            Dead: there are too many; `too-large`.
        """
        targets = self.packages.setdefault(package, [])
        if target not in targets:
            targets.append(target)
            self._targets.add(target)
        if len(self.packages) > MAX_PACKAGES:
            raise Dead(f"targets must have at most {MAX_PACKAGES} packages together", "too-large")

    def miss(self, reason: Reason, path: str, line: int = 0, package: str = "") -> None:
        """Note what could not be judged."""
        self.counts[reason] += 1
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append(Gap(reason=reason, path=path, line=line, package=package))


def read_targets(settings: Settings, targets: Sequence[RootPath], attempt: int) -> Inventory:
    """Return what all targets say is installed.

    Raises:
        Dead: a target is no lock file of its kind, `bad-rows`; it leads over a link, `bad-path`; a file or all of them are
            `too-large`; or a target is still `input-missing`.
        Retry: there is no such file yet; `input-missing`.
        Snooze: a root is not configured, or cannot be used; `alias-missing`.
    """
    found = Inventory()
    for target in targets:
        content = _content(settings, target, attempt, found)
        name, gaps = re.split("[:/]", target)[-1], found.counts.total()
        if name.endswith(".txt"):
            _Requirements(settings, target, found).read(content)
        else:
            ecosystem: Ecosystem = "npm" if name in ("package-lock.json", "npm-shrinkwrap.json") else "PyPI"
            for entry in _entries(name, target, content):
                _note(found, target, ecosystem, entry)
        if not found.has_any(target) and found.counts.total() == gaps:
            found.miss("empty", target)
    return found


def _content(settings: Settings, path: str, attempt: int, found: Inventory) -> bytes:
    with source(settings, path, attempt) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise Dead(f"{path} must have at most {MAX_FILE_BYTES} bytes", "too-large")
    found.files[path] = hashlib.sha256(content).hexdigest()
    return content


# --- packages --------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A package as a file names it; no version where it is not pinned."""

    name: str
    version: str | None
    is_from_url: bool


def _note(found: Inventory, target: str, ecosystem: Ecosystem, entry: Entry) -> None:
    """Note one package, or why it cannot be judged."""
    name = _name(ecosystem, entry.name)
    if name is None:
        found.miss("unparsed", target)
    elif entry.is_from_url:
        found.miss("url", target, package=name)
    elif not entry.version:
        found.miss("unpinned", target, package=name)
    elif not _VERSION.match(entry.version):
        found.miss("unparsed", target, package=name)
    else:
        found.add(target, Package(ecosystem, name, entry.version))


def _name(ecosystem: Ecosystem, name: str) -> str | None:
    """Return a name as its registry compares it; None if it is no name."""
    if len(name) > MAX_NAME_CHARS:
        return None
    if ecosystem == "npm":
        return name if _NPM_NAME.match(name) else None
    try:
        return str(canonicalize_name(name, validate=True))
    except InvalidName:
        return None


# --- requirements.txt ------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A requirement: where it stands, and its version, where it has one exact one."""

    path: str
    number: int
    name: str
    marker: str
    version: str | None


class _Requirements:
    """Reads a requirements file, with those that it names, as pip does, but for every environment: markers exclude nothing."""

    def __init__(self, settings: Settings, target: str, found: Inventory) -> None:
        self._settings = settings
        self._target = target
        self._found = found
        self._seen = {(target, False)}
        self._lines: list[Line] = []
        self._pins: dict[str, dict[str, set[str]]] = {}  # what constraints say, and other lines: by name and by marker

    def read(self, content: bytes) -> None:
        """Note what the target and all that it names say."""
        self._read(self._target, content, is_constraint=False)
        for path, number, name, marker, version in self._lines:
            pins = self._pins.get(name, {})
            if not version and not any(pins.get(each) for each in ("", marker)):  # another marker leaves environments open
                self._found.miss("unpinned", path, number, name)
            for pin in [version] if version else sorted({each for some in pins.values() for each in some}):
                self._found.add(self._target, Package("PyPI", name, pin))

    def _read(self, path: str, content: bytes, *, is_constraint: bool) -> None:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            if path == self._target:
                raise Dead(f"{path}: must be UTF-8", "bad-rows") from None
            self._found.miss("unparsed", path)
            return
        for number, line in _logical_lines(text):
            include = _INCLUDE.match(line)
            if len(line) > MAX_LINE_CHARS:
                self._found.miss("unparsed", path, number)
            elif include:
                self._include(path, number, include[2], is_constraint=is_constraint or include[1] in ("-c", "--constraint"))
            elif line.startswith(("-e", "--editable")):
                self._found.miss("url", path, number)
            elif not _INSTALLER.match(line):
                self._requirement(path, number, line, is_constraint=is_constraint)

    def _include(self, path: str, number: int, name: str, *, is_constraint: bool) -> None:
        """Read a file that this one names, relative to it: only below the root, and over no link."""
        inner = _below(path, name)
        if inner is None or "://" in name:
            self._found.miss("outside" if inner is None else "url", path, number)
            return
        if (inner, is_constraint) in self._seen:
            return
        if len(self._seen) >= MAX_FILES:
            self._found.miss("unread", path, number)
            return
        self._seen.add((inner, is_constraint))
        try:
            content = _content(self._settings, inner, MISSING_TRIES, self._found)
        except Dead as error:
            if error.code == "too-large":
                raise
            self._found.miss("unread", path, number)
            return
        self._read(inner, content, is_constraint=is_constraint)

    def _requirement(self, path: str, number: int, line: str, *, is_constraint: bool) -> None:
        text = re.split(r"(?<=\s)-", line, maxsplit=1)[0].rstrip()  # what follows are hashes, and options for its build
        if _FROM_URL.match(text):
            self._found.miss("url", path, number)
            return
        try:
            asked = Requirement(text)
            marker = str(asked.marker or "")
        except (InvalidRequirement, RecursionError):  # of very many parentheses
            self._found.miss("unparsed", path, number)
            return
        name = _name("PyPI", asked.name)
        pins = {each.version for each in asked.specifier if each.operator in ("==", "===") and not each.version.endswith(".*")}
        if name is None or not all(map(_VERSION.match, pins)):
            self._found.miss("unparsed", path, number)
        elif asked.url:
            self._found.miss("url", path, number, name)
        elif is_constraint:
            self._pins.setdefault(name, {}).setdefault(marker, set()).update(pins)
        else:
            version = pins.pop() if len(pins) == 1 else None
            self._lines.append(Line(path, number, name, marker, version))
            if version:
                self._pins.setdefault(name, {}).setdefault(marker, set()).add(version)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that says something, with its number: joined where it ends in a backslash, and without its comment."""
    parts: list[str] = []
    began = 0
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        began = began if parts else number
        is_comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not is_comment and number < len(lines):
            parts.append(line[:-1])
            continue
        whole = _COMMENT.sub("", "".join([*parts, f" {line}" if is_comment else line]).removesuffix("\\")).strip()
        parts.clear()
        if whole:
            yield began, whole


def _below(path: str, name: str) -> str | None:
    """Return the path of a file that another one names; None if it is not a path below the root.

    `..` is taken back in the text: no part of the path is a link, so that means the same as in the file system.
    """
    try:
        (plain,) = shlex.split(name)
    except ValueError:
        return None
    root, _, rest = path.partition(":")
    inner = f"{root}:{normalize('NFC', posixpath.normpath(posixpath.join(posixpath.dirname(rest), plain)))}"
    try:
        return msgspec.convert(inner, RootPath)
    except msgspec.ValidationError:
        return None


# --- lock files in TOML and JSON -------------------------------------------------------------------------------------------


class _Origin(msgspec.Struct):
    """Where a package comes from, in the words of uv and of poetry."""

    registry: Any = None
    editable: Any = None
    virtual: Any = None
    type: Any = None

    @property
    def is_own(self) -> bool:
        """Whether it is the workspace itself, and so nothing that was installed from elsewhere."""
        return self.editable is not None or self.virtual is not None

    @property
    def is_registry(self) -> bool:
        return self.registry is not None or self.type == "legacy"  # poetry's word for an index that is named


class _Locked(msgspec.Struct):
    name: str
    version: str | None = None
    source: _Origin | None = None
    vcs: Any = None
    directory: Any = None
    archive: Any = None


class _Uv(msgspec.Struct):
    version: int
    package: list[_Locked] = []


class _Poetry(msgspec.Struct):
    metadata: dict[str, Any]
    package: list[_Locked] = []


class _Pylock(msgspec.Struct, rename="kebab"):
    lock_version: str
    packages: list[_Locked]


class _Pinned(msgspec.Struct):
    version: str | None = None
    git: Any = None
    file: Any = None
    path: Any = None


class _NpmPackage(msgspec.Struct):
    name: str | None = None
    version: str | None = None
    resolved: str | bool | None = None
    link: bool = False
    workspaces: Any = None


class _Workspaces(msgspec.Struct):
    packages: list[str] = []


class _PackageLock(msgspec.Struct, rename="camel"):
    lockfile_version: int
    packages: dict[str, _NpmPackage]


def _entries(name: str, target: str, content: bytes) -> Iterator[Entry]:
    """Yield the packages of a lock file, which its name tells.

    Raises:
        Dead: it is not what its name says; `bad-rows`.
    """
    match name:
        case "uv.lock" | "poetry.lock":
            kind = _Uv if name == "uv.lock" else _Poetry
            for each in _decoded(target, content, kind).package:
                if each.source is None or not each.source.is_own:
                    yield Entry(each.name, each.version, each.source is not None and not each.source.is_registry)
        case "Pipfile.lock":
            tables = _decoded(target, content, dict[str, msgspec.Raw])
            _decoded(target, bytes(tables.pop("_meta", b"")), dict[str, Any])
            for table in tables.values():  # `default`, `develop`, and categories with names of their own
                for package, each in _decoded(target, bytes(table), dict[str, _Pinned]).items():
                    pin = re.match(r"={2,3}([^=*,]+)(?![\s\S])", each.version or "")
                    yield Entry(package, pin and pin[1].strip(), any((each.git, each.file, each.path)))
        case "package-lock.json" | "npm-shrinkwrap.json":
            yield from _npm_entries(_decoded(target, content, _PackageLock))
        case _:
            for each in _decoded(target, content, _Pylock).packages:
                yield Entry(each.name, each.version, any((each.vcs, each.directory, each.archive)))


def _npm_entries(lock: _PackageLock) -> Iterator[Entry]:
    """Yield what is below a `node_modules`, but for links to workspaces: a link to another folder is a package from there."""
    workspaces = _workspaces(lock)
    for place, each in lock.packages.items():
        _, found, name = place.rpartition("node_modules/")
        resolved = each.resolved if isinstance(each.resolved, str) else ""
        if found and each.link:
            parent = posixpath.join(posixpath.dirname(resolved), "*")
            if resolved not in lock.packages or not {resolved, parent} & workspaces or f"!{resolved}" in workspaces:
                yield Entry(each.name or name, None, is_from_url=True)
        elif found:
            # The registry's own file has the name of the package before `/-/`, on each host that serves npm's packages.
            is_from_url = bool(resolved) and not re.match(r"https?://[^?#]+/-/[^/?#]+\.tgz(?![\s\S])", resolved)
            yield Entry(each.name or name, each.version, is_from_url)


def _workspaces(lock: _PackageLock) -> set[str]:
    """Return the patterns of the workspaces; of those with wildcards, only `folder/*` is understood."""
    try:
        named: list[str] | _Workspaces = msgspec.convert(lock.packages[""].workspaces, list[str] | _Workspaces)
    except (KeyError, msgspec.ValidationError):
        return set()
    return {posixpath.normpath(each) for each in (named if isinstance(named, list) else named.packages)}


def _decoded(target: str, content: bytes, kind: type[T]) -> T:
    try:
        if target.endswith(".json") or target.endswith("Pipfile.lock"):
            return msgspec.json.decode(content, type=kind)
        text = content.decode("utf-8-sig")
        if _DEEP_KEY.search("".join(_bare(text))):
            raise ValueError("keys must be short: tomllib takes time by the square of their parts")
        return msgspec.convert(tomllib.loads(text), kind)
    except (ValueError, RecursionError):  # all that msgspec and tomllib say of content is a ValueError
        hint = "; hint: package-lock.json of version 2 or 3, by npm 7 or newer" if kind is _PackageLock else ""
        raise Dead(f"{target}: not a lock file of its kind{hint}", "bad-rows") from None


def _bare(text: str) -> Iterator[str]:
    """Yield what stands in TOML outside of texts and comments, and an `x` for each of these."""
    at = 0
    while (begin := _BEGIN.search(text, at)) is not None:
        yield text[at : begin.start()]
        yield "x"
        end = next((each for each in _END[begin[0]].finditer(text, begin.end()) if not each[0].startswith("\\")), None)
        if end is None:
            return
        at = end.end()
    yield text[at:]
