import { expect, it } from "vitest";
import { apart, ticksIn } from "./axis";

it("marks what a clock has", () => expect(ticksIn(10, 3_600_000)).toEqual([10, 100, 1000, 10_000, 60_000, 600_000, 3_600_000]));

it.each([
  [
    [10, 100],
    [10, 100],
  ],
  [
    [10, 12],
    [10, 25],
  ],
  [
    [12, 10],
    [25, 10],
  ],
  [
    [5, 5, 5],
    [5, 20, 35],
  ],
  [[], []],
])("parts labels at %s", (wanted, found) => expect(apart(wanted, 15)).toEqual(found));
