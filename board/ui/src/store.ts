// A value that components read and are drawn again for when it changes.
import { useLayoutEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(value: T): void;
  subscribe(changed: () => void): () => void;
}

export function createStore<T>(value: T): Store<T> {
  let now = value;
  const readers = new Set<() => void>();
  return {
    get: () => now,
    set: next => {
      if (Object.is(next, now)) return;
      now = next;
      for (const changed of [...readers]) changed();
    },
    subscribe: changed => {
      readers.add(changed);
      return () => void readers.delete(changed);
    },
  };
}

/** Return what the store holds, or what `pick` takes out of it: only a change of that draws again. */
export function useStore<T>(store: Store<T>): T;
export function useStore<T, P>(store: Store<T>, pick: (value: T) => P): P;
export function useStore<T, P>(store: Store<T>, pick?: (value: T) => P): T | P {
  const read = () => (pick ? pick(store.get()) : store.get());
  const [shown, show] = useState<T | P>(read);
  useLayoutEffect(() => {
    const look = () => show(read);
    look();
    return store.subscribe(look);
  }, [store]);
  return shown;
}
