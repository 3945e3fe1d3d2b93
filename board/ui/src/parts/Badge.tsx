import type { ComponentChildren } from "preact";
import type { Level } from "../api/names";
import { LevelMark } from "./Level";
import { quietTone } from "./tone";

/** A noun or a short sentence, at most one in a row. A level gives it a colour and a shape; `hasTick` shows the shape of `ok`, too. */
export function Badge({ level, hasTick = false, children }: { level?: Level; hasTick?: boolean; children: ComponentChildren }) {
  const isSigned = level !== undefined && (level !== "ok" || hasTick);
  return (
    <span class={`badge ${level === undefined ? "" : isSigned && level === "ok" ? "ok" : quietTone(level)}`}>
      {isSigned && <LevelMark level={level} size={11} />}
      {children}
    </span>
  );
}

/** The note of a row with its level; nothing where there is none. */
export function Note({ level, text }: { level: Level; text: string }) {
  return text === "" ? null : <Badge level={level}>{text}</Badge>;
}
