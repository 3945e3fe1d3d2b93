// The keyboard: two keys to a page, one for what the page can do. Off by a switch, for who speaks to the browser.
import { useEffect, useRef } from "preact/hooks";
import { go } from "./router";
import { keys } from "./settings";
import { to } from "./url";

export const PAGES: readonly { key: string; page: string; name: string }[] = [
  { key: "o", page: "overview", name: "Overview" },
  { key: "j", page: "jobs", name: "Jobs" },
  { key: "d", page: "dead", name: "Dead letters" },
  { key: "t", page: "types", name: "Types" },
  { key: "w", page: "workers", name: "Workers" },
  { key: "s", page: "schedules", name: "Schedules" },
  { key: "q", page: "queue", name: "Queue" },
  { key: "y", page: "system", name: "System" },
];

const SECOND_KEY_MS = 1500; // a guess: as mail programs wait
const handlers = new Map<string, (() => void)[]>();
let first_ms = 0;

function isWriting(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || (/^(input|textarea|select)$/i.test(target.tagName) && !isBox(target)))
  );
}

const isBox = (target: HTMLElement) => target instanceof HTMLInputElement && /^(checkbox|radio)$/.test(target.type);

/** Move the focus along the rows: links or buttons with `data-row`. */
function step(by: 1 | -1): void {
  const rows = [...document.querySelectorAll<HTMLElement>("main [data-row]")];
  const here = document.activeElement?.closest("tr, li")?.querySelector("[data-row]") ?? document.activeElement;
  const at = here instanceof HTMLElement ? rows.indexOf(here) : -1;
  const next = rows[at === -1 ? (by === 1 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

function mark(): void {
  document.activeElement?.closest("tr, li")?.querySelector<HTMLInputElement>("input[data-mark]")?.click();
}

function press(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]") !== null) return;
  if (isWriting(event.target)) {
    if (event.key === "Escape" && event.target instanceof HTMLElement) event.target.blur();
    return;
  }
  if (keys.get() === "off" && event.key !== "Escape") return;
  if (run(event.key)) event.preventDefault();
}

function run(key: string): boolean {
  const page = Date.now() - first_ms < SECOND_KEY_MS ? PAGES.find(entry => entry.key === key) : undefined;
  first_ms = key === "g" && page === undefined ? Date.now() : 0;
  if (page !== undefined) go(to(page.page));
  else if (key === "j") step(1);
  else if (key === "k") step(-1);
  else if (key === "x") mark();
  else {
    const handler = handlers.get(key)?.at(-1);
    handler?.();
    return handler !== undefined;
  }
  return true;
}

/** Run something at a key while the component is shown; the newest of several wins. */
export function useKey(key: string, handler: () => void): void {
  const latest = useRef(handler);
  latest.current = handler;
  useEffect(() => {
    const entry = () => latest.current();
    handlers.set(key, [...(handlers.get(key) ?? []), entry]);
    return () =>
      void handlers.set(
        key,
        (handlers.get(key) ?? []).filter(other => other !== entry),
      );
  }, [key]);
}

export function useKeyboard(): void {
  useEffect(() => {
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}
