import type { Said as Parts } from "../api/names";
import { visible } from "../format";

/** A sentence in parts, plain and strong in turn. */
export function Said({ parts }: { parts: Parts | readonly string[] }) {
  return <>{parts.map((part, at) => (at % 2 === 1 ? <b key={at}>{joined(part)}</b> : joined(part)))}</>;
}

/** Keep a figure and its unit on one line, and one that stands with its noun alone. */
const joined = (part: string) => visible(part).replace(/(?<=\d) (?=(?:ms|s|m|h|d|%)(?!\w))|(?<=^[\d,.]+) (?=\w+$)/g, "\u00a0");

export const saidText = (parts: readonly string[]) => parts.join("");
