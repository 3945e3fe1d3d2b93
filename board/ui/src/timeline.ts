// Where the parts of a job's life stand on one axis of time.

import type { Step } from "./api/types";

export interface Line {
  readonly step: Step;
  readonly wait: Step | null; // what came before it: it stands on the same line
}

/** Return the lines of a timeline: a wait stands on the line of what it waited for. */
export function linesOf(steps: readonly Step[]): Line[] {
  const lines: Line[] = [];
  let wait: Step | null = null;
  for (const step of steps) {
    if (step.kind === "waited" || step.kind === "backoff") {
      if (wait !== null) lines.push({ step: wait, wait: null });
      wait = step;
    } else {
      lines.push({ step, wait });
      wait = null;
    }
  }
  if (wait !== null) lines.push({ step: wait, wait: null });
  return lines;
}

export interface Axis {
  readonly from: number;
  readonly to: number;
  readonly ticks: readonly number[];
}

export const SECOND = 1000; // below it a step counts from where the axis begins
const MINUTE = 60 * SECOND;
const STEPS_MS = [
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000],
  ...[1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440].map(minutes => minutes * MINUTE),
];
const MOST_TICKS = 5; // as many labels as stand side by side on a phone

/** Return the span of all steps and now, with round times in it. */
export function axisOf(steps: readonly Step[], nowMs: number): Axis {
  const ends = steps.flatMap(step => [step.from_ms, step.to_ms ?? nowMs]);
  const isOver = steps.every(step => step.to_ms !== null && step.to_ms <= nowMs);
  const from = Math.min(...ends, isOver ? Number.POSITIVE_INFINITY : nowMs);
  const to = Math.max(...ends, isOver ? Number.NEGATIVE_INFINITY : nowMs, from + 1);
  const step = STEPS_MS.find(each => (to - from) / each <= MOST_TICKS) ?? Math.ceil((to - from) / MOST_TICKS);
  const ticks: number[] = [];
  for (let at = step < SECOND ? from : Math.ceil(from / step) * step; at <= to && ticks.length <= MOST_TICKS; at += step)
    ticks.push(at);
  return { from, to, ticks };
}

/** Return where a time stands, in per cent of the axis. */
export function placeOf(axis: Axis, at: number): number {
  return Math.min(100, Math.max(0, ((at - axis.from) / (axis.to - axis.from)) * 100));
}
