"""`python -m bench.handlers_mail`: sends a campaign through a real mail server, and kills its worker half-way.

The server is aiosmtpd in a process of its own, which writes down whom it has accepted a mail for, and when. Printed is how many
mails a second it got while a worker was sending, how many recipients got a second copy, and how many got none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from bench.lab import Server, Worker

SINGLE_PER_S: Final = 50
SINGLE_P99_MS: Final = 250
GAP_S: Final = 1.0  # between two mails: longer than any that a running worker makes, shorter than a lease
SINK: Final = """
import asyncio, sys, time
from aiosmtpd.smtp import SMTP
log = open(sys.argv[1], "a", buffering=1)
class Sink:
    async def handle_DATA(self, server, session, envelope):
        for address in envelope.rcpt_tos:
            log.write(f"{time.time()} {address}\\n")
        return "250 2.0.0 taken"
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Sink(), hostname="sink.test", loop=loop), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def prepare(folder: Path, port: int, parsed: argparse.Namespace) -> None:
    """Write the list, the template and the settings."""
    lines = "".join(f"user{number}@example.org,User {number}\n" for number in range(parsed.recipients))
    (folder / "list.csv").write_text(f"address,name\n{lines}")
    (folder / "news.txt").write_text("Dear {{ name }},\n" + "here are the news of the week.\n" * 20)
    (folder / "key").write_text("key")
    (folder / "handlers.toml").write_text(
        f"smtp.main = {{ url = 'smtp://127.0.0.1:{port}', plain = true, connections = {parsed.connections} }}\n"
        f"senders.default = {{ smtp = 'main', address = 'news@example.com', lists = ['lists'], "
        f"unsubscribe_key = 'file:{folder}/key' }}\n"
        f"roots.lists = {{ path = '{folder}' }}\ntemplates.path = '{folder}'\n"
    )


def payload(parsed: argparse.Namespace) -> bytes:
    """Return the job's payload."""
    message = {
        **{"template": "news", "subject": "The news", "list_id": "news", "unknown": parsed.unknown},
        **{"recipients": {"kind": "file", "path": "lists:list.csv", "format": "csv"}},
        **{"unsubscribe": "https://example.com/u/{token}"},
    }
    return json.dumps(message).encode()


def measure(parsed: argparse.Namespace, folder: Path, port: int) -> bool:
    """Send, kill, go on, and print what came of it; return whether the gates hold."""
    prepare(folder, port, parsed)
    log = folder / "log"
    options = ["--handlers", "handlers", "--handlers-config", str(folder / "handlers.toml"), "--lease", str(parsed.lease_s)]

    def accepted() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    kills = [parsed.recipients * (number + 1) // (parsed.kills + 1) for number in range(parsed.kills)]
    with Server(appendonly=True) as server:
        server.fill(1, type_name=b"send-bulk-email", payload=payload(parsed))
        for at in kills:
            with Worker(server, *options) as worker:
                worker.wait_for(lambda at=at: len(accepted()) >= at, f"mail {at}")
                worker.signal(signal.SIGKILL)
        with Worker(server, *options) as worker:
            worker.wait_for(lambda: not server.left(), "the end of the job", every_s=0.1)
            worker.stop(None)
        server.check_empty()
        appended_mb = server.client.info("persistence")["aof_current_size"] / 1e6
    found = [line.split() for line in accepted()]
    times_s = sorted(float(each) for each, _ in found)
    busy_s = sum(after - before for before, after in pairwise(times_s) if after - before < GAP_S)
    copies = Counter(address for _, address in found)
    again, lost = len(found) - len(copies), parsed.recipients - len(copies)
    window = parsed.kills * parsed.connections
    print(f"{parsed.recipients:,} recipients, {parsed.connections} connections, {parsed.kills} kills, unknown = {parsed.unknown}")
    print(f"  mails/s while sending     {len(found) / busy_s:>8,.0f}")
    print(f"  seconds of that           {busy_s:>8.1f}")
    print(f"  second copies             {again:>8,}  of at most {window}")
    print(f"  lost                      {lost:>8,}")
    print(f"  append-only file, MB      {appended_mb:>8.1f}")
    may_lose = window if parsed.unknown == "skip" else 0
    return len(found) / busy_s >= parsed.gate and again <= window and lost <= may_lose


def measure_single(parsed: argparse.Namespace, folder: Path, port: int) -> bool:
    """Send single mails at a steady rate, and print how long each took until it was accepted; return whether the gate holds."""
    prepare(folder, port, parsed)
    log, sent_s = folder / "log", dict[str, float]()
    options = ["--handlers", "handlers", "--handlers-config", str(folder / "handlers.toml")]

    def count() -> int:
        return log.read_text().count("\n") if log.exists() else 0

    with Server(appendonly=True) as server, Worker(server, *options) as worker:
        server.fill(1, stream="{jobs}:high", type_name=b"send-email", payload=mail_to("first@example.org"))
        worker.wait_for(lambda: count() == 1, "the first mail")
        begin_s = time.time()
        for number in range(parsed.single):
            time.sleep(max(0.0, begin_s + number / SINGLE_PER_S - time.time()))
            address = f"user{number}@example.org"
            sent_s[address] = time.time()
            fields = {"type": "send-email", "data": mail_to(address)}
            server.client.xadd("{jobs}:high", fields)
        worker.wait_for(lambda: count() == parsed.single + 1, "the last mail")
        worker.stop(None)
    arrived = [line.split() for line in log.read_text().splitlines()]
    took_ms = [(float(at_s) - sent_s[address]) * 1e3 for at_s, address in arrived if address in sent_s]
    p99_ms = quantiles(took_ms, n=100)[98]
    print(f"{parsed.single:,} single mails at {SINGLE_PER_S}/s, from XADD to accepted")
    print(f"  ms: median                {median(took_ms):>8.1f}")
    print(f"      p99                   {p99_ms:>8.1f}")
    print(f"      worst                 {max(took_ms):>8.1f}")
    return p99_ms <= SINGLE_P99_MS


def mail_to(address: str) -> bytes:
    """Return the payload of a single mail."""
    return json.dumps({"to": address, "subject": "Your order", "text": "Thank you.\n" * 20}).encode()


def main() -> int:
    """Start the mail server, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.handlers_mail",
        description="Send a campaign through a mail server, and kill its worker half-way.",
    )
    parser.add_argument("--recipients", type=int, default=10_000, metavar="N", help="default 10000")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--kills", type=int, default=1, metavar="N", help="how often the worker is killed; default 1")
    parser.add_argument("--unknown", choices=("resend", "skip"), default="resend", help="default resend")
    parser.add_argument("--gate", type=float, default=150, metavar="N", help="mails per second at least; default 150")
    parser.add_argument("--lease-s", type=float, default=10, metavar="SECONDS", help="of the worker; default 10")
    parser.add_argument("--single", type=int, default=0, metavar="N", help="send so many single mails instead, one every 20 ms")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    sink = subprocess.Popen([sys.executable, "-c", SINK, str(folder / "log")], stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None
        run = measure_single if parsed.single else measure
        return 0 if run(parsed, folder, int(sink.stdout.readline())) else 1
    finally:
        sink.kill()
        sink.communicate()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
