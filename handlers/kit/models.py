"""Models on disk: `name/version/` below a root, each version with its card and a signature, and which version is the current one.

A version is a folder that appears by one rename, and never changes. Its signature (HMAC-SHA256) covers name, version and the
digests of model and card; without a valid one, nothing of a version is handed out. Only a worker has the key: what a child loads,
it loads by the digest that the worker has verified.

`current.json` is signed as well, with name, version and a number that only grows. Who can write into the root can put an old one
back, which a process notices that has seen a later one; nothing on the same disk could tell it to others.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Generator
from functools import partial
from typing import Final, Literal, TypeVar

import msgspec

from handlers.contracts.types import Alias, Version, is_alias, is_version
from handlers.kit.failures import MISSING_TRIES, input_missing, wait_for_operator
from handlers.kit.files import LOCKED_S, PART, chunks_of, explained, open_below, open_file, open_root
from handlers.kit.folders import folder
from handlers.kit.points import point
from handlers.kit.sections import Models, Secret, read_secret
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop, in_thread
from runtime import ConfigError, Dead, Job, Snooze

CARD: Final = "card.json"
SIGNATURE: Final = "signature.json"
CURRENT: Final = "current.json"
MIN_KEY_CHARS: Final = 32  # as hex, 128 bits
MAX_CARD_BYTES: Final = 4 * 2**20  # 1,000 features with their bins have about 500 KB
MAX_SIGNED_BYTES: Final = 4096  # of a signature, and of `current.json`: one of ours has 400
MAX_KNOWN: Final = 256  # versions whose verification is remembered; a guess: far above the models of one worker
_VERSION_DOMAIN: Final = "backend-jobs model version 1"
_CURRENT_DOMAIN: Final = "backend-jobs model current 1"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

S = TypeVar("S", bound=msgspec.Struct)

Format = Literal["skops", "onnx"]
Task = Literal["classification", "regression"]
Label = str | int | float | bool


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column that a model is given: its name, and how the values of the training data were spread.

    `edges` are those between the bins of numbers, `categories` the texts that are bins of their own; `shares` is how much of the
    data was in each bin, the last one for what was missing, or in no other bin.
    """

    name: str
    kind: Literal["number", "text"] = "number"
    edges: list[float] = []
    categories: list[str] = []
    shares: list[float] = []


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a version. `born_s` is when the job that trained it was born; `trusted` is for people, nobody obeys it."""

    name: Alias
    version: Version
    format: Format
    task: Task
    features: list[Feature]
    target: str = ""
    classes: list[Label] = []
    estimator: str = ""
    rows: int = 0
    data_sha256: str = ""
    metrics: dict[str, float] = {}
    trusted: list[str] = []
    libraries: dict[str, str] = {}
    born_s: float = 0.0


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A version whose signature is valid. `sha256` is the digest of its file: what has another one is not this model."""

    name: str
    version: str
    sha256: str
    bytes: int
    card: Card


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is in its folder."""

    version: str
    sha256: str
    bytes: int


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `signature.json`."""

    sha256: str
    card_sha256: str
    mac: str


