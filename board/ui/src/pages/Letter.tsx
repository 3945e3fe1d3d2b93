// One dead letter: its payload, which can be edited and sent as a new job, what it died of, and where it comes from.
import { useState } from "preact/hooks";
import { about } from "../api";
import type { Letter as Answer, Payload } from "../api/types";
import { bytes, clock, plural, visible, wholeError } from "../format";
import { useHeading } from "../heading";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Badge } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Code } from "../parts/Code";
import { Copy } from "../parts/Copy";
import { changedIn, Diff } from "../parts/Diff";
import { type Draft, SendQuestion, standOf, useDraft } from "../parts/Draft";
import { Editor } from "../parts/Editor";
import { Facts } from "../parts/Facts";
import { Frames } from "../parts/Frames";
import { Icon } from "../parts/Icon";
import { LetterAsk, type LetterVerb } from "../parts/LetterAsk";
import { Panel } from "../parts/Panel";
import { saidOf } from "../parts/PayloadPanel";
import { Pri } from "../parts/Pri";
import { Refused } from "../parts/Question";
import { Shown } from "../parts/Shown";
import { Time } from "../parts/Time";
import { Timeline } from "../parts/Timeline";
import { useCan } from "../rights";
import { go, setQuery, useRoute } from "../router";
import { zone } from "../settings";
import { useStore } from "../store";
import { to, traceUrl } from "../url";

const EVERY_MS = 5000; // a letter changes seldom: it is replayed, or moved

export default function Letter() {
  const { query } = useRoute();
  const place = query.get("place") ?? "";
  const loaded = useLoad("letter", { place }, EVERY_MS);
  useHeading(loaded.data?.row.id ?? place, [{ text: "Dead letters", href: to("dead") }], true);
  const isGone = loaded.failure?.status === 404;
  return (
    <Shown of={isGone ? { ...loaded, data: null } : loaded}>
      {letter => <Whole letter={letter} isEdited={query.get("edit") === "1"} />}
    </Shown>
  );
}

function Whole({ letter, isEdited }: { letter: Answer; isEdited: boolean }) {
  const [verb, setVerb] = useState<LetterVerb | null>(null);
  const { row } = letter;
  // It is at this place no more then: its group has the others.
  const leave = () => go(letter.is_in_trash ? to("trash") : to("dead", { group: letter.group }));
  return (
    <>
      <div class="row">
        <A class="badge" href={to("type", { type: row.type })}>
          {visible(row.type)}
        </A>
        <Pri name={row.pri} />
        {letter.group !== "" && (
          <A class="link" href={to("dead", { group: letter.group })}>
            its group
          </A>
        )}
        {letter.is_in_trash && (
          <Badge level="look">
            in the trash{letter.deleted_ms !== null && ", deleted "}
            {letter.deleted_ms !== null && <Time at_ms={letter.deleted_ms} />}
          </Badge>
        )}
        <span class="push" />
        {letter.is_in_trash ? (
          <Button isSmall right="operate" onClick={() => setVerb("restore")}>
            Restore …
          </Button>
        ) : (
          <>
            <Button isSmall right="operate" onClick={() => setVerb("replay")}>
              Replay unedited …
            </Button>
            <Button isSmall kind="danger" right="operate" onClick={() => setVerb("trash")}>
              Move to trash …
            </Button>
          </>
        )}
      </div>
      <div class="split even">
        <div class="stack">
          <PayloadPart letter={letter} isEdited={isEdited} />
          {letter.steps.length > 0 && (
            <Panel title="Its life">
              <div class="body">
                <Timeline steps={letter.steps} nowMs={row.died_ms} />
              </div>
            </Panel>
          )}
        </div>
        <div class="stack">
          <ErrorPart letter={letter} />
          <Panel title="Where it comes from">
            <div class="body">
              <Facts facts={letter.facts} />
            </div>
          </Panel>
        </div>
      </div>
      {verb !== null && <LetterAsk verb={verb} places={[row.place]} onClose={() => setVerb(null)} onDone={leave} />}
    </>
  );
}

