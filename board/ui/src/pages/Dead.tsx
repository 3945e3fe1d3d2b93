// Dead letters by what they died of, and one group of them with what a replay would do. On a phone those are two screens.
import { useRef, useState } from "preact/hooks";
import { about, post } from "../api";
import type { Group, Groups } from "../api/types";
import { capital, count, plural, visible, wholeError } from "../format";
import { useHeading } from "../heading";
import { useHeld } from "../held";
import { useLoad } from "../load";
import { A } from "../parts/A";
import { Badge } from "../parts/Badge";
import { Button } from "../parts/Button";
import { Empty } from "../parts/Empty";
import { Fresh } from "../parts/Fresh";
import { Icon } from "../parts/Icon";
import { LetterList } from "../parts/LetterList";
import { Operations } from "../parts/Operations";
import { Question } from "../parts/Question";
import { ReplayPart, useCheck } from "../parts/Replay";
import { Shown } from "../parts/Shown";
import { Bars } from "../parts/Spark";
import { Time } from "../parts/Time";
import { useRoute } from "../router";
import { useStore } from "../store";
import { to, traceUrl } from "../url";

const EVERY_MS = 2000;

export default function Dead() {
  const { query } = useRoute();
  const group = query.get("group") ?? "";
  const q = query.get("q") ?? "";
  const [turn, setTurn] = useState(0);
  const loaded = useLoad("dead/groups", {}, EVERY_MS);
  const groups = loaded.data?.groups ?? [];
  const shown = group === "" ? groups[0] : groups.find(each => each.fp === group);
  useHeading(
    group === "" ? "Dead letters" : (shown?.error ?? "Group"),
    group === "" ? [] : [{ text: "Dead letters", href: to("dead") }],
  );
  const again = () => {
    loaded.again();
    setTurn(before => before + 1);
  };
  return (
    <>
      <Operations turn={turn} onRest={again} />
      {q !== "" ? (
        <Found q={q} onDone={again} />
      ) : (
        <Shown of={loaded}>
          {answer =>
            answer.letters === 0 && answer.groups.length === 0 ? (
              <NoLetters trash={answer.trash} />
            ) : (
              <div class={group === "" ? "split list-first" : "split detail-first"}>
                <GroupList answer={answer} chosen={shown?.fp ?? ""} isHeld={group !== ""} />
                {shown !== undefined ? (
                  <GroupPart key={shown.fp} group={shown} turn={turn} onDone={again} />
                ) : (
                  <NoGroup isGrouped={answer.grouped >= answer.letters} />
                )}
              </div>
            )
          }
        </Shown>
      )}
    </>
  );
}

function NoLetters({ trash }: { trash: number }) {
  const queue = useStore(about, found => found?.queue ?? "jobs");
  return (
    <section class="panel">
      <Empty why={`No job of ${queue} has died: none failed for good, and none was cancelled.`}>
        {trash > 0 && (
          <A class="btn small" href={to("trash")}>
            {`Show ${plural(trash, "letter")} in the trash`}
          </A>
        )}
      </Empty>
    </section>
  );
}

function NoGroup({ isGrouped }: { isGrouped: boolean }) {
  return (
    <section class="panel" aria-label="Group">
      <Empty
        why={
          isGrouped
            ? "No letter is left in this group: they were replayed, or moved to the trash."
            : "This group has not been found yet: letters are still being grouped."
        }
      >
        <A class="btn small" href={to("dead")}>
          All groups
        </A>
      </Empty>
    </section>
  );
}

function GroupList({ answer, chosen, isHeld }: { answer: Groups; chosen: string; isHeld: boolean }) {
  const { letters, grouped, groups, trash } = answer;
  const held = useHeld(groups, group => group.fp, "groups", isHeld);
  const isAll = grouped >= letters;
  return (
    <section class="panel" aria-label="Groups">
      <header>
        <h2>{`${plural(letters, "letter")} in ${plural(groups.length, "group")}`}</h2>
        <span class="more">
          <Fresh waiting={held.waiting} onShow={held.release} />
          {isAll ? "newest first" : `grouped ${count(grouped)} of ${count(letters)}`}
        </span>
      </header>
      <ul class="groups" {...held.hands}>
        {held.rows.map(({ key, row, isGone }) => (
          <li key={key} class={isGone ? "isgone" : ""}>
            <GroupLink group={row} isChosen={key === chosen} />
          </li>
        ))}
      </ul>
      {trash > 0 && (
        <div class="pad trash-link">
          <A class="link" href={to("trash")}>
            <Icon name="trash" size={14} /> {`${plural(trash, "letter")} in the trash`}
          </A>
        </div>
      )}
    </section>
  );
}

