"""What is found about a server: the start of a worker refuses or warns of the same that the doctor lists."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.errors import ConfigError
from runtime.store.doctor import about_clock, about_server, check_server, refusals
from runtime.store.inspector import Server

FINE = Server("valkey", "8.1.0", "noeviction", True, "master", "everysec", 1, 0, 0, 0)


def server(**settings: Any) -> Server:
    return msgspec.structs.replace(FINE, **settings)


def levels(one: Server) -> list[str]:
    return [finding.level for finding in about_server(one) if finding.level != "ok"]


def test_a_good_server_starts_without_a_word():
    assert check_server(FINE, "redis-cli") == []
    assert {finding.level for finding in about_server(FINE)} == {"ok"}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"version": "6.2.14"}, "valkey 6.2.14: must be 7.0 or newer; hint: apt-get install redis-server"),
        ({"version": ""}, "must be 7.0 or newer"),
        ({"role": "slave"}, "this server is a slave"),
        ({"policy": "allkeys-lru"}, "hint: redis-cli -s here CONFIG SET maxmemory-policy noeviction"),
    ],
)
def test_a_server_that_loses_jobs_is_refused_with_what_fixes_it_and_is_an_error_for_the_doctor(settings, why):
    one = server(**settings)
    with pytest.raises(ConfigError) as caught:
        check_server(one, "redis-cli -s here")
    assert why in str(caught.value)
    assert levels(one) == ["error"]
    assert all(finding.fix for finding in refusals(one))


@pytest.mark.parametrize(
    ("settings", "level", "why"),
    [
        ({"policy": "volatile-ttl"}, "warning", "may throw away marks and statistics; hint: redis-cli -s here CONFIG SET"),
        ({"appendonly": False}, "error", "no append-only file: all jobs are lost when the server ends; hint: redis-cli -s here"),
        ({"client_timeout_s": 3}, "warning", "timeout 3 s cuts idle connections"),
    ],
)
def test_what_a_worker_can_live_with_is_a_warning_at_its_start_and_a_finding_of_the_doctor(settings, level, why):
    one = server(**settings)
    [warning] = check_server(one, "redis-cli -s here")
    assert why in warning
    assert levels(one) == [level]


@pytest.mark.parametrize(
    ("fsync", "words"),
    [
        ("always", "every acknowledged job is on disk"),
        ("everysec", "loses up to 2 s of acknowledged jobs (appendfsync everysec)"),
        ("", "appendfsync unknown"),
    ],
)
def test_the_doctor_says_what_a_crash_of_the_machine_costs(fsync, words):
    told = [finding.what for finding in about_server(server(fsync=fsync)) if finding.what.startswith("durability")]
    assert len(told) == 1
    assert words in told[0]


@pytest.mark.parametrize(
    ("off_ms", "level"), [(0, ""), (1000, ""), (1001, "warning"), (10_000, "warning"), (10_001, "error"), (30_000, "error")]
)
def test_a_clock_may_be_off_by_a_second_and_ten_are_an_error(off_ms, level):
    for local_ms in (1_700_000_000_000 + off_ms, 1_700_000_000_000 - off_ms):
        found = list(about_clock(1_700_000_000_000, local_ms))
        assert [finding.level for finding in found] == [level] * bool(level)
        assert all(f"{off_ms / 1000:.1f} s off" in finding.what and finding.fix for finding in found)
