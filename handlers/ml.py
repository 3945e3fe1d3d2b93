"""Handlers that make models and try them: `train-model` and `evaluate-model`.

What computes, and what loads a model, runs in a child process. The key that signs models is the worker's alone: it signs what a
child has made when that is over, and verifies what a child will load before it says so.
"""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Final

import msgspec

from handlers.contracts.notifications import SendNotification
from handlers.contracts.training import Bar, Evaluated, EvaluateModel, Gate, Trained, TrainModel, Verdict
from handlers.kit.asked import Asked, Fitted, Measured
from handlers.kit.deliveries import check_channel
from handlers.kit.extras import require
from handlers.kit.failures import TemporaryFailure
from handlers.kit.files import Writer, found_before, target
from handlers.kit.models import Model, find_model, has_version, promote, publish, resolve
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.settings import Settings, current
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, Dead, Job, handler, in_child

require("numpy", "sklearn", "skops")

MEMORY_BYTES: Final = 2 * 2**30  # a guess: 20 million numbers are 160 MB, and a forest takes a few copies of them


@contextmanager
def _bounded(attempt: int) -> Generator[None]:
    """Say what it means when there is not enough memory: tried once more, where another job may have filled it, then dead."""
    try:
        yield
    except MemoryError:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        text = f"needs more than {MEMORY_BYTES // 2**20} MiB (had {peak_mib} of them); hint: fewer rows or columns"
        if attempt > 1:
            raise Dead(text, "child-killed") from None
        raise TemporaryFailure(f"child-killed: {text}") from None


# --- train-model -----------------------------------------------------------------------------------------------------------


@in_child(memory_bytes=MEMORY_BYTES)
def fit(message: TrainModel, job: Job) -> Fitted:
    """Return the model that the examples make; in a child process, as `handlers.kit.training.fit`."""
    from handlers.kit import training  # here, so that only children have scikit-learn in memory

    with _bounded(job.attempt):
        return training.fit(message, job, current())


@handler(TrainModel, timeout_s=7200, retry=Backoff(base_s=60, cap_s=300, attempts=3), child=fit, result_ttl_s=RESULT_TTL_S)
async def train_model(message: TrainModel, job: Job) -> Trained:
    """Return when the model is in its folder, signed, and the current version if that was asked for and its gate lets it.

    May be repeated: a repeat finds the version, which is called by `job.work`, and makes it the current one if it should be; one
    that was trained by a younger job stays. Equal examples make an equal model, on the same versions of the libraries.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-payload`, `bad-query`, `bad-rows`, `too-large`, `input-missing`,
            `output-exists`, `model-untrusted`; or it needs too much memory, `child-killed`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        Retry, TemporaryFailure, sqlite3.Error, OSError: retried by the policy.
    """
    settings = current()
    model = await in_thread(partial(_trained, message, job, settings), waits=True)
    if model is None:
        fitted = await fit(message, job)
        model = await in_thread(partial(_publish, message, fitted, job, settings), waits=True)
    return await in_thread(partial(_promoted, message, model, settings), waits=True)


def _trained(message: TrainModel, job: Job, settings: Settings, stop: Stop) -> Model | None:
    """Return the version that an earlier run of this job has made."""
    if message.promote and not settings.registry().may_promote(message.name):
        raise Dead(f"jobs may not promote {message.name}; hint: `models.promote` in the settings", "bad-payload")
    if not has_version(settings, message.name, job.work):
        return None
    return find_model(settings, message.name, job.work, job.attempt, stop)


def _publish(message: TrainModel, fitted: Fitted, job: Job, settings: Settings, stop: Stop) -> Model:
    """Sign what the child has made, as a version of this job's: of which model it is, is not for the child to say."""
    own = {"name": message.name, "version": job.work, "format": "skops", "born_s": job.born}
    point("before-publish")
    return publish(settings, msgspec.structs.replace(fitted.card, **own), fitted.model, job.work, stop)


def _promoted(message: TrainModel, model: Model, settings: Settings, stop: Stop) -> Trained:
    point("published")
    verdict = _passed(message.gate, model.card.metrics)
    return Trained(
        model=model.name,
        version=model.version,
        metrics=model.card.metrics,
        gate=verdict,
        promoted=message.promote and verdict != "fail" and promote(settings, model),
        rows=model.card.rows,
        bytes=model.bytes,
        model_sha256=model.sha256,
    )


