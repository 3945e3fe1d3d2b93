import { useState } from "preact/hooks";
import { post } from "../api";
import type { ScheduleRow, ScheduleTick } from "../api/types";
import { count, exact } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { useNow } from "../live";
import { A } from "../parts/A";
import { Note } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Empty } from "../parts/Empty";
import { Fresh } from "../parts/Fresh";
import { type Column, Head } from "../parts/Head";
import { Panel } from "../parts/Panel";
import { Question } from "../parts/Question";
import { Shown } from "../parts/Shown";
import { Time } from "../parts/Time";
import { classes } from "../parts/tone";
import { zone } from "../settings";
import { useStore } from "../store";
import { to } from "../url";

const COLUMNS: readonly Column[] = [
  { text: "schedule" },
  { text: "when" },
  { text: "zone" },
  { text: "next", isNum: true },
  { text: "last 20 ticks" },
  { text: "type" },
  { text: "note" },
  { text: "", isNum: true },
];

type Act = "run" | "pause" | "resume";
const WORDS: Record<Act, { verb: string; what: string }> = {
  run: { verb: "Run", what: "One job is sent now, beside the ticks: the next one fires when it would have." },
  pause: { verb: "Pause", what: "It fires no more until it is resumed. Ticks that pass meanwhile are not made up for." },
  resume: { verb: "Resume", what: "It fires again, at its next tick." },
};

/** All schedules: when they fire next, and what became of their last ticks. */
export default function Schedules() {
  useHeading("Schedules");
  const loaded = useLoad("schedules", {}, 5000);
  const [asked, ask] = useState<{ act: Act; name: string } | null>(null);
  const close = () => {
    ask(null);
    loaded.again();
  };
  const act = async (reason: string) => {
    if (asked === null) return "";
    const path = asked.act === "run" ? "schedules/run" : asked.act === "pause" ? "schedules/pause" : "schedules/resume";
    return (await post(path, { name: asked.name, reason })).text;
  };
  return (
    <Shown of={loaded}>
      {({ schedules }) => (
        <>
          <Table schedules={schedules} ask={ask} isBusy={asked !== null} />
          {asked !== null && (
            <Question
              title={`${WORDS[asked.act].verb} ${asked.name}${asked.act === "run" ? " now" : ""}?`}
              verb={`${WORDS[asked.act].verb} ${asked.name}`}
              onDo={act}
              onClose={close}
            >
              <p class="muted">{WORDS[asked.act].what}</p>
            </Question>
          )}
        </>
      )}
    </Shown>
  );
}

interface Props {
  schedules: readonly ScheduleRow[];
  ask: (asked: { act: Act; name: string }) => void;
  isBusy: boolean;
}

function Table({ schedules, ask, isBusy }: Props) {
  const held = useHeld(schedules, row => row.name, "", isBusy);
  const next = schedules.filter(row => row.next_ms.length > 0).sort((a, b) => (a.next_ms[0] ?? 0) - (b.next_ms[0] ?? 0))[0];
  return (
    <>
      <Fresh waiting={held.waiting} onShow={held.release} />
      <Panel
        title={`${count(schedules.length)} ${schedules.length === 1 ? "schedule" : "schedules"}`}
        note="ticks fire once over all workers"
        {...(next === undefined
          ? {}
          : {
              more: (
                <span>
                  next: {next.name} <Next at_ms={next.next_ms[0] ?? null} />
                </span>
              ),
            })}
      >
        {schedules.length === 0 ? (
          <Empty why="No schedule is in force. A worker writes down those of its handlers when it starts; others are added by a command:">
            <code>python -m runtime cron --help</code>
          </Empty>
        ) : (
          <div class="scroll" {...held.hands}>
            <table class="cards fit">
              <Head columns={COLUMNS} />
              <tbody>
                {held.rows.map(({ key, row, isGone, isNew }) => (
                  <Row key={key} row={row} ask={ask} name={classes(isGone && "isgone", isNew && "isnew")} />
                ))}
              </tbody>
            </table>
          </div>
        )}
      </Panel>
    </>
  );
}

/** When a schedule fires next: a tick that is due fires with the next look of a worker. */
function Next({ at_ms }: { at_ms: number | null }) {
  const now = useNow();
  return at_ms !== null && at_ms <= now ? <>now</> : <Time at_ms={at_ms} />;
}

function Row({ row, ask, name }: { row: ScheduleRow; ask: Props["ask"]; name: string }) {
  const where = useStore(zone);
  const nexts = row.next_ms.map(at => exact(at, where)).join("\n");
  return (
    <tr class={name}>
      <td class="c1">
        <span class="type" title={row.source}>
          {row.name}
        </span>
      </td>
      <td class="c3 clip" title={row.when}>
        {row.words || row.when}
      </td>
      <td class="faint">{row.zone || "–"}</td>
      <td class="num c2" title={nexts === "" ? undefined : `next:\n${nexts}`}>
        {row.is_paused ? "paused" : <Next at_ms={row.next_ms[0] ?? null} />}
      </td>
      <td>
        <Strip ticks={row.last} />
      </td>
      <td>{row.type === "" ? <span class="faint">–</span> : <A href={to("type", { type: row.type })}>{row.type}</A>}</td>
      <td class="c4">
        <Note level={row.level} text={row.note} />
      </td>
      <td class="num acts">
        <Button isSmall kind="quiet" right="operate" onClick={() => ask({ act: "run", name: row.name })}>
          Run now …
        </Button>
        <Button
          isSmall
          kind="quiet"
          right="operate"
          onClick={() => ask({ act: row.is_paused ? "resume" : "pause", name: row.name })}
        >
          {row.is_paused ? "Resume …" : "Pause …"}
        </Button>
      </td>
    </tr>
  );
}

const FILLS: Record<string, string> = {
  fired: "f-ok",
  done: "f-ok",
  sent: "f-ok",
  failed: "f-bad",
  dead: "f-bad",
  missed: "f-warn",
  late: "f-warn",
  skipped: "f-warn",
};

/** What became of the last ticks, the newest at the right: tall ones fired, low ones did not. */
function Strip({ ticks }: { ticks: readonly ScheduleTick[] }) {
  const where = useStore(zone);
  const counts = new Map<string, number>();
  for (const { outcome } of ticks) counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  const words = [...counts].map(([outcome, times]) => `${times} ${outcome}`).join(", ");
  if (ticks.length === 0) return <span class="faint">none yet</span>;
  return (
    <svg class="spark" width="118" height="14" viewBox="0 0 118 14" role="img" aria-label={`last ticks: ${words}`}>
      {ticks.map(({ at_ms, outcome }, at) => {
        const fill = FILLS[outcome];
        return (
          <rect
            key={at_ms}
            x={at * 6 + (20 - ticks.length) * 6}
            y={fill === undefined ? 5 : fill === "f-warn" ? 3 : 1}
            width="4"
            height={fill === undefined ? 4 : fill === "f-warn" ? 8 : 12}
            rx="1"
            class={fill ?? "f-strong off"}
          >
            <title>{`${exact(at_ms, where)}: ${outcome}`}</title>
          </rect>
        );
      })}
    </svg>
  );
}
