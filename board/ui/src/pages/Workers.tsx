import type { Workers as Shape, WorkerRow } from "../api/types";
import { bytes, count, duration } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Note } from "../parts/Badge";
import { Empty } from "../parts/Empty";
import { Duration } from "../parts/Figure";
import { Fresh } from "../parts/Fresh";
import { type Column, Head } from "../parts/Head";
import { Cells } from "../parts/Meter";
import { Panel } from "../parts/Panel";
import { Said } from "../parts/Said";
import { Shown } from "../parts/Shown";
import { classes } from "../parts/tone";
import { to } from "../url";

const COLUMNS: readonly Column[] = [
  { text: "worker" },
  { text: "host" },
  { text: "version" },
  { text: "up", isNum: true },
  { text: "memory", isNum: true },
  { text: "loop lag", isNum: true },
  { text: "lanes" },
  { text: "busy", isNum: true },
  { text: "longest" },
  { text: "beat", isNum: true },
  { text: "note" },
];

/** All workers: those that beat, and those that are gone while they hold jobs. */
export default function Workers() {
  useHeading("Workers");
  const loaded = useLoad("workers", {}, 2000);
  return <Shown of={loaded}>{shown => <Table shown={shown} />}</Shown>;
}

function Table({ shown }: { shown: Shape }) {
  const held = useHeld(shown.workers, row => row.name, "", false);
  return (
    <>
      <Fresh waiting={held.waiting} onShow={held.release} />
      <Panel title={<Said parts={shown.said} />} more={<span class="hide">a row says how it was at its last beat</span>}>
        {shown.workers.length === 0 && (
          <Empty why="No worker beats. Jobs that are sent wait for one.">
            <code>python -m runtime run</code>
          </Empty>
        )}
        <div class="scroll" hidden={held.rows.length === 0} {...held.hands}>
          <table class="cards fit">
            <Head columns={COLUMNS} />
            <tbody>
              {held.rows.map(({ key, row, isGone, isNew }) => (
                <Row key={key} row={row} name={classes(isGone && "isgone", isNew && "isnew")} />
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
    </>
  );
}

function Row({ row, name }: { row: WorkerRow; name: string }) {
  return (
    <tr class={name}>
      <td class="c1">
        <A class="type" href={to("worker", { name: row.name })} title={row.name} isRow>
          {row.label}
        </A>
      </td>
      <td class="clip">{row.host}</td>
      <td>
        <code>{row.app || row.version}</code>
      </td>
      <td class="num">
        <Duration ms={row.up_ms} />
      </td>
      <td class="num">{bytes(row.rss_bytes)}</td>
      <td class="num">
        <Duration ms={row.lag_ms} />
      </td>
      <td class="wide-cell">
        <Cells busy={row.busy} lanes={row.lanes} />
      </td>
      <td class="num c2">
        {count(row.busy)}
        <span class="unit"> / {count(row.lanes)}</span>
      </td>
      <td class="c3 clip">
        {row.longest === null ? <span class="faint">–</span> : `${duration(row.longest.runs_ms)} ${row.longest.type}`}
      </td>
      <td class={classes("num", row.is_alive ? "faint" : "bad strong")}>{beatWords(row)}</td>
      <td class="c4">
        <Note level={row.level} text={row.note || orderWords(row)} />
      </td>
    </tr>
  );
}

/** Return since when a worker is silent, in whole seconds: it beats about once a second. */
export function beatWords({ beat_ms }: WorkerRow): string {
  return `${duration(Math.max(1, Math.round(beat_ms / 1000)) * 1000)} ago`;
}

/** Return what a worker was told, or is doing, where that is not its usual. */
export function orderWords({ order, stage }: WorkerRow): string {
  if (order !== "" && order !== "run") return order;
  return stage === "" || stage === "running" ? "" : stage;
}
