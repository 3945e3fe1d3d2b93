"""The handlers of the walk: parcels that cannot be delivered until a depot opens, and errands that a worker has at its death.

`WALK_WAY` ends the names of the types, so that each walk has letters of its own; `WALK_FOLDER` has what the test says and hears.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from runtime import Backoff, Job, contract, handler

WAY = os.environ["WALK_WAY"]
FOLDER = Path(os.environ["WALK_FOLDER"])
LOOK_S = 0.05  # a guess: between two looks whether an errand may end
OPEN_STREET = "Open Street"


class NobodyThere(Exception):
    """A parcel could not be delivered."""


@contract(f"walk-parcel-{WAY}")
class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """A parcel."""

    number: int
    street: str
    weight_g: Annotated[int, Meta(ge=1)]


@contract(f"walk-errand-{WAY}")
class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes until it is said that it may end."""


@handler(Parcel, retry=Backoff(attempts=1))
async def deliver(message: Parcel, job: Job) -> None:
    """Return when the parcel is delivered, and written down."""
    if message.street != OPEN_STREET and not (FOLDER / "depot-is-open").exists():
        raise NobodyThere(f"no way into {message.street}")
    with (FOLDER / "delivered").open("a") as book:
        book.write(f"{job.id}\n")
    job.log("delivered")  # of a run that has said something the board knows the end, whatever the sample is


@handler(Errand, timeout_s=600)
async def run_errand(message: Errand, job: Job) -> None:
    """Return when it may end."""
    while not (FOLDER / "errands-may-end").exists():
        await asyncio.sleep(LOOK_S)
    job.log("ran an errand")
