"""A handler that does to its child whatever it can, for the tests of what a worker takes from one."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from runtime import Job, contract, handler


@contract("hostile")
class Hostile(msgspec.Struct):
    do: str
    note: str = ""


def to_all(data: bytes, kind: int) -> None:
    """Write to each descriptor that is a socket of this kind."""
    for number in range(3, 256):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == kind:
                one.send(data, socket.MSG_DONTWAIT)  # a timeout would be one of the child's own socket, too


def leak() -> None:
    """Leave no descriptor to open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


PLAIN = msgspec.msgpack.encode
FRAMES = {
    "garbage": os.urandom(100),
    "text": b"HTTP/1.1 200 OK\r\n\r\n" * 100,
    "zeros": bytes(1000),
    "large-head": struct.pack(">IQ", 0xFFFFFFFF, 0),
    "large-body": struct.pack(">IQ", 10, 1 << 62) + bytes(10),
    "body": struct.pack(">IQ", 10, 1000) + bytes(1010),
    "no-struct": struct.pack(">IQ", 1, 0) + PLAIN(7),
    "deep": struct.pack(">IQ", 5000, 0) + b"\x91" * 5000,
    "code": struct.pack(">IQ", 40, 0) + b"\x80\x04\x95cos\nsystem\n(S'touch /tmp/hacked'\ntR." + bytes(3),
    "other-number": struct.pack(">IQ", len(PLAIN([0, [], None, ["done", True]])), 0) + PLAIN([0, [], None, ["done", True]]),
    "other-word": struct.pack(">IQ", len(PLAIN([0, [], None, ["exec", "x"]])), 0) + PLAIN([0, [], None, ["exec", "x"]]),
}


@handler(Hostile, runs="process")
def hostile(message: Hostile, job: Job) -> None:
    match message.do:
        case "closes":
            os.closerange(3, 256)
        case "closes-and-opens":
            own = os.open(message.note, os.O_WRONLY | os.O_CREAT)
            for number in range(3, 256):
                os.dup2(own, number)
        case "behind":  # when the answer was read

            def later() -> None:
                while not Path(message.note).exists():
                    time.sleep(0.001)
                to_all(b"\x93\x93\x93", socket.SOCK_STREAM)
                Path(message.note).unlink()

            threading.Thread(target=later, daemon=True).start()
        case "starts":
            begun = subprocess.Popen(["sleep", "120"])
            Path(message.note).write_text(f"{begun.pid} {os.getpid()}")
            time.sleep(60)
        case "forks-and-dies":
            if pid := os.fork():
                Path(message.note).write_text(f"{pid}")
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(120)
        case "limits":
            status = Path("/proc/self/status").read_text()
            told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            fds = sorted(int(one) for one in os.listdir("/proc/self/fd"))
            links = [os.readlink(f"/proc/self/fd/{one}") for one in fds[:3]]
            cores = resource.getrlimit(resource.RLIMIT_CORE)
            Path(message.note).write_text(f"{told['NoNewPrivs']} {cores} {os.getsid(0) == os.getpid()} {len(fds)} {links[0]}")
        case "grows":
            globals()["kept"] = bytearray(os.urandom(1 << 20) * 1100)
            Path(message.note).write_text(f"{os.getpid()}")
        case "leaks":
            Path(message.note).write_text(f"{os.getpid()}")
            leak()
        case "leaks-later":  # when this child waits for its next job

            def leak_later() -> None:
                main = threading.main_thread().ident or 0
                while not Path(message.note).exists() or sys._current_frames()[main].f_code.co_name != "_read":
                    time.sleep(0.001)
                leak()
                Path(message.note).unlink()

            threading.Thread(target=leak_later, daemon=True).start()
        case "grows-and-stays":  # a thread keeps it from ending
            globals()["kept"] = bytearray(os.urandom(1 << 20) * 1100)
            threading.Thread(target=time.sleep, args=(600,)).start()
            Path(message.note).write_text(f"{os.getpid()}")
        case "pid":
            Path(message.note).write_text(f"{os.getpid()}")
        case name:
            to_all(FRAMES[name], socket.SOCK_STREAM)
            to_all(FRAMES[name][:10_000], socket.SOCK_DGRAM)
