"""Ticks against an oracle that looks at every minute of ten years in seven zones; started again and again around each change."""

from __future__ import annotations

import pytest

from tests.unit.test_cron import EXPRESSIONS, ZONES, check_restarts, check_years


@pytest.mark.long
@pytest.mark.parametrize(("zone", "first_year"), ZONES)
def test_ten_years_of_ticks_are_those_of_the_oracle(zone: str, first_year: int) -> None:
    check_years(zone, first_year, years=10, expressions=EXPRESSIONS)


@pytest.mark.long
@pytest.mark.parametrize(("zone", "first_year"), ZONES)
def test_started_anywhere_around_a_change_the_ticks_are_the_same(zone: str, first_year: int) -> None:
    check_restarts(zone, first_year, years=10, expressions=EXPRESSIONS, restarts=2000)
