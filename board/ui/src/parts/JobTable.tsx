// The table of jobs: which columns each state has, and the row that opens below a job.
import type { ComponentChildren } from "preact";
import type { JobRow } from "../api/types";
import { bytes, count, duration, exact, NONE, seconds, visible, workerName } from "../format";
import { useNow } from "../live";
import { zone } from "../settings";
import { useStore } from "../store";
import { Badge } from "./Badge";
import { Cut } from "./Cut";
import { Meter } from "./Meter";
import { Pri } from "./Pri";
import { Time } from "./Time";
import { classes } from "./tone";

export type ListState = "waiting" | "claimed" | "delayed" | "finished";
export type Sort = "oldest" | "newest" | "longest" | "due";

interface Column {
  readonly name: string;
  readonly head: string;
  readonly title?: string;
  /** Its place on a phone: c1 and c2 above, c3 and c4 below; elsewhere it is left out. */
  readonly cls: string;
  readonly sorts?: readonly Sort[];
  readonly cell: (row: JobRow) => ComponentChildren;
}

const type: Column = {
  name: "type",
  head: "type",
  cls: "c1",
  cell: row => (
    <span class="type" title={visible(row.type)}>
      {visible(row.type)}
    </span>
  ),
};
const job: Column = { name: "job", head: "job", cls: "job", cell: row => <code title={visible(row.id)}>{visible(row.id)}</code> };
const pri: Column = { name: "pri", head: "pri", title: "priority", cls: "", cell: row => <Pri name={row.pri} isBare /> };
const attempt: Column = {
  name: "attempt",
  head: "attempt",
  cls: "num",
  cell: row => (
    <span class={row.attempt > 1 ? "" : "faint"}>
      {row.attempts === null ? row.attempt : `${row.attempt} of ${row.attempts}`}
    </span>
  ),
};
const note: Column = {
  name: "note",
  head: "note",
  cls: "c4",
  cell: row => row.note !== null && <Badge level={row.note.level}>{row.note.text}</Badge>,
};
const args: Column = {
  name: "args",
  head: "arguments",
  cls: "cut",
  cell: row => row.args !== null && <Cut text={row.args} isCode />,
};
const error: Column = {
  name: "error",
  head: "error",
  cls: "error",
  cell: row => row.error !== "" && <Cut text={row.error} />,
};
const owner: Column = {
  name: "owner",
  head: "owner",
  cls: "c3",
  cell: row => row.claim !== null && <span title={row.claim.owner}>{row.claim.label}</span>,
};
const runs: Column = {
  name: "runs",
  head: "runs for",
  cls: "num c2",
  sorts: ["longest"],
  cell: row => duration(row.claim?.runs_ms ?? null),
};
const timeout: Column = {
  name: "timeout",
  head: "of timeout",
  cls: "bar-cell",
  cell: row => <TimeoutBar row={row} />,
};
const lease: Column = {
  name: "lease",
  head: "lease",
  title: "what is left of the time for which its worker holds it",
  cls: "num",
  cell: row => row.claim !== null && <Lease left_ms={row.claim.lease_ms} />,
};
const deliveries: Column = {
  name: "deliveries",
  head: "deliveries",
  cls: "num",
  cell: row =>
    row.claim !== null && <span class={row.claim.deliveries > 1 ? "strong" : "faint"}>{count(row.claim.deliveries)}</span>,
};
const age: Column = {
  name: "age",
  head: "age",
  cls: "num c2",
  sorts: ["oldest", "newest"],
  cell: row => duration(row.age_ms),
};
const size: Column = { name: "size", head: "size", cls: "num", cell: row => <span class="faint">{bytes(row.size)}</span> };
const source: Column = {
  name: "source",
  head: "sent by",
  cls: "c3",
  cell: row => row.source !== "" && <Cut text={row.source} />,
};
const waits: Column = {
  name: "waits",
  head: "waits for",
  cls: "c4",
  cell: row => row.waits !== "" && <Cut text={row.waits.replace(/^waits? for /, "")} />,
};
const due: Column = {
  name: "due",
  head: "next run",
  cls: "num c2",
  sorts: ["due", "newest"],
  cell: row => (row.due_ms === null ? NONE : <Due at_ms={row.due_ms} />),
};
const outcome: Column = {
  name: "outcome",
  head: "outcome",
  cls: "c4",
  cell: row => row.end !== null && <Outcome text={row.end.outcome} />,
};
const wait: Column = { name: "wait", head: "waited", cls: "num", cell: row => duration(row.end?.wait_ms ?? null) };
const run: Column = { name: "run", head: "ran", cls: "num c2", cell: row => duration(row.end?.run_ms ?? null) };
const worker: Column = {
  name: "worker",
  head: "worker",
  cls: "c3",
  cell: row => row.end !== null && <span title={row.end.worker}>{workerName(row.end.worker)}</span>,
};
const ended: Column = { name: "at", head: "ended", cls: "num", cell: row => row.end !== null && <Time at_ms={row.end.at_ms} /> };

