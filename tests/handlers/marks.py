"""Where the marks of jobs stand in tests: in a folder, a file for each work, so that they outlive a process that is killed."""

from __future__ import annotations

import os
from pathlib import Path


class FolderMarks:
    """A `MarkStore` over a folder; `writes` counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writes = 0

    async def marks_of(self, work: str) -> bytes | None:
        """Return what stands there."""
        path = self.folder / f"{work}.marks"
        return path.read_bytes() if path.exists() else None

    async def set_marks(self, work: str, value: bytes) -> None:
        """Write, all of it or nothing."""
        self.writes += 1
        new = self.folder / f"{work}.new"
        new.write_bytes(value)
        os.rename(new, self.folder / f"{work}.marks")

    async def delete_marks(self, work: str) -> None:
        """Remove what stands there."""
        (self.folder / f"{work}.marks").unlink(missing_ok=True)
