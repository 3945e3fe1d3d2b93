// Rows of a list that do not move while somebody points at one, has marked or opened one, or answers a question.
import { useRef, useState } from "preact/hooks";

export interface Row<T> {
  key: string;
  row: T;
  /** It is in the list no more, and stays until the rows may move. */
  isGone: boolean;
  isNew: boolean;
}

export interface Held<T> {
  rows: Row<T>[];
  /** How many came meanwhile and are not shown yet. */
  waiting: number;
}

/** Return what is shown next: the shown rows in their places with their newest figures, or, where nothing is held, the new list. */
export function hold<T>(shown: readonly Row<T>[], next: readonly T[], keyOf: (row: T) => string, isHeld: boolean): Held<T> {
  const before = new Set(shown.map(entry => entry.key));
  if (!isHeld || shown.length === 0) {
    const isFirst = shown.length === 0;
    return {
      rows: next.map(row => ({ key: keyOf(row), row, isGone: false, isNew: !isFirst && !before.has(keyOf(row)) })),
      waiting: 0,
    };
  }
  const found = new Map(next.map(row => [keyOf(row), row]));
  const rows = shown.map(entry => {
    const row = found.get(entry.key);
    return { key: entry.key, row: row ?? entry.row, isGone: row === undefined, isNew: false };
  });
  return { rows, waiting: next.filter(row => !before.has(keyOf(row))).length };
}

export interface HeldRows<T> extends Held<T> {
  /** To spread on the element around the rows. */
  hands: {
    onPointerEnter: () => void;
    onPointerLeave: () => void;
    onFocusIn: () => void;
    onFocusOut: (event: FocusEvent) => void;
  };
  release: () => void;
}

/** Hold rows while the pointer is over them, the focus in them, or `isBusy`. `view` is the list's address: another one starts anew. */
export function useHeld<T>(next: readonly T[], keyOf: (row: T) => string, view: string, isBusy: boolean): HeldRows<T> {
  const [isOver, setOver] = useState(false);
  const [isFocused, setFocused] = useState(false);
  const kept = useRef<{ view: string; next: readonly T[]; held: Held<T> }>({ view, next: [], held: { rows: [], waiting: 0 } });
  const isHeld = isOver || isFocused || isBusy || document.querySelector("dialog[open]") !== null;
  const shown = kept.current.view === view ? kept.current.held.rows : [];
  if (kept.current.view !== view || kept.current.next !== next || (!isHeld && kept.current.held.waiting > 0)) {
    kept.current = { view, next, held: hold(shown, next, keyOf, isHeld) };
  }
  const [, draw] = useState(0);
  const release = () => {
    kept.current = { view, next, held: hold(shown, next, keyOf, false) };
    draw(turn => turn + 1);
  };
  // A touch enters and leaves at once; only a pointer that can rest holds.
  const hands = {
    onPointerEnter: () => setOver(true),
    onPointerLeave: () => setOver(false),
    onFocusIn: () => setFocused(true),
    onFocusOut: ({ currentTarget: rows, relatedTarget: next }: FocusEvent) =>
      setFocused(rows instanceof Node && next instanceof Node && rows.contains(next)),
  };
  return { ...kept.current.held, hands, release };
}
