// A list of dead letters: of a group, of a search, or of the trash.
import { useState } from "preact/hooks";
import { get, Refusal } from "../api";
import type { LetterRow, Letters } from "../api/types";
import { count, visible } from "../format";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { say } from "../notice";
import { useCan } from "../rights";
import { go } from "../router";
import { to } from "../url";
import { A } from "./A";
import { Button } from "./Button";
import { Cut } from "./Cut";
import { Empty } from "./Empty";
import { Fresh } from "./Fresh";
import { LetterAsk, type LetterVerb } from "./LetterAsk";
import { MarkBox, MarksBar } from "./MarksBar";
import { useMarks } from "./marks";
import { Shown } from "./Shown";
import { Time } from "./Time";
import { classes } from "./tone";

const EVERY_MS = 2000;
const LIMIT = 10; // of a group, above what a replay would do
const LONG = 50; // of a list that stands alone
const STEP = 100; // the largest part of a list that the API gives
const MOST_PLACES = 1000; // of one action, as the API says

export interface LettersAsk {
  readonly group?: string;
  readonly q?: string;
  readonly trash?: boolean;
}

interface Props {
  ask: LettersAsk;
  hasType?: boolean;
  onDone: () => void;
}

export function LetterList({ ask, hasType = false, onDone }: Props) {
  const whole = { group: ask.group ?? "", q: ask.q ?? "", trash: ask.trash ?? false, limit: hasType ? LONG : LIMIT };
  const loaded = useLoad("dead", whole, EVERY_MS);
  return (
    <Shown of={loaded}>
      {answer => (
        <List key={JSON.stringify(whole)} ask={whole} answer={answer} hasType={hasType} again={loaded.again} onDone={onDone} />
      )}
    </Shown>
  );
}

interface Whole {
  group: string;
  q: string;
  trash: boolean;
  limit: number;
}

interface ListProps {
  ask: Whole;
  answer: Letters;
  hasType: boolean;
  again: () => void;
  onDone: () => void;
}

function List({ ask, answer, hasType, again, onDone }: ListProps) {
  const may = useCan("operate");
  const marks = useMarks("");
  const [extra, setExtra] = useState<{ rows: readonly LetterRow[]; cursor: string | null }>({ rows: [], cursor: null });
  const [asks, setAsks] = useState<{ verb: LetterVerb; places: readonly string[] } | null>(null);
  const [isBusy, setBusy] = useState(false);
  const isHeld = marks.places.size > 0 || extra.rows.length > 0;
  const held = useHeld(answer.rows, row => row.place, "list", isHeld);
  const shown = new Set(held.rows.map(entry => entry.key));
  const later = extra.rows
    .filter(row => !shown.has(row.place))
    .map(row => ({ key: row.place, row, isGone: false, isNew: false }));
  const rows = [...held.rows, ...later];
  const cursor = extra.rows.length > 0 ? extra.cursor : answer.cursor;
  const guarded = async (act: () => Promise<void>) => {
    setBusy(true);
    try {
      await act();
    } catch (error) {
      say(error instanceof Refusal ? error.text : String(error));
    }
    setBusy(false);
  };
  const more = async () => {
    const next = await get("dead", { ...ask, cursor: cursor ?? "", limit: LONG });
    setExtra({ rows: [...extra.rows, ...next.rows], cursor: next.cursor });
  };
  const verbs: readonly { verb: LetterVerb; text: string }[] = ask.trash
    ? [{ verb: "restore", text: "Restore" }]
    : [
        { verb: "replay", text: "Replay" },
        { verb: "trash", text: "Move to trash" },
      ];
  const isAll = rows.length > 0 && rows.every(entry => marks.places.has(entry.key));
  if (rows.length === 0) return <Nothing ask={ask} />;
  return (
    <>
      <div class="scroll">
        <table class="cards fixed letters">
          <thead>
            <tr>
              {may && (
                <th class="m">
                  <MarkBox
                    label="Mark all shown letters"
                    isOn={isAll}
                    onToggle={() => marks.set(isAll ? [] : rows.map(entry => entry.key))}
                  />
                </th>
              )}
              <th class="w-job">job</th>
              {hasType && <th class="w-type">type</th>}
              {hasType && <th class="w-error">error</th>}
              <th>arguments</th>
              <th class="num w-deliveries">attempts</th>
              <th class="num w-at">died</th>
            </tr>
          </thead>
          <tbody {...held.hands}>
            {rows.map(({ key, row, isGone }) => (
              <Line
                key={key}
                row={row}
                isGone={isGone}
                hasType={hasType}
                mark={
                  may ? (
                    <MarkBox label={`Mark ${row.id}`} isOn={marks.places.has(key)} onToggle={() => marks.toggle(key)} />
                  ) : null
                }
                isMarked={marks.places.has(key)}
              />
            ))}
          </tbody>
        </table>
      </div>
      <div class="row pad">
        <span class="faint">{answer.said === "" ? `${count(rows.length)} of ${count(answer.of)} shown` : answer.said}</span>
        <Fresh
          waiting={held.waiting}
          onShow={() => {
            setExtra({ rows: [], cursor: null });
            held.release();
          }}
        />
        <span class="push" />
        {cursor !== null && (
          <Button isSmall kind="quiet" isOff={isBusy} onClick={() => void guarded(more)}>
            Show more
          </Button>
        )}
      </div>
      <MarksBar
        marks={marks}
        fit={answer.of}
        most={MOST_PLACES}
        isBusy={isBusy}
        onAll={() => void guarded(async () => marks.set(await placesOfLetters(ask)))}
      >
        {verbs.map(({ verb, text }) => (
          <Button
            key={verb}
            isSmall
            kind={verb === "trash" ? "danger" : ""}
            right="operate"
            onClick={() => setAsks({ verb, places: [...marks.places] })}
          >
            {`${text} …`}
          </Button>
        ))}
      </MarksBar>
      {asks !== null && (
        <LetterAsk
          {...asks}
          onClose={() => setAsks(null)}
          onDone={() => {
            marks.clear();
            again();
            onDone();
          }}
        />
      )}
    </>
  );
}

