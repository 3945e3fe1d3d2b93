import { expect, it } from "vitest";
import type { Step } from "./api/types";
import { axisOf, linesOf, placeOf } from "./timeline";

function step(kind: Step["kind"], from_ms: number, to_ms: number | null): Step {
  const rest = { attempt: null, level: "ok", outcome: "", worker: "", app: "", error: "", message: null } as const;
  return { kind, from_ms, to_ms, ...rest, frame: "", trace: null, same_as: null, lines: [] };
}

it("puts a wait on the line of what it waited for", () => {
  const [waited, first, pause, second] = [
    step("waited", 0, 10),
    step("attempt", 10, 20),
    step("backoff", 20, 50),
    step("running", 50, null),
  ];
  expect(linesOf([waited, first, pause, second])).toEqual([
    { step: first, wait: waited },
    { step: second, wait: pause },
  ]);
  expect(linesOf([step("waited", 0, null)])).toEqual([{ step: step("waited", 0, null), wait: null }]);
  expect(linesOf([])).toEqual([]);
});

it("spans all steps and now, with few round times", () => {
  const minute = 60_000;
  const axis = axisOf([step("waited", 3 * minute, 4 * minute), step("attempt", 4 * minute, null)], 24 * minute);
  expect([axis.from, axis.to]).toEqual([3 * minute, 24 * minute]);
  expect(axis.ticks).toEqual([5, 10, 15, 20].map(at => at * minute));
  expect(placeOf(axis, 13.5 * minute)).toBe(50);
  expect(placeOf(axis, 99 * minute)).toBe(100);
});

it("counts parts of a second from where it begins", () => {
  expect(axisOf([step("attempt", 1_000_003, 1_000_018)], 1_000_018).ticks).toEqual([1_000_003, 1_000_008, 1_000_013, 1_000_018]);
});

it("leaves now out where all is over, and goes beyond it for what comes", () => {
  expect(axisOf([step("attempt", 0, 1000)], 1_000_000).to).toBe(1000);
  expect(axisOf([step("next", 0, 9000)], 5000).to).toBe(9000);
});

it("has an axis for a job of no time, and of years", () => {
  expect(axisOf([step("attempt", 5, 5)], 5).ticks.length).toBeLessThan(8);
  expect(axisOf([step("attempt", 0, 1e12)], 1e12).ticks.length).toBeLessThan(9);
});
