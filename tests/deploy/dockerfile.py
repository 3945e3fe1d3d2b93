"""Dockerfiles, read: their stages, and the instructions that hold for the image of one."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One stage; `parent` is the stage that it begins with, if `image` is the name of one."""

    name: str
    image: str
    parent: Stage | None
    copies_from: tuple[Stage, ...]
    instructions: tuple[tuple[str, str], ...]

    @property
    def ancestors(self) -> list[Stage]:
        """All stages of which something is in this one's image."""
        near = [*((self.parent,) if self.parent else ()), *self.copies_from]
        return [*near, *(far for stage in near for far in stage.ancestors)]

    def texts(self, instruction: str) -> list[str]:
        """Return the arguments of each such instruction of the stage, or else of the stage that it begins with."""
        own = [text for name, text in self.instructions if name == instruction]
        return own or (self.parent.texts(instruction) if self.parent else [])

    def words(self, instruction: str) -> list[str]:
        """Return the words of the last such instruction."""
        texts = self.texts(instruction)
        return shlex.split(texts[-1]) if texts else []

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        above = self.parent.environment if self.parent else {}
        texts = [text for name, text in self.instructions if name == "ENV"]
        return above | dict(word.split("=", 1) for text in texts for word in shlex.split(text))

    def sources(self) -> list[str]:
        """Return what is copied from the folder that the image is built from."""
        copies = [shlex.split(text) for name, text in self.instructions if name == "COPY"]
        return [source for words in copies if not words[0].startswith("--") for source in words[:-1]]


def stages(path: Path) -> dict[str, Stage]:
    """Return the stages of a Dockerfile, by their names; one without a name has its number."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)).splitlines()
    found: dict[str, Stage] = {}
    blocks: list[list[tuple[str, str]]] = []
    for line in filter(None, lines):
        instruction, text = line.split(" ", 1)
        if instruction == "FROM":
            blocks.append([])
        blocks[-1].append((instruction, text))
    for number, [(_, head), *rest] in enumerate(blocks):
        image, name = head.split(" AS ") if " AS " in head else (head, str(number))
        froms = [re.findall(r"--from=(\S+)", text) for instruction, text in rest if instruction == "COPY"]
        found[name] = Stage(name, image, found.get(image), tuple(found[one] for names in froms for one in names), tuple(rest))
    return found
