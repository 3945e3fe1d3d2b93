"""Attacks are found at their thresholds, in any disguise, and nothing is remembered without a bound."""

from __future__ import annotations

import random
from urllib.parse import quote, unquote

import pytest

from handlers.contracts.threats import DETECTIONS
from handlers.kit import detections
from handlers.kit.detections import QUIET_S, Detections, Hits, Meetings, Rate, asked_for, network_of, normal
from handlers.kit.logs import Event
from handlers.kit.sections import Thresholds
from tests.handlers.logsmith import HOSTILE, PATHS, SCANNERS, SEARCHES


def looked_at(*events: Event, **thresholds: int) -> dict[tuple[str, str], tuple[int, float, float]]:
    """Return what is found: how often, and when."""
    hits = Hits()
    found = Detections(DETECTIONS, Thresholds(**thresholds), hits)
    for event in events:
        found.add(event)
    found.finish()
    return {(hit.rule, hit.subject): (hit.count + hit.before, hit.first, hit.last) for hit in hits}


def fail(at: float, src: str = "a", user: str = "root", times: int = 1) -> Event:
    return Event(at, src=src, user=user, action="failed", times=times)


def accept(at: float, src: str = "a", user: str = "root") -> Event:
    return Event(at, src=src, user=user, action="accepted")


def ask(target: str, status: int = 200, at: float = 0.0, agent: str = "", referer: str = "") -> Event:
    return Event(at, src="a", action="request", target=target, status=status, agent=agent, referer=referer)


# --- thresholds ----------------------------------------------------------------------------------------------------------------


def test_brute_force_is_ten_failures_in_five_minutes() -> None:
    assert looked_at(*(fail(n) for n in range(9))) == {}
    assert looked_at(*(fail(n) for n in range(10))) == {("ssh-brute-force", "a"): (10, 0, 9)}
    assert looked_at(*(fail(n * 33.3) for n in range(10))) == {("ssh-brute-force", "a"): (10, 0, 9 * 33.3)}
    assert looked_at(*(fail(n * 33.4) for n in range(40))) == {}, "no ten of them are within five minutes"
    assert looked_at(fail(0, times=4), fail(1, times=6)) == {("ssh-brute-force", "a"): (10, 0, 1)}
    assert looked_at(*(fail(n, src=str(n % 9)) for n in range(80))).keys() == set()


def test_a_success_after_failures_is_by_the_same_user_or_after_a_brute_force() -> None:
    assert looked_at(*(fail(n) for n in range(4)), accept(5)) == {}
    assert looked_at(*(fail(n) for n in range(5)), accept(6)) == {("ssh-success-after-failures", "a"): (1, 0, 6)}
    assert looked_at(*(fail(n) for n in range(5)), accept(6, user="ada")) == {}, "others behind the same address"
    assert looked_at(*(fail(n) for n in range(5)), accept(6, src="b")) == {}
    assert looked_at(*(fail(n) for n in range(5)), accept(305)) == {}
    assert looked_at(*(fail(n) for n in range(4)), accept(5), *(fail(n) for n in range(6, 10)), accept(10)) == {}
    assert ("ssh-success-after-failures", "a") in looked_at(*(fail(n) for n in range(10)), accept(11, user="ada"))


def test_keys_that_are_refused_are_no_guesses() -> None:
    refused = [Event(n, src="a", user="ada", action="key-refused") for n in range(30)]
    assert looked_at(*refused, accept(31, user="ada")) == {}
    assert looked_at(*(Event(n, src=str(n), user="git", action="key-refused") for n in range(30))) == {}
    assert looked_at(*(Event(n, src="a", user=str(n), action="key-refused") for n in range(8))).keys() == {("ssh-spraying", "a")}


