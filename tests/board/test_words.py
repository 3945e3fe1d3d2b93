"""Figures are said as people read them: two units at most, two digits of a rate, a part of a hundred."""

from __future__ import annotations

import pytest

from board import words

S, M, H, D = 1_000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0, "0 ms"),
        (0.4, "0.4 ms"),
        (340, "340 ms"),
        (999, "999 ms"),
        (S, "1 s"),
        (2_140, "2.1 s"),
        (9_999, "9.9 s"),
        (38_900, "38 s"),
        (M, "1 m"),
        (4 * M + 12 * S, "4 m 12 s"),
        (H - 1, "59 m 59 s"),
        (2 * H + 14 * M + 59 * S, "2 h 14 m"),
        (24 * H, "1 d"),
        (3 * D + 4 * H, "3 d 4 h"),
        (41 * D + 5 * H, "41 d"),
        (-5, "0 ms"),
    ],
)
def test_a_duration_has_two_units_at_most(ms: float, said: str) -> None:
    assert words.duration(ms) == said


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0"), (9_999_999, "9,999,999"), (12_400_000, "12.4 M"), (2_500_000_000, "2.5 G"), (3 * 10**12, "3.0 T")]
)
def test_a_figure_is_said_in_full_up_to_ten_millions(n: int, said: str) -> None:
    assert words.figure(n) == said


@pytest.mark.parametrize(
    ("per_s", "said"), [(0, "0"), (0.05, "0.05"), (0.3, "0.3"), (3.14, "3.1"), (9.96, "10"), (61.2, "61"), (1220, "1,220")]
)
def test_a_rate_has_two_digits_where_it_is_small(per_s: float, said: str) -> None:
    assert words.rate(per_s) == said


@pytest.mark.parametrize(
    ("part", "said"),
    [(0, "0 %"), (0.00001, "under 0.01 %"), (0.0001, "0.01 %"), (0.006, "0.6 %"), (0.042, "4.2 %"), (0.38, "38 %"), (1, "100 %")],
)
def test_a_part_is_said_of_a_hundred(part: float, said: str) -> None:
    assert words.percent(part) == said


@pytest.mark.parametrize(
    ("n", "said"), [(412, "412 B"), (1434, "1.4 kB"), (1 << 20, "1 MB"), (158 << 20, "158 MB"), (3_006_477_107, "2.8 GB")]
)
def test_memory_is_said_in_the_unit_that_fits(n: int, said: str) -> None:
    assert words.size(n) == said


def test_a_count_goes_with_its_noun() -> None:
    assert [words.counted(n, "job") for n in (0, 1, 8)] == ["0 jobs", "1 job", "8 jobs"]


def test_words_are_listed_as_in_a_sentence() -> None:
    assert [words.listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_a_name_of_a_strangers_stays_one_short_line() -> None:
    assert words.name("a\nb\u202ec") == "a\ufffdb\ufffdc"
    assert words.name("x" * 100) == "x" * 64 + "…"


@pytest.mark.parametrize(
    ("sentences", "joined"),
    [
        ([["a."]], ["a."]),
        ([["a."], ["b."]], ["a. b."]),
        ([["", "a", "."], ["", "b"]], ["", "a", ". ", "b"]),
        ([["", "a"], ["b ", "c", "."]], ["", "a", " b ", "c", "."]),
    ],
)
def test_sentences_are_joined_so_that_each_second_part_stays_strong(sentences: list[list[str]], joined: list[str]) -> None:
    assert words.joined(*sentences) == joined
