"""Who asks: sessions that end by time, by logout, with their token; bearer tokens; what a proxy says, and what others forge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from multidict import CIMultiDict

from board.access import ALL, Access, Proxy, read
from board.api import Refused
from board.auth import MAX_SESSIONS, SESSION_S, Auth
from board.guard import TRIES, Limiter
from board.viewer import Viewer
from runtime.config import Config
from tests.board.test_access import SECRET, TOKENS
from tests.board.test_guard import Clock

COOKIE = "board_8080"
PROXY = Proxy(
    secret=SECRET,
    groups_header="X-Forwarded-Groups",
    roles={"view": ["everybody"], "operate": ["ada", "on-call"], "payload": ["Grace"]},
)


def access(tokens: dict[str, str] | None = None, proxy: Proxy | None = None, *, may_send: bool = False) -> Access:
    return Access(
        tokens=tokens or {},
        proxy=proxy,
        may_send=may_send,
        is_open=not tokens and proxy is None,
        prefix="",
        hosts=(),
        label="",
        label_level="ok",
    )


def asks(auth: Auth, *headers: tuple[str, str], cookie: str = "", is_proxied: bool = False) -> Viewer:
    given = CIMultiDict(headers)
    if cookie:
        given.add("Cookie", f"other=1; {COOKIE}={cookie}; board_9090=x")
    return auth.viewer(given, "10.0.0.1", COOKIE, is_proxied=is_proxied)


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


def test_without_tokens_a_guest_looks_and_the_link_does_everything() -> None:
    auth = Auth(access())
    assert asks(auth).rights == {"view"}
    value, viewer = auth.login(auth.link_token, "10.0.0.1")
    assert viewer.rights == ALL
    assert asks(auth, cookie=value) == viewer
    assert asks(auth, bearer(auth.link_token)).rights == ALL
    assert Auth(access()).link_token != auth.link_token
    assert len(auth.link_token) >= 32


def test_with_tokens_there_is_no_link_and_a_guest_sees_nothing() -> None:
    auth = Auth(access(TOKENS))
    assert auth.link_token == ""
    assert asks(auth).rights == frozenset()
    with pytest.raises(Refused):
        auth.login("", "10.0.0.1")


@pytest.mark.parametrize(
    ("role", "rights"),
    [("view", {"view"}), ("payload", {"view", "payload"}), ("operate", {"view", "payload", "operate"})],
)
def test_a_token_has_the_rights_of_its_role_by_session_and_as_bearer(role: str, rights: set[str]) -> None:
    auth = Auth(access(TOKENS))
    value, viewer = auth.login(TOKENS[role], "10.0.0.1")
    assert (viewer.who, viewer.rights) == (role, rights)
    assert asks(auth, cookie=value) == viewer
    assert asks(auth, bearer(TOKENS[role])).rights == rights
    assert asks(auth, bearer(TOKENS[role])).session == ""


def test_a_session_is_kept_as_a_digest_and_its_name_is_not_its_cookie() -> None:
    auth = Auth(access(TOKENS))
    value, viewer = auth.login(TOKENS["view"], "10.0.0.1")
    assert value not in repr(vars(auth))
    assert viewer.session
    assert viewer.session not in value
    assert asks(auth, cookie=viewer.session).rights == frozenset()


def test_a_session_ends_after_its_time_and_at_its_logout() -> None:
    clock = Clock()
    auth = Auth(access(TOKENS), clock=clock)
    first, _ = auth.login(TOKENS["view"], "10.0.0.1")
    second, viewer = auth.login(TOKENS["view"], "10.0.0.1")
    auth.logout(viewer)
    assert asks(auth, cookie=second).rights == frozenset()
    assert asks(auth, cookie=first).rights == {"view"}, "another session of the same token goes on"
    clock.now_s += SESSION_S - 1
    assert asks(auth, cookie=first).rights == {"view"}
    clock.now_s += 2
    assert asks(auth, cookie=first).rights == frozenset()
    auth.logout(Viewer())  # one without a session


def test_sessions_are_bounded_and_the_oldest_ends() -> None:
    auth = Auth(access(TOKENS))
    values = [auth.login(TOKENS["view"], "10.0.0.1")[0] for _ in range(MAX_SESSIONS + 1)]
    assert asks(auth, cookie=values[0]).rights == frozenset()
    assert asks(auth, cookie=values[1]).rights == {"view"}
    assert repr(auth) == f"<Auth, {MAX_SESSIONS} sessions>"


def test_after_five_failed_tries_an_address_waits_with_the_right_token_too() -> None:
    clock = Clock()
    auth = Auth(access(TOKENS), limiter=Limiter(clock), clock=clock)
    for number in range(TRIES):
        with pytest.raises(Refused) as refused:
            auth.login("wrong", "10.0.0.1") if number % 2 else asks(auth, bearer("wrong"))
        assert refused.value.status == 401
    for token in ("wrong", TOKENS["view"]):
        with pytest.raises(Refused) as refused:
            auth.login(token, "10.0.0.1")
        assert refused.value.status == 429
        with pytest.raises(Refused) as refused:
            asks(auth, bearer(token))
        assert refused.value.status == 429
    auth.login(TOKENS["view"], "10.0.0.2")
    clock.now_s += 61
    auth.login(TOKENS["view"], "10.0.0.1")


@pytest.mark.parametrize("token", ["", "x" * 10_000, "\ud800", "ü", "0" * 16, TOKENS["view"] + " ", TOKENS["view"][:-1]])
def test_what_is_no_token_of_ours_is_refused(token: str) -> None:
    with pytest.raises(Refused, match="no token"):
        Auth(access(TOKENS)).login(token, "10.0.0.1")


@pytest.mark.parametrize("text", ["", ";;;", "board_8080", "board_8080=", "board_8080==", "xboard_8080=a", "\x00", "=" * 8000])
def test_a_cookie_of_any_kind_is_read(text: str) -> None:
    assert Auth(access(TOKENS)).viewer(CIMultiDict([("Cookie", text)]), "", COOKIE).rights == frozenset()


def write_tokens(path: Path, number: int, **tokens: str) -> None:
    path.write_text("".join(f'{role} = "{token}"\n' for role, token in tokens.items()))
    path.chmod(0o600)
    os.utime(path, ns=(number, number))


def test_a_token_that_was_changed_ends_its_sessions_and_no_others(tmp_path: Path) -> None:
    path, clock = tmp_path / "tokens", Clock()
    write_tokens(path, 1, **TOKENS)
    auth = Auth(read(Config(board_token_file=str(path)), {}), str(path), clock=clock)
    view, _ = auth.login(TOKENS["view"], "10.0.0.1")
    operate, _ = auth.login(TOKENS["operate"], "10.0.0.1")
    write_tokens(path, 2, view=TOKENS["view"], operate="f" * 32)
    clock.now_s += 2
    assert asks(auth, cookie=view).rights == {"view"}
    assert asks(auth, cookie=operate).rights == frozenset()
    with pytest.raises(Refused):
        auth.login(TOKENS["operate"], "10.0.0.1")
    auth.login("f" * 32, "10.0.0.1")
    path.write_text("nonsense")
    os.utime(path, ns=(3, 3))
    clock.now_s += 2
    assert asks(auth, cookie=view).rights == {"view"}, "a file that cannot be read changes nothing"
    path.unlink()
    clock.now_s += 2
    assert asks(auth, cookie=view).rights == {"view"}
    write_tokens(path, 4, view="e" * 32)
    clock.now_s += 2
    assert asks(auth, cookie=view).rights == frozenset()
    auth.login("e" * 32, "10.0.0.1")
    assert repr(auth) == "<Auth, 1 sessions>", "those that have ended are forgotten"


SECRET_HEADER = ("X-Board-Secret", SECRET)
ADA = ("X-Forwarded-User", "ada")


@pytest.mark.parametrize(
    ("headers", "who", "rights"),
    [
        ([SECRET_HEADER, ADA], "ada", {"view", "payload", "operate"}),
        ([SECRET_HEADER, ("X-Forwarded-User", "bob"), ("X-Forwarded-Groups", "x, everybody")], "bob", {"view"}),
        (
            [SECRET_HEADER, ("X-Forwarded-User", "bob"), ("X-Forwarded-Groups", "x"), ("X-Forwarded-Groups", "on-call")],
            "bob",
            None,
        ),
        ([SECRET_HEADER, ("X-Forwarded-User", "Ada")], "Ada", set()),
        ([SECRET_HEADER, ("X-Forwarded-User", "ada,x")], "ada,x", set()),
        ([SECRET_HEADER, ("X-Forwarded-User", "a b\x1b[31m")], "a_b_[31m", set()),
        ([SECRET_HEADER, ADA, ("X-Forwarded-User", "eve")], "guest", set()),
        ([SECRET_HEADER, ("X-Forwarded-User", " ")], "guest", set()),
        ([SECRET_HEADER], "guest", set()),
        ([SECRET_HEADER, ("X-Forwarded-Groups", "on-call")], "guest", set()),
        ([ADA], "guest", set()),
        ([ADA, ("X-Board-Secret", "")], "guest", set()),
        ([ADA, ("X-Board-Secret", SECRET[:-1])], "guest", set()),
        ([ADA, ("X-Board-Secret", SECRET), ("X-Board-Secret", SECRET)], "guest", set()),
        ([ADA, ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1")], "guest", set()),
    ],
)
def test_a_user_is_who_the_trusted_proxy_says_and_nobody_elses_word_counts(
    headers: list[tuple[str, str]], who: str, rights: set[str] | None
) -> None:
    viewer = asks(Auth(access(proxy=PROXY)), *headers)
    assert (viewer.who, viewer.rights) == (who, {"view", "payload", "operate"} if rights is None else rights)


def test_what_comes_by_the_proxys_own_socket_is_believed_and_an_empty_secret_never() -> None:
    auth = Auth(access(proxy=Proxy(socket="/run/x", roles=PROXY.roles)))
    assert asks(auth, ADA, is_proxied=True).who == "ada"
    assert asks(auth, ADA, ("X-Board-Secret", "")).who == "guest"
    assert asks(Auth(access()), ADA, is_proxied=True).rights == {"view"}, "without a proxy nobody is one"


def test_users_of_a_proxy_are_counted_each_for_themselves() -> None:
    auth = Auth(access(proxy=PROXY))
    assert asks(auth, SECRET_HEADER, ADA).address != asks(auth, SECRET_HEADER, ("X-Forwarded-User", "bob")).address


def test_a_name_fits_into_the_audit() -> None:
    viewer = asks(Auth(access(proxy=PROXY)), SECRET_HEADER, ("X-Forwarded-User", "x" * 5000))
    assert len(viewer.by) <= 100
    assert " " not in viewer.by
