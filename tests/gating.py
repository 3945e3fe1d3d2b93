"""What the script `serve` does, over a store in memory: the gates of one type, its permits and its rates."""

from __future__ import annotations

import math
from fractions import Fraction

from runtime.jobs import OVERFLOW, SUSPECT
from runtime.limits import Rate
from runtime.store.shapes import EMPTY, SHORT, Delivery, Fetched, Serve, Served
from tests.memory import MemoryStore, Pending, stands_at, value

# The same numbers as in the script.
HEAL, SEEN_MS, LOOK_AT = 20, 1000, 500


class Gate:
    """Owns what one call knows of a gate: what it may give, and which places it gave."""

    def __init__(self, store: MemoryStore, name: str, limit: int | None, rate: Rate | None, n: int) -> None:
        self._store, self._name, self._limit, self._rate = store, name, limit, rate
        self.granted: list[str] = []
        self.tokens = self.permits = math.inf
        self._now_us = store.now_ms * 1000
        self._tat_us = self._now_us
        if rate is not None:
            self._interval_us = Fraction(rate.period_ms * 1000, rate.n - rate.burst + 1)
            self._tat_us = self._tat()
            self.tokens = math.floor((self._interval_us * rate.burst - (self._tat_us - self._now_us)) / self._interval_us)
        if limit is not None:
            self.permits = self._free_permits(limit, n)

    def _tat(self) -> int:
        assert self._rate is not None
        furthest = math.ceil(self._now_us + self._interval_us * self._rate.burst)
        told = _number(self._store.rates.get(self._name, "0"))
        if not told <= furthest:
            self._store.rates[self._name] = str(furthest)
            return furthest
        return int(max(self._now_us, told))

    def _free_permits(self, limit: int, n: int) -> int:
        held, now_ms = self._store.permits.setdefault(self._name, {}), self._store.now_ms
        if limit - len(held) >= n:
            return limit - len(held)
        listed = sorted(held.items(), key=lambda item: (item[1], item[0]))
        ahead = [place for place, seen_ms in listed if seen_ms > now_ms + SEEN_MS]
        old = [place for place, seen_ms in listed if seen_ms <= now_ms - SEEN_MS]
        for place in (ahead or old)[:HEAL]:
            if self._store.is_running(place):
                held[place] = now_ms
            else:
                del held[place]
        return limit - len(held)

    @property
    def left(self) -> float:
        """How many it may give."""
        return min(self.permits, self.tokens) - len(self.granted)

    @property
    def stands(self) -> int:
        """How it stands with it."""
        if self.left > 0:
            return 0
        if self.permits - len(self.granted) < 1:
            return SHORT
        assert self._rate is not None
        tat_us = self._tat_us + len(self.granted) * self._interval_us
        return max(1, math.ceil((tat_us - (self._rate.burst - 1) * self._interval_us - self._now_us) / 1000))

    def write(self) -> None:
        """Write what it gave."""
        if self.granted and self._limit is not None:
            self._store.permits[self._name] |= dict.fromkeys(self.granted, self._store.now_ms)
        if self.granted and self._rate is not None:
            self._store.rates[self._name] = str(math.ceil(self._tat_us + len(self.granted) * self._interval_us))


