"""Lock files: what each kind says is installed, what it leaves open, and that no file leads outside of its root."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from handlers.kit import lockfiles
from handlers.kit.lockfiles import Inventory, read_targets
from handlers.kit.settings import current
from runtime import Dead, Retry
from tests.handlers.conftest import Configure

HASHES = " \\\n    --hash=sha256:" + "a" * 64 + " \\\n    --hash=sha256:" + "b" * 64


@pytest.fixture
def source(tmp_path: Path, configure: Configure) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    configure(f"roots.src = {{ path = '{folder}' }}\n")
    return folder


def read(source: Path, content: str | bytes = "", name: str = "requirements.txt", **others: str) -> Inventory:
    for path, text in {name: content, **others}.items():
        place = source / path.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_targets(current(), [f"src:{name}"], 3)


def pins(found: Inventory) -> list[str]:
    return sorted(f"{package.name}=={package.version}" for package in found.packages)


def gaps(found: Inventory) -> list[tuple[Any, ...]]:
    return [(gap.reason, gap.line, gap.package) for gap in found.gaps]


def code_of(source: Path, content: str | bytes, name: str) -> str:
    with pytest.raises(Dead) as caught:
        read(source, content, name)
    return caught.value.code


# --- requirements.txt ----------------------------------------------------------------------------------------------------------


def test_a_requirements_file_is_read_as_pip_reads_it(source: Path) -> None:
    found = read(
        source,
        "\ufeff# a comment\n"
        "--index-url https://${USER}:secret@example.org/simple\n-i https://x\n--require-hashes\n--pre\n\n"
        f"Jinja_Two==3.1.6{HASHES}\n"
        'extra[one,two]==1.0 ; python_version < "3.9"   # via something\n'
        "joined\\\n==2.\\\n0\n"
        "triple===1.0+local\n"
        "both==1.0,>=0.9\n"
        "spaced  ==  4.0  \n"
        "win==1.0; sys_platform == 'win32'\r\n"
        "epoch==1!2.0 --config-settings x=y\n"
        "no#comment\n",
    )
    assert pins(found) == sorted(
        [
            "jinja-two==3.1.6",
            "extra==1.0",
            "joined==2.0",
            "triple==1.0+local",
            "both==1.0",
            "spaced==4.0",
            "win==1.0",
            "epoch==1!2.0",
        ]
    )
    assert gaps(found) == [("unparsed", 19, "")]
    assert list(found.files) == ["src:requirements.txt"]


@pytest.mark.parametrize(
    ("line", "reason", "name"),
    [
        ("lamp", "unpinned", "lamp"),
        ("lamp>=1.0", "unpinned", "lamp"),
        ("lamp~=1.0", "unpinned", "lamp"),
        ("lamp==1.*", "unpinned", "lamp"),
        ("lamp==1.0,==2.0", "unpinned", "lamp"),
        ("lamp @ https://user:secret@example.org/lamp.whl", "url", "lamp"),
        ("git+https://example.org/lamp.git@main#egg=lamp", "url", ""),
        ("https://example.org/lamp-1.0.tar.gz", "url", ""),
        ("./lamp", "url", ""),
        ("../lamp-1.0.zip", "url", ""),
        ("lamp-1.0-py3-none-any.whl", "url", ""),
        ("/opt/lamp", "url", ""),
        ("-e .", "url", ""),
        ("--editable git+https://example.org/x", "url", ""),
        ("-r https://example.org/more.txt", "url", ""),
        ("lamp==${VERSION}", "unparsed", ""),
        ("lamp == 1.0 and more", "unparsed", ""),
        ("--unheard-of x", "unparsed", ""),
        ("-r", "unparsed", ""),
        ("lamp @ https://${HOST}/lamp.whl", "url", "lamp"),
        ("-r ${FOLDER}/more.txt", "unread", ""),
        ("-r 'open", "outside", ""),
        ("x" * 300 + "==1.0", "unparsed", ""),
        ("lamp==" + "1" * 200, "unparsed", ""),
        ("lamp==1.0 ; " + "x" * 40_000, "unparsed", ""),
        ("lamp==1.0 ; " + "(" * 3000, "unparsed", ""),
        ("<html>", "unparsed", ""),
    ],
)
def test_a_line_that_is_not_one_exact_version_is_a_gap(source: Path, line: str, reason: str, name: str) -> None:
    found = read(source, f"one==1.0\n{line}\n")
    assert pins(found) == ["one==1.0"]
    assert gaps(found) == [(reason, 2, name)]


def test_files_that_are_named_are_read_relative_to_the_one_that_names_them(source: Path) -> None:
    found = read(
        source,
        "-r deep/a.txt\n--requirement=deep/b.txt\n-c constraints.txt\nlamp\nfree\n-rdeep/../e.txt",
        **{
            "deep__a.txt": "a==1\n-r ../c.txt\n-c cons.txt\ndesk\n",
            "deep__b.txt": "b==2\n",
            "deep__cons.txt": "desk==9\nunused==1\n",
            "c.txt": "c==3\n",
            "e.txt": "e==5\n",
            "constraints.txt": "lamp==4\nfree>=1\n",
        },
    )
    assert pins(found) == ["a==1", "b==2", "c==3", "desk==9", "e==5", "lamp==4"]
    assert gaps(found) == [("unpinned", 5, "free")]
    assert list(found.packages.values()) == [["src:requirements.txt"]] * 6
    assert len(found.files) == 7


def test_a_package_that_another_line_pins_is_pinned(source: Path) -> None:
    found = read(source, "lamp\nlamp==1.0\n-r base.txt", **{"base.txt": "lamp>=0.5\ndesk\n"})
    assert pins(found) == ["lamp==1.0"] and gaps(found) == [("unpinned", 2, "desk")]


@pytest.mark.parametrize("other", ['lamp==1.0 ; python_version < "3.8"', "-c cons.txt"])
def test_a_pin_of_other_environments_pins_only_those(source: Path, other: str) -> None:
    found = read(source, f'lamp>=0.5 ; python_version >= "3.8"\n{other}', **{"cons.txt": "lamp==1.0 ; python_version < '3.8'"})
    assert pins(found) == ["lamp==1.0"] and gaps(found) == [("unpinned", 1, "lamp")]
    found = read(source, f"lamp\n{other}")
    assert gaps(found) == [("unpinned", 1, "lamp")]
    for marker in ("", ";python_version<'3.8'"):  # of all environments, and of the same ones
        found = read(source, f"lamp>=0.5{marker}\n{other}", **{"cons.txt": f"lamp==1.0{marker}"})
        assert pins(found) == ["lamp==1.0"] and (not gaps(found) or (not marker and other.startswith("lamp")))


def test_files_that_name_each_other_end(source: Path) -> None:
    found = read(source, "-r a.txt\none==1", **{"a.txt": "-r requirements.txt\n-r a.txt\n-c a.txt\ntwo==2"})
    assert pins(found) == ["one==1", "two==2"] and not found.gaps


def test_a_chain_of_files_is_bounded(source: Path) -> None:
    chain = {f"{n}.txt": f"p{n}==1\n-r {n + 1}.txt\n" for n in range(300)}
    found = read(source, "-r 0.txt", **chain)
    assert len(found.packages) == lockfiles.MAX_FILES - 1 and found.counts == {"unread": 1}


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "//etc/passwd", "a/../../../etc/passwd", "..", ".", "'/etc/passwd'", "a b c"),
        *("'\\etc\\passwd'", "a\x1b[2J.txt", "\u202etxt.a"),
    ],
)
def test_a_file_outside_of_the_root_is_never_opened(source: Path, name: str) -> None:
    (source.parent / "secret.txt").write_text("secret==1")
    with pytest.MonkeyPatch.context() as patch:
        opened: list[str] = []
        real = os.open
        patch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more))
        found = read(source, f"one==1\n-r {name}\n--constraint={name}\n-r ../secret.txt")
    assert pins(found) == ["one==1"]
    assert {gap.reason for gap in found.gaps} == {"outside"} and found.counts["outside"] == 3
    assert not {"passwd", "secret.txt", "etc"} & set(opened)
    assert not any("\x1b" in gap.path or "passwd" in gap.path for gap in found.gaps)


def test_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret==1")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.txt").write_text("secret==2")
    (source / "link.txt").symlink_to(tmp_path / "outside.txt")
    (source / "folder").symlink_to(tmp_path / "far")
    os.mkfifo(source / "pipe.txt")
    found = read(source, "one==1\n-r link.txt\n-r folder/x.txt\n-r pipe.txt\n-r missing.txt")
    assert pins(found) == ["one==1"] and found.counts == {"unread": 4}
    (source / "requirements.txt").unlink()
    (source / "requirements.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(Dead) as caught:
        read_targets(current(), ["src:requirements.txt"], 1)
    assert caught.value.code == "bad-path"


def test_what_is_not_utf_8(source: Path) -> None:
    assert code_of(source, b"\xff\xfe", "requirements.txt") == "bad-rows"
    found = read(source, "one==1\n-r odd.txt", **{"odd.txt": "x"})
    (source / "odd.txt").write_bytes(b"\xff")
    found = read_targets(current(), ["src:requirements.txt"], 1)
    assert found.counts == {"unparsed": 1}


def test_a_file_that_is_too_large_is_not_read(source: Path) -> None:
    with (source / "uv.lock").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(Dead) as caught:
        read_targets(current(), ["src:uv.lock"], 1)
    assert caught.value.code == "too-large"
    (source / "requirements.txt").write_text("-r more.txt")
    (source / "more.txt").write_bytes(b"#" * (lockfiles.MAX_FILE_BYTES + 1))
    with pytest.raises(Dead) as caught:
        read_targets(current(), ["src:requirements.txt"], 1)
    assert caught.value.code == "too-large"


def test_packages_are_bounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "MAX_PACKAGES", 3)
    assert code_of(source, "".join(f"p{n}==1\n" for n in range(4)), "requirements.txt") == "too-large"
    monkeypatch.setattr(lockfiles, "MAX_GAPS", 2)
    found = read(source, "?\n" * 10)
    assert len(found.gaps) == 2 and found.counts == {"unparsed": 10}


def test_no_line_takes_time_out_of_proportion(source: Path) -> None:
    """Each of these took minutes with a pattern that goes back; there is nothing to measure but that it ends."""
    long = 30_000
    lines = [
        " " * long + "x",
        "x" + " " * long + "-",
        "-r" + " " * long,
        "=" * long,
        "(" * long,
        "x[" + "a," * 15_000,
        "a." * 15_000,
    ]
    assert read(source, "\n".join(lines * 5)).counts["unparsed"] >= 20


def test_a_target_that_is_missing_is_waited_for_a_little(source: Path) -> None:
    with pytest.raises(Retry):
        read_targets(current(), ["src:uv.lock"], 1)
    with pytest.raises(Dead) as caught:
        read_targets(current(), ["src:uv.lock"], 3)
    assert caught.value.code == "input-missing"


def test_a_target_that_names_nothing_is_a_gap(source: Path) -> None:
    assert gaps(read(source, "# nothing\n")) == [("empty", 0, "")]
    assert gaps(read(source, "?")) == [("unparsed", 1, "")]


# --- lock files in TOML --------------------------------------------------------------------------------------------------------

UV = """
version = 1
requires-python = ">=3.11"
[[package]]
name = "workspace"
version = "0.1.0"
source = { editable = "." }
[[package]]
name = "member"
source = { virtual = "packages/member" }
[[package]]
name = "Lamp.Shade"
version = "2.3"
source = { registry = "https://pypi.org/simple" }
sdist = { url = "https://files.example/lamp.tar.gz", hash = "sha256:00", size = 1 }
[[package]]
name = "forked"
version = "1.0"
source = { git = "https://user:secret@example.org/forked?rev=1" }
[[package]]
name = "direct"
version = "1.0"
source = { url = "https://example.org/direct.whl" }
[[package]]
name = "beside"
version = "1.0"
source = { directory = "../beside" }
"""
POETRY = """
[[package]]
name = "lamp"
version = "2.3"
files = [{ file = "lamp.whl", hash = "sha256:00" }]
[[package]]
name = "mirrored"
version = "1.0"
[package.source]
type = "legacy"
url = "https://mirror.example/simple"
[[package]]
name = "forked"
version = "1.0"
[package.source]
type = "git"
url = "https://example.org/forked"
[metadata]
lock-version = "2.0"
"""
PYLOCK = """
lock-version = "1.0"
created-by = "test"
[[packages]]
name = "lamp"
version = "2.3"
wheels = [{ name = "lamp.whl", url = "https://files.example/lamp.whl", hashes = { sha256 = "00" } }]
[[packages]]
name = "forked"
version = "1.0"
vcs = { type = "git", url = "https://example.org/forked", commit-id = "0" }
[[packages]]
name = "packed"
archive = { url = "https://example.org/packed.zip", hashes = {} }
[[packages]]
name = "floating"
"""


@pytest.mark.parametrize(
    ("name", "content", "wanted", "left"),
    [
        ("uv.lock", UV, ["lamp-shade==2.3"], [("url", 0, "forked"), ("url", 0, "direct"), ("url", 0, "beside")]),
        ("poetry.lock", POETRY, ["lamp==2.3", "mirrored==1.0"], [("url", 0, "forked")]),
        ("pylock.toml", PYLOCK, ["lamp==2.3"], [("url", 0, "forked"), ("url", 0, "packed"), ("unpinned", 0, "floating")]),
        ("pylock.dev.toml", PYLOCK, ["lamp==2.3"], [("url", 0, "forked"), ("url", 0, "packed"), ("unpinned", 0, "floating")]),
    ],
)
def test_lock_files_in_toml(source: Path, name: str, content: str, wanted: list[str], left: list[tuple[Any, ...]]) -> None:
    found = read(source, content, name)
    assert (pins(found), gaps(found)) == (wanted, left)


def test_dots_in_texts_are_no_keys(source: Path) -> None:
    dots = "a." * 1000
    texts = [f'"{dots}"', f"'{dots}'", f'"""\n{dots}\\""\n"""', f"'''{dots}'''", f"1 # {dots}"]
    read(source, "\n".join(["version = 1", *(f"x{n} = {text}" for n, text in enumerate(texts))]), "uv.lock")


@pytest.mark.parametrize("text", ["a.", '"', "'", '\\"""', '"""\\', "'''a", "a ", '"\\" . ', "a" * 100, "#"])
def test_no_text_in_toml_takes_time_out_of_proportion(source: Path, text: str) -> None:
    assert code_of(source, f"version = 1\nx = {text * (2**20 // len(text))}", "uv.lock") == "bad-rows"


# --- lock files in JSON --------------------------------------------------------------------------------------------------------

PIPFILE = {
    "_meta": {"hash": {"sha256": "00"}, "pipfile-spec": 6, "sources": []},
    "default": {
        "Lamp": {"version": "==2.3", "hashes": ["sha256:00"], "markers": "python_version >= '3'"},
        "forked": {"git": "https://example.org/forked", "ref": "0"},
        "floating": {"version": "*"},
        "nothing": {},
    },
    "develop": {"desk": {"version": "===1.0"}, "beside": {"path": "./beside", "editable": True}},
}
NPM: dict[str, Any] = {
    "name": "shop",
    "lockfileVersion": 3,
    "packages": {
        "": {"name": "shop", "version": "1.0.0", "dependencies": {"desk": "^1"}, "workspaces": ["packages/*"]},
        "packages/member": {"name": "member", "version": "0.0.0"},
        "node_modules/member": {"resolved": "packages/member", "link": True},
        "node_modules/desk": {
            "version": "1.2.3",
            "resolved": "https://registry.npmjs.org/desk/-/desk-1.2.3.tgz",
            "integrity": "x",
        },
        "node_modules/@shop/desk": {
            "version": "4.0.0",
            "resolved": "https://npm.example/@shop/desk/-/desk-4.0.0.tgz",
            "dev": True,
        },
        "node_modules/desk/node_modules/chair": {"version": "0.9.0", "inBundle": True},
        "node_modules/alias": {"name": "Real.Name", "version": "2.0.0"},
        "node_modules/forked": {"version": "1.0.0", "resolved": "git+ssh://git@example.org/forked.git#0"},
        "node_modules/tarball": {"version": "1.0.0", "resolved": "https://example.org/tarball.tgz"},
        "node_modules/beside": {"version": "1.0.0", "resolved": "file:beside.tgz"},
        "node_modules/bare": {},
    },
}


def test_a_pipfile_lock(source: Path) -> None:
    found = read(source, json.dumps(PIPFILE), "Pipfile.lock")
    assert pins(found) == ["desk==1.0", "lamp==2.3"]
    assert gaps(found) == [("url", 0, "forked"), ("unpinned", 0, "floating"), ("unpinned", 0, "nothing"), ("url", 0, "beside")]


def test_all_categories_of_a_pipfile_lock_are_read(source: Path) -> None:
    more = {"docs": {"lamp": {"version": "==1.0"}}, "my-tools": {"desk": {"version": "*"}}}
    found = read(source, json.dumps({"_meta": {}, "default": {}, **more}), "Pipfile.lock")
    assert pins(found) == ["lamp==1.0"] and gaps(found) == [("unpinned", 0, "desk")]


@pytest.mark.parametrize(
    ("workspaces", "place", "is_own"),
    [
        (["packages/*"], "packages/lamp", True),
        (["./packages/lamp/"], "packages/lamp", True),
        ({"packages": ["*"]}, "lamp", True),
        (["packages/*"], "vendor/lamp", False),
        (["packages/*", "!packages/lamp"], "packages/lamp", False),
        (["packages/*"], "packages/vendor/lamp", False),
        ([1], "vendor/lamp", False),
        (None, "vendor/lamp", False),
        (7, "../lamp", False),
    ],
)
def test_a_link_to_a_folder_is_a_gap_but_for_a_workspace(source: Path, workspaces: Any, place: str, is_own: bool) -> None:
    link = {"node_modules/lamp": {"resolved": place, "link": True}, "node_modules/desk": {"version": "1.0.0"}}
    lock = {"lockfileVersion": 3, "packages": {"": {"workspaces": workspaces}, place: {"version": "1.0.0"}, **link}}
    found = read(source, json.dumps(lock), "package-lock.json")
    assert pins(found) == ["desk==1.0.0"] and gaps(found) == ([] if is_own else [("url", 0, "lamp")])
    del lock["packages"][place]
    assert gaps(read(source, json.dumps(lock), "package-lock.json")) == [("url", 0, "lamp")], "nothing is known of it"


@pytest.mark.parametrize(("name", "version"), [("package-lock.json", 3), ("package-lock.json", 2), ("npm-shrinkwrap.json", 3)])
def test_a_lock_file_of_npm(source: Path, name: str, version: int) -> None:
    found = read(source, json.dumps({**NPM, "lockfileVersion": version, "dependencies": {}}), name)
    assert pins(found) == ["@shop/desk==4.0.0", "Real.Name==2.0.0", "chair==0.9.0", "desk==1.2.3"]
    assert {package.ecosystem for package in found.packages} == {"npm"}
    assert gaps(found) == [("url", 0, "forked"), ("url", 0, "tarball"), ("url", 0, "beside"), ("unpinned", 0, "bare")]


DEEP = 200_000
# Keys with very many parts, which tomllib would take: what stands before and after them, and a part.
DEEP_KEYS = [
    ("", "a", " = 1"),
    ("[", "a", "]"),
    ("x = {", " a\t", "= 1}"),
    ("", '"a.\\"!"', " = 1"),
    ("", "'\"'", " = 1"),
    ('x = """"""\n', "a", " = 1"),
    ('x = """a"""""\n', "a", " = 1"),
    ("x = '''a\"''''\n", "a", " = 1"),
    ('x = {y = """\\"\n""", ', "a", ' = "x"}'),
    ('# it\'s """\n', "a", " = 1"),
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("uv.lock", "[[package]\n"),
        ("uv.lock", ""),
        ("uv.lock", "version = 1\npackage = 1"),
        ("uv.lock", "version = 1\n[[package]]\nversion = '1'"),
        ("uv.lock", "version = " + "[" * DEEP),
        ("uv.lock", "version = 1\nx = " + "1" * 100_000),
        *(("uv.lock", f"version = 1\n{before}{'.'.join([part] * 1000)}{after}") for before, part, after in DEEP_KEYS),
        ("uv.lock", b"\xff"),
        ("poetry.lock", "version = 1"),
        ("pylock.toml", "version = 1"),
        ("pylock.toml", "lock-version = '1.0'"),
        ("Pipfile.lock", "{}"),
        ("Pipfile.lock", '{"_meta": {}, "default": {"x": 1}}'),
        ("Pipfile.lock", '{"_meta": {}, "docs": {"x": 1}}'),
        ("Pipfile.lock", '{"_meta": {}, "docs": []}'),
        ("Pipfile.lock", '{"_meta": ' + '{"a":' * DEEP),
        ("package-lock.json", "["),
        ("package-lock.json", '{"lockfileVersion": 1, "dependencies": {}}'),
        ("package-lock.json", '{"lockfileVersion": 3, "packages": ' + "[" * DEEP),
        ("package-lock.json", '{"lockfileVersion": 3, "x": ' + "[" * DEEP),
        ("package-lock.json", '{"lockfileVersion": 3, "packages": {"node_modules/x": 1}}'),
        ("package-lock.json", "lockfileVersion: 3\npackages: {}"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_dead(source: Path, name: str, content: str | bytes) -> None:
    assert code_of(source, content, name) == "bad-rows"


HOSTILE = [
    "\x1b[2J",
    "<script>alert(1)</script>",
    "a\nb",
    "../../etc/passwd",
    "[bold]x[/bold]",
    "x" * 5000,
    "\u202eevil",
    "=1+1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_versions_go_no_further(source: Path, text: str) -> None:
    quoted = json.dumps(text)
    packages = {
        f"node_modules/{text}": {"version": "1.0.0"},
        "node_modules/desk": {"version": text},
        "node_modules/x": {"name": text, "version": "1.0.0"},
    }
    found = read(source, json.dumps({"lockfileVersion": 3, "packages": packages}), "package-lock.json")
    toml = f"version = 1\n[[package]]\nname = {quoted}\nversion = '1'\n[[package]]\nname='a'\nversion = {quoted}"
    more = read(source, toml, "uv.lock")
    for each in (found, more):
        assert not [package for package in each.packages if text in package]
        assert not [gap for gap in each.gaps if text in gap.package]
        assert each.counts == {"unparsed": 3 if each is found else 2}


def test_the_digest_is_of_all_files_and_their_paths(source: Path) -> None:
    first = read(source, "-r a.txt", **{"a.txt": "a==1"}).sha256
    assert read(source, "-r a.txt", **{"a.txt": "a==1"}).sha256 == first
    assert read(source, "-r a.txt", **{"a.txt": "a==2"}).sha256 != first
    assert read(source, "-r b.txt", **{"b.txt": "a==1"}).sha256 != first
