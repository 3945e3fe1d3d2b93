"""What a job remembers in the database that it writes: committed with its rows, so that neither is there without the other.

All states are rows of one table, which is made when it is first needed. A run claims the state that it has read before it writes:
of two runs of one job, of which one was cut off and the other took over, only one goes on.
"""

from __future__ import annotations

from typing import Final

from handlers.kit.sessions import Session
from runtime import Snooze

TABLE: Final = "backend_jobs_state"
CREATE: Final = (
    f"CREATE TABLE IF NOT EXISTS {TABLE}"
    " (work text NOT NULL, name text NOT NULL, value text NOT NULL, at bigint NOT NULL, PRIMARY KEY (work, name))"
)
LOCK: Final = 0x6261636B656E64  # "backend": of two that create the table at once, PostgreSQL refuses one
LOCKED_S: Final = 15.0  # a guess: a run that was cancelled ends its thread within seconds
KEEP_S: Final = 30 * 86_400  # a guess: far longer than a job waits to be tried again


def prepare(session: Session) -> None:
    """Make the table, if there is none; its owner may have made it before, where the worker may not."""
    if session.columns(TABLE):
        return
    with session.transaction():
        if session.dialect == "postgresql":
            session.execute("SELECT pg_advisory_xact_lock($1)", [LOCK])
        session.execute(CREATE)


def read(session: Session, work: str, name: str) -> str | None:
    """Return the state; None if there is none."""
    found = session.fetch(f"SELECT value FROM {TABLE} WHERE work = $1 AND name = $2", [work, name])  # noqa: S608 -- a constant
    return str(found[0][0]) if found else None


def claim(session: Session, work: str, name: str, value: str) -> None:
    """Keep other runs of this job from going on until the transaction ends. Call this first in it, before what it writes.

    Raises:
        Snooze: the state is no longer the one that was read: another run went on; `locked`.
    """
    statement = f"UPDATE {TABLE} SET value = value WHERE work = $1 AND name = $2 AND value = $3"  # noqa: S608 -- a constant
    _checked(session.execute(statement, [work, name, value]), name)


def exchange(session: Session, work: str, name: str, old: str | None, new: str, born_s: float) -> None:
    """Put a new state in place of the old one, or where there was none; until the transaction ends, no other run can.

    Raises:
        Snooze: as for `claim`.
    """
    if old is None:
        statement = f"INSERT INTO {TABLE} VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"  # noqa: S608 -- a constant
        count = session.execute(statement, [work, name, new, int(born_s)])
    else:
        statement = f"UPDATE {TABLE} SET value = $1, at = $2 WHERE work = $3 AND name = $4 AND value = $5"  # noqa: S608
        count = session.execute(statement, [new, int(born_s), work, name, old])
    _checked(count, name)


def _checked(count: int, name: str) -> None:
    if count != 1:
        raise Snooze(LOCKED_S, f"locked: another run of this job is at work on {name}")


def forget_old(session: Session, name: str, born_s: float) -> None:
    """Delete the states of this name that jobs left which were born `KEEP_S` before this one."""
    session.execute(f"DELETE FROM {TABLE} WHERE name = $1 AND at < $2", [name, int(born_s - KEEP_S)])  # noqa: S608 -- a constant
