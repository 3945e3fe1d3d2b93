"""`python -m bench.peers`: compares enqueue, drain and latency of other job runtimes and of ours, on one server, in one run.

Every runtime does the same work in one worker process: jobs are enqueued, then a worker is started and drains them, then the idle
worker gets jobs at a steady rate. Each handler marks its job in memory that this process reads, so that lost and repeated jobs
are noticed. The runs of all runtimes take turns, so that other work of the machine affects all of them; compare ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.peers.measure import PACED_PER_S, PACED_WARM, Figures, Run, server
from bench.peers.report import facts_of, report
from bench.peers.roster import OURS, PEERS, ROOT, Unusable, install

HELP = "Compare enqueue, drain and latency of other job runtimes and of ours, on one server, in one run. Compare ratios."
RESULTS = ROOT / "bench" / "results"


def main() -> None:
    """Install the runtimes, measure, and write the report."""
    names = [peer.name for peer in (OURS, *PEERS)]
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=HELP)
    parser.add_argument(
        "--only", default="", metavar="NAMES", help=f"separated by commas, of {', '.join(names)}; ours is always measured"
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each runtime; default 3")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="factor for the jobs of each drain; default 1")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help="how long the latency is measured; default 3")
    parser.add_argument("--concurrency", type=int, default=0, metavar="N", help="the same for all; default: the best one of each")
    parsed = parser.parse_args()
    chosen = set(parsed.only.split(",")) - {""} or set(names)
    if unknown := chosen - set(names):
        parser.error(f"unknown runtimes: {', '.join(sorted(unknown))}; hint: {', '.join(names)}")
    peers = [
        replace(peer, jobs=max(int(peer.jobs * parsed.scale), 100), concurrency=parsed.concurrency or peer.concurrency)
        for peer in (OURS, *PEERS)
        if peer is OURS or peer.name in chosen
    ]
    absent: dict[str, str] = {}
    runs: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
    for peer in peers:
        try:
            install(peer)
        except Unusable as why:
            absent[peer.name] = str(why)
    with server() as client, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        facts = facts_of(client, parsed.runs)
        for number in range(1, parsed.runs + 1):
            for peer in peers:
                if peer.name in absent:
                    continue
                print(f"run {number}: {peer.name}", file=sys.stderr)
                paced = PACED_WARM + int(parsed.seconds * PACED_PER_S)
                run = Run(peer, client, Path(folder), paced)
                try:
                    runs[peer.name].append(run.measure())
                except Unusable as why:
                    absent[peer.name] = str(why)
    text, data = report(peers, facts, runs, absent)
    print(text, end="")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.txt").write_text(text)
    (RESULTS / "peers.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
