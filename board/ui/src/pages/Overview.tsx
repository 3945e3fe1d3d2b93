import type { Overview as Shape, Priority, TypeRow, Verdict } from "../api/types";
import { count, duration, percent, rate } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { live, useFrame, useTopic } from "../live";
import { A } from "../parts/A";
import { Charts } from "../parts/Charts";
import { Count, Duration, Rate } from "../parts/Figure";
import { FirstMinute } from "../parts/FirstMinute";
import { GroupList } from "../parts/GroupList";
import { LevelMark, LevelWord } from "../parts/Level";
import { Cells } from "../parts/Meter";
import { Panel } from "../parts/Panel";
import { Pri } from "../parts/Pri";
import { Said, saidText } from "../parts/Said";
import { Skeleton } from "../parts/Shown";
import { Spark } from "../parts/Spark";
import { quietTone, toneOf } from "../parts/tone";
import { useRoute } from "../router";
import { useStore } from "../store";
import { to } from "../url";

const QUESTIONS = {
  stuck: "Is anything stuck?",
  failing: "Why do jobs fail?",
  workers: "What do workers do?",
  died: "What died?",
} as const;

/** The first page: what needs somebody, then how everything goes. */
export default function Overview() {
  useHeading("Overview");
  const range = useRoute().query.get("range") === "24h" ? "24h" : "1h";
  useTopic("overview", range);
  const shown = useStore(live, now => now.overview);
  if (shown === null) {
    return (
      <>
        <Skeleton lines={2} />
        <Skeleton lines={5} />
      </>
    );
  }
  return (
    <>
      <Verdicts verdicts={shown.verdicts} />
      {shown.hint === "" ? (
        <>
          <Priorities shown={shown} />
          <Charts series={shown.series} range={range} />
          <Lists shown={shown} />
        </>
      ) : (
        <FirstMinute shown={shown} />
      )}
    </>
  );
}

function Verdicts({ verdicts }: { verdicts: readonly Verdict[] }) {
  if (verdicts.every(verdict => verdict.level === "ok")) {
    return (
      <section class="panel calm" aria-label="What needs you">
        <LevelMark level="ok" size={16} />
        <p>
          <b>Nothing needs you.</b> <span class="muted">{verdicts.map(verdict => saidText(verdict.said)).join(" ")}</span>
        </p>
      </section>
    );
  }
  return (
    <section class="panel verdicts" aria-label="What needs you">
      {verdicts.map(({ question, level, said, href }) => (
        <A key={question} href={href} class={`is${toneOf(level)}`}>
          <span class="q">
            {QUESTIONS[question]}
            <LevelWord level={level} />
          </span>
          <span class="say">
            <Said parts={said} />
          </span>
        </A>
      ))}
    </section>
  );
}

