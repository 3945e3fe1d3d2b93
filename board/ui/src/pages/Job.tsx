// One job: what is true of it now, its life on one axis, its attempts, its payload and facts.
import { useState } from "preact/hooks";
import { about } from "../api";
import type { Job as Answer, JobRow, Progress, Step } from "../api/types";
import { clock, count, duration, plural, seconds, visible, workerName } from "../format";
import { useHeading } from "../heading";
import { useNow } from "../live";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Badge } from "../parts/Badge";
import { Copy } from "../parts/Copy";
import { Facts } from "../parts/Facts";
import { Icon } from "../parts/Icon";
import { JobAsk, type JobVerb } from "../parts/JobAsk";
import { Acts } from "../parts/JobUnder";
import { Meter } from "../parts/Meter";
import { Panel } from "../parts/Panel";
import { PayloadPanel } from "../parts/PayloadPanel";
import { Pri } from "../parts/Pri";
import { Said } from "../parts/Said";
import { Shown } from "../parts/Shown";
import { Timeline } from "../parts/Timeline";
import { useRoute } from "../router";
import { zone } from "../settings";
import { useStore } from "../store";
import { to, traceUrl } from "../url";

const EVERY_MS = 2000;

export default function Job() {
  const { query } = useRoute();
  const place = query.get("place") ?? "";
  const id = query.get("id") ?? "";
  const loaded = useLoad("job", { place, id }, EVERY_MS);
  useHeading(loaded.data?.row.id ?? (id || place), [{ text: "Jobs", href: to("jobs") }], true);
  return (
    <Shown of={loaded} lines={6}>
      {job => <Whole job={job} again={loaded.again} />}
    </Shown>
  );
}

function Whole({ job, again }: { job: Answer; again: () => void }) {
  const [verb, setVerb] = useState<JobVerb | null>(null);
  const { row } = job;
  return (
    <>
      <section class="panel" aria-label="Now">
        <Hero job={job} onAct={setVerb} />
        {job.steps.length > 0 && (
          <div class="body">
            <Life job={job} />
          </div>
        )}
      </section>
      {row.progress !== null && <Going progress={row.progress} />}
      <div class="split even">
        <div class="stack">
          <Attempts job={job} />
          {job.result !== null && (
            <Panel title="Result" more={<Copy text={job.result} what="result" isBare />}>
              <pre class="plain-code">{visible(job.result)}</pre>
            </Panel>
          )}
        </div>
        <div class="stack">
          {row.state === "finished" ? (
            <Panel title="Payload">
              <p class="pad faint">It went with the job, which has ended.</p>
            </Panel>
          ) : (
            <PayloadPanel place={row.place} type={row.type} />
          )}
          {job.facts.length > 0 && (
            <Panel title="Facts">
              <div class="body">
                <Facts facts={job.facts} />
              </div>
            </Panel>
          )}
        </div>
      </div>
      {verb !== null && <JobAsk verb={verb} places={[row.place]} rows={[row]} onClose={() => setVerb(null)} onDone={again} />}
    </>
  );
}

const STATES: Record<JobRow["state"], string> = {
  waiting: "waits",
  claimed: "runs",
  lot: "waits in a lot",
  delayed: "waits for its time",
  finished: "has ended",
  dead: "dead letter",
};

function StateBadge({ row }: { row: JobRow }) {
  if (row.state === "dead") return <Badge level="act">{STATES.dead}</Badge>;
  if (row.state === "delayed" && row.attempt > 1) return <Badge level="look">waits for a retry</Badge>;
  return <Badge>{row.end?.outcome || STATES[row.state]}</Badge>;
}

function Hero({ job, onAct }: { job: Answer; onAct: (verb: JobVerb) => void }) {
  const { row, can } = job;
  return (
    <div class="hero">
      <div class="row">
        <A class="badge" href={to("type", { type: row.type })}>
          {visible(row.type)}
        </A>
        <Pri name={row.pri} />
        {row.note === null ? (
          <StateBadge row={row} />
        ) : (
          <Badge level={row.note.level}>{row.note.text}</Badge>
        )}
        <span class="push" />
        {row.state === "dead" && (
          <A class="btn small" href={to("letter", { place: row.place })}>
            Open the letter
          </A>
        )}
        <Acts can={can} onAct={onAct} />
      </div>
      <p class="err">
        <Said parts={job.said} />
      </p>
    </div>
  );
}

