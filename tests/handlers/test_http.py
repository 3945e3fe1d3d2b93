"""The HTTP kit against real servers: to whom a request may go, and what each answer means for the job."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from handlers.kit import http
from handlers.kit.circuits import FAULTS
from handlers.kit.failures import TemporaryFailure
from handlers.kit.http import Answer, Request, ask, close_clients, is_allowed, retry_after_s
from handlers.kit.sections import Reach
from runtime import Dead, Snooze
from tests.handlers.httphost import CUT, DROP, HANG, Httphost, Reply
from tests.handlers.mailhost import server_context

pytestmark = pytest.mark.usefixtures("web_hung_up")
PATH = "/very-secret"


def reach(web: Httphost, *addresses: str, **fields: Any) -> Reach:
    return Reach(private=addresses or ("127.0.0.1",), ports=(web.port,), **fields)


def request(url: str, **fields: Any) -> Request:
    return Request(**{"subject": "channels.ops", "circuit": "ops", "method": "POST", "url": url, "headers": {}, **fields})


async def send(web: Httphost, **fields: Any) -> Answer:
    return await ask(request(web.url + PATH, **fields), reach(web))


async def until(is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)


# --- to whom ---------------------------------------------------------------------------------------------------------------

# ruff: noqa: SIM905 -- tables
BLOCKED = """
127.0.0.1 127.1.2.3 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1
192.0.0.1 192.0.0.8 192.0.0.170 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 ::1 :: ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:169.254.169.254 64:ff9b::7f00:1
64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1::1 2002:808:808::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%1
fec0::1 ff02::1 ff0e::1 3fff::1 5f00::1
""".split()


@pytest.mark.parametrize("address", BLOCKED)
def test_an_address_that_is_no_machine_of_somebody_else_in_public_is_blocked(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address), frozenset())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), frozenset())


def test_private_addresses_are_allowed_one_by_one() -> None:
    private = Reach(private=("10.0.0.7", "::1")).private_addresses
    assert is_allowed(ipaddress.ip_address("10.0.0.7"), private)
    assert is_allowed(ipaddress.ip_address("0:0::1"), private)
    assert not is_allowed(ipaddress.ip_address("10.0.0.8"), private)
    assert not is_allowed(ipaddress.ip_address("127.0.0.1"), private)


def test_an_own_address_is_blocked_though_it_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    assert http._is_own(ipaddress.ip_address("127.0.0.1"))
    assert not http._is_own(ipaddress.ip_address("8.8.8.8"))
    monkeypatch.setattr(http, "_is_own", lambda address: True)
    assert not is_allowed(ipaddress.ip_address("8.8.8.8"), frozenset())


URLS = """
https://127.0.0.1/ https://127.0.0.1:443/ https://127.1/ https://0/ https://0.0.0.0/ https://2130706433/ https://0x7f000001/
https://0x7f.0.0.1/ https://0177.0.0.1/ https://017700000001/ https://localhost/ https://LOCALHOST/
https://[::1]/ https://[::]/ https://[::ffff:127.0.0.1]/ https://[::ffff:7f00:1]/ https://[0:0:0:0:0:ffff:127.0.0.1]/
https://[::127.0.0.1]/ https://[64:ff9b::127.0.0.1]/ https://[2002:7f00:1::]/ https://[fe80::1]/ https://[fec0::1]/
https://169.254.169.254/latest/meta-data/ https://[fd00:ec2::254]/latest/meta-data/ https://[::ffff:169.254.169.254]/
https://10.0.0.1/ https://172.16.0.1/ https://192.168.1.1/ https://100.100.100.200/ https://192.0.0.192/ https://224.0.0.1/
https://255.255.255.255/ https://8.8.8.8:22/ https://8.8.8.8:6379/ https://[2606:4700:4700::1111]:8443/
http://127.0.0.1/ http://8.8.8.8/ https://user@8.8.8.8/ https://u:p@127.0.0.1/ ftp://8.8.8.8/ file:///etc/passwd gopher://127.0.0.1/
https:///etc https://127.0.0.1:99999/ https://127.0.0.1:0/ unix:/run/redis.sock //127.0.0.1/ 127.0.0.1
""".split()


@pytest.mark.parametrize("url", URLS)
async def test_a_url_that_leads_to_what_is_blocked_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(Dead) as caught:
        await ask(request(url, is_ours=False), Reach())
    assert caught.value.code == "egress-blocked"
    assert url not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_nothing_is_sent_to_an_address_or_a_port_that_is_not_listed(web: Httphost) -> None:
    for allowed in (Reach(ports=(web.port,)), reach(web, "127.0.0.2"), Reach(private=("127.0.0.1",))):
        with pytest.raises(Dead, match="allowed"):
            await ask(request(web.url.replace("http:", "https:"), is_ours=False), allowed)
    assert web.seen == []
    assert web.is_left


async def test_the_address_counts_and_not_what_a_resolver_said_before(web: Httphost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name leads to an address in public when it is looked up first, and then to this machine."""
    answers = iter(["93.184.215.14", *["127.0.0.1"] * 9])
    looked_up: list[str] = []

    def rebinding(name: Any, port: Any, *arguments: Any, **more: Any) -> list[Any]:
        looked_up.append(next(answers))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (looked_up[-1], int(port)))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    first = await asyncio.get_running_loop().getaddrinfo("rebind.example", 443)  # whoever checks first is told this
    assert is_allowed(ipaddress.ip_address(first[0][4][0]), frozenset())
    with pytest.raises(Dead) as caught:
        await ask(request(f"https://rebind.example:{web.port}/", is_ours=False), Reach(ports=(web.port,)))
    assert caught.value.code == "egress-blocked"
    assert looked_up[1:] == ["127.0.0.1"]
    assert web.seen == []


