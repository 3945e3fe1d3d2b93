"""The demo from end to end: a worker on an embedded server takes mails to a real SMTP server until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from email import message_from_bytes
from functools import partial
from pathlib import Path

from handlers.demo_screen import Screen
from tests.servers import wait_until

SHIPPED = (
    *(b"send-email", b"send-bulk-email", b"send-notification", b"export-csv", b"export-pdf", b"import-data", b"sync-crm-data"),
    *(b"cleanup-logs", b"backup-database", b"generate-reports", b"train-model", b"run-inference", b"evaluate-model"),
    *(b"scan-vulnerabilities", b"analyze-threats", b"generate-compliance-report"),
)
ARTEFACTS = (
    *("exports/orders-*.csv", "exports/invoice-*.pdf", "notifications.jsonl", "backups/shop/*/manifest.json"),
    *("reports/orders/*/*/report.pdf", "reports/orders/*/*/report.html", "evidence/scans/*/report.json"),
    *("reports/audits/soc-2/*/*/assessment-results.json", "reports/audits/soc-2/*/*/report.pdf"),
    *("models/churn/*/card.json", "models/churn/current.json", "exports/churn-*.json", "evidence/shop/*/*.json"),
)


def test_the_demo_runs_until_it_is_interrupted_and_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "handlers.demo", "--folder", str(folder), "--board", "127.0.0.1:0"]
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(command, stderr=said, start_new_session=True)
    try:
        mails = folder / "maildir" / "new"
        wait_until(lambda: mails.is_dir() and len(list(mails.iterdir())) >= 4, what="mails arrive")
        wait_until(lambda: list((folder / "exports").glob("orders-*.csv.job.json")), what="an export is there")
        text = (tmp_path / "said").read_text()
        metrics = next(line.split()[1] for line in text.splitlines() if line.strip().startswith("metrics"))
        assert b'runtime_outcomes_total{outcome="done"' in read(metrics)
        for name in SHIPPED:
            wait_until(partial(ran, name, metrics), deadline_s=120, what=f"{name} is done")
        for pattern in ARTEFACTS:
            wait_until(partial(is_there, folder, pattern), what=f"{pattern} is where the README says")
        for name in (b"demo-take-stock", b"demo-tell-partner", b"demo-build-report", b"demo-check-payment"):
            wait_until(partial(ran, name, metrics), deadline_s=60, what=f"{name} ran")
        assert message_from_bytes(next(mails.iterdir()).read_bytes())["From"] == "Example Shop <shop@example.com>"
    finally:
        demo.send_signal(signal.SIGINT)
        status = demo.wait(60)
    text = (tmp_path / "said").read_text()
    assert status == 0, text
    assert "runtime: stopped in" in text.splitlines()[-1]
    assert not (folder / "data" / "s.sock").exists() or not _answers(folder / "data" / "s.sock")
    assert not [line for line in text.splitlines() if line.startswith("{")], "what the worker logs is printed for people"
    logged = [json.loads(line) for line in (folder / "worker.log").read_text().splitlines() if line.startswith("{")]
    assert logged
    errors = [line for line in logged if line["level"] in ("error", "critical")]
    assert not [line for line in errors if "reason" not in line], "other than jobs that die by design"
    told = [line for line in logged if "stack" in line]  # of jobs that die by design, and of a busy machine's loop
    assert not [line for line in told if "is dead" not in line["message"] and line["logger"] != "runtime.loop_monitor"]
    boards = [line for line in text.partition("\n  mails ")[2].partition("\n  board ")[2].splitlines() if line.strip()]
    assert boards and boards[0].strip().startswith("http://127.0.0.1:"), "where to look is printed last"


def test_of_each_kind_of_line_the_first_is_printed(tmp_path: Path, capsys) -> None:
    lines = [
        {"level": "warning", "logger": "a", "message": "job high-1-0 (send-email) is dead: 'x' of ada7@example.org"},
        {"level": "warning", "logger": "a", "message": "job low-2-0 (send-email) is dead: 'y' of bob9@example.org"},
        {"level": "error", "logger": "a", "message": "job low-2-0 (send-email) is dead: 'y' of bob9@example.org"},
        {"level": "info", "logger": "a", "message": "x" * 1000},
    ]
    words = [json.dumps(line).encode() for line in lines] + [b"[]", b"\xff not JSON", b"not JSON"]

    async def follow() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(b"".join(word + b"\n" for word in words))
        stream.feed_eof()
        screen = Screen(tmp_path / "worker.log")
        await screen.follow(stream)
        screen.close()

    asyncio.run(follow())
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["warning", "error", "info", "[]", "\ufffd", "not"]
    assert max(map(len, said)) < 220
    assert (tmp_path / "worker.log").read_bytes().splitlines() == words


def read(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def ran(name: bytes, metrics: str) -> bool:
    return any(b'"done"' in line and name in line for line in read(metrics).splitlines())


def is_there(folder: Path, pattern: str) -> bool:
    return any(path.stat().st_size for path in folder.glob(pattern))


def _answers(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
