"""What a page must know before it shows anything, and how a session begins and ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import runtime
from board.access import Access
from board.api import Answerer, Reply
from board.auth import Auth
from board.routes import ROUTES
from board.shapes import About, Level, LoginAsk, Nothing, Right
from board.viewer import GUEST, Viewer
from runtime.config import Config
from runtime.store.urls import without_password

LOCALTIME: Final = Path("/etc/localtime")


class MetaPage:
    """Answers `meta`, `login` and `logout`."""

    def __init__(self, url: str, config: Config, access: Access, auth: Auth) -> None:
        self._redis = without_password(url)
        self._config = config
        self._access = access
        self._auth = auth

    def routes(self) -> dict[str, Answerer]:
        """Return the functions by their routes."""
        return {"GET meta": self.about, "POST login": self.login, "POST logout": self.logout}

    async def about(self, ask: Nothing, viewer: Viewer) -> About:
        """Return who asks, what they may do, and what this board is."""
        return self._about(viewer)

    async def login(self, ask: LoginAsk, viewer: Viewer) -> Reply:
        """Begin a session, and end the one before it."""
        value, now = self._auth.login(ask.token, viewer.address)
        self._auth.logout(viewer)
        return Reply(self._about(now), session=value)

    async def logout(self, ask: Nothing, viewer: Viewer) -> Reply:
        """End the session."""
        self._auth.logout(viewer)
        return Reply(self._about(self._auth.guest(viewer.address)), session="")

    def _about(self, viewer: Viewer) -> About:
        is_known = bool(viewer.rights)
        config = self._config
        return About(
            version=runtime.__version__,
            queue=config.queue if is_known else "",
            label=self._access.label,
            label_level=cast("Level", self._access.label_level),
            who=viewer.who,
            rights=[right for right in RIGHTS if viewer.can(right)],
            must_login=not is_known,
            is_guest=viewer.who == GUEST and self._auth.has_login,
            trace_url=config.trace_url or None,
            redis=self._redis if is_known else "",
            zone=zone(os.environ, LOCALTIME),
            features=FEATURES if is_known else [],
        )


RIGHTS: Final[tuple[Right, ...]] = ("view", "payload", "operate", "send")
FEATURES: Final = sorted({route.path.partition("/")[0] for route in ROUTES if route.right})


def zone(environment: Mapping[str, str], link: Path) -> str:
    """Return the time zone of this host, as the IANA names it; UTC where that is not known."""
    named = environment.get("TZ", "").removeprefix(":") or str(link.resolve()).partition("zoneinfo/")[2]
    return named if "/" in named and not named.startswith("/") and named.isascii() and len(named) < 64 else "UTC"
