// Rows that somebody has marked, to do one thing to all of them.
import { useState } from "preact/hooks";

export interface Marks {
  readonly places: ReadonlySet<string>;
  readonly toggle: (place: string) => void;
  readonly set: (places: Iterable<string>) => void;
  readonly clear: () => void;
}

/** Return the marks of a list; another `view` begins without any. */
export function useMarks(view: string): Marks {
  const [state, setState] = useState<{ view: string; places: ReadonlySet<string> }>({ view, places: new Set() });
  const places: ReadonlySet<string> = state.view === view ? state.places : new Set();
  const set = (next: Iterable<string>) => setState({ view, places: new Set(next) });
  const toggle = (place: string) => {
    const next = new Set(places);
    if (!next.delete(place)) next.add(place);
    set(next);
  };
  return { places, toggle, set, clear: () => set([]) };
}
