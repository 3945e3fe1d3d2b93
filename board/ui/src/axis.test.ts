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
  [
    [98, 99, 90],
    [85, 100, 70],
  ],
  [[], []],
])("parts labels at %s", (wanted, found) => expect(apart(wanted, 15, 100)).toEqual(found));
