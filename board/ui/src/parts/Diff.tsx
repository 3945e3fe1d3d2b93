// How a text differs from what it was: the lines that changed, with two lines around them.

import type { Line } from "../api/types";

const AROUND = 2; // lines that stayed, beside one that changed

export function Diff({ lines }: { lines: readonly Line[] }) {
  const shown = lines.map((_, at) => lines.slice(Math.max(0, at - AROUND), at + AROUND + 1).some(line => line.mark !== " "));
  let was = 0;
  return (
    <section class="code" tabIndex={0} aria-label="Your change">
      {lines.map((line, at) => {
        if (line.mark !== "+") was += 1;
        if (!shown[at]) return shown[at - 1] ? <div key={at} class="gap" aria-hidden="true" /> : null;
        return (
          <div key={at} class={CLASS[line.mark]}>
            <span>{line.mark === " " ? was : <Marked mark={line.mark} />}</span>
            <span>{line.text}</span>
          </div>
        );
      })}
    </section>
  );
}

const CLASS = { "-": "del", "+": "add", " ": "" } as const;

function Marked({ mark }: { mark: "-" | "+" }) {
  return (
    <>
      <span aria-hidden="true">{mark === "-" ? "−" : "+"}</span>
      <span class="sr">{mark === "-" ? "was" : "is now"}</span>
    </>
  );
}

/** Return how many lines changed. */
export function changedIn(lines: readonly Line[]): number {
  const added = lines.filter(line => line.mark === "+").length;
  const removed = lines.filter(line => line.mark === "-").length;
  return Math.max(added, removed);
}
