"""`python -m bench.profile`: profiles a worker in a drain; writes a page with the call tree, prints functions by their own share.

The profiler samples every millisecond and slows the worker: read shares, not rates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.lab import Server, Worker
from bench.report import EXTRA

RESULTS: Final = Path(__file__).parent / "results"
OPTIONS: Final = ("-m", "pyinstrument", "--renderer", "pyisession", "--outfile")


def main() -> int:
    """Drain under the profiler, write the page, print the functions; return 2 without the profiler."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile",
        description="Profile a worker in a drain: write a page with the call tree, print functions by their own share.",
    )
    parser.add_argument("--jobs", type=int, default=500_000, metavar="N", help="jobs to drain; default 500000")
    parser.add_argument("--type", choices=["noop", "nap", "flaky"], default="noop", help="the handler; default noop")
    parser.add_argument("--top", type=int, default=30, metavar="N", help="functions to print; default 30")
    parser.add_argument(
        "--page", type=Path, default=RESULTS / "profile.html", metavar="FILE", help="the page; default bench/results/profile.html"
    )
    parsed = parser.parse_args()
    try:
        # By name: only `make bench` installs it, and types are checked without.
        renderers: Any = import_module("pyinstrument.renderers")
        sessions: Any = import_module("pyinstrument.session")
    except ImportError:
        print(f"pyinstrument is not installed; hint: {EXTRA}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        recorded = Path(folder) / "session.pyisession"
        _drain(parsed.jobs, parsed.type, recorded)
        session = sessions.Session.load(str(recorded))
    parsed.page.parent.mkdir(parents=True, exist_ok=True)
    parsed.page.write_text(renderers.HTMLRenderer().render(session), "utf-8")
    own = own_shares(session.root_frame())
    print(f"{parsed.jobs:,} jobs of type {parsed.type}: own share of each function; the page is {parsed.page}")
    for place, share in own.most_common(parsed.top):
        print(f"{share:7.1%}  {place}")
    return 0


def own_shares(root: Any) -> Counter[str]:
    """Return the share of the time that each function took itself, without its callees."""
    own: Counter[str] = Counter()
    frames = [root]
    for frame in frames:
        if not frame.is_synthetic:
            own[f"{frame.function}  {frame.file_path_short}:{frame.line_no}"] += frame.total_self_time
        frames += frame.children
    return Counter({place: seconds / root.time for place, seconds in own.items() if seconds > 0})


def _drain(jobs: int, type_name: str, recorded: Path) -> None:
    runs = 2 * jobs if type_name == "flaky" else jobs
    under = (*OPTIONS, str(recorded), "-m")
    with Server() as server:
        server.fill(jobs, type_name=type_name.encode())
        with Worker(server, "--concurrency", "500", under=under) as worker:
            worker.wait_for(lambda: server.left() == 0, "the last job")
            worker.stop(runs)


if __name__ == "__main__":
    sys.exit(main())
