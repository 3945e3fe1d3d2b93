// What stands below a row that is open: why the job is where it is, the chain of what has happened to it, and what can be done.
import type { Job, JobRow, Step } from "../api/types";
import { clock, duration, workerName } from "../format";
import { useNow } from "../live";
import { useLoad } from "../load";
import { zone } from "../settings";
import { useStore } from "../store";
import { to } from "../url";
import { A } from "./A";
import { Badge } from "./Badge";
import { Button } from "./Button";
import { Copy } from "./Copy";
import type { JobVerb } from "./JobAsk";
import { Said, saidText } from "./Said";

const EVERY_MS = 2000;
const MOST_LINKS = 6; // of a chain: what is older stands on the job's page

interface Props {
  row: JobRow;
  onAct: (verb: JobVerb) => void;
}

export function JobUnder({ row, onAct }: Props) {
  const job = useLoad("job", { place: row.place, id: row.id }, EVERY_MS, true).data;
  const said = row.claim !== null && saidText(row.claim.said) !== "" ? row.claim.said : (job?.said ?? []);
  return (
    <div class="why2">
      <p class="muted">
        <Said parts={said} />
      </p>
      <div class="row">
        <Chain row={row} job={job} />
        <span class="push" />
        <Acts can={job?.can ?? []} onAct={onAct} />
        <A class="btn small" href={to("job", { place: row.place, id: row.id })}>
          Open job
        </A>
        <Copy text={row.id} what="id" />
      </div>
    </div>
  );
}

export function Acts({ can, onAct }: { can: Job["can"]; onAct: (verb: JobVerb) => void }) {
  return (
    <>
      {can.includes("soon") && (
        <Button isSmall right="operate" onClick={() => onAct("soon")}>
          Run now …
        </Button>
      )}
      {can.includes("cancel") && (
        <Button isSmall kind="danger" right="operate" onClick={() => onAct("cancel")}>
          Cancel …
        </Button>
      )}
    </>
  );
}

function Chain({ row, job }: { row: JobRow; job: Job | null }) {
  const now = useNow();
  const where = useStore(zone);
  const steps = (job?.steps ?? []).filter(step => step.kind !== "backoff");
  const links = steps.length > 0 ? steps.slice(-MOST_LINKS) : [];
  return (
    <ol class="chain" aria-label="What has happened">
      {steps.length > links.length && <li class="faint">{steps.length - links.length} before</li>}
      {links.map((step, at) => (
        <li key={at}>
          {step.level === "ok" ? <Badge>{linkOf(step, row)}</Badge> : <Badge level={step.level}>{linkOf(step, row)}</Badge>}
        </li>
      ))}
    </ol>
  );

  function linkOf(step: Step, of: JobRow): string {
    const long = duration((step.to_ms ?? now) - step.from_ms);
    const worker = step.worker === "" ? "" : ` · ${workerName(step.worker)}`;
    switch (step.kind) {
      case "waited":
        return step.to_ms === null ? `waits for ${long}` : `waited ${long}`;
      case "attempt":
        return `attempt ${step.attempt ?? ""}${worker} · ${step.error === "" ? step.outcome : step.error}`;
      case "lost":
        return `delivery${worker} · lost${step.to_ms === null ? "" : ` at ${clock(step.to_ms, where)}`}`;
      case "running":
        return runningOf(of, worker);
      default:
        return step.to_ms === null ? step.kind : `next at ${clock(step.to_ms, where)}`;
    }
  }

  function runningOf({ claim }: JobRow, worker: string): string {
    const name = claim !== null && claim.deliveries > 1 ? `delivery ${claim.deliveries}` : "runs";
    if (claim?.silent_ms === undefined || claim.silent_ms === null)
      return `${name}${worker}${claim?.is_started === false ? " · not started" : ""}`;
    return `${name}${worker} · silent since ${clock(now - claim.silent_ms, where)}`;
  }
}
