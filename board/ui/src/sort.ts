// The order of rows by a column: pure.

export type By<T> = Record<string, (row: T) => number | string | null>;

/** Return the rows, the largest first; text from a to z, what is not known last; equal ones in the order in which they came. */
export function sorted<T>(rows: readonly T[], by: By<T>, name: string): T[] {
  const value = Object.hasOwn(by, name) ? by[name] : undefined;
  if (value === undefined) return [...rows];
  return [...rows].sort((a, b) => compare(value(a), value(b)));
}

function compare(a: number | string | null, b: number | string | null): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en");
  return b - a;
}
