// Pure parts of the charts: the marks of an axis of times, and labels that do not cover each other.

/** What an axis of times may be marked with: powers of ten to 10 s, then what a clock has. */
export const STEPS_MS = [1, 10, 100, 1000, 10_000, 60_000, 600_000, 3_600_000, 36_000_000, 360_000_000, 3_600_000_000] as const;

export function ticksIn(min: number, max: number): number[] {
  return STEPS_MS.filter(step => step >= min && step <= max);
}

/** Return where labels stand that want to stand at `wanted`: at least `least` apart, none below `end` while there is room above. */
export function apart(wanted: readonly number[], least: number, end: number): number[] {
  const order = wanted.map((_, at) => at).sort((a, b) => (wanted[a] ?? 0) - (wanted[b] ?? 0));
  const found = [...wanted];
  let last = Number.NEGATIVE_INFINITY;
  for (const at of order) {
    last = Math.max(wanted[at] ?? 0, last + least);
    found[at] = last;
  }
  let next = end;
  for (const at of order.reverse()) {
    found[at] = Math.min(found[at] ?? 0, next);
    next = (found[at] ?? 0) - least;
  }
  return found;
}