def test_spraying_is_eight_users_and_distributed_is_twenty_addresses() -> None:
    assert looked_at(*(fail(n, user=str(n % 7)) for n in range(9))) == {}
    assert looked_at(*(fail(n, user=str(n)) for n in range(8))) == {("ssh-spraying", "a"): (8, 0, 7)}
    assert looked_at(*(Event(n, src="a", user=str(n), action="unknown-user") for n in range(8))).keys() == {("ssh-spraying", "a")}
    assert looked_at(*(fail(n * 43, user=str(n)) for n in range(20))) == {}
    assert looked_at(*(fail(n, src=str(n % 19)) for n in range(60))).keys() == set()
    assert looked_at(*(fail(n, src=str(n)) for n in range(20))) == {("ssh-distributed", "root"): (20, 0, 19)}


def test_bursts_are_of_one_client() -> None:
    assert looked_at(*(ask("/x", 404, n / 2) for n in range(59))) == {}
    assert looked_at(*(ask("/x", 404, n / 2) for n in range(60))) == {("web-4xx-burst", "a"): (60, 0, 29.5)}
    assert looked_at(*(ask("/x", 404, n * 1.1) for n in range(200))) == {}
    assert looked_at(*(ask("/x", 503, n) for n in range(30))) == {("web-5xx-burst", "a"): (30, 0, 29)}


def test_lines_out_of_order_are_in_one_window() -> None:
    times = [float(n) for n in range(10)]
    random.Random(1).shuffle(times)
    assert looked_at(*(fail(at) for at in times)).keys() == {("ssh-brute-force", "a")}


def test_a_line_of_the_future_hides_no_attack() -> None:
    """Of one subject, it may cost the events before it: those after it count."""
    events = [*(fail(n) for n in range(5)), fail(80_000), *(fail(n) for n in range(5, 20))]
    assert ("ssh-brute-force", "a") in looked_at(*events)


def test_a_network_is_one_subject() -> None:
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("2001:db8:1:2:3::4") == "2001:db8:1:2::/64"
    assert network_of("::x") == "::x"
    assert network_of("::ffff:192.0.2.1") == network_of("::ffff:c000:201") == network_of("64:ff9b::c000:201") == "192.0.2.1"
    assert network_of("64:ff9b:0:0:1::1") == "64:ff9b::/64" and network_of("fe80::1%eth0") == "fe80::/64"
    events = [fail(n, src=f"2001:db8:1:2::{n:x}") for n in range(10)]
    assert looked_at(*events).keys() == {("ssh-brute-force", "2001:db8:1:2::/64")}


def test_findings_an_hour_apart_are_two() -> None:
    hits = Hits()
    for at in (0.0, 10.0, QUIET_S + 10, 3 * QUIET_S, 2 * QUIET_S + 5):
        hits.add("r", "s", "low", at, at)
    assert [(hit.first, hit.last, hit.count) for hit in hits] == [(0.0, QUIET_S + 10, 3), (2 * QUIET_S + 5, 3 * QUIET_S, 2)]


# --- requests ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "target"), [(rule, target) for rule, targets in HOSTILE.items() for target in targets])
def test_hostile_targets_are_found_however_they_are_written(rule: str, target: str) -> None:
    path, mark, query = target.partition("?")
    once = quote(unquote(unquote(query)).replace("+", " "), safe="=")
    for written in (target, f"{path}{mark}{once}", f"{path}{mark}{quote(once, safe='=')}", target.replace("or", "OR")):
        assert rule in asked_for(ask(written)), written


@pytest.mark.parametrize("text", [*SEARCHES, "sélect", "a/b/c", "1..2", "...", "rock & roll; pop", "R&D", "<3", "5 > 3", "a|b"])
def test_what_people_search_for_is_no_attack(text: str) -> None:
    for target in (f"/search?q={quote(text)}", f"/s?q={quote(text).replace('%20', '+')}&x=1", f"/{quote(text)}"):
        assert asked_for(ask(target)) == set(), target


def test_ordinary_paths_are_no_attack() -> None:
    for path in (*PATHS, "/.well-known/acme-challenge/x", "/a/..b/c", "/env/prod", "/git/config", "/x.git/info/refs", "/id/7"):
        assert asked_for(ask(path)) == set(), path


