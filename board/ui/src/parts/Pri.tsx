import type { Pri as Name } from "../api/names";

export const PRIORITIES = ["critical", "high", "medium", "low"] as const satisfies readonly Name[];

/** A priority as bars and its word; the word is for readers of the screen alone with `isBare`. */
export function Pri({ name, isBare = false }: { name: Name | null; isBare?: boolean }) {
  if (name === null) return <span class="faint">–</span>;
  const filled = 4 - PRIORITIES.indexOf(name);
  return (
    <span class="pri" title={isBare ? name : undefined}>
      <svg width="14" height="12" viewBox="0 0 14 12" aria-hidden="true">
        {[0, 1, 2, 3].map(at => (
          <rect
            key={at}
            class={at < filled ? `f-${name}` : `f-${name} off`}
            x={at * 3.6}
            y={8.4 - at * 2.6}
            width="2.4"
            height={3.6 + at * 2.6}
            rx=".8"
          />
        ))}
      </svg>
      <span class={isBare ? "sr" : ""}>{name}</span>
    </span>
  );
}
