// The bar at the foot of a list: how many rows are marked, and what can be done with them.
import type { ComponentChildren } from "preact";
import { count } from "../format";
import { useKey } from "../keys";
import type { Marks } from "./marks";

interface MarksBarProps {
  readonly marks: Marks;
  /** How many there are that fit, where more than the shown ones can be marked. */
  readonly fit: number;
  readonly most: number;
  readonly onAll: (() => void) | null;
  readonly isBusy: boolean;
  /** What can be done with all that fit, where they are more than one action reaches. */
  readonly whole?: ComponentChildren;
  readonly children: ComponentChildren;
}

export function MarksBar({ marks, fit, most, onAll, isBusy, whole, children }: MarksBarProps) {
  useKey("Escape", marks.clear);
  const many = marks.places.size;
  if (many === 0) return null;
  const reach = Math.min(fit, most);
  return (
    <section class="marks" aria-label="Marked rows">
      <b role="status">{count(many)} marked</b>
      {onAll !== null && reach > many && (
        <button type="button" class="btn small quiet" onClick={onAll} disabled={isBusy}>
          {isBusy ? "Marking …" : fit > most ? `Mark the first ${count(most)}` : `Mark all ${count(fit)}`}
        </button>
      )}
      <span class="push" />
      {fit > most && whole}
      {children}
      <button type="button" class="btn small quiet" onClick={marks.clear}>
        Unmark <kbd>Esc</kbd>
      </button>
    </section>
  );
}

export function MarkBox({ label, isOn, onToggle }: { label: string; isOn: boolean; onToggle: () => void }) {
  return (
    <label class="markbox">
      <input type="checkbox" data-mark checked={isOn} onChange={onToggle} aria-label={label} />
    </label>
  );
}
