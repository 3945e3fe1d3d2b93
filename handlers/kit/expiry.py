"""What should have been deleted by now: the proof that cleanups run is that nothing is left of what they delete."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Final

from handlers.kit.failures import unlogged
from handlers.kit.files import open_root
from handlers.kit.sections import Cleanup
from handlers.kit.settings import Settings
from handlers.kit.sweep import Tree, pattern_of
from handlers.kit.threads import Stop
from runtime import Snooze

MAX_FILES: Final = 1_000_000  # a guess, of each root: some seconds


def overdue(settings: Settings, since: timedelta, end: datetime, stop: Stop) -> dict[str, int | None]:
    """Return for each cleanup how many files it should have deleted so long before `end`; None where that cannot be known."""
    due = {alias: each for alias, each in settings.cleanups.items() if each.enabled and each.action == "delete"}
    return {alias: _left(settings, each, (end - since).timestamp() - each.older_than_s, stop) for alias, each in due.items()}


def _left(settings: Settings, cleanup: Cleanup, cutoff_s: float, stop: Stop) -> int | None:
    includes, excludes = pattern_of(cleanup.include), pattern_of(cleanup.exclude)
    old, young = Counter[str](), Counter[str]()
    try:
        with unlogged():
            root = settings.root(cleanup.root)
            with open_root(cleanup.root, root) as top:
                tree = Tree(top, recurse=cleanup.recurse, enters=lambda name: not excludes.match(name), stop=stop)
                for number, found in enumerate(tree, 1):
                    if number > MAX_FILES:
                        return None
                    if includes.match(found.name) and not excludes.match(found.name) and not found.is_part:
                        (old if found.written_ns <= cutoff_s * 1e9 else young)[found.folder] += 1
    except (Snooze, OSError):
        return None
    if tree.failed:
        return None
    return sum(max(0, count - max(0, cleanup.keep_last - young[folder])) for folder, count in old.items())