class Call:
    """One call of the script."""

    def __init__(self, store: MemoryStore, consumer: str, ask: Serve, most: int, most_of_one: int) -> None:
        self._store, self._consumer, self._ask = store, consumer, ask
        self._most, self._most_of_one = most, most_of_one
        self._gates: dict[str, Gate] = {}
        self._served = Served(Fetched(store.now_ms, store.run_id, [], set()))
        self._chosen: list[tuple[int, bytes]] = []
        self._taken = self._taken_others = self._spent = self._looked = 0

    def run(self) -> Served:
        """Return what the gate gives."""
        store, ask = self._store, self._ask
        for group, place in ask.freed:
            if not store.is_running(place):
                for name in self._with_permits(group):
                    store.permits.get(name, {}).pop(place, None)
        for group, place in (told for told in ask.noted if store.is_running(told[1])):
            for name in self._with_permits(group):
                store.permits.setdefault(name, {})[place] = store.now_ms
        stands: list[tuple[int | Gate, bool]] = []
        for at, (stream, lot, group) in enumerate(ask.lots):
            most = min(self._capacity(stream), self._type.left) if self._capacity(stream) > 0 else 0
            if most > 0 and stream in store.refusing:
                stands.append((SHORT, False))
                self._served.fetched.refused = self._served.fetched.refused or store.refusing[stream]
            else:
                share = max(1, int(most) // (len(ask.lots) - at))
                stands.append(self._serve(stream, lot, group, share) if most > 0 else (0, False))
        for gate in self._gates.values():
            gate.write()
        for stream, entry in self._chosen:
            store.claim(stream, entry, self._consumer, 1)
        for (stream, lot, _), (stand, may_be_empty) in zip(ask.lots, stands, strict=True):
            is_empty = may_be_empty and not store.held_by(stream, lot)
            self._served.lots = [*self._served.lots, EMPTY if is_empty else stand.stands if isinstance(stand, Gate) else stand]
        self._served.stands = self._gates[ask.type].stands if ask.type in self._gates else 0
        return self._served

    def _serve(self, stream: int, lot: str, group: str, share: int) -> tuple[int | Gate, bool]:
        """Hand out of one lot; return how it stands with it, and whether it may be empty."""
        store, before, has_moved, is_stuck = self._store, self._taken, False, False
        by_entry = lot.startswith(OVERFLOW) or (not group and self._ask.limits.by_group)
        gate = None if by_entry else self._group(group)
        listed = store.held_by(stream, lot)
        page: list[tuple[bytes, Pending]] = []

        def want() -> float:
            left = gate.left if gate is not None else math.inf
            return min(share - (self._taken - before), self._capacity(stream), self._type.left, left)

        while want() > 0 and self._looked < LOOK_AT and self._spent < self._most:
            size = int(min(max(want(), 2 * len(page)), LOOK_AT - self._looked))
            page, listed = listed[:size], listed[size:]
            if not page:
                return SHORT if is_stuck else 0, True
            self._looked += len(page)
            suspects = [(entry, row.count) for entry, row in page if row.count > 0]
            for entry, count in suspects:
                store.put(stream, entry, SUSPECT, count)
            has_moved = has_moved or bool(suspects)
            for entry in self._read(stream, [entry for entry, row in page if row.count == 0]):
                if want() < 1:
                    break
                is_chosen = self._choose(stream, entry, None if by_entry else group)
                has_moved, is_stuck = has_moved or is_chosen, is_stuck or not is_chosen
        return gate if gate is not None else SHORT if is_stuck and not has_moved else 0, has_moved

    def _read(self, stream: int, entries: list[bytes]) -> list[bytes]:
        """Return those that are read before they are too many bytes together."""
        read: list[bytes] = []
        for entry in entries:
            if self._spent >= self._most:
                break
            size = sum(map(len, self._store.entries[stream].get(entry, ())))
            self._spent += size if size <= self._most_of_one else 0
            read.append(entry)
        return read

    def _choose(self, stream: int, entry: bytes, group: str | None) -> bool:
        fields = self._store.entries[stream].get(entry)
        size = sum(map(len, fields or ()))
        if fields is not None and size <= self._most_of_one and not _is_expired(fields, self._store.now_ms):
            gate = self._group((value(fields, b"group") or b"").decode() if group is None else group)
            if gate is not None and gate.left < 1:
                return False
            for one in (self._type, gate):
                if one is not None:
                    one.granted.append(stands_at(stream, entry))
            self._taken += 1
            self._taken_others += stream > 0
        self._chosen.append((stream, entry))
        if fields is not None:
            delivery = self._delivery(stream)
            if size > self._most_of_one:
                delivery.oversized = [*delivery.oversized, (entry, 1, size)]
            else:
                delivery.rows.append((entry, fields))
                delivery.counts = [*delivery.counts, 1]
        return True

    def _delivery(self, stream: int) -> Delivery:
        deliveries = self._served.fetched.deliveries
        if stream not in [delivery.stream for delivery in deliveries]:
            deliveries.append(Delivery(stream, [], list[int](), list[tuple[bytes, int, int]]()))
        return next(delivery for delivery in deliveries if delivery.stream == stream)

    def _with_permits(self, group: str) -> list[str]:
        limits = self._ask.limits
        of_type = [self._ask.type] if limits.limit is not None else []
        return of_type + ([f"{self._ask.type}:{group}"] if limits.group_limit is not None and group else [])

    @property
    def _type(self) -> Gate:
        return self._gate(self._ask.type, self._ask.limits.limit, self._ask.limits.rate)

    def _gate(self, name: str, limit: int | None, rate: Rate | None) -> Gate:
        if name not in self._gates:
            self._gates[name] = Gate(self._store, name, limit, rate, self._ask.n)
        return self._gates[name]

    def _group(self, group: str) -> Gate | None:
        limits = self._ask.limits
        return (
            self._gate(f"{self._ask.type}:{group}", limits.group_limit, limits.group_rate) if group and limits.by_group else None
        )

    def _capacity(self, stream: int) -> int:
        most = self._ask.n - self._taken
        return most if stream == 0 else min(most, self._ask.n_others - self._taken_others)


def _is_expired(fields: list[bytes], now_ms: int) -> bool:
    exp = value(fields, b"exp") or b""
    return exp.isdigit() and 0 < int(exp) <= now_ms


def _number(text: str) -> float:
    """Return the number that a text is, as Lua reads it; 0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return 0
