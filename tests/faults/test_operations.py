"""Steppers are killed one after the other: an operation comes to its end, and moves each letter once."""

from __future__ import annotations

import random

import pytest

from tests.faults.operations import storm


async def test_whoever_is_killed_each_letter_is_sent_back_once(valkey):
    raw = valkey.client()
    found, killed = await storm(valkey, raw, letters=1500, kills=10, seed=7)
    raw.close()
    assert (found.done, killed >= 5) == (1000, True)


@pytest.mark.long
@pytest.mark.parametrize("letters", [30_000])
async def test_in_a_long_storm_each_letter_is_sent_back_once(server, raw, letters):
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    found, killed = await storm(server, raw, letters, kills=55, seed=seed)
    assert (found.done, killed) == (letters * 2 // 3, 55)
