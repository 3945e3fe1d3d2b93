import type { Said as Parts } from "../api/names";
import { visible } from "../format";

/** A sentence in parts, plain and strong in turn. */
export function Said({ parts }: { parts: Parts | readonly string[] }) {
  return <>{parts.map((part, at) => (at % 2 === 1 ? <b key={at}>{visible(part)}</b> : visible(part)))}</>;
}

export const saidText = (parts: readonly string[]) => parts.join("");
