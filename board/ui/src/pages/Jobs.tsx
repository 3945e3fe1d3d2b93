// Jobs: those that wait, that a worker has, that are delayed, and a sample of those that have ended.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { about, get, Refusal } from "../api";
import type { Jobs as Answer, JobRow } from "../api/types";
import { count, plural } from "../format";
import { useHeading } from "../heading";
import { type HeldRows, type Row, useHeld } from "../held";
import { useFrame } from "../live";
import { type Loaded, useLoad } from "../load";
import { say } from "../notice";
import { A } from "../parts/A";
import { Button } from "../parts/Button";
import { Empty } from "../parts/Empty";
import { Facet } from "../parts/Facet";
import { Fresh } from "../parts/Fresh";
import { AllAsk, JobAsk, type JobVerb } from "../parts/JobAsk";
import { COLUMNS, JobHead, JobLine, type ListState, type Sort } from "../parts/JobTable";
import { JobUnder } from "../parts/JobUnder";
import { MarkBox, MarksBar } from "../parts/MarksBar";
import { type Marks, useMarks } from "../parts/marks";
import { Operations } from "../parts/Operations";
import { Said, saidText } from "../parts/Said";
import { Shown } from "../parts/Shown";
import { useCan } from "../rights";
import { setQuery, useRoute } from "../router";
import { useStore } from "../store";
import { to } from "../url";

const EVERY_MS = 2000; // as often as the server makes these lists anew
const LIMIT = 50;
const STEP = 100; // the largest part of a list that the API gives
const MOST_PLACES = 1000; // of one action, as the API says

const TABS: readonly { state: ListState; text: string }[] = [
  { state: "waiting", text: "Waiting" },
  { state: "claimed", text: "Claimed" },
  { state: "delayed", text: "Delayed" },
  { state: "finished", text: "Finished" },
];
const SORTS: Record<ListState, Sort> = { waiting: "oldest", claimed: "longest", delayed: "due", finished: "newest" };
const SORTED: Record<Sort, string> = {
  oldest: "oldest first",
  newest: "newest first",
  longest: "longest first",
  due: "next first",
};

interface Asked {
  state: ListState;
  q: string;
  facet: string;
  sort: Sort;
}

interface View extends Asked {
  open: string;
}

function useView(): View {
  const { query } = useRoute();
  const state = TABS.find(tab => tab.state === query.get("state"))?.state ?? "claimed";
  const asked = query.get("sort");
  const sort = asked !== null && Object.hasOwn(SORTED, asked) ? (asked as Sort) : SORTS[state];
  return { state, q: query.get("q") ?? "", facet: query.get("facet") ?? "all", sort, open: query.get("open") ?? "" };
}

export default function Jobs() {
  useHeading("Jobs");
  const { open, ...asked } = useView();
  const loaded = useLoad("jobs", { ...asked, limit: LIMIT }, EVERY_MS, true);
  const key = JSON.stringify(asked);
  return (
    <>
      <Tabs answer={loaded.data} view={asked} />
      <Facets answer={loaded.data} view={asked} />
      <JobList key={key} view={{ ...asked, open }} loaded={loaded} />
    </>
  );
}

function Tabs({ answer, view }: { answer: Answer | null; view: Asked }) {
  const counts = { waiting: answer?.waiting, claimed: answer?.claimed, delayed: answer?.delayed, finished: undefined };
  return (
    <nav class="tabs" aria-label="States">
      {TABS.map(tab => (
        <A
          key={tab.state}
          href={to("jobs", { state: tab.state, q: view.q })}
          aria-current={tab.state === view.state ? "page" : undefined}
        >
          {tab.text}
          <span class="n">{tab.state === "finished" ? "sample" : answer === null ? "" : count(counts[tab.state])}</span>
        </A>
      ))}
    </nav>
  );
}

function Facets({ answer, view }: { answer: Answer | null; view: Asked }) {
  if (answer !== null && answer.facets.length === 0 && answer.said === "") return null;
  return (
    <div class="row facets-row">
      <div class="facets" role="group" aria-label="Filters">
        {(answer?.facets ?? []).map(facet => (
          <Facet
            key={facet.name}
            text={facet.text}
            count={facet.count}
            level={facet.level}
            isPressed={facet.name === view.facet}
            onPress={() => setQuery({ facet: facet.name === view.facet ? "all" : facet.name, open: "" })}
          />
        ))}
      </div>
      <span class="push" />
      <span class="plan">{answer?.said}</span>
    </div>
  );
}

interface Extra {
  rows: readonly JobRow[];
  cursor: string | null;
  isBusy: boolean;
}

const NO_EXTRA: Extra = { rows: [], cursor: null, isBusy: false };

