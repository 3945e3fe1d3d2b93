"""Checks the folder that a command is started in: settings and modules are read from it only if no other user can write them.

Python puts that folder first on the path of `python -m`, before its own modules; `__main__` takes it off. Here it is put last,
when handlers are imported, and only if it is trusted. So must be each module found there, and the folders it lies in.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import Final

SAFE: Final = "-P"  # for the Python processes that we start: the current folder is not put on their path
_HOME: Final = Path(__file__).resolve().parents[1]  # where this installation lies


def add_folder() -> str:
    """Let modules be found in the current folder, after all others. Return why not, if it cannot be trusted, else nothing."""
    here = _here()
    if here is None or here in sys.path or "" in sys.path:
        return ""
    why = why_not(Path(here))
    if not why:
        _checked.add(here)
        sys.path_importer_cache.pop(here, None)
        sys.path_hooks.insert(0, _checking_finder)
        sys.path.append(here)
    return why


class _CheckingFinder(FileFinder):
    """Finds the modules of one folder, and checks each before it is run: its file, its folder, and what is compiled of it."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a module is, if it can be trusted.

        Raises:
            ImportError: it cannot.
        """
        spec = super().find_spec(fullname, target)
        if spec is None:
            return None
        inner = list(spec.submodule_search_locations or ())
        file = Path(spec.origin) if spec.has_location and spec.origin else None
        # A link leads to a folder that has not been checked yet, and what is compiled is run in place of its source.
        near = [file, file.resolve().parent, Path(spec.cached or file), Path(spec.cached or file).parent] if file else []
        for path in map(Path, dict.fromkeys([*inner, *near])):
            why = why_not(path) if path.exists() else ""
            if why:
                raise ImportError(f"{path} cannot be trusted: {why}; or set PYTHONPATH=.", name=fullname)
        _checked.update(inner)  # a package's modules are found by the path of the package
        return spec


_checked: set[str] = set()  # folders: the current one, and those of packages in it
_LOADERS: Final = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def _checking_finder(path: str) -> _CheckingFinder:
    """Return the finder of this folder and of the packages in it. What else is on the path, the user has put there.

    Raises:
        ImportError: it is another entry of the path; Python then asks its own finders.
    """
    if path not in _checked:
        raise ImportError(path)
    return _CheckingFinder(path, *_LOADERS)


def hidden_in_folder(modules: Sequence[str]) -> tuple[str, str] | None:
    """Return the first of these imported modules that is in the current folder as well, and the file that was imported instead.

    Return None if there is none.
    """
    here = _here()
    if here is None:
        return None
    for name in modules:
        first = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        near = [path for path in (Path(here, first, "__init__.py"), Path(here, f"{first}.py")) if path.is_file()]
        if not file or not near or Path(os.path.abspath(file)).is_relative_to(here):  # perhaps by a link that leads elsewhere
            continue
        if not Path(file).resolve().is_relative_to(Path(here).resolve()):
            return name, file
    return None


def why_not(path: Path | int) -> str:
    """Return why a file or folder cannot be trusted, with the command that changes that; nothing, if it can.

    Its owner must be root, this user, or the owner of this installation, and no other user may write it. A group may, if its
    owner is the only member: as where umask is 002.

    Raises:
        OSError: it does not exist, or cannot be looked at.
    """
    found = os.stat(path)
    if found.st_uid not in {0, os.geteuid(), _HOME.stat().st_uid, os.stat(sys.prefix).st_uid}:
        return f"it belongs to {_user(found.st_uid)} (chown it)"
    if found.st_mode & stat.S_IWOTH:
        return "everybody may write it (chmod o-w)"
    if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_uid, found.st_gid):
        return f"the group {_group(found.st_gid)} may write it (chmod g-w)"
    return ""


def why_no_secret(path: Path | int) -> str:
    """Return why a file with a secret cannot be used, with the command that changes that; nothing, if it can.

    No other user may write or read it. A group may read it if its owner is the only member, or if the file is root's and the
    group one of ours: so do containers and services get their secrets.

    Raises:
        OSError: it does not exist, or cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return "it is no file"
    if found.st_mode & stat.S_IROTH:
        return "everybody may read it (chmod o-r)"
    is_handed_down = found.st_uid == 0 and found.st_gid in {os.getegid(), *os.getgroups()}
    if found.st_mode & stat.S_IRGRP and not is_handed_down and not _is_own_group(found.st_uid, found.st_gid):
        return f"the group {_group(found.st_gid)} may read it (chmod g-r)"
    return why_not(path)


def _here() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _is_own_group(user_id: int, group_id: int) -> bool:
    """Return whether a group is the first one of a user, and has no other members."""
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
