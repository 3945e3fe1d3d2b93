import { useEffect, useRef, useState } from "preact/hooks";
import type { Series } from "../api/types";
import { clock, count, duration } from "../format";
import type { Plot } from "../plot";
import { zone } from "../settings";
import { useStore } from "../store";

type Kind = "jobs" | "waits";

const load = () => import("../plot");

/** Return what the lines of a series are: waits are counted by priority, and of a type there are run times in their place. */
export function linesName(series: Series): string {
  return "" in series.waits_p95_ms ? "Run time, p95" : "Wait until start, p95";
}

/** A chart with a sentence above it, which gives way to the figures under the cursor. */
export function Chart({ kind, series }: { kind: Kind; series: Series }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<Plot | null>(null);
  const latest = useRef(series);
  latest.current = series;
  const where = useStore(zone);
  const [pointed, point] = useState<string | null>(null);
  const lines = kind === "jobs" ? "" : Object.keys(series.waits_p95_ms).join();
  useEffect(() => {
    let isHere = true;
    load().then(({ jobsPlot, waitsPlot }) => {
      if (!isHere || box.current === null) return;
      const make = kind === "jobs" ? jobsPlot : waitsPlot;
      plot.current = make(box.current, latest.current, zone.get(), point);
    });
    return () => {
      isHere = false;
      plot.current?.destroy();
      plot.current = null;
    };
  }, [kind, lines]);
  useEffect(() => plot.current?.update(series, where), [series, where]);
  const said = kind === "jobs" ? series.jobs_said : series.waits_said;
  const name = kind === "jobs" ? "Jobs in each step" : linesName(series);
  return (
    <figure>
      <figcaption>
        {kind === "jobs" && pointed === null && <Keys />}
        <span class="sum">{pointed ?? said}</span>
      </figcaption>
      <div class="plot" ref={box} role="img" aria-label={said === "" ? name : `${name}: ${said}`} />
    </figure>
  );
}

function Keys() {
  return (
    <>
      <span class="key">
        <i class="b-done" />
        done
      </span>
      <span class="key">
        <i class="b-retry" />
        failed, retried
      </span>
      <span class="key">
        <i class="b-dead" />
        dead
      </span>
    </>
  );
}

/** The same figures as a table, the newest first. */
export function ChartTable({ kind, series }: { kind: Kind; series: Series }) {
  const where = useStore(zone);
  const lines = Object.keys(series.waits_p95_ms);
  const heads = kind === "jobs" ? ["done", "retried", "dead"] : lines.map(name => name || "wait p95");
  const cells = (at: number) =>
    kind === "jobs"
      ? [series.done[at], series.retried[at], series.dead[at]].map(value => count(value))
      : lines.map(name => duration(series.waits_p95_ms[name]?.[at]));
  return (
    <section class="scroll chart-table" tabIndex={0} aria-label="Figures of the chart">
      <table>
        <thead>
          <tr>
            <th scope="col">from</th>
            {heads.map(head => (
              <th key={head} scope="col" class="num">
                {head}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {series.done
            .map((_, at) => (
              <tr key={at}>
                <td>{clock(series.start_ms + at * series.step_ms, where, false)}</td>
                {cells(at).map((text, column) => (
                  <td key={heads[column]} class="num">
                    {text}
                  </td>
                ))}
              </tr>
            ))
            .reverse()}
        </tbody>
      </table>
    </section>
  );
}