async def test_a_name_with_a_blocked_and_another_address_leads_to_the_other_only(
    monkeypatch: pytest.MonkeyPatch, web: Httphost
) -> None:
    places = [("10.0.0.1", web.port), ("127.0.0.1", web.port)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Snooze, match="TLS"):  # it came as far as the greeting, with the one that is allowed
        await ask(request(f"https://both.example:{web.port}/"), reach(web))
    found[1] = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", web.port))
    with pytest.raises(Dead, match="allowed"):
        await ask(request(f"https://other.example:{web.port}/"), reach(web))


@pytest.mark.parametrize("url", ["http://localhost:{}/", "http://127.0.0.2:{}/", "http://[::1]:{}/", "http://8.8.8.8:{}/"])
async def test_plain_http_is_for_a_listed_loopback_address_alone(web: Httphost, url: str) -> None:
    with pytest.raises(Snooze, match="alias-missing: channels.ops: url must be https"):
        await ask(request(url.format(web.port)), Reach(private=("127.0.0.1", "8.8.8.8"), ports=(web.port,)))
    assert web.seen == []


async def test_no_proxy_of_the_environment_is_used(web: Httphost, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Httphost()
    try:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await send(web)).status == 200
        assert proxy.seen == []
    finally:
        proxy.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304, 305])
async def test_a_redirect_is_refused_and_not_followed(web: Httphost, status: int) -> None:
    aside = Httphost()
    try:
        web.script = [Reply(status, {"Location": aside.url})]
        with pytest.raises(Dead) as caught:
            await send(web)
        assert caught.value.code == "redirect-refused"
        assert len(web.seen) == 1
        assert aside.seen == []
    finally:
        aside.stop()


# --- TLS -------------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def locked(certificate: str) -> AsyncIterator[Httphost]:
    """A server with a certificate for `localhost`; a connection with TLS ends only when both sides say so."""
    running = Httphost(server_context(certificate))
    yield running
    await close_clients()
    await asyncio.to_thread(running.stop)


async def test_a_certificate_is_verified(locked: Httphost, certificate: str) -> None:
    url = f"https://localhost:{locked.port}/"
    for name, allowed, said in [
        (url, reach(locked, "127.0.0.1", "::1"), "self-signed|self signed"),
        (locked.url, reach(locked, ca_file=certificate), "IP address mismatch"),
    ]:
        with pytest.raises(Snooze, match=rf"auth-failed: channels.ops: TLS: .*({said})"):
            await ask(request(name), allowed)
        with pytest.raises(TemporaryFailure, match="connection-lost: channels.ops: TLS"):
            await ask(request(name, is_ours=False), allowed)
    assert (await ask(request(url), reach(locked, ca_file=certificate))).status == 200
    assert len(locked.seen) == 1


async def test_a_server_without_tls_gets_nothing(web: Httphost) -> None:
    with pytest.raises(Snooze, match="auth-failed: channels.ops: TLS"):
        await ask(request(web.url.replace("http:", "https:")), reach(web))
    assert web.seen == []


# --- what an answer means --------------------------------------------------------------------------------------------------

OURS = [
    (400, Dead, "http-refused"),
    (401, Snooze, "auth-failed"),
    (403, Snooze, "auth-failed"),
    (404, Dead, "http-refused"),
    (407, Snooze, "auth-failed"),
    (408, TemporaryFailure, "timeout"),
    (410, Dead, "http-refused"),
    (413, Dead, "http-refused"),
    (422, Dead, "http-refused"),
    (425, TemporaryFailure, "timeout"),
    (429, Snooze, "rate-limited"),
    (500, TemporaryFailure, "http-5xx"),
    (502, TemporaryFailure, "http-5xx"),
    (503, TemporaryFailure, "http-5xx"),
    (599, TemporaryFailure, "http-5xx"),
]


