"""A handler that asks models: `run-inference`.

The worker finds and verifies a version, since it has the key; a child loads the model, and asks it, since it may crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from handlers.contracts.inference import Inferred, RunInference
from handlers.kit.extras import require
from handlers.kit.failures import BAD_PAYLOAD, BadRow
from handlers.kit.files import Writer, found_before, source, target
from handlers.kit.models import Card, Model, read_model, resolve
from handlers.kit.points import point
from handlers.kit.records import Record, Records
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.settings import Settings, current
from handlers.kit.tables import CsvText
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, Dead, Job, handler, in_child

if TYPE_CHECKING:
    from handlers.kit.predicting import Questions

require("numpy", "onnxruntime", "skops")

MEMORY_BYTES: Final = 2 * 2**30  # a guess: eight times the largest model that the settings allow by default
BATCH_ROWS: Final = 4096  # a guess: some MiB, and the child is asked a few hundred times for a million rows
MAX_INLINE_BYTES: Final = 4096  # of the answers in the result; a guess: it is kept in Redis, and shown on the board


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is given: the job's payload, and the version that the worker has verified."""

    message: RunInference
    model: Model


@in_child(memory_bytes=MEMORY_BYTES)
def predict(request: Question, job: Job) -> Inferred:
    """Return what `run_inference` does; loads the model, unless it is one of the last few that this child was asked for.

    Raises: what `run_inference` says.
    """
    message, settings, stop = request.message, current(), Stop()
    if message.to is None:
        questions = _questions(request, settings, stop)
        outputs = [answer for _, answers in _answered(request, questions, settings, job, stop) for answer in answers]
        if len(msgspec.json.encode(outputs)) > MAX_INLINE_BYTES:
            raise Dead(f"the answers have more than {MAX_INLINE_BYTES} bytes; hint: `to`", "too-large")
        return _result(request, questions, outputs=outputs)
    with target(settings, message.to) as place, Writer(place, job.work, stop, overwrite=message.overwrite) as out:
        done = out.already(Inferred)
        if done is not None:
            return done
        questions = _questions(request, settings, stop)
        for lines in _lines(request, questions, _answered(request, questions, settings, job, stop)):
            out.write(lines)
        result = _result(request, questions, path=message.to, bytes=out.size_bytes, sha256=out.sha256)
        point("inference.before-file")
        out.finish(result)
        point("inference.after-file")
        return result


@handler(
    RunInference,
    timeout_s=600,
    retry=Backoff(base_s=2, cap_s=30, attempts=3),
    child=predict,
    result_ttl_s=RESULT_TTL_S,
)
async def run_inference(message: RunInference, job: Job) -> Inferred:
    """Return the answers of a model, or when the file that has them is complete under its name, with its sidecar beside it.

    May be repeated: answers are a function of the model and the rows, and which version is asked is noted before it is, so that a
    repeat after a promotion asks the same. A repeat finds the sidecar of a file, and does nothing. Without a file, one that died
    in its last step asks anew: nobody has seen an answer of it.

    Raises:
        Dead: the job cannot succeed: `model-untrusted`, `model-mismatch`, `bad-payload` (rows that the model does not take),
            `bad-rows` (the same, of a file), `bad-path`, `too-large`, `input-missing`, `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`, `extra-missing`; or another run is not
            over: `locked`.
        Retry, TemporaryFailure, OSError: a failure that may pass, such as a child that was killed; retried by the policy.
    """
    settings, answered = current(), None
    if message.to is not None:
        find = partial(found_before, settings, message.to, Inferred, job.work, overwrite=message.overwrite)
        answered = await in_thread(find, waits=True)
    if answered is None:
        model = await resolve(settings, message.model, message.version, job)
        answered = await predict(Question(message=message, model=_bare(model)), job)
    if message.version is None:
        await job.marks.delete()  # there may be millions of these jobs in the week for which marks are kept
        point("inference.unmarked")
    return answered


def _bare(model: Model) -> Model:
    """Return a model without what is known of it beside what it takes and answers."""
    card, features = model.card, [msgspec.structs.replace(feature, edges=[], shares=[]) for feature in model.card.features]
    bare = Card(
        name=card.name,
        version=card.version,
        format=card.format,
        task=card.task,
        features=features,
        classes=card.classes,
        estimator=card.estimator,
    )
    return msgspec.structs.replace(model, card=bare)