@pytest.mark.parametrize("agent", [*SCANNERS, "x ${jndi:ldap://x}", "() { :; }; echo x"])
def test_agents_are_looked_at(agent: str) -> None:
    assert asked_for(ask("/", agent=agent)) and asked_for(ask("/", agent=agent + " " * 200))
    assert asked_for(ask("/", referer="${jndi:x}")) == {"web-command-injection"}
    assert asked_for(ask("/", agent="Mozilla/5.0 (X11) Chrome/1")) == set()


def test_decoding_is_bounded_and_twice() -> None:
    assert normal("/%25%32%65%252e/") == b"/../"
    assert normal("/%2525252e") == b"/%252e"
    assert normal("/a/././//b\\C\x00") == b"/a/b/c"
    assert normal("/%c0%ae%c0%ae%c0%af") == b"/../"
    assert len(normal("/" + "a" * 100_000)) == detections.MAX_TARGET_CHARS
    assert normal("/%") == b"/%" and normal("/%zz%") == b"/%zz%"


def test_one_look_finds_what_each_pattern_finds_by_itself() -> None:
    """All patterns are one automaton, which would say nothing if it ran out of memory."""
    rng = random.Random(3)
    pieces = [target.encode() for targets in HOSTILE.values() for target in targets] + [
        b"or",
        b"'",
        b" ",
        b"=",
        b"\xff",
        b"\x00",
        b"1",
    ]
    singles = {rule: detections._Patterns({rule: texts}) for rule, texts in detections._TARGETS.items()}
    for _ in range(400):
        text = b"".join(rng.choice(pieces) for _ in range(rng.randrange(1, 60)))
        assert detections._of_targets.found(text) == {rule for rule, one in singles.items() if one.found(text)}


# --- bounds --------------------------------------------------------------------------------------------------------------------


def test_the_quietest_subject_is_forgotten_and_counted() -> None:
    rate = Rate(3, 100.0, 10)
    for number in range(10):
        rate.add(str(number), float(number))
    rate.add("0", 10.0)
    rate.add("new", 11.0)
    assert "1" not in rate.subjects and "0" in rate.subjects and rate.forgotten == 1
    rate.add("later", 1000.0)
    assert rate.forgotten == 1, "what was forgotten then was too old to matter"


@pytest.mark.parametrize("window", [Rate(60, 1e9, 1000), Meetings(60, 1e9, 1000)])
def test_what_is_remembered_is_bounded(window: Rate | Meetings) -> None:
    for number in range(200_000):
        subject = str(number % 700)
        window.add(subject, float(number)) if isinstance(window, Rate) else window.add(subject, str(number), float(number))
    remembered = sum(len(each) for each in window.subjects.values())
    assert remembered <= 10_000 and window.forgotten > 0
    window.restore(window.subjects)
    assert window._remembered == remembered


@pytest.mark.parametrize("kind", [Rate, Meetings])
def test_what_does_not_fit_is_not_remembered(kind: type[Rate | Meetings]) -> None:
    for odd in ({"a": 1}, {"a": None}, {"a": ["x"]}, {"a": {"b": "x"}}, {"a": []}, {"a": {}}, {"a": [1.0], "b": {"c": 1.0}}):
        window = kind(3, 100.0)
        window.restore(odd)
        assert window.subjects == {} and window._remembered == 0


def test_more_findings_than_are_kept_are_counted() -> None:
    hits = Hits()
    for number in range(detections.MAX_FOUND + 5):
        hits.add("r", str(number), "low", 0.0, 0.0)
    hits.add("log-unparsed", "x", "high", 0.0, 0.0)
    assert hits.dropped == 5 and len(list(hits)) == detections.MAX_FOUND + 1


def test_a_flood_of_findings_does_not_hide_a_worse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detections, "MAX_FOUND", 5)
    hits = Hits()
    for number in range(5):
        hits.add("web-scanner", str(number), "low" if number == 2 else "medium", 0.0, 0.0)
    for subject in ("a", "b"):
        hits.add("ssh-success-after-failures", subject, "critical", 0.0, 0.0)
    hits.add("web-scanner", "c", "medium", 0.0, 0.0)
    hits.add("web-scanner", "2", "low", 9.0, 9.0)
    assert [hit.subject for hit in hits] == ["0", "1", "3", "a", "b"] and hits.dropped == 4
