"""Schedules of the storm of ticks. Nobody runs `kept`: its jobs stay where they were sent, and can be counted."""

from __future__ import annotations

import msgspec

from runtime import Job, Schedule, contract, handler


@contract("kept")
class Kept(msgspec.Struct):
    pass


@contract("quick")
class Quick(msgspec.Struct):
    pass


@handler(Quick)
async def quick(message: Quick, job: Job) -> None:
    """Does nothing."""


latest = Schedule("latest", "* * * * * *", Kept())
every = Schedule("every", "", Kept(), every_s=1, missed="all")
skipping = Schedule("skipping", "*/2 * * * * *", Kept(), missed="skip", tz="Australia/Lord_Howe")
third = Schedule("third", "1-59/3 * * * * *", Kept(), jitter_s=1)
alone = Schedule("alone", "* * * * * *", Quick(), overlap="skip")
EVERY_S = {"latest": 1, "every": 1, "skipping": 2, "third": 3}