def _passed(gate: Gate | None, metrics: dict[str, float]) -> Verdict:
    if gate is None:
        return "none"
    return "pass" if metrics[gate.metric] >= gate.min else "fail"


# --- evaluate-model --------------------------------------------------------------------------------------------------------


@in_child(memory_bytes=MEMORY_BYTES)
def measure(asked: Asked, job: Job) -> Measured:
    """Return how the models do; in a child process, as `handlers.kit.training.measure`."""
    from handlers.kit import training

    with _bounded(job.attempt):
        return training.measure(asked, job, current())


@handler(EvaluateModel, timeout_s=1800, retry=Backoff(base_s=30, cap_s=300, attempts=3), child=measure, result_ttl_s=RESULT_TTL_S)
async def evaluate_model(message: EvaluateModel, job: Job) -> Evaluated:
    """Return how the version does on the data; a verdict `fail` is a result, and people hear of it if that was asked for.

    May be repeated: with `to`, a repeat finds the file and does nothing. Which version is the current one is looked up once, and
    stays so for all attempts. People are told in the step in which this job is done, and once while an earlier word about the
    same version and data waits to be sent.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-payload`, `bad-query`, `bad-rows`, `too-large`, `input-missing`,
            `output-exists`, `model-untrusted`, `model-mismatch`; or it needs too much memory, `child-killed`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        Retry, TemporaryFailure, sqlite3.Error, OSError: retried by the policy.
    """
    settings = current()
    check_channel(settings, message.notify, "notify")
    result = None
    if message.to:
        find = partial(found_before, settings, message.to, Evaluated, job.work, overwrite=message.overwrite)
        result = await in_thread(find, waits=True)
    if result is None:
        model = await resolve(settings, message.model, message.version, job)
        baseline = await resolve(settings, message.model, message.baseline, job) if message.baseline else None
        measured = await measure(Asked(message=message, model=model, baseline=baseline), job)
        result = _evaluated(message, model, measured)
        if message.to:
            await in_thread(partial(_report, message.to, message, result, job, settings), waits=True)
    return msgspec.structs.replace(result, notified=_notify(message, result, job))


def _evaluated(message: EvaluateModel, model: Model, measured: Measured) -> Evaluated:
    return Evaluated(
        model=model.name,
        version=model.version,
        rows=measured.rows,
        data_sha256=measured.data_sha256,
        metrics=measured.metrics,
        baseline_metrics=measured.baseline_metrics,
        verdict=_verdict(message.gate, measured),
        drift=measured.drift,
        confusion=measured.confusion,
        report=message.to,
    )


def _verdict(bar: Bar | None, measured: Measured) -> Verdict:
    if bar is None:
        return "none"
    reached = measured.metrics[bar.metric]
    is_high = bar.min is None or reached >= bar.min  # false of NaN, which passes no gate
    is_near = bar.max_drop is None or reached >= measured.baseline_metrics[bar.metric] - bar.max_drop
    return "pass" if is_high and is_near else "fail"


def _report(path: str, message: EvaluateModel, result: Evaluated, job: Job, settings: Settings, stop: Stop) -> None:
    with target(settings, path) as place, Writer(place, job.work, stop, overwrite=message.overwrite) as out:
        if out.already(Evaluated) is None:
            out.write(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
            point("report-written")
            out.finish(result)
            point("report-finished")


def _notify(message: EvaluateModel, result: Evaluated, job: Job) -> str | None:
    """Hand on the job that tells people of a verdict `fail`, and return its id."""
    if message.notify is None or result.verdict != "fail" or message.gate is None:
        return None
    metric = message.gate.metric
    drift = "".join(f"\n{each.feature}: drift {each.psi:.2f}" for each in result.drift[:3])
    text = f"{metric} {result.metrics[metric]:.4f} on {result.rows} rows\nversion {result.version}{drift}"
    title = f"Model {result.model} does not pass"
    notification = SendNotification(channel=message.notify, level="warning", title=title, body=text)
    return job.send(notification, suffix="notification", key=f"evaluated:{result.version}:{result.data_sha256}")
