"""cleanup-logs: what goes and what stays, that nothing outside is ever touched, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zstandard

from handlers.contracts.maintenance import Cleaned, CleanupLogs
from handlers.kit.packing import SUFFIXES, Packing
from handlers.kit.sweep import Found, Tree, compress, delete
from handlers.kit.threads import THREADS, Stop, in_thread
from handlers.maintenance import cleanup_logs
from runtime import BadPayload, ConfigError, Dead, Job, Priority, Snooze, testing
from runtime.jobs import contract_of
from runtime.registry import find
from runtime.testing import Done, Notes, Progress
from tests import builders
from tests.handlers.conftest import Configure
from tests.handlers.disks import BORN_MS, FETCHED_MS, Disk, child, cleanup, job_of, outcome, state, swapping

PAYLOAD: dict[str, Any] = {"root": "logs", "include": ["*.log"], "older_than": "7d"}
WORK = "a2" * 13
NOBODY = 65534


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs"):
        (tmp_path / folder).mkdir()
    configure(disk.settings())
    return disk


async def run(message: CleanupLogs | None = None, number: int = 0, **fields: Any) -> Cleaned:
    message = message or cleanup(**fields)
    return await ran(message, job_of(message, number))


async def ran(message: CleanupLogs, job: Job) -> Cleaned:
    result = await cast("Awaitable[object]", cleanup_logs(message, job))
    assert isinstance(result, Cleaned)
    return result


def decode(payload: dict[str, Any]) -> CleanupLogs:
    """Decode as the worker does."""
    return cleanup_logs.decode(builders.job("cleanup-logs", data=msgspec.json.encode(payload)))


def files(disk: Disk) -> list[str]:
    """Return the names of the files and links that are left."""
    return [name for name in disk.names(disk.logs) if not (disk.logs / name).is_dir() or (disk.logs / name).is_symlink()]


# --- what goes and what stays ------------------------------------------------------------------------------------------------


async def test_old_files_go_and_young_ones_stay(disk: Disk) -> None:
    disk.old("a.log", b"12345", days=7.001)
    disk.old("sub/deep/b.log", b"1234567", days=365)
    disk.old("c.log", days=6.999)
    (disk.logs / "now.log").write_text("in use")
    result = await run()
    assert files(disk) == ["c.log", "now.log"]
    assert (result.matched, result.deleted, result.skipped, result.failed, result.bytes_freed) == (2, 2, 0, 0, 12)
    assert result.oldest_left == "2023-11-07T22:14:46+00:00"
    assert len(msgspec.json.encode(result)) < 4096


async def test_globs_are_for_names_and_an_excluded_folder_is_not_entered(disk: Disk) -> None:
    for name in ("a.log", "b.log", "b.txt", "C.LOG", "keep.log", "archive/a.log", "sub/a.log.1", "sub/a.log"):
        disk.old(name)
    await run(include=["*.log", "?.log.[0-9]"], exclude=["keep*", "archive"])
    assert files(disk) == ["C.LOG", "archive/a.log", "b.txt", "keep.log"]


async def test_folders_below_may_be_left_alone(disk: Disk) -> None:
    disk.old("a.log")
    disk.old("sub/a.log")
    await run(recurse=False)
    assert files(disk) == ["sub/a.log"]


async def test_the_newest_of_each_folder_may_be_kept(disk: Disk) -> None:
    for folder in ("", "sub/"):
        for days in (10, 20, 30):
            disk.old(f"{folder}{days}.log", days=days)
    result = await run(keep_last=2)
    assert files(disk) == ["10.log", "20.log", "sub/10.log", "sub/20.log"]
    assert result.deleted == 2


async def test_a_total_is_reached_by_deleting_the_oldest_but_nothing_that_is_in_use(disk: Disk) -> None:
    for days in (1, 2, 3, 30):
        disk.old(f"{days}.log", b"x" * 100, days=days)
    (disk.logs / "now.log").write_bytes(b"x" * 100)
    assert (await run(max_total_bytes=300)).deleted == 2
    assert files(disk) == ["1.log", "2.log", "now.log"]
    assert (await run(max_total_bytes=300)).deleted == 0
    assert (await run(max_total_bytes=0, keep_last=2)).deleted == 1
    assert files(disk) == ["1.log", "now.log"]
    assert (await run(max_total_bytes=0)).deleted == 1
    assert files(disk) == ["now.log"]


async def test_no_total_is_reached_by_what_the_root_keeps(disk: Disk, configure: Configure) -> None:
    configure(disk.settings(logs=", min_age = '10d'"))
    for days in (1, 9, 11, 30):
        disk.old(f"{days}.log", b"x" * 100, days=days)
    assert (await run(older_than="20d", max_total_bytes=0)).deleted == 2
    assert files(disk) == ["1.log", "9.log"]


async def test_of_parts_only_our_own_are_swept_after_a_day(disk: Disk) -> None:
    disk.old(f".a.csv.{WORK}.part", days=1.1)
    disk.old(f".a.csv.{WORK}.job.json.part", days=1.1)
    kept = [
        f".b.csv.{WORK}.part",
        "download.part",
        ".c.part",
        f".d.{WORK[:-1]}.part",
        f"e.{WORK}.part",
        f".f.csv.{WORK.upper()}.part",
    ]
    for name in kept:
        disk.old(name, days=0.9 if name == kept[0] else 300)
    result = await run(include=["*.log", "*.part"], action="gzip")
    assert files(disk) == sorted(kept)
    assert (result.matched, result.deleted, result.compressed) == (2, 2, 0)


async def test_age_is_reckoned_from_when_the_job_was_born(disk: Disk) -> None:
    disk.old("a.log", days=6)
    assert (await run()).matched == 0
    message = cleanup()
    later = builders.job_of(message, f"{BORN_MS + 2 * 86_400_000}-0", fetched_ms=FETCHED_MS)
    assert (await ran(message, later)).matched == 1
    future = builders.job_of(message, f"{2**52}-0", fetched_ms=FETCHED_MS)
    (disk.logs / "now.log").write_text("in use")
    assert (await ran(message, future)).matched == 0


async def test_odd_names_are_names(disk: Disk) -> None:
    odd = [b"a\nb.log", b"\xff\xfe.log", b"-rf.log", b" .log", b"$(x).log", "ü 😀.log".encode(), b"[a].log", b"\x1b[2J.log"]
    for name in odd:
        disk.old(os.fsdecode(name))
    listing = await run(dry_run=True, listing="out:list.jsonl")
    lines = [json.loads(line) for line in (disk.out / "list.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == len(odd)
    assert {"a\nb.log", "\\xff\\xfe.log", "ü 😀.log"} < {line["name"] for line in lines}
    assert (listing.matched, listing.deleted, listing.listing) == (len(odd), 0, "out:list.jsonl")
    assert (await run()).deleted == len(odd)
    assert files(disk) == []


async def test_a_dry_run_tells_and_touches_nothing(disk: Disk) -> None:
    for name in ("a.log", "sub/b.log"):
        disk.old(name, b"12345", days=30)
    result = await run(dry_run=True, listing="out:list.jsonl", force=False)
    assert (result.matched, result.bytes_freed) == (2, 0)
    assert files(disk) == ["a.log", "sub/b.log"]
    listed = [json.loads(line) for line in (disk.out / "list.jsonl").read_text().splitlines()]
    assert listed == [{"name": name, "bytes": 5, "written": "2023-10-15T22:13:20+00:00"} for name in ("a.log", "sub/b.log")]
    (disk.logs / "a.log").unlink()
    assert await run(dry_run=True, listing="out:list.jsonl", force=False) == result, "the same job, told once"
    assert (await run(dry_run=True)).matched == 1


async def test_many_files_go_and_people_see_how_many(disk: Disk) -> None:
    for number in range(2100):
        disk.old(f"{number % 7}/{number}.log", b"x")
    notes = Notes()
    assert isinstance(await testing.run(cleanup_logs, cleanup(), notes=notes, born=BORN_MS / 1000), Done)
    assert notes.progress == Progress(2000, 2100, "files")
    assert files(disk) == []


# --- the brake -----------------------------------------------------------------------------------------------------------------


async def test_the_brake_holds_before_nearly_everything_is_touched(disk: Disk) -> None:
    for number in range(10):
        disk.old(f"{number}.log")
    (disk.logs / "now.log").write_text("in use")
    for action in ("delete", "gzip", "zstd"):
        with pytest.raises(Dead, match="10 of 11 files") as caught:
            await run(action=action, force=False)
        assert caught.value.code == "safety-brake"
    assert len(files(disk)) == 11
    (disk.logs / "now.txt").write_text("in use, too")
    assert (await run(force=False)).deleted == 10


async def test_the_root_must_allow_what_the_payload_asks_for(disk: Disk, configure: Configure) -> None:
    disk.old("a.log")
    configure(disk.settings().replace("force = true", "force = false, min_age = '10d'"))
    with pytest.raises(Dead, match="hint: force = true") as caught:
        await run(older_than="30d")
    assert caught.value.code == "safety-brake"
    with pytest.raises(Dead, match="older than 10d only, not 239h") as caught:
        await run(older_than="239h", force=False)
    assert caught.value.code == "bad-path"
    assert files(disk) == ["a.log"]


async def test_the_brake_holds_before_more_than_the_root_allows_is_touched(disk: Disk, configure: Configure) -> None:
    configure(disk.settings(logs=", max_delete = 3"))
    for number in range(4):
        disk.old(f"{number}.log")
    for number in range(4):
        (disk.logs / f"new-{number}.log").write_text("in use")
    with pytest.raises(Dead, match="allows 3") as caught:
        await run(force=False)
    assert caught.value.code == "safety-brake"
    assert len(files(disk)) == 8
    assert (await run(keep_last=5, force=False)).deleted == 3
    assert (await run(force=True)).deleted == 1


async def test_only_a_root_for_it_is_purged(disk: Disk) -> None:
    disk.old("../out/a.log")
    with pytest.raises(Dead, match="mode 'write'") as caught:
        await run(root="out")
    assert caught.value.code == "bad-path"
    with pytest.raises(Snooze, match=r"alias-missing: roots.nowhere"):
        await run(root="nowhere")
    shutil.rmtree(disk.logs)
    with pytest.raises(Snooze, match=r"alias-missing: roots.logs"):
        await run()
    assert disk.names(disk.out) == ["a.log"]


# --- nothing outside -----------------------------------------------------------------------------------------------------------


async def test_links_are_neither_followed_nor_removed(disk: Disk) -> None:
    precious = disk.old("../outside/precious.log")
    (disk.logs / "folder").symlink_to(precious.parent)
    (disk.logs / "file.log").symlink_to(precious)
    (disk.logs / "hanging.log").symlink_to("nowhere")
    os.utime(disk.logs / "file.log", ns=(0, 0), follow_symlinks=False)
    os.mkfifo(disk.logs / "pipe.log")
    os.utime(disk.logs / "pipe.log", ns=(0, 0))
    disk.old("a.log")
    for action in ("gzip", "delete"):
        result = await run(action=action)
        assert (result.matched, result.skipped) == (1, 0)
    assert files(disk) == ["file.log", "folder", "hanging.log", "pipe.log"]
    assert precious.read_bytes()


@pytest.mark.parametrize("action", ["delete", "gzip"])
async def test_folders_that_become_links_at_any_moment_lead_nowhere(disk: Disk, action: str) -> None:
    outside = disk.folder / "outside"
    for number in range(20):
        disk.old(f"../outside/{number}.log")
    before = state(outside)
    (disk.logs / "sub").mkdir()
    for _ in range(20):
        for number in range(20):
            disk.old(f"sub/{number}.log")
        with swapping(disk.logs / "sub", disk.folder / "kept", outside):
            for _ in range(3):
                await run(action=action, include=["*.log"])
    assert state(outside) == before


def test_another_file_system_is_not_entered() -> None:
    assert os.stat("/proc").st_dev != os.stat("/").st_dev
    top = os.open("/", os.O_RDONLY)
    tree = Tree(top, recurse=True, enters=lambda name: name == "proc", stop=Stop())
    assert {found.folder for found in tree} <= {""}
    os.close(top)


async def test_a_file_that_was_written_to_again_is_spared(disk: Disk) -> None:
    path = disk.old("a.log")
    place = os.open(disk.logs, os.O_RDONLY)
    seen = Found("", "a.log", path.stat().st_ino, path.stat().st_mtime_ns, 500)
    other = Found("", "a.log", path.stat().st_ino + 1, path.stat().st_mtime_ns, 500)
    path.write_text("again")
    for found in (seen, other):
        assert delete(place, found) is None
        assert compress(place, found, "gzip", WORK, Stop()) is None
    path.unlink()
    assert delete(place, seen) is None
    assert compress(place, seen, "gzip", WORK, Stop()) is None
    path.symlink_to("/etc/passwd")
    assert delete(place, seen) is None
    assert compress(place, seen, "gzip", WORK, Stop()) is None
    os.close(place)
    assert files(disk) == ["a.log"]


async def test_what_the_system_refuses_is_counted_and_no_error(disk: Disk) -> None:
    disk.folder.chmod(0o755)
    for parent in disk.folder.parents[:3]:
        if parent.stat().st_mode & 0o077 == 0:
            parent.chmod(0o711)
    disk.old("shut/a.log")
    disk.old("dark/b.log")
    disk.old("open/c.log")
    for path in (disk.logs, disk.logs / "open", disk.logs / "open/c.log"):
        os.chown(path, NOBODY, NOBODY) if os.getuid() == 0 else None
    (disk.logs / "shut").chmod(0o555)
    (disk.logs / "dark").chmod(0o000)
    try:
        result = json.loads(outcome(child(disk, cleanup(), user=NOBODY)))
    finally:
        (disk.logs / "shut").chmod(0o755)
        (disk.logs / "dark").chmod(0o755)
    assert (result["deleted"], result["failed"]) == (1, 2), result
    assert files(disk) == ["dark/b.log", "shut/a.log"]


# --- compressing ---------------------------------------------------------------------------------------------------------------


UNPACK = {"gzip": gzip.decompress, "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)}
PACKINGS = pytest.mark.parametrize("action", ["gzip", "zstd"])


@PACKINGS
async def test_a_compressed_file_stands_in_for_the_old_one(disk: Disk, action: Packing) -> None:
    suffix = SUFFIXES[action]
    content = b"".join(b"line %d\n" % number for number in range(200_000))
    path = disk.old("sub/a.log", content)
    path.chmod(0o640)
    written_ns = path.stat().st_mtime_ns
    disk.old("b.log.gz", b"packed already")
    disk.old("c.zip", b"packed already")
    disk.old("empty.log", b"")
    result = await run(action=action)
    packed = disk.logs / f"sub/a.log{suffix}"
    assert files(disk) == ["b.log.gz", "c.zip", f"empty.log{suffix}", f"sub/a.log{suffix}"]
    assert UNPACK[action](packed.read_bytes()) == content
    assert (packed.stat().st_mtime_ns, packed.stat().st_mode & 0o777) == (written_ns, 0o640)
    assert (result.matched, result.compressed, result.deleted) == (2, 2, 0)
    freed = len(content) - packed.stat().st_size - (disk.logs / f"empty.log{suffix}").stat().st_size
    assert result.bytes_freed == freed
    again = await run(action=action)
    assert (again.matched, again.compressed) == (0, 0)
    assert (await run(include=["*.gz", "*.zst"])).deleted == 3


@PACKINGS
async def test_equal_files_become_equal_bytes(disk: Disk, action: Packing) -> None:
    disk.old("a.log", days=30)
    disk.old("b.log", days=40)
    await run(action=action)
    assert (disk.logs / f"a.log{SUFFIXES[action]}").read_bytes() == (disk.logs / f"b.log{SUFFIXES[action]}").read_bytes()


@pytest.mark.parametrize(
    "other",
    [b"no gzip", b"", gzip.compress(b"other"), gzip.compress(b"line\n" * 101), gzip.compress(b"line\n" * 100)[:-1]],
    ids=["plain text", "empty", "another file", "a line more", "a byte less"],
)
async def test_what_has_the_name_already_is_not_overwritten(disk: Disk, other: bytes) -> None:
    disk.old("a.log", b"line\n" * 100)
    disk.old("a.log.gz", other)
    result = await run(action="gzip")
    assert (result.compressed, result.failed) == (0, 1)
    assert files(disk) == ["a.log", "a.log.gz"]
    assert (disk.logs / "a.log.gz").read_bytes() == other


@pytest.mark.parametrize("other", [b"no zstd", b"", zstandard.compress(b"other"), zstandard.compress(b"line\n" * 100)[:-1]])
async def test_zstd_overwrites_nothing_either(disk: Disk, other: bytes) -> None:
    disk.old("a.log", b"line\n" * 100)
    disk.old("a.log.zst", other)
    assert (await run(action="zstd")).failed == 1
    assert (disk.logs / "a.log.zst").read_bytes() == other
    assert (disk.logs / "a.log").exists()


async def test_without_the_package_for_zstd_only_jobs_that_need_it_wait(disk: Disk) -> None:
    disk.old("a.log")
    said = outcome(child(disk, cleanup(action="zstd"), without="zstandard"))
    assert said == "Snooze: extra-missing: zstandard: not installed; hint: pip install zstandard"
    assert files(disk) == ["a.log"]
    assert json.loads(outcome(child(disk, cleanup(action="gzip"), without="zstandard")))["compressed"] == 1
    assert json.loads(outcome(child(disk, cleanup(include=["*.gz"]), without="zstandard")))["deleted"] == 1


async def test_a_crash_between_the_two_names_is_fixed(disk: Disk) -> None:
    disk.old("a.log", b"line\n" * 100)
    disk.old("a.log.gz", gzip.compress(b"line\n" * 100))
    assert (await run(action="gzip")).compressed == 1
    assert files(disk) == ["a.log.gz"]


async def test_a_kill_at_any_call_to_the_file_system_is_fixed_by_the_next_run(
    disk: Disk, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"a.log": b"line\n" * 5000}
    for name, content in contents.items():
        disk.old(name, content)
    message = cleanup(action="gzip")
    calls = int(outcome(child(disk, message, kill=str(disk.logs), root="logs")).splitlines()[-1])
    assert calls >= 15
    for number in range(1, calls):
        folder = disk.folder / str(number)
        for name, content in contents.items():
            whole = [(folder / name).exists() and (folder / name).read_bytes() == content]
            whole += [(folder / f"{name}.gz").exists() and gzip.decompress((folder / f"{name}.gz").read_bytes()) == content]
            assert any(whole), f"killed at call {number}, {name} is lost"
        monkeypatch.setenv("RUNTIME_HANDLERS__ROOTS__LOGS__PATH", str(folder))
        configure(disk.settings())
        await run(message)
        assert disk.names(folder) == ["a.log.gz"], number


@pytest.mark.parametrize("action", ["delete", "gzip", "zstd"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("effect", ["publish", "delete"])
async def test_a_kill_at_a_named_point_leaves_what_the_next_run_ends(disk: Disk, action: str, effect: str, when: str) -> None:
    for name in ("a.log", "b.log", "c.log"):
        disk.old(name)
    message = cleanup(action=action)
    killed = child(disk, message, point=f"sweep.{when}-{effect}", times=2)
    said, _ = killed.communicate(timeout=120)
    assert (killed.returncode == -signal.SIGKILL) == (action != "delete" or effect == "delete"), said
    await run(message)
    suffix = {"delete": None, "gzip": ".gz", "zstd": ".zst"}[action]
    assert disk.names(disk.logs) == ([f"{name}.log{suffix}" for name in "abc"] if suffix else [])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_around_the_listing_leaves_one_listing(disk: Disk, when: str) -> None:
    disk.old("a.log")
    message = cleanup(dry_run=True, listing="out:list.jsonl")
    killed = child(disk, message, point=f"cleanup.{when}-listing")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (await run(message)).matched == 1
    assert disk.names(disk.out) == ["list.jsonl", "list.jsonl.job.json"]


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    disk.old("a.log", os.urandom(100_000))
    said = outcome(child(disk, cleanup(action="gzip"), file_bytes=10_000))
    assert said.startswith("Snooze: out-of-space: roots.logs"), said
    assert files(disk) == ["a.log"]


# --- more than one at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["delete", "gzip"])
async def test_two_runs_at_once_do_the_work_together(disk: Disk, action: str) -> None:
    for number in range(60):
        disk.old(f"{number}.log", b"%d" % number)
    results = await asyncio.gather(run(action=action), run(action=action, number=1))
    word = "deleted" if action == "delete" else "compressed"
    assert sum(getattr(result, word) for result in results) == 60
    assert sum(result.failed for result in results) == 0
    assert files(disk) == ([] if action == "delete" else sorted(f"{number}.log.gz" for number in range(60)))


async def test_a_cut_is_heard_between_two_files(disk: Disk) -> None:
    for number in range(100):
        disk.old(f"{number}.log")
    task = asyncio.create_task(run(action="gzip"))
    while not any(name.endswith(".gz") for name in os.listdir(disk.logs)):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    all_free = threading.Barrier(THREADS)
    await asyncio.gather(*(in_thread(lambda stop: all_free.wait(10)) for _ in range(THREADS)))
    left = [name for name in files(disk) if name.endswith(".log")]
    assert 0 < len(left) < 100
    assert len(files(disk)) == 100, "each under one name, and no part"
    assert (await run(action="gzip")).compressed == len(left)


# --- the contract --------------------------------------------------------------------------------------------------------------


def test_the_handler_is_what_the_table_says() -> None:
    retry = cleanup_logs.retry
    assert (cleanup_logs.timeout_s, retry.attempts, retry.base_s, retry.cap_s) == (1800, 3, 300, 1800)
    assert cleanup_logs.result is not None
    assert cleanup_logs.result.life_ms == 7 * 86_400_000
    assert contract_of(CleanupLogs).priority is Priority.LOW


@pytest.mark.parametrize(
    ("text", "age_s"), [("1h", 3600), ("36h", 129_600), ("30d", 2_592_000), ("3650d", 315_360_000), ("87600h", 315_360_000)]
)
def test_an_age_has_a_unit(text: str, age_s: int) -> None:
    assert decode({**PAYLOAD, "older_than": text}).older_than_s == age_s


@pytest.mark.parametrize(
    "change",
    [
        {"root": "Logs"},
        {"root": "logs:sub"},
        {"include": []},
        {"include": ["a"] * 21},
        {"include": ["../*"]},
        {"include": ["sub/*"]},
        {"include": ["*\n"]},
        {"include": [""]},
        {"include": ["x" * 101]},
        {"exclude": ["a"] * 21},
        {"older_than": "0h"},
        {"older_than": "7"},
        {"older_than": "7d\n"},
        {"older_than": "-7d"},
        {"older_than": "30m"},
        {"older_than": "3651d"},
        {"older_than": "87601h"},
        {"action": "shred"},
        {"keep_last": -1},
        {"max_total_bytes": -1},
        {"max_total_bytes": 1, "action": "gzip"},
        {"listing": "out:list"},
        {"listing": "out:../list", "dry_run": True},
        {"listing": "out:u\u0308", "dry_run": True},
        {"force": "yes"},
        {"path": "/var/log"},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    assert decode(PAYLOAD).action == "delete"
    with pytest.raises(BadPayload):
        decode({**PAYLOAD, **change})


# --- its schedules -------------------------------------------------------------------------------------------------------------

ROOTS = 'roots.logs = { path = "/srv/logs", mode = "purge" }\nroots.out = { path = "/srv/out", mode = "write" }\n'
CLEANUP = 'cleanups.logs = { include = ["*.log"], older_than = "7d" }\n'


def test_each_cleanup_of_the_settings_is_a_schedule_and_none_without_it(configure: Configure) -> None:
    configure(ROOTS)
    assert find(["handlers"]).schedules == {}
    more = 'cleanups.packed = { root = "logs", include = ["*.gz"], older_than = "90d", when = "@daily", tz = "Europe/Berlin" }\n'
    configure(ROOTS + CLEANUP + more)
    found = find(["handlers"]).schedules
    assert sorted(found) == ["cleanup-logs.logs", "cleanup-logs.packed"]
    definition = found["cleanup-logs.logs"].definition
    settings = definition.settings
    assert (settings.type, settings.priority, settings.when, settings.tz) == ("cleanup-logs", Priority.LOW, "20 3 * * *", "UTC")
    assert (settings.missed, settings.overlap, settings.expires_s) == ("latest", "allow", 20 * 3600)
    assert 0 <= definition.offset_ms < 120_000
    message = decode(json.loads(bytes(settings.data)))
    assert (message.root, message.include, message.older_than, message.force) == ("logs", ["*.log"], "7d", False)
    other = found["cleanup-logs.packed"].definition.settings
    assert (other.when, other.tz, json.loads(bytes(other.data))["root"]) == ("@daily", "Europe/Berlin", "logs")


def test_a_cleanup_is_turned_off_in_the_file_and_in_the_environment(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ROOTS + CLEANUP)
    monkeypatch.setenv("RUNTIME_HANDLERS__CLEANUPS__LOGS__ENABLED", "false")
    assert find(["handlers"]).schedules == {}
    monkeypatch.undo()
    configure(ROOTS + CLEANUP.replace("}", ", enabled = false }"))
    assert find(["handlers"]).schedules == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CLEANUP, "cleanups.logs: root 'logs': must be in `roots`, with mode 'purge'"),
        (ROOTS + CLEANUP.replace("logs", "out"), "cleanups.out: root 'out': must be in `roots`, with mode 'purge'"),
        (ROOTS + CLEANUP.replace("}", ', when = "0 33 * * *" }'), "schedule 'cleanup-logs.logs': when '0 33 \\* \\* \\*'"),
        (ROOTS + CLEANUP.replace("7d", "soon"), "cleanups.logs: .*older_than"),
    ],
)
def test_a_cleanup_that_cannot_be_is_refused_where_handlers_are_found(configure: Configure, text: str, words: str) -> None:
    configure(text)
    with pytest.raises(ConfigError, match=words):
        find(["handlers"])