interface LineProps {
  row: LetterRow;
  mark: preact.ComponentChildren;
  isMarked: boolean;
  isGone: boolean;
  hasType: boolean;
}

function Line({ row, mark, isMarked, isGone, hasType }: LineProps) {
  const href = to("letter", { place: row.place });
  const click = (event: MouseEvent) => {
    const isOther = event.target instanceof Element && event.target.closest("a, button, input, label") !== null;
    const isChoosing = (getSelection()?.toString() ?? "") !== "";
    if (!isOther && !isChoosing) go(href);
  };
  return (
    <tr class={classes(isMarked && "sel", isGone && "isgone")} onClick={click}>
      {mark !== null && <td class="m">{mark}</td>}
      <td class="c1">
        <A href={href} isRow>
          <code title={visible(row.id)}>{visible(row.id)}</code>
        </A>
      </td>
      {hasType && <td class="type">{visible(row.type)}</td>}
      {hasType && (
        <td class="error">
          <Cut text={row.error || row.reason} />
        </td>
      )}
      <td class="c3 cut">{row.args !== null && <Cut text={row.args} isCode />}</td>
      <td class="num">{row.attempts}</td>
      <td class="num c2 faint">
        <Time at_ms={row.died_ms} />
      </td>
    </tr>
  );
}

function Nothing({ ask }: { ask: LettersAsk }) {
  if (ask.q !== undefined && ask.q !== "") {
    return (
      <Empty why="No letter that was looked at fits.">
        <A class="btn small" href={to(ask.trash === true ? "trash" : "dead")}>
          Drop the search “{ask.q}”
        </A>
      </Empty>
    );
  }
  return <Empty why={ask.trash === true ? "The trash is empty." : "No letter is left here."} />;
}

/** Return the places of all letters that fit, as far as one action reaches. */
async function placesOfLetters(ask: LettersAsk): Promise<string[]> {
  const found = new Set<string>();
  let cursor = "";
  do {
    const part = await get("dead", { group: ask.group ?? "", q: ask.q ?? "", trash: ask.trash ?? false, cursor, limit: STEP });
    for (const row of part.rows) found.add(row.place);
    cursor = part.cursor ?? "";
  } while (cursor !== "" && found.size < MOST_PLACES);
  return [...found].slice(0, MOST_PLACES);
}
