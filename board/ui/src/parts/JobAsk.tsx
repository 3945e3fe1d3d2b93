// The questions before jobs are cancelled or run now.
import { post, Refusal } from "../api";
import type { ActedAll, AllAsk as Asked, JobRow } from "../api/types";
import { count, plural } from "../format";
import { Question } from "./Question";

export type JobVerb = "cancel" | "soon";

interface Props {
  verb: JobVerb;
  places: readonly string[];
  /** The rows of these places that are known: what the question says of them. */
  rows: readonly JobRow[];
  onClose: () => void;
  onDone: () => void;
}

export function JobAsk({ verb, places, rows, onClose, onDone }: Props) {
  const jobs = plural(places.length, "job");
  const onDo = async (reason: string) => {
    const text = toldOf(await post(verb, { places, reason }));
    onDone();
    return text;
  };
  const rest = { count: places.length, onDo, onClose };
  if (verb === "soon") {
    return (
      <Question {...rest} title={`Run ${jobs} now?`} verb={`Run ${jobs} now`}>
        <p class="muted">
          {places.length === 1 ? "It waits for its time no longer" : "They wait for their time no longer"}: a worker takes{" "}
          {places.length === 1
            ? "it as soon as one is free. Its attempts and its id"
            : "them as soon as one is free. Their attempts and ids"}{" "}
          stay as they are. One that has left its place meanwhile is left alone.
        </p>
      </Question>
    );
  }
  const running = rows.filter(row => row.state === "claimed").length;
  return (
    <Question {...rest} title={`Cancel ${jobs}?`} verb={`Cancel ${jobs}`} leave="Leave" isDanger>
      <p class="muted">{saidOfCancel(places.length, running)}</p>
      <p class="muted">One that has left its place meanwhile is left alone. A dead letter can be replayed.</p>
    </Question>
  );
}

const REACH = 10_000; // jobs of one order, as the server has it

interface AllProps {
  asked: Omit<Asked, "reason">;
  /** How many were found that fit. */
  fit: number;
  onClose: () => void;
  onDone: () => void;
}

/** The question before something is ordered of all jobs that fit: an operation, which can be undone while it is held. */
export function AllAsk({ asked, fit, onClose, onDone }: AllProps) {
  const many = Math.min(fit, REACH);
  const jobs = `${fit > REACH ? "the first" : "all"} ${count(many)} jobs`;
  const onDo = async (reason: string) => {
    const made = await post("jobs/all", { ...asked, reason });
    onDone();
    return `${plural(made.total ?? 0, "job")}: it starts in 10 s, and can be undone until then.`;
  };
  const [title, verb] = asked.verb === "soon" ? [`Run ${jobs} now?`, `Run ${jobs} now`] : [`Cancel ${jobs}?`, `Cancel ${jobs}`];
  return (
    <Question count={many} title={title} verb={verb} leave="Leave" isDanger={asked.verb === "cancel"} onDo={onDo} onClose={onClose}>
      <p class="muted">
        Meant are those that fit at this moment: what is sent later is left alone, and so is what has left its place when it is its
        turn. Nothing is done for the first 10 s, then 1,000 a second; it goes on without this page, and can be stopped.
      </p>
      {asked.verb === "cancel" && <p class="muted">Each becomes a dead letter, which can be replayed.</p>}
    </Question>
  );
}

function saidOfCancel(many: number, running: number): string {
  const [they, become, them] = many === 1 ? ["It", "becomes a dead letter", "it"] : ["They", "become dead letters", "them"];
  if (running === 0) return `${they} ${become} at once, with the reason cancelled.`;
  const stays = "What has been done stays done, and a handler that does not let go runs on until it ends.";
  if (running === many)
    return `${many === 1 ? "Its worker is" : "Their workers are"} asked to end ${them}. ${stays} Then ${they.toLowerCase()} ${become}, with the reason cancelled.`;
  return `${plural(running, "of them runs", "of them run")}: the workers are asked to end those. ${stays} All ${become}, with the reason cancelled.`;
}

const MOST_TOLD = 3; // sentences that fit into one notice

/** Return what to tell of an action. Where nothing was done of it, that is a refusal: it says what is true now. */
export function toldOf(acted: ActedAll): string {
  const missed = [...new Set(acted.results.filter(result => !result.is_done).map(result => result.text))];
  const told = missed.length > MOST_TOLD ? [...missed.slice(0, MOST_TOLD), `and ${missed.length - MOST_TOLD} more`] : missed;
  if (acted.done === 0 && missed.length > 0) throw new Refusal(409, "moved", "Nothing was done.", told.join("; "));
  const only = acted.results.length === 1 ? acted.results[0]?.text : undefined;
  return only ?? [acted.text, ...told].join("; ");
}