function ErrorPart({ letter }: { letter: Answer }) {
  const where = useStore(zone);
  const template = useStore(about, found => found?.trace_url ?? null);
  const { row, message, frames, stack } = letter;
  const trace = traceUrl(template, letter.trace);
  const title = row.error === "" ? row.reason : row.error;
  const said = wholeError(title, message);
  const copied = [said, stack ?? ""].filter(part => part !== "").join("\n");
  return (
    <Panel
      title="Error"
      more={
        <span>
          died <Time at_ms={row.died_ms} />, {clock(row.died_ms, where)}
        </span>
      }
    >
      <div class="body">
        <div class="err2">{said}</div>
      </div>
      {frames !== null && frames.length > 0 && <Frames frames={frames} />}
      <div class="row pad">
        {trace !== null && (
          <A class="link" href={trace}>
            trace <Icon name="out" size={12} />
          </A>
        )}
        {message === null && <span class="faint">Messages and stacks are shown to who may read payloads.</span>}
        <span class="push" />
        <Copy text={copied} what={stack === null ? "error" : "error and stack"} />
      </div>
    </Panel>
  );
}

function PayloadPart({ letter, isEdited }: { letter: Answer; isEdited: boolean }) {
  const may = useCan("payload");
  const maySend = useCan("send") && may;
  const { place, type } = letter.row;
  const loaded = useLoad("payload", may ? { place } : null);
  if (!may) {
    return (
      <Panel title="Payload">
        <p class="pad faint">Its arguments are shown to who may read payloads.</p>
      </Panel>
    );
  }
  return (
    <Shown of={loaded} lines={6}>
      {payload =>
        isEdited && maySend && !payload.is_cut ? (
          <Edited key={place} letter={letter} payload={payload} />
        ) : (
          <Panel
            title="Payload"
            note={saidOf(payload, type)}
            more={
              <>
                <Copy text={payload.text} what="payload" isBare />
                {maySend && (
                  <Button isSmall right="send" isOff={payload.is_cut} onClick={() => setQuery({ edit: "1" }, true)}>
                    Edit …
                  </Button>
                )}
              </>
            }
          >
            <Code text={payload.text} problems={payload.problems} label="Payload" />
            {payload.is_cut && <p class="pad faint">{`The first part of ${bytes(payload.size)}: too long to be edited here.`}</p>}
          </Panel>
        )
      }
    </Shown>
  );
}

function Edited({ letter, payload }: { letter: Answer; payload: Payload }) {
  const { place, type, pri } = letter.row;
  const draft = useDraft(type, payload.text, place);
  const [isAsked, ask] = useState(false);
  const problems = draft.found?.problems ?? [];
  const lines = draft.found?.diff ?? [];
  const changed = changedIn(lines);
  return (
    <Panel title="Payload" note={standOf(draft)} more={<span class="strong">being edited</span>}>
      <Editor text={draft.text} problems={problems} label="Payload, editable" onText={draft.write} />
      {payload.redacted.length > 0 && (
        <p class="pad faint">{`A redacted value that is left alone keeps what it was, as long as nothing else is changed: ${payload.redacted.join(", ")}.`}</p>
      )}
      <header class="inner">
        <h3>Your change</h3>
        <p>{changed === 0 ? "none yet" : plural(changed, "line")}</p>
        <span class="more">
          {draft.text !== payload.text && (
            <button type="button" class="link" onClick={() => draft.write(payload.text)}>
              reset
            </button>
          )}
        </span>
      </header>
      {changed > 0 && <Diff lines={lines} />}
      {draft.refusal !== null && (
        <div class="pad">
          <Refused refusal={draft.refusal} />
        </div>
      )}
      <Send draft={draft} problems={problems.length} onSend={() => ask(true)} />
      {isAsked && (
        <SendQuestion
          type={type}
          draft={draft}
          pri={pri}
          place={place}
          onClose={() => ask(false)}
          onSent={id => go(to("job", { id }))}
        />
      )}
    </Panel>
  );
}

function Send({ draft, problems, onSend }: { draft: Draft; problems: number; onSend: () => void }) {
  return (
    <div class="ask">
      <div class="row">
        {problems > 0 && draft.isChecked ? (
          <Badge level="act">{`${plural(problems, "problem")} left`}</Badge>
        ) : (
          draft.found?.is_checked === false && <Badge level="look">not checked</Badge>
        )}
        <span class="muted">Sent as a new job; this letter is kept.</span>
        <span class="push" />
        <Button onClick={() => setQuery({ edit: "" }, true)}>Cancel</Button>
        <Button kind="main" right="send" isOff={!draft.isChecked || problems > 0} onClick={onSend}>
          Send as a new job …
        </Button>
      </div>
    </div>
  );
}