function GroupLink({ group, isChosen }: { group: Group; isChosen: boolean }) {
  return (
    <A href={to("dead", { group: group.fp })} isRow aria-current={isChosen ? "true" : undefined}>
      <span class="err">{visible(group.error)}</span>
      <span class={group.grows ? "count bad" : "count"}>{count(group.count)}</span>
      <span class="msg">{group.message === null ? "" : visible(group.message)}</span>
      <Bars
        values={group.hours}
        tone={group.grows ? "bad" : "strong"}
        label="by hour, the last 24 hours"
        width={84}
        height={18}
      />
      <span class="meta">
        <Badge>{group.type === "" ? "no type" : visible(group.type)}</Badge>
        {group.grows && <Badge level="act">grows</Badge>}
        {group.reason !== group.error && <span>{visible(group.reason)}</span>}
        <span>
          last <Time at_ms={group.last_ms} />
        </span>
      </span>
    </A>
  );
}

/** From when to when they died. */
function Span({ group }: { group: Group }) {
  if (group.count === 1) return <Time at_ms={group.last_ms} />;
  return (
    <span>
      first <Time at_ms={group.first_ms} />, last <Time at_ms={group.last_ms} />
    </span>
  );
}

/** One group. It is checked anew with each turn, and when letters have left: what was checked is not what is there then. */
function GroupPart({ group, turn, onDone }: { group: Group; turn: number; onDone: () => void }) {
  const [isTrashed, setTrashed] = useState(false);
  const checked = useCheck(`${group.fp} ${turn} ${useLosses(group.count)}`, { group: group.fp });
  return (
    <section class="panel" aria-label="Group">
      <div class="hero">
        <div class="row">
          <A class="badge" href={to("type", { type: group.type })}>
            {group.type === "" ? "no type" : visible(group.type)}
          </A>
          {group.grows && <Badge level="act">{`grows: ${count(group.last_hour)} in the last hour`}</Badge>}
          <span class="push" />
          <Button isSmall kind="danger" right="operate" onClick={() => setTrashed(true)}>
            Move to trash …
          </Button>
        </div>
        <p class="err">{wholeError(group.error, group.message)}</p>
        <GroupFacts group={group} />
      </div>
      <LetterList ask={{ group: group.fp }} onDone={onDone} />
      <ReplayPart
        checked={checked}
        title={`If ${group.count === 1 ? "it" : `all ${count(group.count)}`} were replayed now`}
        pri={null}
        onStarted={onDone}
      />
      {isTrashed && <GroupTrash group={group} onClose={() => setTrashed(false)} onDone={onDone} />}
    </section>
  );
}

/** Return how often a count has become less. */
function useLosses(count: number): number {
  const kept = useRef({ count, losses: 0 });
  if (count < kept.current.count) kept.current.losses += 1;
  kept.current.count = count;
  return kept.current.losses;
}

/** The question before a whole group goes: an operation, which can be undone as exactly as a replay. */
function GroupTrash({ group, onClose, onDone }: { group: Group; onClose: () => void; onDone: () => void }) {
  // What is asked for does not change under the hand; where that is refused since it is another number now, that is asked for.
  const [many, setMany] = useState(group.count);
  const letters = plural(many, "letter");
  const onDo = async (reason: string) => {
    try {
      const started = await post("dead/trash/group", { group: group.fp, count: many, reason });
      onDone();
      return capital(started.text);
    } catch (error) {
      setMany(group.count);
      throw error;
    }
  };
  return (
    <Question
      title={`Move ${letters} to the trash?`}
      verb={`Move ${letters}`}
      count={group.count}
      isDanger
      onDo={onDo}
      onClose={onClose}
    >
      <p class="muted">
        {many === 1 ? "It leaves" : "They leave"} the dead letters and can be restored for 7 days; then{" "}
        {many === 1 ? "it is" : "they are"} deleted. Letters that come meanwhile stay here.
      </p>
      <p class="faint">Starts 10 s after this; until then undo is exact. Later, Stop leaves the rest where it is.</p>
    </Question>
  );
}

const REASONS: Record<string, string> = { attempts: "all attempts failed", timeout: "ran for too long" };

function GroupFacts({ group }: { group: Group }) {
  const template = useStore(about, found => found?.trace_url ?? null);
  const trace = traceUrl(template, group.trace);
  return (
    <div class="facts">
      <span>{plural(group.count, "letter")}</span>
      <Span group={group} />
      {group.frame !== "" && (
        <span>
          raised in <code>{visible(group.frame)}</code>
        </span>
      )}
      {group.reason !== group.error && <span>{REASONS[group.reason] ?? `died of ${visible(group.reason)}`}</span>}
      {group.apps.length > 0 && <span>{`died on ${group.apps.map(visible).join(", ")}`}</span>}
      {trace !== null && (
        <A class="link" href={trace}>
          trace of the newest <Icon name="out" size={12} />
        </A>
      )}
    </div>
  );
}

function Found({ q, onDone }: { q: string; onDone: () => void }) {
  return (
    <section class="panel" aria-label="Letters found">
      <header>
        <h2>Letters that fit</h2>
        <p>{visible(q)}</p>
        <span class="more">
          <A class="link" href={to("dead")}>
            All groups
          </A>
        </span>
      </header>
      <LetterList ask={{ q }} onDone={onDone} hasType />
    </section>
  );
}
