import type { Group } from "../api/types";
import { count, visible, wholeError } from "../format";
import { to } from "../url";
import { A } from "./A";
import { Empty } from "./Empty";
import { Time } from "./Time";

/** Groups of dead letters in short. */
export function GroupList({ groups, isGrouped }: { groups: readonly Group[]; isGrouped: boolean }) {
  if (groups.length === 0) return <Empty why={isGrouped ? "No job has died." : "The letters are still being grouped."} />;
  return (
    <ul class="list">
      {groups.map(group => (
        <li key={group.fp}>
          <A class="head" href={to("dead", { group: group.fp })} isRow title={group.message ?? group.error}>
            {wholeError(group.error, group.message)}
          </A>
          <span class={group.grows ? "side-num bad" : "side-num"}>{count(group.count)}</span>
          <span class="note">
            {group.type === "" ? "no type" : visible(group.type)}
            {group.reason !== group.error && ` · ${group.reason}`}
            {" · "}
            {group.grows ? (
              `grows, ${count(group.last_hour)} in the last hour`
            ) : (
              <>
                last <Time at_ms={group.last_ms} />
              </>
            )}
          </span>
        </li>
      ))}
    </ul>
  );
}
