import type { Overview } from "../api/types";
import { count, plural } from "../format";
import { useFrame } from "../live";
import { Copy } from "./Copy";
import { Mark } from "./Mark";

/** What a fresh queue shows: why nothing is here, and a command that sends a first job. */
export function FirstMinute({ shown }: { shown: Overview }) {
  const types = useFrame()?.counts.types ?? 0;
  const lanes = shown.workers.reduce((sum, row) => sum + row.lanes, 0);
  const who = shown.workers.length === 1 ? "The worker runs and waits" : `${count(shown.workers.length)} workers run and wait`;
  return (
    <section class="panel blank">
      <div class="blank-in">
        <Mark size={40} />
        <h2 class="large">No job has come yet</h2>
        <p class="muted">
          {shown.workers.length === 0
            ? "No worker runs yet, and the queue is empty. What is sent now waits for one."
            : `${who}: ${plural(types, "type")}, ${plural(lanes, "lane")}, an empty queue. Send it something, and this page comes alive.`}
        </p>
        <div class="panel code-panel">
          <header>
            <h3>Send one</h3>
            <span class="more">
              <Copy text={shown.hint} what="the command" isBare />
            </span>
          </header>
          <pre class="code wrap" tabIndex={0}>
            {shown.hint}
          </pre>
        </div>
        <p class="faint">
          Or see it all at work, beside this one: <code>python -m runtime demo</code>
        </p>
      </div>
    </section>
  );
}
