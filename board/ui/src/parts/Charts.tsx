import { useState } from "preact/hooks";
import type { Range } from "../api/names";
import type { Series } from "../api/types";
import { setQuery } from "../router";
import { Chart, ChartTable, linesName } from "./Chart";
import { Panel } from "./Panel";

const RANGES: readonly [Range, string][] = [
  ["1h", "1 h"],
  ["24h", "24 h"],
];

/** Jobs over time and their waits, side by side, with one cursor. */
export function Charts({ series, range }: { series: Series; range: Range }) {
  const [isJobsTable, showJobs] = useState(false);
  const [isWaitsTable, showWaits] = useState(false);
  const step = series.step_ms === 60_000 ? "minute" : `${series.step_ms / 60_000} min`;
  return (
    <div class="two">
      <Panel
        title={`Jobs per ${step}`}
        more={
          <>
            {!series.is_complete && <span>older steps are still read</span>}
            <TableSwitch isOn={isJobsTable} onSwitch={showJobs} />
            <span class="ranges" role="group" aria-label="How far back">
              {RANGES.map(([name, text]) => (
                <button
                  key={name}
                  type="button"
                  aria-pressed={name === range}
                  onClick={() => setQuery({ range: name === "1h" ? null : name }, true)}
                >
                  {text}
                </button>
              ))}
            </span>
          </>
        }
      >
        <div class="body">{isJobsTable ? <ChartTable kind="jobs" series={series} /> : <Chart kind="jobs" series={series} />}</div>
      </Panel>
      <Panel
        title={linesName(series)}
        more={
          <>
            <span class="hide">log axis, ≈ within a factor of 2</span>
            <TableSwitch isOn={isWaitsTable} onSwitch={showWaits} />
          </>
        }
      >
        <div class="body">
          {isWaitsTable ? <ChartTable kind="waits" series={series} /> : <Chart kind="waits" series={series} />}
        </div>
      </Panel>
    </div>
  );
}

function TableSwitch({ isOn, onSwitch }: { isOn: boolean; onSwitch: (isOn: boolean) => void }) {
  return (
    <button type="button" aria-pressed={isOn} onClick={() => onSwitch(!isOn)}>
      table
    </button>
  );
}
