// Names for parts of the shapes that the document has in place.
import type { About, OverviewAsk, Priority, Verdict } from "./types";

export type Level = Verdict["level"];
export type Pri = Priority["name"];
export type Right = About["rights"][number];
export type Range = NonNullable<OverviewAsk["range"]>;
export type Said = Verdict["said"];