@pytest.mark.parametrize(("status", "kind", "code"), OURS)
async def test_each_status_has_its_outcome(web: Httphost, status: int, kind: type[Exception], code: str) -> None:
    web.script = [Reply(status, body=b"secret of the answer")]
    with pytest.raises(kind) as caught:
        await send(web)
    assert (caught.value.code if isinstance(caught.value, Dead) else str(caught.value).partition(":")[0]) == code
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 407])
async def test_who_refuses_the_credentials_of_a_payload_refuses_the_job(web: Httphost, status: int) -> None:
    web.script = [Reply(status)]
    with pytest.raises(Dead) as caught:
        await send(web, is_ours=False)
    assert caught.value.code == "http-refused"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299, 304])
async def test_what_is_done_is_returned(web: Httphost, status: int) -> None:
    web.script = [Reply(status, body=b"" if status in (204, 304) else b"fine")]
    answer = await send(web, known=(304,))
    assert answer.status == status
    assert answer.took_ms < 60_000


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_says_how_long_to_wait_in_seconds_or_until_a_date(web: Httphost, status: int) -> None:
    date = format_datetime(datetime.fromtimestamp(time.time() + 600, UTC), usegmt=True)
    for value, low_s, high_s in [("17", 17, 17), (date, 500, 600), ("999999", 3600, 3600), ("0", 1, 1)]:
        web.script = [Reply(status, {"Retry-After": value})]
        with pytest.raises(Snooze, match="rate-limited") as caught:
            await send(web)
        assert low_s <= caught.value.delay_s <= high_s


NO_DATES = ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +9999999999999999999999"]


def test_retry_after_in_each_form() -> None:
    now_s = datetime(2026, 10, 21, 7, 28, tzinfo=UTC).timestamp()
    assert retry_after_s("Wed, 21 Oct 2026 07:28:30 GMT", now_s) == 30
    assert retry_after_s("Wednesday, 21-Oct-26 07:29:00 GMT", now_s) == 60
    assert retry_after_s("Wed, 21 Oct 2026 06:00:00 GMT", now_s) == 1
    assert retry_after_s("Wed, 21 Oct 2099 07:28:30 GMT", now_s) == 3600
    for text in ("", "soon", "-5", "1.5", "٣", "Wed, 99 Oct 2026 07:28:30 GMT", "9" * 5000, "nan", *NO_DATES):
        assert retry_after_s(text, now_s) is None


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, None), (404, Dead), (429, Snooze), (500, TemporaryFailure), (503, TemporaryFailure)]
)
async def test_a_date_that_is_none_changes_no_outcome(web: Httphost, status: int, outcome: type[Exception] | None) -> None:
    for text in NO_DATES:
        web.script = [Reply(status, {"Retry-After": text})]
        with nullcontext() if outcome is None else pytest.raises(outcome):
            await send(web)


@pytest.mark.parametrize("instead", [DROP, CUT])
async def test_a_lost_connection_is_temporary(web: Httphost, instead: str) -> None:
    web.script = [Reply(instead=instead)]
    with pytest.raises(TemporaryFailure, match="connection-lost: channels.ops") as caught:
        await send(web)
    assert "127.0.0.1" not in str(caught.value)


async def test_a_port_where_nobody_listens_is_temporary(web: Httphost) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(TemporaryFailure, match="connection-lost"):
            await ask(request(f"http://127.0.0.1:{port}/"), Reach(private=("127.0.0.1",), ports=(port,)))


async def test_a_server_that_does_not_answer_is_temporary(web: Httphost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TOTAL_S", 0.2)
    web.script = [Reply(instead=HANG)]
    with pytest.raises(TemporaryFailure, match=r"timeout: channels.ops: no answer within 0.2 s"):
        await send(web)


async def test_a_body_is_read_up_to_a_limit_after_decompression(web: Httphost) -> None:
    web.script = [Reply(body=b"x" * 1000)]
    assert (await send(web, max_bytes=1000)).body == b"x" * 1000
    assert (await send(web, max_bytes=999)).body is None
    web.script = [Reply(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"x" * 100_000))]
    assert (await send(web, max_bytes=100_000)).body == b"x" * 100_000
    assert (await send(web, max_bytes=99_999)).body is None


