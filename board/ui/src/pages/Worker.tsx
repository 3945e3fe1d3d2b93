import { useState } from "preact/hooks";
import { post } from "../api";
import type { JobRow, Worker as Shape } from "../api/types";
import { bytes, count, duration } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Note } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Empty } from "../parts/Empty";
import { Facts } from "../parts/Facts";
import { Duration } from "../parts/Figure";
import { Fresh } from "../parts/Fresh";
import { type Column, Head } from "../parts/Head";
import { LevelMark } from "../parts/Level";
import { Cells } from "../parts/Meter";
import { Panel } from "../parts/Panel";
import { Pri } from "../parts/Pri";
import { Question } from "../parts/Question";
import { Shown } from "../parts/Shown";
import { classes } from "../parts/tone";
import { useRoute } from "../router";
import { to } from "../url";
import { beatWords, orderWords } from "./Workers";

const COLUMNS: readonly Column[] = [
  { text: "type" },
  { text: "job" },
  { text: "priority" },
  { text: "runs for", isNum: true },
  { text: "timeout", isNum: true },
  { text: "deliveries", isNum: true },
  { text: "attempt", isNum: true },
  { text: "note" },
];

/** One worker with what it runs. */
export default function Worker() {
  const name = useRoute().query.get("name") ?? "";
  const loaded = useLoad("worker", { name }, 2000);
  useHeading(loaded.data?.row.label ?? name, [{ text: "Workers", href: "workers" }]);
  return (
    <Shown of={loaded}>
      {shown => (
        <>
          <Top shown={shown} again={loaded.again} />
          {shown.blocked.length > 0 && (
            <section class={shown.row.level === "act" ? "panel hurt" : "panel hurt iswarn"} aria-label="The loop is blocked">
              <p>
                <LevelMark level={shown.row.level === "act" ? "act" : "look"} />{" "}
                <b>Something held up the loop of this worker: all its other jobs waited meanwhile.</b>
              </p>
              <Facts facts={shown.blocked} />
            </section>
          )}
          <Jobs jobs={shown.jobs} name={name} busy={shown.row.busy} />
          <Panel title="Facts">
            <div class="body">
              <Facts facts={shown.facts} />
            </div>
          </Panel>
        </>
      )}
    </Shown>
  );
}

type Order = "quiet" | "resume" | "stop";
const WORDS: Record<Order, { verb: string; what: string }> = {
  quiet: {
    verb: "Quiet",
    what: "It fetches nothing more and ends what it runs; what waits in its inbox goes back to the queue. Resume undoes it.",
  },
  resume: { verb: "Resume", what: "It fetches jobs again." },
  stop: {
    verb: "Stop",
    what: "It fetches nothing more, has its time of grace to end what it runs, gives the rest back and exits. What started it may start it again.",
  },
};

function Top({ shown, again }: { shown: Shape; again: () => void }) {
  const [asks, ask] = useState<Order | null>(null);
  const { row } = shown;
  const order = async (reason: string) =>
    asks === null ? "" : (await post("workers/order", { names: [row.name], verb: asks, reason })).text;
  const close = () => {
    ask(null);
    again();
  };
  const isQuiet = row.order === "quiet";
  return (
    <div class="row">
      <div class="lanes">
        <Cells busy={row.busy} lanes={row.lanes} />
      </div>
      <span class="muted">
        {count(row.busy)} of {count(row.lanes)} lanes busy, up {duration(row.up_ms)}, {bytes(row.rss_bytes)}, beat{" "}
        {beatWords(row)}
      </span>
      <Note level={row.level} text={row.note || orderWords(row)} />
      {row.is_alive && (
        <div class="row push">
          <Button right="operate" onClick={() => ask(isQuiet ? "resume" : "quiet")}>
            {isQuiet ? "Resume …" : "Quiet …"}
          </Button>
          <Button right="operate" kind="danger" onClick={() => ask("stop")}>
            Stop …
          </Button>
        </div>
      )}
      {asks !== null && (
        <Question
          title={`${WORDS[asks].verb} ${row.label}?`}
          verb={`${WORDS[asks].verb} ${row.label}`}
          isDanger={asks === "stop"}
          onDo={order}
          onClose={close}
        >
          <p class="muted">{WORDS[asks].what}</p>
          <p class="faint">
            It runs {count(row.busy)} and holds {count(row.held)} jobs now. No job is lost or burnt.
          </p>
        </Question>
      )}
    </div>
  );
}

function Jobs({ jobs, name, busy }: { jobs: readonly JobRow[]; name: string; busy: number }) {
  const held = useHeld(jobs, row => row.place, name, false);
  return (
    <>
      <Fresh waiting={held.waiting} onShow={held.release} />
      <Panel
        title="What it runs"
        note="the longest first, as of its last beat"
        more={
          <A class="link" href={to("jobs", { state: "claimed", q: `owner:${name}` })}>
            all it holds
          </A>
        }
      >
        {held.rows.length === 0 && (
          <Empty why={busy === 0 ? "It runs nothing now." : "What it runs was over before it could be looked at."} />
        )}
        <div class="scroll" hidden={held.rows.length === 0} {...held.hands}>
          <table class="cards fit">
            <Head columns={COLUMNS} />
            <tbody>
              {held.rows.map(({ key, row, isGone, isNew }) => (
                <tr key={key} class={classes(isGone && "isgone", isNew && "isnew")}>
                  <td class="c1">
                    <A class="type" href={to("job", { place: row.place, id: row.id })} isRow>
                      {row.type}
                    </A>
                  </td>
                  <td class="c3">
                    <code>{row.id}</code>
                  </td>
                  <td>
                    <Pri name={row.pri} />
                  </td>
                  <td class="num c2">
                    <Duration ms={row.claim?.runs_ms ?? null} />
                  </td>
                  <td class="num">
                    <Duration ms={row.claim?.timeout_ms ?? null} />
                  </td>
                  <td class="num">{count(row.claim?.deliveries)}</td>
                  <td class="num faint">
                    {row.attempt}
                    {row.attempts !== null && ` of ${row.attempts}`}
                  </td>
                  <td class="c4">{row.note !== null && <Note level={row.note.level} text={row.note.text} />}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
    </>
  );
}
