// What the top of the frame and the title of the tab say.
import { useLayoutEffect } from "preact/hooks";
import { createStore } from "./store";

export interface Heading {
  text: string;
  above: readonly { text: string; href: string }[];
  isCode: boolean;
}

export const heading = createStore<Heading>({ text: "", above: [], isCode: false });

/** Name the shown page, and the pages above it. */
export function useHeading(text: string, above: Heading["above"] = [], isCode = false): void {
  const key = JSON.stringify([text, above, isCode]);
  useLayoutEffect(() => heading.set({ text, above, isCode }), [key]);
}