async def test_a_bomb_takes_no_memory(web: Httphost) -> None:
    bomb = gzip.compress(b"\0" * 300 * 2**20, 9)
    web.script = [Reply(headers={"Content-Encoding": "gzip"}, body=bomb)]
    before = peak_mib()
    assert (await send(web)).body is None
    assert peak_mib() - before < 64
    web.script = [Reply(headers={"Content-Encoding": "gzip"}, body=b"no gzip at all")]
    with pytest.raises(TemporaryFailure, match="connection-lost"):
        await send(web)


def peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def test_a_cookie_is_not_kept(locked: Httphost, certificate: str) -> None:
    locked.script = [Reply(headers={"Set-Cookie": "a=1"})]
    for _ in range(2):
        await ask(request(f"https://localhost:{locked.port}/"), reach(locked, ca_file=certificate))
    assert all("Cookie" not in seen.headers for seen in locked.seen)


async def test_a_cancelled_request_leaves_no_connection(web: Httphost) -> None:
    web.script = [Reply(instead=HANG)]
    task = asyncio.create_task(send(web))
    await until(lambda: bool(web.seen))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: web.is_left)


# --- clients ---------------------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_for_what_may_reach_the_same(web: Httphost) -> None:
    for subject in ("channels.a", "channels.b"):
        await send(web, subject=subject)
    assert len(web.open_connections) == 1
    await ask(request(web.url), reach(web, "127.0.0.1", "127.0.0.3"))
    assert len(web.open_connections) == 2


async def test_the_lifespan_closes_the_clients(web: Httphost) -> None:
    async for _ in http.clients.function():
        await send(web)
    await until(lambda: web.is_left)
    assert asyncio.get_running_loop() not in http._clients


async def test_a_loop_that_is_closed_leaves_no_entry(web: Httphost) -> None:
    gone = asyncio.new_event_loop()
    gone.close()
    http._clients[gone] = {}
    await send(web)
    assert gone not in http._clients


# --- the circuit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Reply(500), Reply(instead=DROP), Reply(408)])
async def test_faults_in_a_row_open_the_circuit_and_a_probe_closes_it(
    web: Httphost, fault: Reply, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    web.script = [fault]
    for _ in range(FAULTS):
        with pytest.raises(TemporaryFailure):
            await send(web)
    delays: set[float] = set()
    for _ in range(20):
        with pytest.raises(Snooze, match="circuit-open: channels.ops") as caught:
            await send(web)
        delays.add(float(caught.value.delay_s))
    assert len(web.seen) == FAULTS
    assert max(delays) - min(delays) > 2
    assert all(20 < delay_s <= 45 for delay_s in delays)
    await send_elsewhere(web)
    now_s = time.monotonic() + 31
    monkeypatch.setattr(http, "time", Clock(now_s))
    web.script = [Reply()]
    assert (await send(web)).status == 200
    assert (await send(web)).status == 200
    assert "ops answers again; its circuit is closed" in caplog.text
    assert PATH not in caplog.text


async def send_elsewhere(web: Httphost) -> None:
    with pytest.raises(TemporaryFailure):
        await send(web, circuit="another")


class Clock:
    """The time module, but for its clock."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return time.time()


@pytest.mark.parametrize("reply", [Reply(404), Reply(429), Reply(503, {"Retry-After": "1"}), Reply(401), Reply(302)])
async def test_who_answers_is_not_at_fault(web: Httphost, reply: Reply) -> None:
    web.script = [reply]
    for _ in range(FAULTS + 2):
        with pytest.raises((Dead, Snooze)):
            await send(web)
    assert len(web.seen) == FAULTS + 2


async def test_a_probe_that_is_cancelled_leaves_its_place(web: Httphost, monkeypatch: pytest.MonkeyPatch) -> None:
    web.script = [Reply(500)]
    for _ in range(FAULTS):
        with pytest.raises(TemporaryFailure):
            await send(web)
    monkeypatch.setattr(http, "time", Clock(time.monotonic() + 31))
    web.script = [Reply(instead=HANG)]
    task = asyncio.create_task(send(web))
    await until(lambda: len(web.seen) == FAULTS + 1)
    with pytest.raises(Snooze, match="circuit-open"):
        await send(web)
    task.cancel()
    await asyncio.wait([task])
    web.script = [Reply()]
    assert (await send(web)).status == 200


def test_nothing_shows_the_url() -> None:
    made = request("https://hooks.example/very-secret", body=b"secret")
    assert repr(made) == "<Request POST to channels.ops>"
    assert repr(Answer(200, {}, b"secret", 3)) == "<Answer 200, 6 bytes>"
    error = aiohttp.InvalidURL("https://hooks.example/very-secret")
    assert "secret" not in str(http.outcome_of(made, error))
    assert isinstance(http.outcome_of(made, ssl.SSLError("x")), TemporaryFailure)
    assert logging.getLogger("handlers")