function JobList({ view, loaded }: { view: View; loaded: Loaded<Answer> }) {
  const { open, ...asked } = view;
  const mayAct = useCan("operate") && view.state !== "finished";
  const marks = useMarks("");
  const [extra, setExtra] = useState(NO_EXTRA);
  const [verb, setVerb] = useState<{ verb: JobVerb; places: readonly string[] } | null>(null);
  const [all, setAll] = useState<JobVerb | null>(null);
  const [turn, setTurn] = useState(0);
  const operations = useFrame()?.counts.operations ?? 0;
  const answer = loaded.isOld ? null : loaded.data;
  const isBusy = open !== "" || marks.places.size > 0 || extra.rows.length > 0;
  const held = useHeld(answer?.rows ?? NO_ROWS, row => row.place, answer === null ? "" : "list", isBusy);
  const shown = new Set(held.rows.map(entry => entry.key));
  const later = extra.rows
    .filter(row => !shown.has(row.place))
    .map(row => ({ key: row.place, row, isGone: false, isNew: false }));
  const rows = [...held.rows, ...later];
  const renew = () => {
    setExtra(NO_EXTRA);
    held.release();
  };
  const cursor = extra.rows.length > 0 ? extra.cursor : (answer?.cursor ?? null);
  const more = async () => {
    if (cursor === null || extra.isBusy) return;
    setExtra({ ...extra, isBusy: true });
    try {
      const next = await get("jobs", { ...asked, cursor, limit: LIMIT });
      setExtra({ rows: [...extra.rows, ...next.rows], cursor: next.cursor, isBusy: false });
    } catch (error) {
      setExtra({ ...extra, isBusy: false });
      say(error instanceof Refusal ? error.text : String(error));
    }
  };
  if (answer === null) return <Shown of={{ ...loaded, data: null }}>{() => null}</Shown>;
  return (
    <>
      {(turn > 0 || operations > 0) && <Operations turn={turn} />}
      <section class="panel" aria-labelledby="list-title">
        <header>
          <h2 id="list-title">{saidText(answer.title.slice(0, 2))}</h2>
          <p>
            <Said parts={answer.title.slice(2)} />
          </p>
          <span class="more">
            <Fresh waiting={held.waiting} onShow={renew} />
            {loaded.failure === null ? SORTED[view.sort] : <span class="warn">{loaded.failure.text}</span>}
          </span>
        </header>
        <Rows rows={rows} held={held} view={view} marks={mayAct ? marks : null} onAct={setVerb} />
        {rows.length === 0 && <Nothing view={view} answer={answer} />}
        {cursor !== null && (
          <div class="row pad">
            <span class="faint">{`${count(rows.length)} of ${count(answer.found)} shown`}</span>
            <span class="push" />
            <Button isSmall kind="quiet" onClick={() => void more()} isOff={extra.isBusy}>
              Show more
            </Button>
          </div>
        )}
      </section>
      <Lost rows={rows} open={open} />
      <Foot state={view.state} />
      <Marked answer={answer} asked={asked} marks={marks} onAct={setVerb} onWhole={setAll} />
      {all !== null && asked.state !== "finished" && (
        <AllAsk
          asked={{ verb: all, state: asked.state, q: asked.q, facet: asked.facet }}
          fit={answer.found}
          onClose={() => setAll(null)}
          onDone={() => {
            marks.clear();
            setTurn(turn + 1);
          }}
        />
      )}
      {verb !== null && (
        <JobAsk
          {...verb}
          rows={rows.map(entry => entry.row).filter(row => verb.places.includes(row.place))}
          onClose={() => setVerb(null)}
          onDone={() => {
            marks.clear();
            loaded.again();
          }}
        />
      )}
    </>
  );
}

const NO_ROWS: readonly JobRow[] = [];

interface RowsProps {
  rows: readonly Row<JobRow>[];
  held: HeldRows<JobRow>;
  view: View;
  marks: Marks | null;
  onAct: (act: { verb: JobVerb; places: readonly string[] }) => void;
}

