"""Circuits: whoever answers with faults alone is left in peace for a while, and then asked by one job before the others.

Each process has its own. A fault is an answer or a silence that says nothing of the request: a lost connection, a 5xx.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

log = logging.getLogger("handlers")

FAULTS: Final = 5  # in a row; a guess: one broken instance behind a balancer of three does not answer five times in a row
OPEN_S: Final = 30.0  # a guess: about what a restart takes
MAX_OPEN_S: Final = 300.0  # a guess: nobody waits for longer after the end of an outage
MAX_NAMES: Final = 10_000  # a guess: names may come from payloads, so the memory of who is at fault is bounded


class _Circuit(msgspec.Struct):
    """Who has faults in a row. It is open if `open_s` is not 0, until `until_s`; then one probe is let through."""

    faults: int = 0
    open_s: float = 0.0
    until_s: float = 0.0
    is_probed: bool = False


class Circuits:
    """Who is at fault, by name. The time is an argument: of a clock that never goes back."""

    def __init__(self) -> None:
        self._circuits: dict[str, _Circuit] = {}

    def __repr__(self) -> str:
        return f"<Circuits: {sum(each.open_s > 0 for each in self._circuits.values())} open of {len(self._circuits)}>"

    def wait_s(self, name: str, now_s: float) -> float:
        """Return 0 to whoever may go on, and has to call one of the others afterwards; else how long to wait.

        Of an open circuit, the first to ask after its time is the probe, and may go on.
        """
        circuit = self._circuits.get(name)
        if circuit is None or not circuit.open_s:
            return 0.0
        if now_s < circuit.until_s:
            return circuit.until_s - now_s
        circuit.is_probed, circuit.until_s = True, now_s + OPEN_S  # of a probe that never comes back, another takes the place
        return 0.0

    def succeeded(self, name: str) -> None:
        """Close the circuit: whoever answers one, answers others."""
        circuit = self._circuits.pop(name, None)
        if circuit is not None and circuit.open_s:
            log.warning("%s answers again; its circuit is closed", name)

    def failed(self, name: str, now_s: float) -> None:
        """Count a fault; enough of them, or that of the probe, open the circuit. What fails beside an open one began before."""
        circuit = self._circuits.get(name)
        if circuit is None:
            if len(self._circuits) >= MAX_NAMES:
                del self._circuits[next(iter(self._circuits))]  # who had the first fault
            circuit = self._circuits[name] = _Circuit()
        circuit.faults += 1
        if circuit.is_probed or (not circuit.open_s and circuit.faults >= FAULTS):
            circuit.open_s = min(max(OPEN_S, circuit.open_s * 2), MAX_OPEN_S)
            circuit.until_s = now_s + circuit.open_s
            circuit.is_probed = False
            text = "%s: %d faults in a row; its circuit is open, and its jobs wait, for %g s"
            log.error(text, name, circuit.faults, circuit.open_s)

    def cut(self, name: str) -> None:
        """Forget a request that was cut before it had an answer: where it was the probe, the next one is."""
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.is_probed:
            circuit.is_probed, circuit.until_s = False, 0.0
