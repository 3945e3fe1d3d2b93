// A job's life on one axis of time: each attempt on a line of its own, with the wait before it.

import type { Step } from "../api/types";
import { clock, DAY, duration, instant, seconds, workerName, type Zone } from "../format";
import { zone } from "../settings";
import { useStore } from "../store";
import { type Axis, axisOf, type Line, linesOf, placeOf, SECOND } from "../timeline";
import { LevelMark } from "./Level";

const LEAST = 0.42; // per cent: what is shorter would not be seen

export function Timeline({ steps, nowMs }: { steps: readonly Step[]; nowMs: number }) {
  const axis = axisOf(steps, nowMs);
  const where = useStore(zone);
  return (
    <div class="tl" role="list" aria-label="Timeline">
      {linesOf(steps).map((line, at) => (
        <TimelineLine key={at} line={line} axis={axis} nowMs={nowMs} where={where} />
      ))}
      <div />
      <div class="ax" aria-hidden="true">
        <svg width="100%" height="18">
          {axis.ticks.map(tick => (
            <text key={tick} x={`${placeOf(axis, tick)}%`} y="13" text-anchor="middle">
              {labelOf(tick, axis, where)}
            </text>
          ))}
        </svg>
      </div>
      <div />
    </div>
  );
}

const MINUTE_MS = 60_000;

/** Return a time as short as the axis lets it be. */
function labelOf(at: number, { from, to, ticks }: Axis, where: Zone): string {
  const step = (ticks[1] ?? to) - (ticks[0] ?? from);
  if (step >= DAY) return instant(at, where).date.slice(5);
  return step < SECOND && at > from ? `+${at - from} ms` : clock(at, where, step < MINUTE_MS);
}

function TimelineLine({ line, axis, nowMs, where }: { line: Line; axis: Axis; nowMs: number; where: Zone }) {
  const { step } = line;
  const said = `${nameOf(step)}: ${lengthOf(line, nowMs)}`;
  return (
    <div class="contents" role="listitem" aria-label={said}>
      <div class="nm" aria-hidden="true">
        {step.kind !== "next" && step.kind !== "waited" && step.kind !== "backoff" && <LevelMark level={step.level} size={13} />}
        {nameOf(step)}
      </div>
      <div
        title={`${clock(step.from_ms, where)} to ${step.to_ms === null ? "now" : clock(step.to_ms, where)}`}
        aria-hidden="true"
      >
        <Bars line={line} axis={axis} nowMs={nowMs} />
      </div>
      <div class="du" aria-hidden="true">
        {lengthOf(line, nowMs)}
      </div>
    </div>
  );
}

function Bars({ line: { step, wait }, axis, nowMs }: { line: Line; axis: Axis; nowMs: number }) {
  const now = placeOf(axis, nowMs);
  const start = placeOf(axis, step.from_ms);
  const end = placeOf(axis, step.to_ms ?? nowMs);
  return (
    <svg width="100%" height="34" aria-hidden="true">
      {axis.ticks.map(tick => (
        <line key={tick} class="grid" x1={`${placeOf(axis, tick)}%`} x2={`${placeOf(axis, tick)}%`} y1="0" y2="34" />
      ))}
      {nowMs <= axis.to && <line class="mark" x1={`${now}%`} x2={`${now}%`} y1="0" y2="34" />}
      {wait !== null && <Thin from={placeOf(axis, wait.from_ms)} to={Math.min(start, now)} />}
      {isWait(step) ? (
        <>
          <Thin from={start} to={Math.min(end, now)} />
          {end > now && <line class="s-text ahead" x1={`${Math.max(start, now)}%`} x2={`${end}%`} y1="17" y2="17" />}
        </>
      ) : (
        <rect
          x={`${Math.min(start, 100 - LEAST)}%`}
          y="9"
          width={`${Math.max(LEAST, end - start)}%`}
          height="16"
          rx="3"
          class={fillOf(step)}
        />
      )}
    </svg>
  );
}

function Thin({ from, to }: { from: number; to: number }) {
  return <rect x={`${from}%`} y="16" width={`${Math.max(0, to - from)}%`} height="2" class="f-strong thin" />;
}

function isWait(step: Step): boolean {
  return step.kind === "waited" || step.kind === "backoff" || step.kind === "next";
}

function fillOf(step: Step): string {
  if (step.kind === "running") return "f-busy";
  return step.level === "act" ? "f-bad" : step.level === "look" ? "f-warn2" : "f-done";
}

export function nameOf(step: Step): string {
  switch (step.kind) {
    case "attempt":
      return step.attempt === null ? "attempt" : `attempt ${step.attempt}`;
    case "running":
      return step.attempt === null ? "runs" : `attempt ${step.attempt} runs`;
    case "lost":
      return step.worker === "" ? "lost" : `lost with ${workerName(step.worker)}`;
    case "next":
      return "next";
    case "waited":
      return step.to_ms === null ? "waits" : "waited";
    case "backoff":
      return "pause";
  }
}

function lengthOf({ step, wait }: Line, nowMs: number): string {
  const long = duration((step.to_ms ?? nowMs) - step.from_ms);
  if (step.kind === "next") return (step.to_ms ?? nowMs) > nowMs ? `in ${seconds((step.to_ms ?? nowMs) - nowMs)}` : "due";
  if (isWait(step)) return step.to_ms === null ? `for ${long}` : long;
  const runs = step.kind === "running" ? `runs for ${long}` : step.kind === "lost" ? `lost after ${long}` : `ran ${long}`;
  if (wait === null) return runs;
  const waited = duration(step.from_ms - wait.from_ms);
  return wait.kind === "waited" ? `waited ${waited}, ${runs}` : `after ${waited}, ${runs}`;
}
