import type { Level } from "../api/names";
import { toneOf } from "./tone";

/** The shape of a level: a disc with a tick, a triangle, a diamond. It differs by more than its colour. */
export function LevelMark({ level, size = 14 }: { level: Level; size?: number }) {
  return (
    <svg class="level" width={size} height={size} viewBox="0 0 16 16" aria-hidden="true">
      {level === "ok" && <circle cx="8" cy="8" r="7" class="f-ok" />}
      {level === "ok" && <path d="m4.9 8.2 2.1 2.1 4.1-4.5" class="cut" />}
      {level === "look" && (
        <path
          d="M8 1.2c.5 0 .9.2 1.1.6l6 10.9c.5.9-.1 1.9-1.1 1.9H2c-1 0-1.6-1-1.1-1.9l6-10.9c.2-.4.6-.6 1.1-.6z"
          class="f-warn"
        />
      )}
      {level === "look" && <path d="M8 6v3.4M8 11.7v.1" class="cut" />}
      {level === "act" && (
        <path
          d="M8 .7c.4 0 .8.2 1.1.5l5.7 5.7c.6.6.6 1.6 0 2.2l-5.7 5.7c-.6.6-1.6.6-2.2 0L1.2 9.1c-.6-.6-.6-1.6 0-2.2l5.7-5.7C7.2.9 7.6.7 8 .7z"
          class="f-bad"
        />
      )}
      {level === "act" && <path d="M8 4.7v4M8 11.2v.1" class="cut" />}
    </svg>
  );
}

export function LevelWord({ level, size = 13 }: { level: Level; size?: number }) {
  return (
    <b class={`word ${toneOf(level)}`}>
      <LevelMark level={level} size={size} />
      {level}
    </b>
  );
}
