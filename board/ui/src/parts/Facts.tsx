import type { Fact } from "../api/types";
import { visible } from "../format";

/** Names and what is so. */
export function Facts({ facts }: { facts: readonly Fact[] }) {
  return (
    <dl class="facts-grid">
      {facts.map((fact, at) => (
        <div key={at}>
          <dt>{fact.name}</dt>
          <dd>{fact.is_code ? <code>{visible(fact.text)}</code> : visible(fact.text)}</dd>
        </div>
      ))}
    </dl>
  );
}
