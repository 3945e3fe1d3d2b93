import type { TypeRow } from "../api/types";
import { count, percent } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Note } from "../parts/Badge";
import { Empty } from "../parts/Empty";
import { Count, Duration, Rate } from "../parts/Figure";
import { Fresh } from "../parts/Fresh";
import { type Column, Head } from "../parts/Head";
import { Panel } from "../parts/Panel";
import { Pri, PRIORITIES } from "../parts/Pri";
import { Shown } from "../parts/Shown";
import { Spark } from "../parts/Spark";
import { classes, quietTone } from "../parts/tone";
import { useRoute } from "../router";
import { type By, sorted } from "../sort";
import { to } from "../url";

const COLUMNS: readonly Column[] = [
  { text: "type", by: "type" },
  { text: "priority", by: "priority" },
  { text: "runs, last hour" },
  { text: "runs", isNum: true, by: "runs" },
  { text: "failed", isNum: true, by: "failed" },
  { text: "run p50", isNum: true },
  { text: "p95", isNum: true, by: "p95" },
  { text: "p99", isNum: true },
  { text: "claimed", isNum: true, by: "claimed" },
  { text: "dead", isNum: true, by: "dead" },
  { text: "waiting", isNum: true, by: "waiting", title: "about: of the oldest and newest entries of each priority" },
  { text: "note" },
];

const BY: By<TypeRow> = {
  type: row => row.type,
  priority: row => (row.pri === null ? null : -PRIORITIES.indexOf(row.pri)),
  runs: row => row.runs_s,
  failed: row => row.failed_part,
  p95: row => row.p95_ms,
  claimed: row => row.claimed,
  dead: row => row.dead,
  waiting: row => row.waiting,
};

/** All types, those that fail most first. */
export default function Types() {
  useHeading("Types");
  const loaded = useLoad("types", {}, 5000);
  return <Shown of={loaded}>{({ types }) => <Table types={types} />}</Shown>;
}

function Table({ types }: { types: readonly TypeRow[] }) {
  const order = useRoute().query.get("sort") ?? "failed";
  const held = useHeld(sortedOnce(types, order), row => row.type, order, false);
  const ran = types.filter(row => row.runs_hour.some(value => (value ?? 0) > 0)).length;
  return (
    <>
      <Fresh waiting={held.waiting} onShow={held.release} />
      <Panel
        title={`${count(types.length)} types, ${count(ran)} ran in the last hour`}
        note="Rates and shares are of 5 min; waiting is estimated from the oldest and newest entries of each priority."
      >
        {types.length === 0 && (
          <Empty why="No worker has registered a type yet, and none was seen in a day. A worker writes its types down when it starts." />
        )}
        <div class="scroll" hidden={held.rows.length === 0} {...held.hands}>
          <table class="cards fit">
            <Head columns={COLUMNS} order="failed" />
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

// The rows are held by their identity: sorted once for each answer.
const kept = new WeakMap<readonly TypeRow[], Map<string, TypeRow[]>>();

function sortedOnce(types: readonly TypeRow[], order: string): TypeRow[] {
  const orders = kept.get(types) ?? new Map<string, TypeRow[]>();
  kept.set(types, orders);
  const found = orders.get(order) ?? sorted(types, BY, order);
  orders.set(order, found);
  return found;
}

function Row({ row, name }: { row: TypeRow; name: string }) {
  const tone = quietTone(row.level);
  const ran = row.runs_hour.some(value => (value ?? 0) > 0);
  return (
    <tr class={name}>
      <td class="c1">
        <A class="type" href={to("type", { type: row.type })} isRow>
          {row.type}
        </A>
      </td>
      <td>
        <Pri name={row.pri} />
      </td>
      <td>
        {ran ? (
          <Spark values={row.runs_hour} tone="text" label="runs in the last hour" width={84} height={22} />
        ) : (
          <span class="faint">quiet</span>
        )}
      </td>
      <td class="num c3">{row.runs === 0 ? <span class="faint">–</span> : <Rate value={row.runs_s} />}</td>
      <td class={`num c2 ${row.failed > 0 ? tone : ""} ${row.failed > 0 && tone ? "strong" : ""}`}>
        {row.runs === 0 ? <span class="faint">–</span> : percent(row.failed_part)}
      </td>
      <td class="num">
        <Duration ms={row.p50_ms} />
      </td>
      <td class="num">
        <Duration ms={row.p95_ms} />
      </td>
      <td class="num">
        <Duration ms={row.p99_ms} />
      </td>
      <td class="num">
        <Count value={row.claimed} />
      </td>
      <td class="num">
        <Count value={row.dead} />
      </td>
      <td class="num">
        {row.waiting !== null && row.waiting > 0 && "≈ "}
        <Count value={row.waiting} />
      </td>
      <td class="c4">
        <Note level={row.level} text={row.note || (row.is_known ? "" : "no worker knows it")} />
      </td>
    </tr>
  );
}
