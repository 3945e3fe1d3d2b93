import { useState } from "preact/hooks";
import type { Range } from "../api/names";
import type { Type as Shape } from "../api/types";
import { count, duration, percent, rate } from "../format";
import { useHeading } from "../heading";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Badge, Note } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Charts } from "../parts/Charts";
import { Facts } from "../parts/Facts";
import { GroupList } from "../parts/GroupList";
import { Panel } from "../parts/Panel";
import { PauseQuestion, ResumeQuestion } from "../parts/Pausing";
import { Pri } from "../parts/Pri";
import { SendOne } from "../parts/SendOne";
import { Shown } from "../parts/Shown";
import { useRoute } from "../router";
import { to } from "../url";

/** One type: how it goes, what it dies of, its policy and its schema. */
export default function Type() {
  const { query } = useRoute();
  const type = query.get("type") ?? "";
  const range: Range = query.get("range") === "24h" ? "24h" : "1h";
  useHeading(type, [{ text: "Types", href: "types" }]);
  const loaded = useLoad("type", { type, range }, 5000, true);
  return (
    <Shown of={loaded}>
      {shown => (
        <>
          <Top shown={shown} again={loaded.again} />
          <Charts series={shown.series} range={range} />
          <Below shown={shown} />
        </>
      )}
    </Shown>
  );
}

function Top({ shown, again }: { shown: Shape; again: () => void }) {
  const [asks, ask] = useState<"" | "send" | "pause" | "resume">("");
  const { row } = shown;
  const close = () => {
    ask("");
    again();
  };
  return (
    <div class="row">
      <Pri name={shown.pri} />
      {shown.version !== null && <span class="faint">version {shown.version}</span>}
      {shown.is_paused && <Badge level="look">paused</Badge>}
      <Note level={row.level} text={row.note || (row.is_known ? "" : "no worker knows it")} />
      <span class="muted">{sentence(shown)}</span>
      <span class="push" />
      <A class="btn" href={to("jobs", { state: "waiting", q: `type:${row.type}` })}>
        Its jobs
      </A>
      <Button right="operate" onClick={() => ask(shown.is_paused ? "resume" : "pause")}>
        {shown.is_paused ? "Resume …" : "Pause …"}
      </Button>
      <Button kind="main" right="send" onClick={() => ask("send")}>
        Send one …
      </Button>
      {asks === "send" && <SendOne type={row.type} onClose={close} />}
      {asks === "pause" && <PauseQuestion what={{ type: row.type }} name={row.type} onClose={close} />}
      {asks === "resume" && <ResumeQuestion what={{ type: row.type }} name={row.type} onClose={close} />}
    </div>
  );
}

function sentence({ row }: Shape): string {
  if (row.runs === 0) return "It has not run in the last 5 minutes.";
  const failed = row.failed === 0 ? "none failed" : `${count(row.failed)} failed, ${percent(row.failed_part)}`;
  return `${count(row.runs)} runs in 5 min, ${rate(row.runs_s)} a second; ${failed}; half are done in ${duration(row.p50_ms)}, 95 of 100 in ${duration(row.p95_ms)}.`;
}

function Below({ shown }: { shown: Shape }) {
  return (
    <div class="two">
      <Panel
        title="Dead letters"
        more={
          <A class="link" href={to("dead", { q: `type:${shown.row.type}` })}>
            all of them
          </A>
        }
      >
        <GroupList groups={shown.groups} isGrouped />
      </Panel>
      <Panel title="Policy" note="as a worker has written it down">
        <div class="body">
          {shown.policy.length === 0 ? (
            <p class="muted">No worker that lives has registered this type.</p>
          ) : (
            <Facts facts={shown.policy} />
          )}
        </div>
        {shown.schema !== null && (
          <details class="more-below">
            <summary>Schema</summary>
            <pre class="code" tabIndex={0}>
              {shown.schema}
            </pre>
          </details>
        )}
      </Panel>
    </div>
  );
}
