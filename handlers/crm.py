"""Handlers that bring the records of other systems into a database: `sync-crm-data`."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from handlers.contracts.crm import SyncCrmData, Synced
from handlers.kit.crm import MAX_PAGE_BYTES, read_resource, url_of
from handlers.kit.failures import wait_for_operator
from handlers.kit.http import Answer, Request, ask, clients
from handlers.kit.mirror import Mirror
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sections import Crm, Sync, read_secret
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.threads import in_thread
from runtime import Backoff, ConfigError, Job, Schedule, Snooze, handler

__all__ = ["SCHEDULES", "clients", "sync_crm_data"]  # the worker closes the clients, since it finds them here

WORK_S: Final = 1500.0  # of the 1800 s of a run: then it is put off, and goes on at the next page without spending an attempt
SOON_S: Final = 1.0
NOT_MODIFIED: Final = 304
JITTER_S: Final = 60.0  # a guess: not all at once, and well within the quarter of an hour
EXPIRES_S: Final = 3600.0  # a guess: there are newer ones by then
FULL_EXPIRES_S: Final = 20 * 3600.0  # a guess: a full one is rare, and worth to be late


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each sync of the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or a sync names a CRM that is missing.
    """
    settings = at_start()
    return [_schedule(alias, sync, settings) for alias, sync in settings.syncs.items() if sync.enabled]


def _schedule(alias: str, sync: Sync, settings: Settings) -> Schedule:
    if sync.crm not in settings.crm:
        raise ConfigError(f"syncs.{alias}: crm {sync.crm!r}: must be in `crm`")
    expires_s = FULL_EXPIRES_S if sync.mode == "full" else EXPIRES_S
    return Schedule(f"sync-crm-data.{alias}", sync.when, sync.job(), tz=sync.tz, jitter_s=JITTER_S, expires_s=expires_s)


@handler(SyncCrmData, timeout_s=1800, retry=Backoff(base_s=30, cap_s=1800, attempts=8), result_ttl_s=RESULT_TTL_S)
async def sync_crm_data(message: SyncCrmData, job: Job) -> Synced:
    """Return when all that the CRM has to say is in the table, or `max_pages` were read.

    May be repeated: the rows of a page are committed together with the place of the next one, and a repeat goes on there. A row
    is never replaced by an older one, so pages that come late or twice do no harm.

    Raises:
        Dead: the job cannot succeed: `bad-query`, `bad-rows`, `too-large`, `safety-brake`, `http-refused`, `redirect-refused`,
            `egress-blocked`. What was committed stays, and the next job goes on from there.
        Snooze: the settings must be fixed, the CRM limits our rate or does not answer, or another run is not over: `locked`.
        TemporaryFailure, sqlite3.Error: a failure that may pass; retried by the policy.
    """
    settings = current()
    crm = settings.crm_of(message.crm)
    subject = f"crm.{message.crm}.{message.resource}"
    resource = await asyncio.to_thread(read_resource, subject, crm, message.resource)
    mirror = Mirror(settings, message, resource, job)
    await in_thread(mirror.begin, waits=True)
    if mirror.state.result is not None:
        return mirror.state.result
    began_s = time.monotonic()
    for _ in range(message.max_pages):
        position = mirror.state.position
        if position is None:
            break
        if time.monotonic() - began_s > WORK_S:
            raise Snooze(SOON_S, f"{mirror.state.pages} pages are read; goes on with the next")
        url = url_of(crm, resource, position, mirror.state.since)
        is_asked_again = not position and url == mirror.state.etag_url
        answer = await _fetch(
            subject,
            message.crm,
            crm,
            url,
            etag=mirror.state.etag if is_asked_again else "",
            known=(resource.expired,) if position else (),
        )
        point("crm.fetched")
        if answer.status == NOT_MODIFIED:
            return await in_thread(partial(mirror.finish, not_modified=True), waits=True)
        if answer.status == resource.expired:
            await in_thread(mirror.restart, waits=True)
            continue
        await in_thread(partial(mirror.put, answer, url), waits=True)
        job.progress(mirror.state.rows, None, f"page {mirror.state.pages}")
    return await in_thread(mirror.finish, waits=True)


async def _fetch(subject: str, alias: str, crm: Crm, url: str, *, etag: str, known: tuple[int, ...]) -> Answer:
    """Return one page, when it is this process's turn to ask.

    Raises:
        Snooze: the token cannot be read, or is none; `alias-missing`.
    """
    try:
        token = read_secret(crm.token)
    except ConfigError as error:
        raise wait_for_operator(subject, "alias-missing", f"token: {error}") from error
    if not token.isascii() or not token.isprintable():
        raise wait_for_operator(subject, "alias-missing", "token: must be one line of ASCII")
    scheme, _, name = crm.auth.partition(":")
    headers = {"Accept": "application/json", **({name: token} if scheme == "header" else {"Authorization": f"Bearer {token}"})}
    if etag:
        headers["If-None-Match"] = etag
        known = (*known, NOT_MODIFIED)
    await _turn(alias, crm.requests_per_second)
    request = Request(
        subject=subject,
        circuit=f"crm.{alias}",
        method="GET",
        url=url,
        headers=headers,
        max_bytes=MAX_PAGE_BYTES,
        known=known,
    )
    return await ask(request, crm)


_next_s: dict[str, float] = {}  # when the next request to a CRM may be sent


async def _turn(alias: str, per_second: float) -> None:
    """Wait for this process's next turn to ask a CRM."""
    now_s = time.monotonic()
    at_s = max(now_s, _next_s.get(alias, now_s))
    _next_s[alias] = at_s + 1 / per_second
    await asyncio.sleep(at_s - now_s)
