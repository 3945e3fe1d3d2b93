"""What is built of the pages: small, without anything inline, with its licences, and of the API as it is."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from board import openapi
from board.assets import Assets, packing_of

STATIC: Final = Path(str(files("board"))) / "static"
SOURCES: Final = Path(str(files("board"))) / "ui"
KB: Final = 1000
ALL_BYTES: Final = 120 * KB  # script and style, gzipped: as the board's specification promises
FIRST_BYTES: Final = 70 * KB  # of what stands in index.html, and the first page with its charts
FONT_BYTES: Final = 70 * KB


def _gzipped(paths: list[Path]) -> int:
    return sum(len(gzip.compress(path.read_bytes(), 9)) for path in paths)


def _index() -> str:
    return (STATIC / "index.html").read_text()


def test_script_and_style_are_small():
    assert _gzipped([*STATIC.glob("assets/*.js"), *STATIC.glob("assets/*.css")]) <= ALL_BYTES


def _with_what_they_import(paths: set[Path]) -> set[Path]:
    found, open_ = set[Path](), paths
    while open_:
        found |= open_
        texts = [path.read_text() for path in open_ if path.suffix == ".js"]
        named = {name for text in texts for name in re.findall(r'(?:from|import)\s*["\']\./([\w.-]+\.js)["\']', text)}
        open_ = {STATIC / "assets" / name for name in named} - found
    return found


def test_what_the_first_page_loads_is_smaller_still():
    named = re.findall(r'(?:src|href)="\./(assets/[^"]+\.(?:js|css))"', _index())
    first = {STATIC / name for name in named} | {*STATIC.glob("assets/Overview-*"), *STATIC.glob("assets/plot-*")}
    assert len(named) >= 2
    assert _gzipped(sorted(_with_what_they_import(first))) <= FIRST_BYTES


def test_what_is_text_is_served_packed():
    assets = Assets()
    for path in [STATIC / "index.html", *STATIC.glob("assets/*.js"), *STATIC.glob("assets/*.css")]:
        asset = assets.find(path.relative_to(STATIC).as_posix())
        assert asset is not None
        assert gzip.decompress(asset.bodies["gzip"]) == path.read_bytes()
        assert packing_of(asset, "gzip, deflate") == "gzip"
        assert packing_of(asset, "") == ""
    font = assets.find(next(STATIC.glob("assets/*.woff2")).relative_to(STATIC).as_posix())
    assert font is not None
    assert set(font.bodies) == {""}


def test_fonts_are_small_and_have_their_licences():
    fonts = list(STATIC.glob("assets/*.woff2"))
    assert len(fonts) == 2
    assert sum(path.stat().st_size for path in fonts) <= FONT_BYTES
    for name in ("inter", "jetbrains-mono"):
        assert "SIL OPEN FONT LICENSE" in (STATIC / "licenses" / f"{name}.txt").read_text().upper()


def test_licences_of_what_is_bundled_are_shipped():
    text = (STATIC / "licenses.md").read_text()
    assert "preact" in text
    assert "uplot" in text.lower()


def test_nothing_is_inline():
    html = _index()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|data:", html, re.IGNORECASE)
    for sheet in STATIC.glob("assets/*.css"):
        assert not re.search(r"url\(\s*['\"]?data:|@import|expression\(", sheet.read_text())


def test_addresses_are_relative_and_their_files_there():
    for name in re.findall(r'(?:src|href)="([^"]+)"', _index()):
        assert name.startswith("./")
        assert (STATIC / name).is_file()
    for sheet in STATIC.glob("assets/*.css"):
        for name in re.findall(r"url\(([^)]+)\)", sheet.read_text()):
            assert (sheet.parent / name).is_file()


def test_no_source_map_and_no_html_out_of_text_is_shipped():
    assert not list(STATIC.rglob("*.map"))
    for script in STATIC.glob("assets/*.js"):
        text = script.read_text()
        assert "sourceMappingURL" not in text
        assert not re.search(r"\.insertAdjacentHTML|document\.write\(|\beval\(|new Function\(", text)


def test_no_source_makes_html_of_text():
    sources = [path for path in SOURCES.glob("src/**/*.ts*") if not path.name.endswith(".test.ts")]
    made = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc", re.I)
    assert len(sources) > 30
    assert [path.name for path in sources if made.search(path.read_text())] == []


def test_the_types_are_made_of_the_api_as_it_is():
    kept = (SOURCES / "src" / "api" / "openapi.json").read_text()
    assert kept == openapi.text(), "the API has changed; hint: make board"


def test_the_commands_that_the_pages_show_are_there():
    shown = {name for path in SOURCES.glob("src/**/*.tsx") for name in re.findall(r"python -m runtime (\w+)", path.read_text())}
    commands = {path.stem for path in Path(str(files("runtime") / "commands")).glob("*.py")}
    assert shown
    assert shown <= commands


# --- colours -----------------------------------------------------------------------------------------------------------------

TEXT: Final = 4.5  # WCAG 2.2, 1.4.3 (AA)
SHAPE: Final = 3.0  # 1.4.11: what is not text
GROUNDS: Final = ("bg", "surface", "hover", "selected")
PAIRS: Final = [
    *[(name, ground, TEXT) for name in ("text", "text2", "text3", "link") for ground in GROUNDS],
    *[(name, "surface", TEXT) for name in ("ok", "warn", "bad", "info", "critical", "high", "medium", "low")],
    *[(name, f"{name}-bg", TEXT) for name in ("ok", "warn", "bad", "info")],
    ("text2", "sunken", TEXT),
    ("on-primary", "primary", TEXT),
    *[("focus", ground, SHAPE) for ground in GROUNDS],
    ("strong", "surface", SHAPE),
]


def _tokens() -> dict[str, tuple[str, str]]:
    css = (SOURCES / "src" / "board.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]+), (#[0-9a-f]+)\)", css)
    return {name: (light, dark) for name, light, dark in found}


def _luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("name", "ground", "least"), PAIRS)
def test_colours_can_be_told_from_their_ground(name: str, ground: str, least: float, theme: int):
    tokens = _tokens()
    assert _contrast(tokens[name][theme], tokens[ground][theme]) >= least