export const COLUMNS: Record<ListState, readonly Column[]> = {
  claimed: [type, job, pri, owner, runs, timeout, lease, deliveries, attempt, note, args],
  waiting: [type, job, pri, age, attempt, size, source, waits, args],
  delayed: [type, job, pri, due, attempt, { ...error, cls: "error c3" }, note, args],
  finished: [type, job, pri, outcome, wait, run, worker, attempt, ended, { ...error, cls: "cut" }],
};

function Outcome({ text }: { text: string }) {
  const level = text === "done" ? null : text === "dead" ? "act" : "look";
  return level === null ? <span class="muted">{text}</span> : <Badge level={level}>{text}</Badge>;
}

function Due({ at_ms }: { at_ms: number }) {
  const left = at_ms - useNow();
  const where = useStore(zone);
  return left > 0 ? <span title={exact(at_ms, where)}>in {seconds(left)}</span> : <span class="warn">due</span>;
}

function Lease({ left_ms }: { left_ms: number }) {
  if (left_ms >= 0) return <>{seconds(left_ms)}</>;
  return <span class="bad strong">over by {seconds(-left_ms)}</span>;
}

const NEAR = 0.8; // of its timeout: from here on the bar asks for a look

function TimeoutBar({ row }: { row: JobRow }) {
  const { claim } = row;
  if (claim === null || claim.runs_ms === null || claim.timeout_ms === null || claim.timeout_ms <= 0) return null;
  const part = Math.min(1, claim.runs_ms / claim.timeout_ms);
  return (
    <span title={`${Math.round(part * 100)} % of ${duration(claim.timeout_ms)}`}>
      <Meter part={part} tone={part >= NEAR ? "warn" : "text"} />
      <span class="sr">{`${Math.round(part * 100)} %`}</span>
    </span>
  );
}

interface HeadProps {
  readonly state: ListState;
  readonly sort: Sort | null;
  readonly onSort: (sort: Sort) => void;
  readonly mark: ComponentChildren;
}

/** The head of the table; a column that sorts is a button. */
export function JobHead({ state, sort, onSort, mark }: HeadProps) {
  return (
    <thead>
      <tr>
        {mark !== null && <th class="m">{mark}</th>}
        {COLUMNS[state].map(column => {
          const { sorts } = column;
          const at = sort === null ? -1 : (sorts?.indexOf(sort) ?? -1);
          const sorted = at === -1 ? undefined : sort === "newest" || sort === "due" ? "ascending" : "descending";
          const next = sorts?.[(at + 1) % sorts.length];
          return (
            <th
              key={column.name}
              class={`${column.cls} w-${column.name}${at >= 0 ? " sort" : ""}`}
              title={column.title}
              aria-sort={sorted}
            >
              {next === undefined ? (
                column.head
              ) : (
                <button type="button" onClick={() => onSort(next)}>
                  {column.head}
                  {at >= 0 && <span class="arrow">{sorted === "ascending" ? "↑" : "↓"}</span>}
                </button>
              )}
            </th>
          );
        })}
      </tr>
    </thead>
  );
}

interface RowProps {
  readonly row: JobRow;
  readonly state: ListState;
  readonly mark: ComponentChildren;
  readonly isMarked: boolean;
  readonly isOpen: boolean;
  readonly isGone: boolean;
  readonly isNew: boolean;
  readonly onOpen: () => void;
}

export function JobLine({ row, state, mark, isMarked, isOpen, isGone, isNew, onOpen }: RowProps) {
  const click = (event: MouseEvent) => {
    const isOther = event.target instanceof Element && event.target.closest("a, button, input, label") !== null;
    const isChoosing = (getSelection()?.toString() ?? "") !== "";
    if (!isOther && !isChoosing) onOpen();
  };
  return (
    <tr class={classes(isMarked && "sel", isOpen && "open", isGone && "isgone", isNew && "isnew")} onClick={click}>
      {mark !== null && <td class="m">{mark}</td>}
      {COLUMNS[state].map((column, at) => (
        <td key={column.name} class={column.cls}>
          {at === 0 ? (
            <button type="button" data-row class="opens" aria-expanded={isOpen} onClick={onOpen}>
              {column.cell(row)}
              {isGone && <span class="sr">, no longer in this list</span>}
            </button>
          ) : (
            column.cell(row)
          )}
        </td>
      ))}
    </tr>
  );
}
