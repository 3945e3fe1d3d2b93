// Operations over many letters or jobs: what is held, how far one is, what died again; each can be stopped, some go on.
import { useEffect, useRef, useState } from "preact/hooks";
import { post } from "../api";
import type { Operation } from "../api/types";
import { capital, count, plural, rate, seconds, visible } from "../format";
import { useNow } from "../live";
import { useLoad } from "../load";
import { say } from "../notice";
import { Badge } from "./Badge";
import { Button } from "./Button";
import { Question } from "./Question";

const EVERY_MS = 1000; // while one is held or runs
const SELDOM_MS = 5000; // else
const TOLD_MS = 10 * 60_000; // a guess: so long after its end an operation is still of interest
const STANDS_MS = 24 * 3_600_000; // a guess: what was stopped a day ago goes on no more

/** Those that go on, stand, or ended a moment ago; nothing where there is none. `onRest` is called when none goes on any more. */
export function Operations({ turn, onRest }: { turn: number; onRest?: () => void }) {
  const [isFast, setFast] = useState(true);
  const loaded = useLoad("operations", {}, isFast ? EVERY_MS : SELDOM_MS);
  const now = useNow();
  const [seen, setSeen] = useState(turn);
  if (seen !== turn) {
    setSeen(turn);
    loaded.again();
  }
  const shown = (loaded.data?.operations ?? []).filter(each => now - (each.ends_ms ?? each.created_ms) < toldFor(each.state));
  const isMoving = shown.some(each => each.state === "held" || each.state === "running");
  if (loaded.data !== null && isMoving !== isFast) setFast(isMoving);
  const wasMoving = useRef(false);
  useEffect(() => {
    if (wasMoving.current && !isMoving) onRest?.();
    wasMoving.current = isMoving;
  }, [isMoving]);
  if (shown.length === 0) return null;
  return (
    <section class="panel" aria-label="Operations">
      <ul class="operations">
        {shown.map(each => (
          <OperationLine key={each.id} operation={each} again={loaded.again} />
        ))}
      </ul>
    </section>
  );
}

function toldFor(state: string): number {
  return state === "done" ? TOLD_MS : state === "held" || state === "running" ? Number.POSITIVE_INFINITY : STANDS_MS;
}

function OperationLine({ operation, again }: { operation: Operation; again: () => void }) {
  const { what, state, who, reason, can } = operation;
  const [asks, setAsks] = useState<"stop" | "resume" | null>(null);
  const isHeld = state === "held";
  return (
    <li>
      <div class="row">
        <b class="strong what">{capital(visible(what))}</b>
        <StateBadge state={state} />
        <span class="push" />
        {can.includes("stop") && (
          <Button
            isSmall
            kind={isHeld ? "main" : ""}
            right="operate"
            onClick={() => (isHeld ? void undo(operation, again) : setAsks("stop"))}
          >
            {isHeld ? "Undo" : "Stop …"}
          </Button>
        )}
        {can.includes("resume") && (
          <Button isSmall right="operate" onClick={() => setAsks("resume")}>
            Go on …
          </Button>
        )}
      </div>
      <Bar operation={operation} />
      <p class="muted">
        <Told operation={operation} />
      </p>
      <p class="faint">
        {[`by ${visible(who)}`, reason === "" ? "" : `“${visible(reason)}”`].filter(part => part !== "").join(", ")}
      </p>
      {asks !== null && <AskOperation operation={operation} verb={asks} onClose={() => setAsks(null)} onDone={again} />}
    </li>
  );
}

function StateBadge({ state }: { state: string }) {
  if (state === "braked") return <Badge level="act">braked: too many died again</Badge>;
  if (state === "stopped") return <Badge level="look">stopped</Badge>;
  if (state === "done")
    return (
      <Badge level="ok" hasTick>
        done
      </Badge>
    );
  return <Badge>{state}</Badge>;
}

/** What was done, what could not be, and what died again, of all that is meant. */
function Bar({ operation }: { operation: Operation }) {
  const { total, looked, done, died, refused } = operation;
  const all = Math.max(1, total ?? looked);
  const missed = Object.values(refused).reduce((sum, each) => sum + each, 0);
  const again = Math.min(died, done);
  const parts = [
    { cls: "f-ok", part: done - again },
    { cls: "f-dead", part: again },
    { cls: "f-retry", part: missed },
  ];
  let x = 0;
  return (
    <svg class="progress-bar" width="100%" height="6" aria-hidden="true">
      <rect width="100%" height="6" rx="3" class="f-track" />
      {parts.map(({ cls, part }) => {
        const wide = (Math.max(0, part) / all) * 100;
        const at = x;
        x += wide;
        return wide > 0 && <rect key={cls} x={`${at}%`} width={`${wide}%`} height="6" rx="2" class={cls} />;
      })}
    </svg>
  );
}

function Told({ operation }: { operation: Operation }) {
  const now = useNow();
  const { state, starts_ms, text, rate_s } = operation;
  if (state === "held" && starts_ms !== null) {
    return <>{`Nothing is done yet: it starts in ${seconds(starts_ms - now)}. Until then undo is exact.`}</>;
  }
  return <>{capital(`${visible(text)}${state === "running" ? `; ${rate(rate_s)} a second` : ""}.`)}</>;
}

async function undo(operation: Operation, again: () => void): Promise<void> {
  try {
    const { done } = await post("operations/stop", { id: operation.id, reason: "undone before it began" });
    say(done === 0 ? "Undone: nothing was done." : `Stopped; ${count(done)} had been done by then.`);
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
  }
  again();
}

interface AskProps {
  operation: Operation;
  verb: "stop" | "resume";
  onClose: () => void;
  onDone: () => void;
}

function AskOperation({ operation, verb, onClose, onDone }: AskProps) {
  const { id, total, looked, state } = operation;
  const left = total === null ? null : Math.max(0, total - looked);
  const rest = left === null ? "what is left" : plural(left, "that is left", "that are left");
  const isStop = verb === "stop";
  return (
    <Question
      title={isStop ? "Stop this operation?" : "Let it go on?"}
      verb={isStop ? "Stop" : "Go on"}
      onClose={onClose}
      onDo={async reason => {
        const after = await post(`operations/${verb}`, { id, reason });
        onDone();
        return after.text === "" ? `It is ${after.state} now.` : after.text;
      }}
    >
      <p class="muted">
        {isStop
          ? `What was done stays done; ${rest} ${left === 1 ? "stays" : "stay"} as ${left === 1 ? "it is" : "they are"}. It can go on later.`
          : `It goes on with ${rest}${state === "braked" ? ". It was braked since too many died again: that counts anew" : ""}.`}
      </p>
    </Question>
  );
}
