// The questions before letters are moved to the trash, taken out of it, or replayed by their places.
import { post } from "../api";
import { plural } from "../format";
import { Dialog } from "./Dialog";
import { toldOf } from "./JobAsk";
import { Question, Refused } from "./Question";
import { ReplayQuestion, useCheck } from "./Replay";

export type LetterVerb = "trash" | "restore" | "replay";

interface Props {
  verb: LetterVerb;
  places: readonly string[];
  onClose: () => void;
  onDone: () => void;
}

export function LetterAsk({ verb, places, onClose, onDone }: Props) {
  if (verb === "replay") return <CheckFirst places={places} onClose={onClose} onDone={onDone} />;
  const letters = plural(places.length, "letter");
  const onDo = async (reason: string) => {
    const text = toldOf(await post(`dead/${verb}`, { places, reason }));
    onDone();
    return text;
  };
  const rest = { count: places.length, onDo, onClose };
  if (verb === "trash") {
    return (
      <Question {...rest} title={`Move ${letters} to the trash?`} verb={`Move ${letters}`} isDanger>
        <p class="muted">
          {places.length === 1 ? "It leaves" : "They leave"} the dead letters and can be restored for 7 days; then{" "}
          {places.length === 1 ? "it is" : "they are"} deleted. A letter that was replayed meanwhile is left alone.
        </p>
      </Question>
    );
  }
  return (
    <Question {...rest} title={`Restore ${letters}?`} verb={`Restore ${letters}`}>
      <p class="muted">{places.length === 1 ? "It goes" : "They go"} back to the dead letters. Nothing is run.</p>
    </Question>
  );
}

function CheckFirst({ places, onClose, onDone }: Omit<Props, "verb">) {
  const { check, refusal } = useCheck(places.join("\n"), { places });
  if (check === null || check.would_run === 0) {
    return (
      <Dialog title={`Replay ${plural(places.length, "letter")}?`} onClose={onClose}>
        {refusal !== null && <Refused refusal={refusal} />}
        {check === null && refusal === null && <p class="muted">Being checked: nothing is written.</p>}
        {check !== null && (
          <p class="muted">
            {check.findings.map(each => `${each.text}. ${each.why}`).join(" ") || "None of them can go back now."}
          </p>
        )}
        <div class="row end">
          <button type="button" class="btn" onClick={onClose}>
            Close
          </button>
        </div>
      </Dialog>
    );
  }
  return <ReplayQuestion check={check} rate={5} first={0} pri={null} onClose={onClose} onStarted={onDone} />;
}
