import type { Level } from "../api/names";

export type Tone = "" | "ok" | "warn" | "bad" | "info";

const TONES = { ok: "ok", look: "warn", act: "bad" } as const;

/** Return the class of a level's colours. */
export const toneOf = (level: Level): Tone => TONES[level];

/** Return the class of a level where a healthy one has no colour. */
export const quietTone = (level: Level): Tone => (level === "ok" ? "" : TONES[level]);

export const classes = (...names: (string | number | false | null | undefined)[]) => names.filter(Boolean).join(" ");
