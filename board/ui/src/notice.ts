// One sentence at the foot of the page about what was done; read aloud once.
import { createStore } from "./store";

export const notice = createStore<{ text: string; href: string | null } | null>(null);
const SHOWN_MS = 8000; // a guess: two lines are read in half of it
let timer: number | undefined;

export function say(text: string, href: string | null = null): void {
  if (text === "") return;
  clearTimeout(timer);
  notice.set({ text, href });
  timer = setTimeout(() => notice.set(null), SHOWN_MS);
}
