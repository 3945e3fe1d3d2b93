import { useState } from "preact/hooks";
import type { Lot, Pause, Queue as Shape, QueueRow } from "../api/types";
import { about } from "../api";
import { bytes, count, plural } from "../format";
import { useHeading } from "../heading";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Badge } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Empty } from "../parts/Empty";
import { Count, Duration } from "../parts/Figure";
import { type Column, Head } from "../parts/Head";
import { Panel } from "../parts/Panel";
import { PauseQuestion, ResumeQuestion, type What } from "../parts/Pausing";
import { Pri } from "../parts/Pri";
import { Said } from "../parts/Said";
import { Shown } from "../parts/Shown";
import { Time } from "../parts/Time";
import { quietTone } from "../parts/tone";
import { useStore } from "../store";
import { to } from "../url";

interface Asked {
  kind: "pause" | "resume";
  what: What;
  name: string;
}

const COLUMNS: readonly Column[] = [
  { text: "priority" },
  { text: "waiting", isNum: true },
  { text: "claimed", isNum: true },
  { text: "in lots", isNum: true },
  { text: "oldest", isNum: true },
  { text: "bytes a job", isNum: true, title: "about" },
  { text: "memory", isNum: true, title: "about" },
  { text: "paused" },
  { text: "", isNum: true },
];

/** What the queue holds, what waits for something else than a free lane, and what is held back. */
export default function Queue() {
  useHeading("Queue");
  const queue = useStore(about, now => now?.queue ?? "");
  const loaded = useLoad("queue", {}, 2000);
  const [asked, ask] = useState<Asked | null>(null);
  const close = () => {
    ask(null);
    loaded.again();
  };
  return (
    <Shown of={loaded}>
      {shown => (
        <>
          <Streams shown={shown} queue={queue} ask={ask} />
          {shown.pauses.length > 0 && <Pauses pauses={shown.pauses} queue={queue} ask={ask} />}
          <Lots lots={shown.lots} />
          {asked?.kind === "pause" && <PauseQuestion what={asked.what} name={asked.name} onClose={close} />}
          {asked?.kind === "resume" && <ResumeQuestion what={asked.what} name={asked.name} onClose={close} />}
        </>
      )}
    </Shown>
  );
}

function Streams({ shown, queue, ask }: { shown: Shape; queue: string; ask: (asked: Asked) => void }) {
  return (
    <Panel
      title="By priority"
      note={<Said parts={shown.said} />}
      more={
        <Button isSmall right="operate" onClick={() => ask({ kind: "pause", what: { is_all: true }, name: queue })}>
          Pause all …
        </Button>
      }
    >
      <div class="scroll">
        <table class="tall cards">
          <Head columns={COLUMNS} />
          <tbody>
            {shown.rows.map(row => (
              <Stream key={row.name} row={row} ask={ask} />
            ))}
          </tbody>
        </table>
      </div>
      <p class="pad faint foot-line">
        <A href={to("jobs", { state: "delayed" })}>
          {count(shown.delayed)} delayed, {bytes(shown.delayed_bytes)}
        </A>
        {" · "}
        <A href="dead">
          {plural(shown.dead, "dead letter")}, {bytes(shown.dead_bytes)}
        </A>
        {" · "}
        {bytes(shown.memory_bytes)} used{shown.max_memory_bytes > 0 && ` of ${bytes(shown.max_memory_bytes)}`} by the whole server
      </p>
    </Panel>
  );
}

function Stream({ row, ask }: { row: QueueRow; ask: (asked: Asked) => void }) {
  const name = row.name;
  return (
    <tr>
      <td class="c1">
        <A href={to("jobs", { state: "waiting", q: `pri:${name}` })} isRow>
          <Pri name={name} />
        </A>
      </td>
      <td class="num c2">
        <span class="figure">{count(row.waiting)}</span>
      </td>
      <td class="num">
        <Count value={row.claimed} />
      </td>
      <td class="num">
        <Count value={row.lots} />
      </td>
      <td class="num">
        <Duration ms={row.oldest_ms} />
      </td>
      <td class="num">{row.bytes_per_job === null ? <span class="faint">–</span> : `≈ ${bytes(row.bytes_per_job)}`}</td>
      <td class="num">{row.bytes === null ? <span class="faint">–</span> : `≈ ${bytes(row.bytes)}`}</td>
      <td class="c3 clip">{row.pause !== null && <span title={row.pause}>{row.pause}</span>}</td>
      <td class="num c4">
        <Button
          isSmall
          right="operate"
          onClick={() => ask({ kind: row.pause === null ? "pause" : "resume", what: { priority: name }, name })}
        >
          {row.pause === null ? "Pause …" : "Resume …"}
        </Button>
      </td>
    </tr>
  );
}

function whatOf(pause: Pause): What {
  if (pause.kind === "all") return { is_all: true };
  if (pause.kind === "type") return { type: pause.name };
  return { priority: pause.name as NonNullable<What["priority"]> };
}

function Pauses({ pauses, queue, ask }: { pauses: readonly Pause[]; queue: string; ask: (asked: Asked) => void }) {
  return (
    <Panel title="Paused" note="what is sent waits; what runs goes on">
      <div class="scroll">
        <table class="cards">
          <Head columns={[{ text: "what" }, { text: "until" }, { text: "by" }, { text: "reason" }, { text: "", isNum: true }]} />
          <tbody>
            {pauses.map(pause => {
              const name = pause.kind === "all" ? queue : pause.name;
              return (
                <tr key={`${pause.kind} ${pause.name}`}>
                  <td class="c1">
                    <Badge level="look">{pause.kind === "all" ? "the whole queue" : `${pause.kind} ${pause.name}`}</Badge>
                  </td>
                  <td class="c2">{pause.until_ms === null ? "it is resumed" : <Time at_ms={pause.until_ms} />}</td>
                  <td>{pause.by || "–"}</td>
                  <td class="cut c3" title={pause.reason}>
                    {pause.reason || <span class="faint">none given</span>}
                  </td>
                  <td class="num c4">
                    <Button isSmall right="operate" onClick={() => ask({ kind: "resume", what: whatOf(pause), name })}>
                      Resume …
                    </Button>
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function Lots({ lots }: { lots: readonly Lot[] }) {
  const all = lots.reduce((sum, lot) => sum + lot.count, 0);
  return (
    <Panel title="Lots" {...(all > 0 ? { note: plural(all, "job") } : {})}>
      {lots.length === 0 ? (
        <Empty why="No job waits for anything but a free lane: all types are known, nothing is suspect, no limit holds one back." />
      ) : (
        <div class="scroll">
          <table class="cards">
            <Head
              columns={[
                { text: "lot" },
                { text: "priority" },
                { text: "jobs", isNum: true },
                { text: "longest", isNum: true },
                { text: "what they wait for" },
              ]}
            />
            <tbody>
              {lots.map(lot => (
                <tr key={`${lot.name} ${lot.pri}`}>
                  <td class="c1">
                    <code title={lot.name}>{lot.name}</code>
                  </td>
                  <td>
                    <Pri name={lot.pri} />
                  </td>
                  <td class="num c2">{count(lot.count)}</td>
                  <td class="num">
                    <Duration ms={lot.oldest_ms} />
                  </td>
                  <td class={`cut c3 ${quietTone(lot.level)}`} title={lot.text}>
                    {lot.text}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}
