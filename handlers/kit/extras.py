"""Packages that only child processes import, since they take seconds and a hundred MiB: a worker looks whether they are there."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str) -> None:
    """Return if each of these packages is installed.

    Raises:
        ModuleNotFoundError: one is not, as its import would say.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
