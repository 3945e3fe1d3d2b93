// What a person has chosen in this browser.
import type { Zone } from "./format";
import { createStore, type Store } from "./store";

export type Theme = "system" | "light" | "dark";

function kept<T extends string>(name: string, values: readonly [T, ...T[]]): Store<T> {
  const store = createStore<T>(values.find(value => value === read(name)) ?? values[0]);
  store.subscribe(() => write(name, store.get()));
  return store;
}

// A browser may refuse to keep anything, by its settings.
function read(name: string): string | null {
  try {
    return localStorage.getItem(`board-${name}`);
  } catch {
    return null;
  }
}

function write(name: string, value: string): void {
  try {
    localStorage.setItem(`board-${name}`, value);
  } catch {
    // it holds until the tab is closed
  }
}

export const theme = kept<Theme>("theme", ["system", "light", "dark"]);
export const zone = kept<Zone>("zone", ["local", "utc"]);
export const keys = kept<"on" | "off">("keys", ["on", "off"]);

export function applyTheme(): void {
  const chosen = theme.get();
  if (chosen === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", chosen);
}

theme.subscribe(applyTheme);
