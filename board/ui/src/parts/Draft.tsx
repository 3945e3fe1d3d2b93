// A payload that is written for a new job: checked on a pause of typing, shown as a change, and sent.
import { useEffect, useRef, useState } from "preact/hooks";
import { post, Refusal } from "../api";
import type { Pri as Priority } from "../api/names";
import type { Validated } from "../api/types";
import { plural } from "../format";
import { PRIORITIES } from "./Pri";
import { Question } from "./Question";

const PAUSE_MS = 400; // a guess: who pauses so long wants to know
const AGAIN_MS = 5000; // a guess: a worker that knows the type may have started meanwhile

export interface Draft {
  readonly text: string;
  readonly write: (text: string) => void;
  readonly found: Validated | null;
  readonly refusal: Refusal | null;
  /** What was found is of this very text. */
  readonly isChecked: boolean;
}

/** Keep a text that is being written, and what is wrong with it. `place` is the letter that it was made of. */
export function useDraft(type: string, before: string, place: string): Draft {
  const [text, write] = useState(before);
  const [state, setState] = useState<{ of: string; found: Validated | null; refusal: Refusal | null }>();
  const turn = useRef(0);
  const [looks, setLooks] = useState(0);
  useEffect(() => {
    if (state?.found?.is_checked !== false) return;
    const timer = setTimeout(() => setLooks(looks + 1), AGAIN_MS);
    return () => clearTimeout(timer);
  }, [state, looks]);
  useEffect(() => {
    const timer = setTimeout(async () => {
      turn.current += 1;
      const mine = turn.current;
      const set = (found: Validated | null, refusal: Refusal | null) =>
        mine === turn.current && setState({ of: text, found, refusal });
      try {
        set(await post("validate", { type, text, place }), null);
      } catch (error) {
        set(null, error instanceof Refusal ? error : new Refusal(0, "page", String(error), null));
      }
    }, PAUSE_MS);
    return () => clearTimeout(timer);
  }, [type, text, place, looks]);
  return {
    text,
    write,
    found: state?.found ?? null,
    refusal: state?.refusal ?? null,
    isChecked: state?.of === text && state.found !== null,
  };
}

interface Props {
  type: string;
  draft: Draft;
  pri: Priority | null;
  /** The letter that it was made of; empty for none. */
  place: string;
  onClose: () => void;
  onSent: (id: string, place: string) => void;
}

/** The question before it is sent. */
export function SendQuestion({ type, draft, pri, place, onClose, onSent }: Props) {
  const [isTrashed, setTrashed] = useState(false);
  const [chosen, choose] = useState<Priority | null>(pri);
  const isUnchecked = draft.found?.is_checked === false;
  const isOfLetter = place !== "";
  return (
    <Question
      title={isOfLetter ? "Send as a new job?" : `Send one ${type}?`}
      verb={isOfLetter ? "Send as a new job" : "Send one job"}
      isFinal={isUnchecked}
      onClose={onClose}
      onDo={async reason => {
        const body = { type, text: draft.text, pri: chosen, place, has_trash: isTrashed, is_unchecked: isUnchecked, reason };
        const sent = await post("send", body);
        onSent(sent.id, sent.place);
        return sent.is_new ? `Sent as ${sent.id}.` : `${sent.id} was there already: nothing was sent a second time.`;
      }}
    >
      <p class="muted">
        One job of type <b class="strong">{type}</b> is sent, with an id of its own. A worker runs it as soon as one is free; what
        it does then cannot be undone.
      </p>
      {isUnchecked && (
        <p class="muted">
          <b class="strong">No worker here knows {type}: this payload was not checked.</b> It may wait until a worker knows it, or
          die.
        </p>
      )}
      <label class="labelled">
        <span>Priority</span>
        <select
          class="field wide"
          value={chosen ?? ""}
          onChange={event => choose(PRIORITIES.find(name => name === event.currentTarget.value) ?? null)}
        >
          {pri === null && <option value="">as its type says</option>}
          {PRIORITIES.map(name => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </label>
      {isOfLetter && (
        <label class="check-line">
          <input type="checkbox" checked={isTrashed} onChange={event => setTrashed(event.currentTarget.checked)} />
          <span>
            {isTrashed ? "This letter is moved to the trash once the job is sent." : "This letter is kept. Move it to the trash?"}
          </span>
        </label>
      )}
    </Question>
  );
}

/** Return in words how a draft stands. */
export function standOf(draft: Draft): string {
  if (draft.refusal !== null) return draft.refusal.text;
  if (!draft.isChecked || draft.found === null) return "being checked";
  const { problems, is_checked, checked_by } = draft.found;
  if (problems.length > 0) return `${plural(problems.length, "problem")} left`;
  return is_checked
    ? checked_by === ""
      ? "fits"
      : `fits: checked by ${checked_by}`
    : "not checked: no worker here knows the type";
}
