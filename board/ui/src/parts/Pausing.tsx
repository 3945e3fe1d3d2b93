import { useState } from "preact/hooks";
import { post } from "../api";
import type { Pri } from "../api/names";
import { Question } from "./Question";

/** What is paused: one of the three. */
export interface What {
  is_all?: boolean;
  priority?: Pri;
  type?: string;
}

const SPANS: readonly [string, number | null][] = [
  ["until it is resumed", null],
  ["for 15 minutes", 900],
  ["for 1 hour", 3600],
  ["for 8 hours", 28_800],
];

interface Props {
  what: What;
  name: string;
  onClose: () => void;
}

export function PauseQuestion({ what, name, onClose }: Props) {
  const [span, setSpan] = useState(0);
  const pause = async (reason: string) => (await post("pause", { ...what, for_s: SPANS[span]?.[1] ?? null, reason })).text;
  return (
    <Question title={`Pause ${name}?`} verb={`Pause ${name}`} onDo={pause} onClose={onClose}>
      <p class="muted">
        Nothing of <b>{name}</b> starts any more, within a second. What runs goes on to its end; what is sent waits, and nothing
        is lost. Resume undoes it at any time.
      </p>
      <label class="labelled">
        <span>How long</span>
        <select class="field wide" value={span} onChange={event => setSpan(Number(event.currentTarget.value))}>
          {SPANS.map(([text], at) => (
            <option key={text} value={at}>
              {text}
            </option>
          ))}
        </select>
      </label>
    </Question>
  );
}

export function ResumeQuestion({ what, name, onClose }: Props) {
  const resume = async (reason: string) => (await post("resume", { ...what, reason })).text;
  return (
    <Question title={`Resume ${name}?`} verb={`Resume ${name}`} onDo={resume} onClose={onClose}>
      <p class="muted">
        Jobs of <b>{name}</b> start again within a second, the oldest first.
      </p>
    </Question>
  );
}
