// What would become of letters that were replayed now, and the question before it: nothing is written until that is answered.
import { useEffect, useRef, useState } from "preact/hooks";
import { post, Refusal } from "../api";
import type { Check, CheckAsk } from "../api/types";
import { capital, count, plural, seconds } from "../format";
import { useNow } from "../live";
import { useActs } from "../rights";
import { Button } from "./Button";
import { LevelMark } from "./Level";
import { Question, Refused } from "./Question";

export const TRIAL = 5;
const RATES = [1, 5, 20, 100] as const; // a second; 100 is the most that the API takes
const HELD_S = 10;
const CANARY_S = 10; // five go first, then it waits so long for what becomes of them
const SOON_MS = 400; // who only walks past a group does not check it

export interface Checked {
  check: Check | null;
  refusal: Refusal | null;
  came_ms: number;
  again: () => void;
}

/** Check letters once it is clear that they are meant; `key` says which. */
export function useCheck(key: string, ask: CheckAsk): Checked {
  const { may, whyNot } = useActs("operate");
  const [state, setState] = useState<{ key: string; check: Check | null; refusal: Refusal | null; came_ms: number }>();
  const latest = useRef(key);
  latest.current = key;
  const run = async () => {
    try {
      const check = await post("dead/check", ask);
      if (latest.current === key) setState({ key, check, refusal: null, came_ms: Date.now() });
    } catch (error) {
      const refusal = error instanceof Refusal ? error : new Refusal(0, "page", String(error), null);
      if (latest.current === key) setState({ key, check: null, refusal, came_ms: Date.now() });
    }
  };
  const mayRun = may && whyNot === "" && key !== "";
  useEffect(() => {
    if (!mayRun) return;
    const timer = setTimeout(() => void run(), SOON_MS);
    return () => clearTimeout(timer);
  }, [key, mayRun]);
  const isOwn = state?.key === key;
  return {
    check: isOwn ? state.check : null,
    refusal: isOwn ? state.refusal : null,
    came_ms: state?.came_ms ?? 0,
    again: () => void run(),
  };
}

interface Props {
  checked: Checked;
  title: string;
  pri: string | null;
  onStarted: () => void;
}

/** The check below a group, with the buttons that replay it. */
export function ReplayPart({ checked, title, pri, onStarted }: Props) {
  const { check, refusal, came_ms } = checked;
  const { may } = useActs("operate");
  const [rate, setRate] = useState<number>(5);
  // What is asked for stays while somebody answers, also where letters go meanwhile and are checked anew.
  const [asked, ask] = useState<{ check: Check; first: number } | null>(null);
  if (!may) return null;
  return (
    <>
      <header class="inner">
        <h2>{title}</h2>
        <span class="more">
          {check === null ? refusal === null ? "being checked" : "" : <Since at_ms={came_ms} />}
          {(check !== null || refusal !== null) && (
            <button type="button" class="link" onClick={checked.again}>
              check again
            </button>
          )}
        </span>
      </header>
      {refusal !== null && (
        <div class="pad">
          <Refused refusal={refusal} />
        </div>
      )}
      {check !== null && <Findings check={check} />}
      {check !== null && (
        <div class="ask">
          <div class="row">
            <label class="field">
              <i>rate</i>
              <select value={rate} onChange={event => setRate(Number(event.currentTarget.value))}>
                {RATES.map(each => (
                  <option key={each} value={each}>
                    {each}
                  </option>
                ))}
              </select>
              <i>a second</i>
            </label>
            <span class="field">
              <i>brake at</i>
              <b>20 %</b>
              <i>dead again</i>
            </span>
            <span class="faint">{`${seconds(lengthOf(check.would_run, rate))} for ${plural(check.would_run, "letter")}`}</span>
          </div>
          <div class="row">
            <Button kind="main" right="operate" isOff={check.would_run === 0} onClick={() => ask({ check, first: 0 })}>
              {`Replay ${plural(check.would_run, "letter")} …`}
            </Button>
            {check.would_run > TRIAL && (
              <Button right="operate" onClick={() => ask({ check, first: TRIAL })}>
                Replay {TRIAL} as a trial …
              </Button>
            )}
            <span class="faint">Starts {HELD_S} s after you confirm; until then undo is exact.</span>
          </div>
        </div>
      )}
      {asked !== null && <ReplayQuestion {...asked} rate={rate} pri={pri} onClose={() => ask(null)} onStarted={onStarted} />}
    </>
  );
}

