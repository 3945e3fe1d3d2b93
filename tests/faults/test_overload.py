"""More comes than can be done: nothing is trimmed, nobody starves, and the urgent waits least."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from tests.contract.snapshot import STREAMS
from tests.faults.harness import events, hire
from tests.faults.store_kit import ended, is_settled, starts_of
from tests.servers import wait_until

WEIGHTS = (8, 4, 2, 1)


def starts_in_order(history: Path) -> list[tuple[float, int]]:
    """Return when each number started, in order."""
    return sorted((float(event.rest[2]), event.n) for event in events(history) if event.kind == "start")


def test_while_all_four_wait_they_are_served_as_8_to_4_to_2_to_1(valkey, tmp_path, crew):
    """Number n is of priority n % 4. Up to 400 of the others are here and have not started yet when the last of CRITICAL does."""
    total = 8000
    raw = valkey.client()
    pipe = raw.pipeline(transaction=False)
    for n in range(total):
        pipe.xadd(f"{{jobs}}:{STREAMS[n % 4]}", {"type": "scripted", "data": f'{{"n":{n},"ms":5}}'})
    pipe.execute()
    hire(crew, valkey, tmp_path, "--reserved", "0", concurrency=20)
    wait_until(lambda: is_settled(raw), what="all is settled")
    order = [n % 4 for _, n in starts_in_order(tmp_path)]
    last_critical = max(at for at, priority in enumerate(order) if priority == 0)
    served = Counter(order[:last_critical])
    print(f"while critical waited: {[served[priority] for priority in range(4)]}")
    for priority, weight in enumerate(WEIGHTS):
        assert weight / 8 * total / 4 * 0.6 <= served[priority] <= weight / 8 * total / 4 * 1.6, served
    assert starts_of(tmp_path) == dict.fromkeys(range(total), 1)
    assert ended(tmp_path) == set(range(total))
    raw.close()


@pytest.mark.parametrize(
    ("total", "ms", "lanes"),
    [(2000, 10, 20), pytest.param(200_000, 0, 100, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
)
def test_at_twice_the_capacity_nothing_is_lost_and_critical_waits_least(valkey, tmp_path, crew, total, ms, lanes):
    raw = valkey.client()
    hire(crew, valkey, tmp_path, concurrency=lanes)
    sent_s: list[float] = []
    end_s = time.monotonic() + 200
    while len(sent_s) < total:
        assert time.monotonic() < end_s, f"{len(sent_s)} sent so far"
        size = min(total, 2 * finished(raw) + 10 * lanes) - len(sent_s)  # two come for each that has ended
        if size > 0:
            send_a_quarter_to_each(raw, len(sent_s), size, ms)
            sent_s += [time.monotonic()] * size
    backlog = sum(raw.xlen(f"{{jobs}}:{name}") for name in STREAMS)
    assert backlog > total / 8, "it was no overload"
    wait_until(lambda: is_settled(raw), 100, "all is settled")
    added = sum(raw.xinfo_stream(f"{{jobs}}:{name}")["entries-added"] for name in STREAMS)
    assert added == total
    assert starts_of(tmp_path) == dict.fromkeys(range(total), 1)
    assert ended(tmp_path) == set(range(total))
    waits: list[list[float]] = [[], [], [], []]
    for start_s, n in starts_in_order(tmp_path):
        waits[n % 4].append(start_s - sent_s[n])
    p99 = [sorted(wait)[int(len(wait) * 0.99)] for wait in waits]
    print(f"{total} jobs, backlog {backlog}; p99 of the wait in s by priority: {[round(wait, 3) for wait in p99]}")
    assert p99[0] == min(p99)
    assert median(waits[0]) < median(waits[3]) / 2
    raw.close()


def finished(raw) -> int:
    """How many jobs have left the streams."""
    found = [raw.xinfo_stream(f"{{jobs}}:{name}") for name in STREAMS if raw.exists(f"{{jobs}}:{name}")]
    return sum(stream["entries-added"] - stream["length"] for stream in found)


def send_a_quarter_to_each(raw, first: int, size: int, ms: float) -> None:
    pipe = raw.pipeline(transaction=False)
    for n in range(first, first + size):
        pipe.xadd(f"{{jobs}}:{STREAMS[n % 4]}", {"type": "scripted", "data": f'{{"n":{n},"ms":{ms}}}'})
    pipe.execute()