class Current(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `current.json`. `born_s` is that of the version's card, or later: when an operator said it."""

    version: Version
    number: int
    born_s: float
    mac: str


# --- signing -------------------------------------------------------------------------------------------------------------


def _mac(key: bytes, *parts: str) -> str:
    """Return a signature of these texts; each has its length before it, so that no two lists of texts make the same bytes."""
    packed = b"".join(len(raw).to_bytes(8, "big") + raw for raw in map(str.encode, parts))
    return hmac.new(key, packed, hashlib.sha256).hexdigest()


def _keys(models: Models) -> list[bytes]:
    """Return the key that signs, and after it the one that is only believed.

    Raises:
        Snooze: one cannot be read, or is too short; `alias-missing`.
    """
    return [_key("models.key", models.key), *([_key("models.old_key", models.old_key)] if models.old_key else [])]


def _key(place: str, secret: Secret) -> bytes:
    try:
        text = read_secret(secret)
    except ConfigError as error:
        raise wait_for_operator(place, "alias-missing", str(error)) from None
    if len(text) < MIN_KEY_CHARS:
        raise wait_for_operator(
            place, "alias-missing", f"must have at least {MIN_KEY_CHARS} characters; hint: openssl rand -hex 32"
        )
    return text.encode()


def _is_signed(keys: list[bytes], mac: str, *parts: str) -> bool:
    given = mac.encode(errors="surrogatepass")  # a text that is not ASCII is refused by `compare_digest`
    return any(hmac.compare_digest(given, _mac(key, *parts).encode()) for key in keys)


def untrusted(name: str, version: str, text: str) -> Dead:
    """Return what to raise for a model that is not what its signature says."""
    return Dead(f"{name} {version}: {text}", "model-untrusted")


# --- finding and verifying -----------------------------------------------------------------------------------------------

_known: dict[tuple[str, str, str], tuple[object, Model]] = {}
"""What was verified: by root, name and version, how its files and the keys were then."""


def find_model(settings: Settings, name: str, version: str | None, attempt: int, stop: Stop) -> Model:
    """Return a version, or without one the current, whose signature is valid.

    Its files are read as a whole only when they or the keys have changed since this process has read them.

    Raises:
        Dead: it is signed by nobody we believe, or is not what was signed, `model-untrusted`; there is none, `input-missing`.
        Retry: there is none yet; `input-missing`.
        Snooze: the settings must be fixed; `alias-missing`.
        OSError: from the disk.
    """
    models = settings.registry()
    keys = _keys(models)
    with _opened(settings, models, name) as inside:
        if inside is None:
            raise input_missing(name, attempt, "model")
        if version is None:
            found = _current(inside, keys, models.root, name)
            if found is None:
                raise input_missing(f"{name}; hint: name a `version`, or promote one", attempt, "current version of")
            version = found.version
        try:
            with open_below(inside, [version]) as place:
                return _verified(place, models, keys, name, version, stop)
        except FileNotFoundError:
            raise input_missing(f"{version} of {name}", attempt, "version") from None


async def resolve(settings: Settings, name: str, version: str | None, job: Job) -> Model:
    """Return a version whose signature is valid; without one, that which is the current one when the job first asks.

    Raises:
        Dead, Retry, Snooze, OSError: as for `find_model`.
    """
    mark = await job.marks.get() if version is None else None
    wanted = version if mark is None else mark.decode()
    model = await in_thread(partial(find_model, settings, name, wanted, job.attempt), waits=True)  # most of these only look
    if version is None and mark is None:
        point("version-found")
        await job.marks.set(model.version.encode())
        point("version-noted")
    return model


def has_version(settings: Settings, name: str, version: str) -> bool:
    """Return whether there is something of that name, whatever it is worth.

    Raises:
        Dead, Snooze, OSError: as for `find_model`.
    """
    with _opened(settings, settings.registry(), name) as inside:
        if inside is None:
            return False
        try:
            os.stat(version, dir_fd=inside, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def current_models(settings: Settings, stop: Stop) -> list[Model]:
    """Return the current version of each model that has one.

    Raises:
        Dead: one is not to be believed; `model-untrusted`.
        Snooze: the settings must be fixed; `alias-missing`.
        OSError: from the disk.
    """
    models = settings.registry()
    _keys(models)
    with explained(models.root), open_root(models.root, settings.root(models.root)) as top:
        names = sorted(name for name in os.listdir(top) if is_alias(name) and _has_current(top, name))
    return [find_model(settings, name, None, MISSING_TRIES, stop) for name in names]


def versions(settings: Settings, name: str | None) -> list[tuple[str, str, bool]]:
    """Return name and version of each folder, and whether it is the current one; whether it is to be believed is not asked.

    Args:
        settings: where models are.
        name: only the versions of this model; None for all.

    Raises:
        Dead, Snooze, OSError: as for `current_models`.
    """
    models = settings.registry()
    keys, found = _keys(models), list[tuple[str, str, bool]]()
    with explained(models.root), open_root(models.root, settings.root(models.root)) as top:
        names = sorted(filter(is_alias, os.listdir(top))) if name is None else [name]
    for each in names:
        with _opened(settings, models, each) as inside:
            if inside is not None:
                shown = _current(inside, keys, models.root, each)
                there = sorted(filter(is_version, os.listdir(inside)))
                found += [(each, version, shown is not None and shown.version == version) for version in there]
    return found


def _has_current(top: int, name: str) -> bool:
    try:
        os.stat(f"{name}/{CURRENT}", dir_fd=top, follow_symlinks=False)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _opened(settings: Settings, models: Models, name: str) -> Generator[int | None]:
    """Yield a descriptor of the folder of this name; None if there is none."""
    with explained(models.root), open_root(models.root, settings.root(models.root)) as top, contextlib.ExitStack() as stack:
        try:
            inside = stack.enter_context(open_below(top, [name]))
        except FileNotFoundError:
            inside = None
        yield inside


def _verified(place: int, models: Models, keys: list[bytes], name: str, version: str, stop: Stop) -> Model:
    with contextlib.ExitStack() as stack:
        files = {file: _file(stack, place, file) for file in (SIGNATURE, CARD, "model.skops", "model.onnx")}
        state = (keys, models.limit_bytes, [_state(file) for file in files.values()])
        known = _known.get((models.root, name, version))
        if known is not None and known[0] == state:
            return known[1]
        signature, card = files[SIGNATURE], files[CARD]
        if signature is None or card is None:
            raise untrusted(name, version, f"no {SIGNATURE} or no {CARD}")
        raw = _read(card, MAX_CARD_BYTES, name, version)
        said = _decoded(_read(signature, MAX_SIGNED_BYTES, name, version), Signature, name, version)
        parts = (_VERSION_DOMAIN, name, version, said.sha256, said.card_sha256)
        if not _is_signed(keys, said.mac, *parts) or hashlib.sha256(raw).hexdigest() != said.card_sha256:
            raise untrusted(name, version, "the signature is not valid; hint: models.key, models.old_key")
        described = _decoded(raw, Card, name, version)
        model = files[f"model.{described.format}"]
        if (described.name, described.version) != (name, version) or model is None:
            raise untrusted(name, version, "the card is that of another model")
        size_bytes = os.fstat(model).st_size
        if size_bytes > models.limit_bytes:
            raise Dead(f"a model must have at most {models.limit_bytes} bytes", "too-large")
        if _digest(model, stop) != said.sha256:
            raise untrusted(name, version, "the model is not the one that was signed")
        found = Model(name=name, version=version, sha256=said.sha256, bytes=size_bytes, card=described)
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[models.root, name, version] = (state, found)
        return found


def _file(stack: contextlib.ExitStack, place: int, name: str) -> int | None:
    file = open_file(place, name)
    if file is not None:
        stack.callback(os.close, file)
    return file


def _state(file: int | None) -> tuple[int, ...]:
    """Return what changes whenever a file does. Where it does not, as within a tick of the clock, its digest still guards it."""
    if file is None:
        return ()
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: int, limit_bytes: int, name: str, version: str) -> bytes:
    with open(file, "rb", closefd=False) as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise untrusted(name, version, f"a file must have at most {limit_bytes} bytes")
    return data


def _decoded(data: bytes, kind: type[S], name: str, version: str) -> S:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise untrusted(name, version, "a file is not what this version of the handlers writes") from None


def _digest(file: int, stop: Stop) -> str:
    digest = hashlib.sha256()
    for chunk in chunks_of(file, stop):
        digest.update(chunk)
    return digest.hexdigest()


def read_model(settings: Settings, model: Model, stop: Stop) -> bytes:
    """Return the bytes of a model that was verified, as they were then; needs no key, so that a child can call it.

    Raises:
        Dead: the file is not the one that was verified, `model-untrusted`, or is gone, `input-missing`.
        Snooze: the settings must be fixed; `alias-missing`.
        OSError: from the disk.
    """
    models = settings.registry()
    with _opened(settings, models, model.name) as inside, contextlib.ExitStack() as stack:
        try:
            place = None if inside is None else stack.enter_context(open_below(inside, [model.version]))
        except FileNotFoundError:
            place = None
        file = None if place is None else _file(stack, place, f"model.{model.card.format}")
        if file is None:
            raise Dead(f"no model {model.name} {model.version}", "input-missing")
        data = bytearray()
        for chunk in chunks_of(file, stop):
            data += chunk
            if len(data) > model.bytes:
                break
    if len(data) != model.bytes or hashlib.sha256(data).hexdigest() != model.sha256:
        raise untrusted(model.name, model.version, "the model is not the one that was signed")
    return bytes(data)


# --- publishing ----------------------------------------------------------------------------------------------------------


def publish(settings: Settings, card: Card, data: bytes | memoryview, work: str, stop: Stop) -> Model:
    """Return the version when it is in its folder, signed, and survives a power cut; that of an earlier run, if there is one.

    Args:
        settings: where models are, and the key.
        card: what is known of it.
        data: the model's file.
        work: of the job that makes it.
        stop: whether the job was cancelled.

    Raises:
        Dead: the folder belongs to something else, `output-exists`; the model is `too-large`, or the path leads over a link,
            `bad-path`; the card has numbers that are not finite, `bad-rows`.
        Snooze: the settings or the disk must be fixed, `alias-missing`, `out-of-space`; or another run is not over, `locked`.
        OSError: from the disk.
    """
    models, digest = settings.registry(), hashlib.sha256(data).hexdigest()
    keys, described = _keys(models), msgspec.json.encode(card)
    if len(data) > models.limit_bytes or len(described) > MAX_CARD_BYTES:
        raise Dead(f"a model must have at most {models.limit_bytes} bytes, and its card {MAX_CARD_BYTES}", "too-large")
    try:
        msgspec.json.decode(described, type=Card)
    except msgspec.ValidationError:  # JSON has null for a number that is not finite
        raise Dead("the numbers of a model's card must be finite", "bad-rows") from None
    described_digest = hashlib.sha256(described).hexdigest()
    mac = _mac(keys[0], _VERSION_DOMAIN, card.name, card.version, digest, described_digest)
    signed = msgspec.json.encode(Signature(sha256=digest, card_sha256=described_digest, mac=mac))
    with folder(settings, f"{models.root}:{card.name}/{card.version}", work, stop) as out:
        if out.already(Published) is None:
            for name, content in ((f"model.{card.format}", data), (CARD, described), (SIGNATURE, signed)):
                out.write(name, content)
                point("model-file")
            out.finish(Published(version=card.version, sha256=digest, bytes=len(data)))
    return find_model(settings, card.name, card.version, MISSING_TRIES, stop)


def promote(settings: Settings, model: Model, *, by_operator: bool = False) -> bool:
    """Return whether the version is the current one now.

    It is not where the current one was trained by a job that was born later: of two jobs, in whatever order and however often
    they run, the younger wins. What an operator says wins over all that were born before it was said. Two at once are told apart
    by a lock.

    Raises:
        Dead: the current one is signed by nobody we believe; `model-untrusted`.
        Snooze: the settings or the disk must be fixed, `alias-missing`, `out-of-space`; or another job is at it, `locked`.
        OSError: from the disk.
    """
    models = settings.registry()
    keys = _keys(models)
    with _opened(settings, models, model.name) as inside:
        if inside is None:
            raise Dead(f"no model {model.name}", "input-missing")
        try:
            fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the descriptor
        except BlockingIOError:
            raise Snooze(LOCKED_S, f"locked: another job says which version of {model.name} is the current one") from None
        found = _current(inside, keys, models.root, model.name)
        born_s = max(model.card.born_s, time.time()) if by_operator else model.card.born_s
        if found is not None and not by_operator:
            if found.version == model.version:
                return True
            if (found.born_s, found.version) > (born_s, model.version):
                return False
        # The time as well, so that it goes on growing when an operator has deleted the file.
        number = max(found.number + 1 if found else 1, time.time_ns() // 1_000_000)
        _replace_current(inside, keys[0], model, number, born_s)
    return True


def _replace_current(inside: int, key: bytes, model: Model, number: int, born_s: float) -> None:
    mac = _mac(key, _CURRENT_DOMAIN, model.name, *_signed_of(model.version, number, born_s))
    part = f".{CURRENT}{PART}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part, dir_fd=inside)
    with open(os.open(part, _NEW, 0o600, dir_fd=inside), "wb") as file:
        current = Current(version=model.version, number=number, born_s=born_s, mac=mac)
        file.write(msgspec.json.encode(current) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    point("current-ready")
    os.rename(part, CURRENT, src_dir_fd=inside, dst_dir_fd=inside)
    point("current-named")
    os.fsync(inside)


def _signed_of(version: str, number: int, born_s: float) -> tuple[str, str, str]:
    return version, str(number), repr(born_s)


_numbers: dict[tuple[str, str], int] = {}
"""The number of the latest `current.json` that this process has seen, by root and name."""


def _current(inside: int, keys: list[bytes], root: str, name: str) -> Current | None:
    seen = _numbers.get((root, name), 0)  # before the file is opened: another thread may see a later one while we read
    file = open_file(inside, CURRENT)
    if file is None:
        return None
    try:
        raw = _read(file, MAX_SIGNED_BYTES, name, CURRENT)
    finally:
        os.close(file)
    found = _decoded(raw, Current, name, CURRENT)
    if not _is_signed(keys, found.mac, _CURRENT_DOMAIN, name, *_signed_of(found.version, found.number, found.born_s)):
        raise untrusted(name, CURRENT, "the signature is not valid; hint: models.key, models.old_key, or delete the file")
    if found.number < seen:
        raise untrusted(name, CURRENT, "an old one was put back; hint: delete the file")
    if len(_numbers) >= MAX_KNOWN:
        _numbers.clear()
    _numbers[root, name] = max(found.number, _numbers.get((root, name), 0))
    return found
