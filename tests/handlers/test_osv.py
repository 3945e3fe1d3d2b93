"""Which versions an advisory is about, hand-checked at each edge, and how severe it is."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest

from handlers.kit.lockfiles import Ecosystem, Package
from handlers.kit.osv import Advisory, Affected, fixes_of, in_order, is_affected, level_of, matches
from handlers.kit.versions import npm, pypi
from tests.handlers.advisories import HIGH, advisory, affected

# Ordered as https://semver.org/spec/v2.0.0.html#spec-item-11 says.
SEMVER = [
    *("0.0.0-0", "0.0.0", "0.9.10", "1.0.0-0.3.7", "1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1"),
    *("1.0.0-alpha.1.0", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0-x-y-z.--"),
    *("1.0.0", "1.0.1", "1.1.0", "1.10.0", "2.0.0-a", "2.0.0", "10.0.0", "9007199254740991.0.0"),
]


def about(text: str, ecosystem: Ecosystem = "PyPI", **fields: Any) -> Affected:
    return msgspec.convert(affected("p", text, ecosystem, **fields), Affected)


def verdict(version: str, what: Affected, ecosystem: Ecosystem = "PyPI") -> bool | None:
    return is_affected(Package(ecosystem, "p", version), what)


def test_versions_of_npm_are_ordered_as_semver_says() -> None:
    known = [npm(text) for text in SEMVER]
    assert None not in known
    for left, right in itertools.pairwise(known):
        assert left is not None and right is not None
        assert left < right
    assert npm("1.2.3+build.7") == npm("v1.2.3+other") == npm("=1.2.3") and npm("1") == npm("1.0") == npm("1.0.0")


@pytest.mark.parametrize(
    "text",
    ["", "latest", "1.x", "1.2.3.4", "1.2.3-", "1.2.3-a..b", "^1.2.3", "1.2.3 ", "1.2.3\n", "1" * 17, "1.0.0-" + "a" * 128],
)
def test_what_is_no_version_of_npm(text: str) -> None:
    assert npm(text) is None


def test_a_version_of_pypi_is_bounded() -> None:
    assert pypi("1." * 63 + "1") is not None
    assert pypi("1" * 5000) is None and pypi("1.0-foo") is None and pypi("") is None


# What is said of a package, the versions that are affected, and those that are not: by hand, from PEP 440 and OSV's schema.
PYPI = [
    (
        "introduced 0, fixed 1.2",
        ["0", "0.0.dev0", "1.1.post9", "1.2.dev1", "1.2a1", "1.2rc1"],
        ["1.2", "1.2.0", "1.2.post1"],
    ),
    ("introduced 1.0, fixed 1.2", ["1.0", "1.0.0", "1.0.post1", "1.1.99"], ["0.9", "1.0.dev1", "1.0a1", "1.0rc9", "1.2", "2"]),
    ("introduced 1.0a1, fixed 1.0", ["1.0a1", "1.0a1.post1", "1.0b3", "1.0rc1"], ["1.0.dev9", "0.9", "1.0a0", "1.0"]),
    ("introduced 0, last_affected 1.2", ["1.1", "1.2rc1", "1.2", "1.2.0"], ["1.2.post1", "1.2.1", "1.3.dev0"]),
    ("introduced 0, fixed 1!1.0", ["0.1", "99999", "2024.1", "1!0.9", "1!1.0rc1"], ["1!1.0", "1!1.0.1", "2!0"]),
    ("introduced 1!1.0, fixed 1!2.0", ["1!1.0", "1!1.9"], ["1.5", "99", "1!0.9", "1!2.0", "2!1.0"]),
    ("introduced 0, fixed 2.0.0", ["1.9+cpu", "2.0.0rc1+cu118"], ["2.0.0", "2.0.0+cpu", "2.0.0+cu118"]),
    ("introduced 0, fixed 2.0.0+patch.2", ["2.0.0", "2.0.0+patch.1"], ["2.0.0+patch.2", "2.0.0+patch.10", "2.0.1"]),
    ("introduced 0, last_affected 2.0.0", ["2.0.0", "2.0.0+cpu", "2.0.0+cu118"], ["2.0.1", "2.0.1+cpu"]),
    ("introduced 0, last_affected 2.0.0+a", ["2.0.0", "2.0.0+a", "2.0.0+b"], ["2.0.1"]),
    ("introduced 0", ["0", "1!999", "1.0.dev1", "5+x"], []),
    ("introduced 1, fixed 2, introduced 3, fixed 4", ["1", "1.9", "3", "3.9.9"], ["0.9", "2", "2.9", "4", "5"]),
    ("introduced 3, fixed 4, introduced 1, fixed 2", ["1", "1.9", "3", "3.9.9"], ["0.9", "2", "2.9", "4", "5"]),
    ("fixed 2, introduced 0", ["0", "1.9"], ["2", "3"]),
    ("introduced 0, fixed 1, introduced 1, fixed 2", ["0.5", "1", "1.5"], ["2"]),
    ("introduced 0, fixed 1.10", ["1.9", "1.2"], ["1.10", "1.11"]),
    ("introduced 0, limit 3.0", ["2.9"], ["3.0", "4"]),
    ("introduced 0, limit *", ["2.9", "99"], []),
    ("introduced 1.0-RC.1, fixed v1.0", ["1.0rc1", "1.0c2"], ["1.0b9", "1.0"]),
]
NPM = [
    (
        "introduced 0, fixed 4.17.21",
        ["0.0.0", "4.17.20", "4.17.21-0", "4.17.21-rc.1", "4.9.0"],
        ["4.17.21", "4.17.21+b", "4.17.100"],
    ),
    ("introduced 1.0.0-0, fixed 1.2.0", ["1.0.0-0", "1.0.0-alpha", "1.0.0", "1.2.0-beta"], ["0.9.9", "1.2.0"]),
    ("introduced 1.0.0, fixed 1.2.0", ["1.0.0", "1.1.9"], ["1.0.0-rc.9", "1.2.0"]),
    ("introduced 0, last_affected 2.0.0", ["2.0.0", "2.0.0+x", "2.0.0-a"], ["2.0.1-a", "2.0.1"]),
    ("introduced 0.0.0-0", ["0.0.0-0", "0.0.0", "99.0.0"], []),
    ("introduced 2.0.0, fixed 2.10.0", ["2.9.0"], ["2.10.0", "2.11.0"]),
]


@pytest.mark.parametrize(
    ("ecosystem", "text", "inside", "outside"), [*(("PyPI", *each) for each in PYPI), *(("npm", *each) for each in NPM)]
)
def test_a_range_is_about_these_versions_and_not_those(
    ecosystem: Ecosystem, text: str, inside: list[str], outside: list[str]
) -> None:
    what = about(text, ecosystem)
    assert {version: verdict(version, what, ecosystem) for version in inside} == dict.fromkeys(inside, True)
    assert {version: verdict(version, what, ecosystem) for version in outside} == dict.fromkeys(outside, False)


def test_a_listed_version_is_affected_however_it_is_written() -> None:
    what = about("", versions=["1.0", "2.0RC1", "1.0-weird"])
    assert [verdict(each, what) for each in ("1.0", "1.0.0", "v1.0", "1.0+cpu", "2.0rc1", "1.0-weird")] == [True] * 6
    assert [verdict(each, what) for each in ("1.0.1", "2.0", "1.0rc1", "1.0.post1")] == [False] * 4
    assert verdict("1.5", about("introduced 2, fixed 3", versions=["1.5"])) is True


def test_what_cannot_be_compared_is_undecided_and_never_clean() -> None:
    assert verdict("1.0-weird", about("introduced 0, fixed 2")) is None
    assert verdict("1.0-weird", about("introduced 0")) is True, "all versions are"
    assert verdict("1.0-weird", about("", versions=["1.0", "1.0.weird"])) is None
    assert verdict("1.0-weird", about("introduced 0, fixed 2", versions=["1.0-weird"])) is True
    assert verdict("1.0", about("introduced 0, fixed 2.0-weird")) is None
    assert verdict("1.0", about("introduced 0, fixed 2.0-weird", versions=["0.9"])) is None
    assert verdict("1.0", about("")) is None, "no range and no list"
    only_git = [{"type": "GIT", "events": [{"introduced": "0"}]}]
    assert verdict("1.0", about("", ranges=only_git)) is None
    assert verdict("1.0", about("", ranges=only_git, versions=["0.9"])) is False
    assert verdict("1.0", about("", ranges=[{"type": "ECOSYSTEM", "events": []}])) is None
    assert verdict("latest", about("introduced 0, fixed 1.0.0", "npm"), "npm") is None


def test_one_range_that_says_yes_is_enough() -> None:
    two = [
        {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "odd-"}]},
        {"type": "ECOSYSTEM", "events": [{"introduced": "0"}]},
    ]
    assert verdict("1", about("", ranges=two)) is True


def test_versions_that_fix_it_are_above_the_installed_one() -> None:
    what = about("introduced 1, fixed 1.5, introduced 2, fixed 2.5")
    assert fixes_of(Package("PyPI", "p", "1.2"), what) == {"1.5", "2.5"}
    assert fixes_of(Package("PyPI", "p", "2.1"), what) == {"2.5"}


def test_a_version_that_fixes_it_is_shown_without_what_stands_around_it() -> None:
    assert fixes_of(Package("PyPI", "p", "1.2"), about("introduced 1", ranges=[ODD])) == {"1.5"}
    assert fixes_of(Package("PyPI", "p", "1.0-weird"), about("introduced 1", ranges=[ODD])) == set()


def test_versions_are_shown_in_their_order() -> None:
    assert in_order("PyPI", {"1.10", "1.9", "1.10rc1", "1!0"}) == ["1.9", "1.10rc1", "1.10", "1!0"]
    assert in_order("npm", {"4.10.0", "4.9.0", "4.10.0-rc.1"}) == ["4.9.0", "4.10.0-rc.1", "4.10.0"]


ODD = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "\u20281.5\x1c\n"}, {"fixed": "\x1b[2J"}]}


# --- levels ------------------------------------------------------------------------------------------------------------------


def level(**fields: Any) -> str:
    package = affected("p", "introduced 0", **fields.pop("package", {}))
    known = msgspec.convert(advisory("A-1", package, **fields), Advisory)
    assert known.affected is not None
    return level_of(known, known.affected[0])


def cvss(score: str, kind: str = "CVSS_V3") -> list[dict[str, str]]:
    return [{"type": kind, "score": score}]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"database_specific": {"severity": "CRITICAL"}}, "critical"),
        ({"database_specific": {"severity": "moderate"}}, "medium"),
        ({"package": {"ecosystem_specific": {"severity": "LOW"}}, "database_specific": {"severity": "HIGH"}}, "low"),
        ({"database_specific": {"severity": "HIGH"}, "severity": cvss("CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N")}, "high"),
        ({"severity": cvss(HIGH)}, "high"),
        ({"severity": cvss("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H")}, "critical"),  # 9.8
        ({"severity": cvss("CVSS:3.0/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N")}, "medium"),  # 6.1
        ({"severity": cvss("CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N")}, "low"),  # 1.8
        ({"severity": cvss("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", "CVSS_V4")}, "critical"),  # 9.3
        ({"package": {"severity": cvss(HIGH)}}, "high"),
        ({"severity": [*cvss(HIGH), *cvss("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H")]}, "critical"),
        ({}, "unknown"),
        ({"severity": cvss("CVSS:3.1/nonsense")}, "unknown"),
        ({"severity": cvss("CVSS:3.1/AV:N")}, "unknown"),
        ({"severity": cvss("9.8")}, "unknown"),
        ({"severity": cvss("x" * 100_000)}, "unknown"),
        ({"severity": cvss(HIGH, "Ubuntu")}, "unknown"),
        ({"database_specific": {"severity": ["HIGH"]}}, "unknown"),
        ({"database_specific": {"severity": "UNHEARD"}}, "unknown"),
    ],
)
def test_a_level_is_the_label_else_the_score_else_unknown(fields: dict[str, Any], wanted: str) -> None:
    assert level(**fields) == wanted


# --- several advisories ------------------------------------------------------------------------------------------------------


def found(*advisories: dict[str, Any], version: str = "1.0") -> tuple[list[Any], list[Any]]:
    known = [msgspec.convert(each, Advisory) for each in advisories]
    pairs = [(each, what) for each in known for what in each.affected or ()]
    return matches(Package("PyPI", "p", version), pairs)


def test_advisories_that_share_an_id_are_one_finding_with_the_level_that_one_knows() -> None:
    hits, unsure = found(
        advisory("PYSEC-1", affected("p", "introduced 0, fixed 2"), aliases=["CVE-1"]),
        advisory("B-9", affected("p", "introduced 0, fixed 2.1")),
        advisory("GHSA-1", affected("p", "introduced 0, fixed 2.0.1"), aliases=["CVE-1"], database_specific={"severity": "HIGH"}),
    )
    assert [(each.id, each.level, sorted(each.fixed)) for each in hits] == [
        ("B-9", "unknown", ["2.1"]),
        ("CVE-1", "high", ["2", "2.0.1"]),
    ]
    assert not unsure and hits[1].names == {"PYSEC-1", "GHSA-1", "CVE-1"}


def test_a_chain_of_aliases_is_one_finding_in_any_order() -> None:
    chain = [
        advisory("A-1", affected("p", "introduced 0"), aliases=["B-2"]),
        advisory("C-3", affected("p", "introduced 0"), aliases=["D-4"]),
        advisory("E-5", affected("p", "introduced 0"), aliases=["B-2", "C-3"]),
    ]
    for order in itertools.permutations(chain):
        (one,), _ = found(*order)
        assert one.names == {"A-1", "B-2", "C-3", "D-4", "E-5"} and one.id == "A-1"


def test_what_one_advisory_decides_another_leaves_no_longer_open() -> None:
    weird = advisory("X-1", affected("p", "introduced 0, fixed weird"), aliases=["CVE-1"])
    hits, unsure = found(weird, advisory("Y-1", affected("p", "introduced 0"), aliases=["CVE-1"]))
    assert len(hits) == 1 and not unsure
    hits, unsure = found(weird)
    assert not hits and [each.id for each in unsure] == ["CVE-1"]


def test_an_alias_that_is_no_id_is_passed_over() -> None:
    (one,), _ = found(advisory("A-1", affected("p", "introduced 0"), aliases=["\x1b[2J", "see CVE-1, CVE-2", "CVE-3"]))
    assert one.names == {"A-1", "CVE-3"}


def test_nulls_are_as_good_as_missing() -> None:
    text = json.dumps({"id": "A-1", "aliases": None, "severity": None, "affected": None, "withdrawn": None})
    assert msgspec.json.decode(text, type=Advisory).names == {"A-1"}
