// Signs that turn a text around, hide it or end its line are made visible wherever text is drawn: no page has to remember it.
import { options, type VNode } from "preact";
import { visible } from "./format";

const LABELS = ["title", "aria-label"];

/** Make what is drawn visible: each text, and what an element is called. What a field holds stays as it is. */
export function shownVisibly(node: VNode): void {
  const { type, props } = node as unknown as { type: unknown; props: unknown };
  if (typeof props === "string") Object.assign(node, { props: visible(props) });
  else if (typeof type === "string") {
    const given = props as Record<string, unknown>;
    for (const name of LABELS) {
      const text = given[name];
      if (typeof text === "string") given[name] = visible(text);
    }
  }
}

export function showVisibly(): void {
  const before = options.vnode;
  options.vnode = node => {
    before?.(node);
    shownVisibly(node);
  };
}