# --- the child's work ----------------------------------------------------------------------------------------------------


def _questions(request: Question, settings: Settings, stop: Stop) -> Questions:
    from handlers.kit.predicting import Questions, kept_model  # what loads models is loaded only here

    model = kept_model(request.model, partial(read_model, settings, request.model, stop))
    return Questions(model, request.model.card, request.message.output)


def _result(request: Question, questions: Questions, **more: Any) -> Inferred:
    model = request.model
    return Inferred(
        model=model.name,
        version=model.version,
        rows=questions.rows,
        model_ms=round(questions.model_s * 1e3, 3),
        classes=questions.classes,
        **more,
    )


Answered = tuple[Sequence[Sequence[Any]], list[Any]]
"""Rows with nothing but the columns that are kept, and the answer for each."""


def _answered(request: Question, questions: Questions, settings: Settings, job: Job, stop: Stop) -> Iterator[Answered]:
    """Yield the answers for some rows at a time."""
    message, features = request.message, [feature.name for feature in request.model.card.features]
    if message.file is None:
        yield [()] * len(message.rows or ()), _ask(questions, _in_order(message, features), BAD_PAYLOAD, is_csv=False)
        return
    with source(settings, message.file, job.attempt) as file:
        records = _records(message, file, [*features, *message.keep], stop)
        rest = records.start(0, 0)
        while batch := [_values(record) for record in islice(rest, BATCH_ROWS)]:
            width = len(features)
            yield (
                [row[width:] for row in batch],
                _ask(questions, [row[:width] for row in batch], "bad-rows", is_csv=message.format == "csv"),
            )
            job.progress(records.read_bytes, records.size_bytes, f"{questions.rows} rows")


def _ask(questions: Questions, rows: Sequence[Sequence[Any]], code: str, *, is_csv: bool) -> list[Any]:
    try:
        return questions.answers(rows, is_csv=is_csv)
    except BadRow as error:
        raise Dead(str(error), code) from None


def _in_order(message: RunInference, features: list[str]) -> Sequence[Sequence[Any]]:
    """Return the rows of a payload with their columns in the order of the model's."""
    rows, columns = message.rows or [], message.columns or features
    if sorted(columns) != sorted(features):
        raise Dead(f"`columns` must be the {len(features)} columns of the model's card", "model-mismatch")
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != len(features)), None)
    if wrong is not None:
        raise Dead(f"row {wrong} must have {len(features)} columns, as the model takes", "model-mismatch")
    if columns == features:
        return rows
    places = [columns.index(name) for name in features]
    return [[row[place] for place in places] for row in rows]


def _records(message: RunInference, file: int, names: list[str], stop: Stop) -> Records:
    try:
        return Records(
            file,
            names,
            stop,
            layout=message.format,
            compress=message.compress,
            delimiter="\t" if message.delimiter == "tab" else message.delimiter,
        )
    except Dead as error:
        if error.code != BAD_PAYLOAD:
            raise
        raise Dead(str(error), "model-mismatch") from None  # a column that the model takes, or one to keep


def _values(record: Record) -> Sequence[Any]:
    line, values, fault = record
    if fault:
        raise Dead(f"line {line} {fault}", "bad-rows")
    return values


def _lines(request: Question, questions: Questions, answered: Iterator[Answered]) -> Iterator[bytes]:
    """Yield the content of the file: a row for each that was asked, with the columns that are kept, and the answer."""
    message = request.message
    answers = [questions.output] if questions.classes is None else [f"probability_{label}" for label in questions.classes]
    names = [*message.keep, *answers]
    if len(set(names)) < len(names):
        raise Dead("`keep` names a column that the answers have, too", BAD_PAYLOAD)
    rows = (
        [[*kept, answer] if questions.classes is None else [*kept, *answer] for kept, answer in zip(*some, strict=True)]
        for some in answered
    )
    if message.format == "jsonl":
        encode = msgspec.json.Encoder(decimal_format="number").encode_lines
        yield from (encode([dict(zip(names, row, strict=True)) for row in some]) for some in rows)
        return
    text = CsvText(
        delimiter="\t" if message.delimiter == "tab" else message.delimiter, null="", formulas="escape", encoding="utf-8"
    )
    yield text.head(names)
    for some in rows:
        yield from text.chunks(some)