/** The timeline goes on by the clock where something of it still does. */
function Life({ job }: { job: Answer }) {
  const now = useNow();
  const isOpen = job.steps.some(step => step.to_ms === null || step.to_ms > job.now_ms);
  return <Timeline steps={job.steps} nowMs={isOpen ? Math.max(now, job.now_ms) : job.now_ms} />;
}

function Going({ progress }: { progress: Progress }) {
  const { done, total, text, lines } = progress;
  const part = done === null || total === null || total <= 0 ? null : done / total;
  return (
    <Panel title="Progress" note={<Since at_ms={progress.at_ms} />}>
      <div class="body progress">
        {part !== null && <Meter part={part} tone="busy" width={240} />}
        <p>
          {done !== null && <b class="figure-text">{total === null ? count(done) : `${count(done)} of ${count(total)}`}</b>}{" "}
          {visible(text)}
        </p>
      </div>
      {lines.length > 0 && <Lines lines={lines} label="What it has written" />}
    </Panel>
  );
}

function Since({ at_ms }: { at_ms: number }) {
  return <>{`said ${seconds(useNow() - at_ms)} ago`}</>;
}

function Lines({ lines, label }: { lines: readonly string[]; label: string }) {
  return (
    <section class="code loglines" tabIndex={0} aria-label={label}>
      {lines.map((line, at) => (
        <div key={at}>
          <span />
          <span>{visible(line)}</span>
        </div>
      ))}
    </section>
  );
}

function Attempts({ job }: { job: Answer }) {
  const tries = job.steps.filter(step => step.kind === "attempt" || step.kind === "running" || step.kind === "lost").reverse();
  const failed = tries.filter(step => step.kind === "attempt" && step.error !== "").length;
  const note = tries.length === 0 ? "none yet" : failed === 0 ? "none failed" : `${count(failed)} failed, newest first`;
  return (
    <Panel title="Attempts" note={note}>
      {tries.length === 0 && <p class="pad faint">No worker has started it, as far as is known here.</p>}
      {tries.map((step, at) => (
        <Attempt
          key={`${step.kind} ${step.attempt} ${step.from_ms}`}
          step={step}
          isOpen={at === 0}
          group={at === 0 ? job.group : null}
        />
      ))}
    </Panel>
  );
}

function Attempt({ step, isOpen, group }: { step: Step; isOpen: boolean; group: string | null }) {
  const now = useNow();
  const where = useStore(zone);
  const template = useStore(about, found => found?.trace_url ?? null);
  const trace = traceUrl(template, step.trace);
  const ran = duration((step.to_ms ?? now) - step.from_ms);
  const parts = [clock(step.from_ms, where), ran, workerName(step.worker), step.app].filter(part => part !== "");
  const has = step.message !== null || step.frame !== "" || step.lines.length > 0 || trace !== null || group !== null;
  const copied = [`${step.error}${step.message === null ? "" : `: ${step.message}`}`, step.frame]
    .filter(part => part !== "")
    .join("\n");
  return (
    <details class="attempt" open={isOpen && has}>
      <summary>
        <Icon name="right" size={14} />
        <b class="strong">{titleOf(step)}</b>
        <span class={step.level === "act" ? "bad" : step.level === "look" ? "warn" : "muted"}>
          {visible(step.error || step.outcome)}
        </span>
        {step.same_as !== null && <span class="faint">the same error as attempt {step.same_as}</span>}
        <span class="push">{parts.map(visible).join(" · ")}</span>
      </summary>
      {step.message !== null && step.message !== "" && (
        <div class="pad">
          <div class="err2">{visible(step.message)}</div>
        </div>
      )}
      {step.frame !== "" && (
        <div class="pad faint">
          raised in <code>{visible(step.frame)}</code>
        </div>
      )}
      {step.lines.length > 0 && <Lines lines={step.lines} label="What this attempt has written" />}
      <div class="row pad">
        {trace !== null && (
          <A class="link" href={trace}>
            trace <Icon name="out" size={12} />
          </A>
        )}
        {group !== null && (
          <A class="link" href={to("dead", { group })}>
            Dead letters with this error
          </A>
        )}
        <span class="push" />
        {step.error !== "" && <Copy text={copied} what="error" />}
        {!has && step.error === "" && <span class="faint">{plural(0, "line")} written</span>}
      </div>
    </details>
  );
}

function titleOf(step: Step): string {
  const name = step.attempt === null ? "Attempt" : `Attempt ${step.attempt}`;
  return step.kind === "lost" ? "Lost" : step.kind === "running" ? `${name}, runs` : name;
}
