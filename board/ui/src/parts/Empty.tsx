import type { ComponentChildren } from "preact";

/** Why nothing is here, then the next step. */
export function Empty({ why, children }: { why: ComponentChildren; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p>{why}</p>
      {children}
    </div>
  );
}