/** Return how long a replay goes on at most: five first, a pause, then the rest at its rate. */
export function lengthOf(many: number, rate: number): number {
  return (many / rate) * 1000 + (many > TRIAL ? CANARY_S * 1000 : 0);
}

function Since({ at_ms }: { at_ms: number }) {
  useNow();
  return <>{`checked ${seconds(Date.now() - at_ms)} ago, nothing written`}</>;
}

function Findings({ check }: { check: Check }) {
  return (
    <ul class="check">
      {check.findings.map(finding => (
        <li key={`${finding.kind} ${finding.text}`}>
          <LevelMark level={finding.level} />
          <span>
            {finding.text}
            <span class="why">{finding.why}</span>
          </span>
          <span class="n">{finding.count > 0 ? count(finding.count) : ""}</span>
        </li>
      ))}
      {check.looked_at < check.total && (
        <li>
          <LevelMark level="look" />
          <span>
            looked at one by one
            <span class="why">{`${count(check.looked_at)} of ${count(check.total)}: the others are taken to be like them.`}</span>
          </span>
          <span class="n">{count(check.looked_at)}</span>
        </li>
      )}
    </ul>
  );
}

interface QuestionProps {
  check: Check;
  rate: number;
  first: number;
  pri: string | null;
  onClose: () => void;
  onStarted: () => void;
}

export function ReplayQuestion({ check, rate, first, pri, onClose, onStarted }: QuestionProps) {
  const many = first > 0 ? Math.min(first, check.would_run) : check.would_run;
  const stay = check.total - many;
  const warned = check.findings.filter(finding => finding.level !== "ok");
  const letters = plural(many, "letter");
  return (
    <Question
      title={`Replay ${letters}?`}
      verb={`Replay ${letters}`}
      count={many}
      onClose={onClose}
      onDo={async reason => {
        // `count` is what the check found, not what goes of it: the server compares it with what is there now.
        const started = await post("dead/replay", {
          check: check.id,
          count: check.would_run,
          rate,
          has_brake: true,
          first,
          reason,
        });
        onStarted();
        return capital(started.text);
      }}
    >
      <p class="muted">
        {many === 1 ? "It goes" : "They go"} back to {pri === null ? "where they came from" : <b class="strong">{pri}</b>} at{" "}
        {rate} a second, for about {seconds(lengthOf(many, rate))}, with a fresh count of attempts and{" "}
        {many === 1 ? "the id it had" : "the ids they had"}.{stay > 0 && ` ${plural(stay, "letter stays", "letters stay")} here.`}
      </p>
      <ul class="plainlist">
        {warned.map(finding => (
          <li key={`${finding.kind} ${finding.text}`}>
            <LevelMark level={finding.level} size={13} />
            <span>{`${finding.count > 0 ? `${count(finding.count)} ` : ""}${finding.text}.`}</span>
          </li>
        ))}
        <li>
          <LevelMark level="ok" size={13} />
          <span>
            {many > TRIAL ? `${TRIAL} go first; the rest ${CANARY_S} s later. ` : ""}The brake stops it when more than 20{"\u00a0"}% of
            them die again.
          </span>
        </li>
      </ul>
      <p class="faint">Starts {HELD_S} s after this; until then undo is exact. Later, Stop leaves the rest where it is.</p>
    </Question>
  );
}
