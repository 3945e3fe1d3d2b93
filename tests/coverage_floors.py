"""`python -m tests.coverage_floors FILE`: what unit and contract tests must reach, by group; FILE is coverage's report as JSON.

Part of `make coverage` and of nothing else: measuring takes minutes.
"""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.architecture.test_house import PURE

# The least percentage of statements and branches of each module, by the first pattern that fits; all others have none. The store
# has not all: Python 3.11 does not tell of the way out of an `async with` whose last statement is an `if`.
FLOORS = {
    **{f"runtime/{name}.py": 100.0 for name in PURE},
    "runtime/answers.py": 100.0,
    "runtime/store/*.py": 95.0,
    "runtime/streams.py": 95.0,
    "otel/settings.py": 95.0,
    "otel/post.py": 95.0,
    "otel/sender.py": 95.0,
}


def below(report: dict[str, Any]) -> list[str]:
    """Return what has less than its floor, and each pattern that fits no module that was measured."""
    reached = {name: file["summary"]["percent_covered"] for name, file in report["files"].items()}
    unmeasured = [pattern for pattern in FLOORS if not any(fnmatch(name, pattern) for name in reached)]
    found = [f"{pattern}: no such module was measured" for pattern in unmeasured]
    for name, percent in sorted(reached.items()):
        floor = next((floor for pattern, floor in FLOORS.items() if fnmatch(name, pattern)), 0.0)
        if percent < floor:
            lines = ", ".join(map(str, report["files"][name]["missing_lines"])) or "branches alone"
            found.append(f"{name}: {percent:.1f} %, must be {floor:g} % or more; not reached: {lines}")
    return found


def main(path: str) -> int:
    """Print what is below its floor; return the exit status."""
    found = below(json.loads(Path(path).read_text("utf-8")))
    print("\n".join(found) or "all modules reach their floors")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