function Priorities({ shown }: { shown: Shape }) {
  const now_ms = useFrame()?.now_ms ?? 0;
  return (
    <Panel
      title="By priority"
      note="Waiting counts jobs that nobody has fetched; rates are of the last 10 s."
      more={
        <A href={to("jobs", { state: "delayed" })}>
          {count(shown.delayed)} delayed
          {shown.next_due_ms !== null &&
            ` · next ${shown.next_due_ms <= now_ms ? "now" : `in ${duration(shown.next_due_ms - now_ms)}`}`}
        </A>
      }
    >
      <div class="scroll">
        <table class="tall cards priorities">
          <thead>
            <tr>
              <th scope="col">priority</th>
              <th scope="col" class="num">
                waiting
              </th>
              <th scope="col">last hour</th>
              {["oldest", "claimed", "added", "done"].map(head => (
                <th key={head} scope="col" class="num">
                  {head}
                </th>
              ))}
              <th scope="col">trend</th>
              {["wait p50", "p95", "run p95", "failed, 5 min"].map(head => (
                <th key={head} scope="col" class="num">
                  {head}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {shown.priorities.map(row => (
              <PriorityRow key={row.name} row={row} />
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function PriorityRow({ row }: { row: Priority }) {
  return (
    <tr>
      <td class="c1">
        <A href={to("jobs", { state: "waiting", q: `pri:${row.name}` })} isRow>
          <Pri name={row.name} />
        </A>
        {row.is_paused && <span class="badge warn">paused</span>}
      </td>
      <td class="num c2">
        <span class="figure">{count(row.waiting)}</span>
      </td>
      <td class="c4">
        <Spark values={row.depth} tone={row.name} label={`waiting in the last hour, now ${count(row.waiting)}`} />
      </td>
      <td class="num">
        <Duration ms={row.oldest_ms} tone={quietTone(row.level)} />
      </td>
      <td class="num">{count(row.claimed)}</td>
      <td class="num">
        <Rate value={row.added_s} />
      </td>
      <td class="num">
        <Rate value={row.done_s} />
      </td>
      <td class="c3">
        <TrendWords row={row} />
      </td>
      <td class="num">
        <Duration ms={row.wait_p50_ms} />
      </td>
      <td class="num">
        <Duration ms={row.wait_p95_ms} />
      </td>
      <td class="num">
        <Duration ms={row.run_p95_ms} />
      </td>
      <td class="num">
        <Count value={row.failed_5m} />
      </td>
    </tr>
  );
}

function TrendWords({ row }: { row: Priority }) {
  const { kind, empty_ms, grows_s } = row.trend;
  if (kind === "grows") return <span class="warn">grows by {rate(grows_s)}/s</span>;
  if (kind === "empty") return <span class="ok">empty in {duration(empty_ms)}</span>;
  return <>steady</>;
}

function Lists({ shown }: { shown: Shape }) {
  const types = useHeld(shown.types, row => row.type, "", false);
  const groups = useHeld(shown.groups, row => row.fp, "", false);
  const workers = useHeld(shown.workers, row => row.name, "", false);
  const needsLook = shown.types.some(row => row.level !== "ok");
  return (
    <div class="three">
      <Panel title={needsLook ? "Types that need a look" : "Types"} more={<A href="types">last 5 min</A>}>
        <table class="cards" {...types.hands}>
          <thead>
            <tr>
              <th scope="col">type</th>
              <th scope="col" class="num">
                runs
              </th>
              <th scope="col" class="num">
                failed
              </th>
              <th scope="col" class="num">
                run p95
              </th>
              <th scope="col">failed, last hour</th>
            </tr>
          </thead>
          <tbody>
            {types.rows.map(({ key, row }) => (
              <TypeLine key={key} row={row} />
            ))}
          </tbody>
        </table>
        {shown.types.length === 0 && <p class="pad faint">No type has run in the last day.</p>}
      </Panel>
      <Panel
        title="Dead letters"
        more={
          <A class="link" href="dead">
            {shown.all_groups > 1 ? `all ${count(shown.all_groups)} groups` : "all of them"}
          </A>
        }
      >
        <div {...groups.hands}>
          <GroupList groups={groups.rows.map(({ row }) => row)} isGrouped={shown.is_grouped} />
        </div>
      </Panel>
      <Panel title="Workers" more="busy lanes">
        <div {...workers.hands}>
          {workers.rows.map(({ key, row }) => (
            <A key={key} class="worker" href={to("worker", { name: row.name })}>
              <span class="line">
                {row.level !== "ok" && <LevelMark level={row.level} size={12} />}
                <b>{row.label}</b>
                <span class="num">
                  {count(row.busy)} / {count(row.lanes)}
                </span>
              </span>
              <Cells busy={row.busy} lanes={row.lanes} />
              <span class="note faint">
                {row.note ||
                  (row.longest === null ? "nothing runs" : `${row.longest.type}, ${duration(row.longest.runs_ms)} longest`)}
              </span>
            </A>
          ))}
        </div>
        {shown.workers.length === 0 && <p class="pad bad">No worker beats.</p>}
      </Panel>
    </div>
  );
}

function TypeLine({ row }: { row: TypeRow }) {
  const tone = quietTone(row.level);
  const failed = row.failed_hour.some(value => (value ?? 0) > 0);
  return (
    <tr>
      <td class="c1 clip">
        <A class="type" href={to("type", { type: row.type })} title={row.type} isRow>
          {row.type}
        </A>
      </td>
      <td class="num c3">
        {count(row.runs)}
        <span class="only-s"> runs</span>
      </td>
      <td class={`num c2 ${tone} ${tone && "strong"}`}>{percent(row.failed_part)}</td>
      <td class="num">
        <Duration ms={row.p95_ms} />
      </td>
      <td>
        {failed ? (
          <Spark values={row.failed_hour} tone={tone || "text"} label="failures in the last hour" width={72} height={20} />
        ) : (
          <span class="faint">no failure</span>
        )}
      </td>
    </tr>
  );
}
