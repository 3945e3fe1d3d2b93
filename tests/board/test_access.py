"""Who may enter, out of settings and files: what would be open to the network is refused before anything listens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from board.access import Access, read
from runtime.config import Config
from runtime.errors import ConfigError

TOKENS = {role: f"{role}-0123456789abcdef" for role in ("view", "payload", "operate")}
SECRET = "0123456789abcdef-secret"
ANYWHERE = "0.0.0.0:8080"
PROXY = f'secret = "{SECRET}"\n[roles]\nview = ["everybody"]\n'


def secret_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "secret.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def access(environment: dict[str, str] | None = None, **settings: object) -> Access:
    return read(Config(**settings), environment or {})  # pyright: ignore[reportArgumentType]


def complaint(environment: dict[str, str] | None = None, **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        access(environment, **settings)
    return str(caught.value)


def test_on_loopback_nothing_need_be_configured() -> None:
    found = access()
    assert found.is_open
    assert found.tokens == {}


@pytest.mark.parametrize("board", [ANYWHERE, "[::]:8080", "10.1.2.3:80", "example.org:80"])
def test_a_board_that_others_can_reach_needs_a_login_and_tls_or_a_word(board: str, tmp_path: Path) -> None:
    tokens = {"RUNTIME_BOARD_VIEW_TOKEN": TOKENS["view"]}
    assert "nobody would have to log in" in complaint(board=board)
    assert "nobody would have to log in" in complaint(board=board, board_insecure=True)
    assert "in clear" in complaint(tokens, board=board)
    assert not access(tokens, board=board, board_insecure=True).is_open
    assert not access(board=board, board_proxy=secret_file(tmp_path, PROXY)).is_open


def test_tokens_stand_in_a_file_or_in_the_environment(tmp_path: Path) -> None:
    text = "".join(f'{role} = "{token}"\n' for role, token in TOKENS.items())
    assert access(board_token_file=secret_file(tmp_path, text)).tokens == TOKENS
    environment = {f"RUNTIME_BOARD_{role.upper()}_TOKEN": token for role, token in TOKENS.items()}
    assert access(environment).tokens == TOKENS
    one = access(environment, board_token_file=secret_file(tmp_path, f'view = "{"f" * 32}"'))
    assert one.tokens == {"view": "f" * 32}, "the file has all of them, or none"


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ('view = "0123456789abcdef"', 0o644, "everybody may read it"),
        ('view = "0123456789abcdef"', 0o606, "everybody may read it"),
        ("", 0o600, "must have lines"),
        ('admin = "0123456789abcdef"', 0o600, "must have lines"),
        ('view = "short"', 0o600, "view: must be 16 to 500"),
        ('view = "with spaces in its middle"', 0o600, "view: must be"),
        ('view = "ümlaut-0123456789abcdef"', 0o600, "view: must be"),
        ("view = 12345678901234567890", 0o600, "view: must be"),
        (f'view = "{"x" * 501}"', 0o600, "view: must be"),
        ('view = "0123456789abcdef"\noperate = "0123456789abcdef"', 0o600, "of its own"),
        ('view = "0123456789abcd', 0o600, "no TOML"),
        ("# " + "x" * 70_000, 0o600, "at most 65536 bytes"),
    ],
)
def test_a_file_of_tokens_that_cannot_be_used_is_refused_and_not_repeated(
    text: str, mode: int, told: str, tmp_path: Path
) -> None:
    said = complaint(board_token_file=secret_file(tmp_path, text, mode))
    assert told in said
    assert "0123456789abcd" not in said


def test_a_file_that_is_not_there_or_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    assert "No such file" in complaint(board_token_file=str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "it is no file" in complaint(board_token_file=str(tmp_path / "pipe"))
    assert "Is a directory" in complaint(board_proxy=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[roles]\nview = ["a"]\n', "secret: must be"),
        ('secret = "short"\n[roles]\nview = ["a"]\n', "secret: must be"),
        (f'secret = "{SECRET}"\n', "roles: must have"),
        (f'secret = "{SECRET}"\n[roles]\nadmin = ["a"]\n', "roles: must have"),
        (f'secret = "{SECRET}"\n[roles]\nsend = ["a"]\n', "roles: must have"),
        (f'secret = "{SECRET}"\nusers = "x"\n[roles]\nview = ["a"]\n', "users"),
        (f'secret = "{SECRET}"\n[roles]\nview = "a"\n', "roles"),
        ('secret = "ümlaut-0123456789abcdef"\n[roles]\nview = ["a"]\n', "secret: must be"),
    ],
)
def test_a_file_of_a_proxy_that_cannot_be_used_is_refused(text: str, told: str, tmp_path: Path) -> None:
    assert told in complaint(board_proxy=secret_file(tmp_path, text))


def test_who_may_operate_may_send_only_where_that_is_said() -> None:
    environment = {"RUNTIME_BOARD_OPERATE_TOKEN": TOKENS["operate"]}
    assert access(environment).rights_of("operate") == {"view", "payload", "operate"}
    allowed = access(environment, board_send=True)
    assert allowed.rights_of("operate") == {"view", "payload", "operate", "send"}
    assert allowed.rights_of("payload") == {"view", "payload"}
    assert allowed.rights_of("nonsense") == frozenset()


@pytest.mark.parametrize(
    ("label", "name", "level"),
    [("", "", "ok"), ("production", "production", "ok"), ("a=bad", "a", "act"), ("a=warn", "a", "look")],
)
def test_a_label_is_painted(label: str, name: str, level: str) -> None:
    found = access(board_label=label, board_host=" a.example , [::2],", board_prefix="/jobs")
    assert (found.label, found.label_level) == (name, level)
    assert found.hosts == ("a.example", "::2")