function Rows({ rows, held, view, marks, onAct }: RowsProps) {
  const { state, sort, open } = view;
  const wide = COLUMNS[state].length + (marks === null ? 0 : 1);
  const isAll = marks !== null && rows.length > 0 && rows.every(entry => marks.places.has(entry.key));
  const markAll = marks !== null && (
    <MarkBox label="Mark all shown rows" isOn={isAll} onToggle={() => marks.set(isAll ? [] : rows.map(entry => entry.key))} />
  );
  return (
    <div class="scroll">
      <table class={`cards fit fixed is-${state}`}>
        <JobHead state={state} sort={sort} onSort={next => setQuery({ sort: next })} mark={markAll || null} />
        <tbody {...held.hands}>
          {rows.map(({ key, row, isGone, isNew }) => (
            <>
              <JobLine
                key={key}
                row={row}
                state={state}
                mark={
                  marks === null ? null : (
                    <MarkBox label={`Mark ${row.id}`} isOn={marks.places.has(key)} onToggle={() => marks.toggle(key)} />
                  )
                }
                isMarked={marks?.places.has(key) ?? false}
                isOpen={key === open}
                isGone={isGone}
                isNew={isNew}
                onOpen={() => setQuery({ open: key === open ? "" : key }, true)}
              />
              {key === open && (
                <tr class="under" key={`${key} under`}>
                  <td colSpan={wide}>
                    <JobUnder row={row} onAct={verb => onAct({ verb, places: [key] })} />
                  </td>
                </tr>
              )}
            </>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The open job of the address where it is in the list no more. */
function Lost({ rows, open }: { rows: readonly Row<JobRow>[]; open: string }) {
  if (open === "" || rows.some(entry => entry.key === open)) return null;
  return (
    <p class="plan">
      The job that was open is not among these rows.{" "}
      <A class="link" href={to("job", { place: open })}>
        Open it
      </A>
    </p>
  );
}

const FOOTS: Record<ListState, string> = {
  waiting: "The oldest that no worker has had yet, by priority.",
  claimed: "How long a job runs is known of the 50 longest of each worker, as it last said.",
  delayed: "Retries and jobs that were sent for later.",
  finished: "Every failure, and a sample of the jobs that were done.",
};

function Foot({ state }: { state: ListState }) {
  return (
    <p class="plan">
      {FOOTS[state]}{" "}
      <span class="hide-m">
        <kbd>j</kbd> <kbd>k</kbd> move, <kbd>Enter</kbd> opens, <kbd>/</kbd> finds.
      </span>
    </p>
  );
}

interface MarkedProps {
  answer: Answer;
  asked: Asked;
  marks: Marks;
  onAct: (act: { verb: JobVerb; places: readonly string[] }) => void;
  onWhole: (verb: JobVerb) => void;
}

function Marked({ answer, asked, marks, onAct, onWhole }: MarkedProps) {
  const [isBusy, setBusy] = useState(false);
  const places = [...marks.places];
  const all = async () => {
    setBusy(true);
    try {
      marks.set(await placesOf(asked));
    } catch (error) {
      say(error instanceof Refusal ? error.text : String(error));
    }
    setBusy(false);
  };
  return (
    <MarksBar
      marks={marks}
      fit={answer.found}
      most={MOST_PLACES}
      onAll={() => void all()}
      isBusy={isBusy}
      whole={
        <Button isSmall right="operate" onClick={() => onWhole(asked.state === "delayed" ? "soon" : "cancel")}>
          {asked.state === "delayed" ? "Run" : "Cancel"} all that fit …
        </Button>
      }
    >
      {asked.state === "delayed" && (
        <Button isSmall right="operate" onClick={() => onAct({ verb: "soon", places })}>
          Run {count(places.length)} now …
        </Button>
      )}
      <Button isSmall kind="danger" right="operate" onClick={() => onAct({ verb: "cancel", places })}>
        Cancel {count(places.length)} …
      </Button>
    </MarksBar>
  );
}

/** Return the places of all that fit, as far as one action reaches: what is meant is what was looked at now. */
async function placesOf(asked: Asked): Promise<string[]> {
  const found = new Set<string>();
  let cursor = "";
  do {
    const part = await get("jobs", { ...asked, cursor, limit: STEP });
    for (const row of part.rows) found.add(row.place);
    cursor = part.cursor ?? "";
  } while (cursor !== "" && found.size < MOST_PLACES);
  return [...found].slice(0, MOST_PLACES);
}

function Nothing({ view, answer }: { view: View; answer: Answer }) {
  const queue = useStore(about, found => found?.queue ?? "jobs");
  if (view.q !== "" || view.facet !== "all") {
    return (
      <Empty why={`None of the ${count(answer.looked_at)} that were looked at fit.`}>
        <div class="row">
          {view.q !== "" && (
            <A class="btn small" href={to("jobs", { state: view.state, facet: view.facet === "all" ? "" : view.facet })}>
              Drop the search “{view.q}”
            </A>
          )}
          {view.facet !== "all" && (
            <A class="btn small" href={to("jobs", { state: view.state, q: view.q })}>
              Show all
            </A>
          )}
        </div>
      </Empty>
    );
  }
  if (view.state === "waiting" && answer.waiting > 0) {
    return (
      <Empty
        why={`Each of the ${plural(answer.waiting, "job")} that wait stands in a lot: for a worker that knows it, or for its turn.`}
      >
        <A class="btn small" href={to("jobs", { state: "waiting", facet: "lots" })}>
          Show those in lots
        </A>
      </Empty>
    );
  }
  return <Empty why={EMPTY[view.state](queue)} />;
}

const EMPTY: Record<ListState, (queue: string) => ComponentChildren> = {
  waiting: queue => `Nothing waits in ${queue}: each job that was sent has been taken by a worker.`,
  claimed: queue => `No worker has a job of ${queue} now.`,
  delayed: queue => `Nothing in ${queue} waits for its time: no retry, and no job that was sent for later.`,
  finished: queue => `No job of ${queue} has ended lately.`,
};
