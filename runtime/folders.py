"""What may be believed of the folder a command is started in: its settings, and its modules, if nobody else can write them.

Python puts that folder first on the path of `python -m`, before its own modules (`__main__` takes it off). Here it comes last,
only where handlers are imported, and only when it is ours.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SAFE: Final = "-P"  # for Python processes of ours: no folder that is not asked for
_HOME: Final = Path(__file__).resolve().parents[1]  # where this installation lies


def add_folder() -> str:
    """Have modules be found in the current folder, after all others; gives why not, if it cannot be trusted, else nothing."""
    here = _here()
    if here is None or here in sys.path or "" in sys.path:
        return ""
    why = why_not(Path(here))
    if not why:
        sys.path.append(here)
    return why


def hidden_in_folder(modules: Sequence[str]) -> tuple[str, str] | None:
    """Return the first of these imported modules that lies in the current folder too, unread, and where it was found."""
    here = _here()
    if here is None:
        return None
    for name in modules:
        first = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        near = [path for path in (Path(here, first, "__init__.py"), Path(here, f"{first}.py")) if path.is_file()]
        if file and near and not Path(file).resolve().is_relative_to(Path(here).resolve()):
            return name, file
    return None


def why_not(path: Path | int) -> str:
    """Give why a file or folder cannot be trusted, with the way out; nothing, if it can.

    Its owner must be root, we ourselves, or who owns this installation, and nobody else may write it: a group only that is its
    owner's own, as of those whose umask is 002.

    Raises:
        OSError: it is not there.
    """
    found = os.stat(path)
    if found.st_uid not in {0, os.geteuid(), _HOME.stat().st_uid, os.stat(sys.prefix).st_uid}:
        return f"it belongs to {_user(found.st_uid)} (chown it)"
    if found.st_mode & stat.S_IWOTH:
        return "everybody may write it (chmod o-w)"
    if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_uid, found.st_gid):
        return f"the group {_group(found.st_gid)} may write it (chmod g-w)"
    return ""


def _here() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _is_own_group(user_id: int, group_id: int) -> bool:
    """Say whether a group is the first one of a user, and has no other members."""
    try:
        user, group = pwd.getpwuid(user_id), grp.getgrgid(group_id)
    except KeyError:  # as in a container without accounts: then only the number can be known
        return user_id == os.geteuid() and group_id == os.getegid()
    return user.pw_gid == group_id and set(group.gr_mem) <= {user.pw_name}


def _user(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"


def _group(group_id: int) -> str:
    try:
        return grp.getgrgid(group_id).gr_name
    except KeyError:
        return str(group_id)
