"""How figures are said: durations, counts, rates, parts and bytes, and sentences in parts. Pure."""

from __future__ import annotations

from typing import Final

from board.shapes import Said

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
IN_FULL: Final = 9_999_999  # figures up to here are said in full
_SHORT: Final = ((10**12, "T"), (10**9, "G"), (10**6, "M"))
_BYTES: Final = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))
MAX_NAME: Final = 64  # characters of a name in a sentence: as many as a type may have


def ago(ms: float) -> str:
    """Return how long ago something was: `just now` within a second, `4 m 12 s ago`."""
    return "just now" if ms < SECOND_MS else f"{duration(ms)} ago"


def duration(ms: float) -> str:
    """Return how long a time is, in two units at most: `340 ms`, `2.1 s`, `38 s`, `4 m 12 s`, `2 h 14 m`, `3 d 4 h`, `41 d`."""
    ms = max(0.0, ms)
    if ms < SECOND_MS:
        return f"{ms:.0f} ms" if ms >= 1 or ms == 0 else f"{ms:.1g} ms"
    if ms < 10 * SECOND_MS:
        return f"{int(ms / 100) / 10:g} s"
    if ms < MINUTE_MS:
        return f"{int(ms / SECOND_MS)} s"
    if ms >= 10 * DAY_MS:
        return f"{int(ms / DAY_MS):,} d"
    units = ((DAY_MS, "d", HOUR_MS, "h"), (HOUR_MS, "h", MINUTE_MS, "m"), (MINUTE_MS, "m", SECOND_MS, "s"))
    large_ms, large, small_ms, small = next(unit for unit in units if ms >= unit[0])
    whole, rest = divmod(int(ms), large_ms)
    return f"{whole} {large} {rest // small_ms} {small}" if rest // small_ms else f"{whole} {large}"


def figure(n: int) -> str:
    """Return a count: `1,203,866`, and from ten millions on `12.4 M`."""
    if abs(n) <= IN_FULL:
        return f"{n:,}"
    size, unit = next(unit for unit in _SHORT if abs(n) >= unit[0])
    return f"{n / size:,.1f} {unit}"


def counted(n: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: `1 job`, `8 jobs`."""
    return f"{figure(n)} {noun if n == 1 else nouns or noun + 's'}"


def rate(per_s: float) -> str:
    """Return a rate without its unit, in two digits where it is small: `0.05`, `3.1`, `61`, `1,220`."""
    if per_s == 0 or abs(per_s) >= 9.95:
        return f"{per_s:,.0f}"
    return f"{per_s:.1f}" if abs(per_s) >= 0.095 else f"{per_s:.2f}"


def percent(part: float) -> str:
    """Return a part of 1: `38 %`, `4.2 %`, `0.6 %`, `0.01 %`."""
    hundredths = part * 100
    if part == 0 or hundredths >= 9.95:
        return f"{hundredths:.0f} %"
    if hundredths < 0.01:
        return "under 0.01 %"
    digits = 1 if hundredths >= 0.095 else 2
    return f"{hundredths:.{digits}f} %".replace(".0 ", " ")


def size(n_bytes: int) -> str:
    """Return how much memory that is: `412 B`, `1.4 kB`, `158 MB`, `2.8 GB`."""
    for one, unit in _BYTES:
        if n_bytes >= one:
            n = n_bytes / one
            return f"{n:.0f} {unit}" if n >= 9.95 else f"{n:.1f} {unit}".replace(".0 ", " ")
    return f"{n_bytes} B"


def name(text: str) -> str:
    """Return a name as it may stand in a sentence: a stranger may have written it."""
    shown = "".join(mark if mark.isprintable() else "\ufffd" for mark in text[: MAX_NAME + 1])
    return shown if len(shown) <= MAX_NAME else shown[:MAX_NAME] + "…"


def listed(words: list[str]) -> str:
    """Return words as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def joined(*sentences: Said) -> Said:
    """Return sentences as one text, a space between them; parts are plain and strong in turn, as in each of them."""
    told: Said = []
    for sentence in sentences:
        first = f" {sentence[0]}" if told else sentence[0]
        ends_plain = len(told) % 2 == 1
        told = [*told[:-1], told[-1] + first, *sentence[1:]] if ends_plain else [*told, first, *sentence[1:]]
    return told
