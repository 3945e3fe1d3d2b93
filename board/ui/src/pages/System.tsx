import { useState } from "preact/hooks";
import { get, Refusal } from "../api";
import type { Entry, System as Shape, Trouble } from "../api/types";
import { useHeading } from "../heading";
import { useLoad } from "../load";
import { Button } from "../parts/Button";
import { Copy } from "../parts/Copy";
import { Empty } from "../parts/Empty";
import { Facts } from "../parts/Facts";
import { Head } from "../parts/Head";
import { LevelMark } from "../parts/Level";
import { Panel } from "../parts/Panel";
import { Refused } from "../parts/Question";
import { Said } from "../parts/Said";
import { Shown } from "../parts/Shown";
import { Time } from "../parts/Time";
import { visible } from "../format";

/** The server under all of this, what is wrong with it, and who did what. */
export default function System() {
  useHeading("System");
  const loaded = useLoad("system", {}, 10_000);
  return (
    <>
      <Shown of={loaded}>{shown => <Whole shown={shown} />}</Shown>
      <Audit />
    </>
  );
}

function Whole({ shown }: { shown: Shape }) {
  const worst = shown.troubles.some(found => found.level === "act")
    ? "act"
    : shown.troubles.some(found => found.level === "look")
      ? "look"
      : "ok";
  return (
    <>
      <section class="panel calm" aria-label="What a crash may lose">
        <LevelMark level={worst === "act" ? "look" : "ok"} size={16} />
        <p class="muted">
          <Said parts={shown.said} />
        </p>
      </section>
      <div class="two">
        <Panel title="What the doctor found">
          <ul class="check">
            {shown.troubles.map((found, at) => (
              <Found key={at} found={found} />
            ))}
          </ul>
          {shown.troubles.length === 0 && <Empty why="The doctor has found nothing wrong." />}
        </Panel>
        <Panel title="Facts">
          <div class="body">
            <Facts facts={shown.facts} />
          </div>
          <header class="inner">
            <h3>This board</h3>
          </header>
          <div class="body">
            <Facts facts={shown.cost} />
          </div>
        </Panel>
      </div>
    </>
  );
}

const ADVICE = /[:;?]( |$)|\(/; // what mends something is a command, or a sentence

function Found({ found }: { found: Trouble }) {
  return (
    <li>
      <LevelMark level={found.level} />
      <span>
        <span class="sr">{found.level}: </span>
        {visible(found.text)}
        {found.fix !== "" &&
          (!ADVICE.test(found.fix) ? (
            <span class="why fix">
              <code>{visible(found.fix)}</code>
              <Copy text={found.fix} what="the command" isBare />
            </span>
          ) : (
            <span class="why">{visible(found.fix)}</span>
          ))}
      </span>
    </li>
  );
}

function Audit() {
  const loaded = useLoad("audit", {}, 10_000);
  const [older, setOlder] = useState<{ entries: Entry[]; cursor: string | null } | null>(null);
  const [refusal, refuse] = useState<Refusal | null>(null);
  return (
    <Shown of={loaded} lines={4}>
      {first => {
        const cursor = older === null ? first.cursor : older.cursor;
        const more = async () => {
          try {
            const next = await get("audit", { cursor: cursor ?? "" });
            setOlder({ entries: [...(older?.entries ?? first.entries), ...next.entries], cursor: next.cursor });
          } catch (error) {
            refuse(error instanceof Refusal ? error : null);
          }
        };
        return (
          <Panel title="Audit" note="who did what, from the board and the command line">
            <Entries entries={older === null ? first.entries : joined(first.entries, older.entries)} />
            {refusal !== null && <Refused refusal={refusal} />}
            {cursor !== null && (
              <div class="pad">
                <Button isSmall onClick={more}>
                  Show more
                </Button>
              </div>
            )}
          </Panel>
        );
      }}
    </Shown>
  );
}

const keyOf = (entry: Entry) => `${entry.at_ms} ${entry.who} ${entry.what}`;

/** Return the newest entries, then those that were asked for before. */
function joined(first: readonly Entry[], before: readonly Entry[]): Entry[] {
  const known = new Set(before.map(keyOf));
  return [...first.filter(entry => !known.has(keyOf(entry))), ...before];
}

function Entries({ entries }: { entries: readonly Entry[] }) {
  if (entries.length === 0)
    return <Empty why="Nobody has done anything yet: what is paused, cancelled, replayed or sent from here is written down." />;
  return (
    <div class="scroll">
      <table class="cards">
        <Head columns={[{ text: "when" }, { text: "who" }, { text: "what" }, { text: "reason" }]} />
        <tbody>
          {entries.map((entry, at) => (
            <tr key={`${keyOf(entry)} ${at}`}>
              <td class="c2">
                <Time at_ms={entry.at_ms} />
              </td>
              <td class="c1">{visible(entry.who)}</td>
              <td class="cut c3" title={entry.what}>
                {visible(entry.what)}
              </td>
              <td class="clip wide">{entry.reason === "" ? <span class="faint">–</span> : visible(entry.reason)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
