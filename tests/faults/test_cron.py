"""Ticks against an oracle that looks at every minute of ten years in eight zones; and of workers that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ticks import storm
from tests.servers import Server
from tests.unit.test_cron import EXPRESSIONS, ZONES, check_restarts, check_years


@pytest.mark.long
@pytest.mark.parametrize(("zone", "first_year"), ZONES)
def test_ten_years_of_ticks_are_those_of_the_oracle(zone: str, first_year: int) -> None:
    check_years(zone, first_year, years=10, expressions=EXPRESSIONS)


@pytest.mark.long
@pytest.mark.parametrize(("zone", "first_year"), ZONES)
def test_started_anywhere_around_a_change_the_ticks_are_the_same(zone: str, first_year: int) -> None:
    check_restarts(zone, first_year, years=10, expressions=EXPRESSIONS, restarts=2000)


def test_workers_that_are_killed_miss_no_tick_and_fire_none_twice(server: Server, tmp_path: Path) -> None:
    figures = storm(server, tmp_path, 8.0, 3, False, seed=1)
    assert figures.kills > 3
    assert (figures.missed, figures.double) == (0, 0), figures
    assert figures.ticks > 12
    assert figures.alone
