// Which page is drawn by what; each is loaded when it is first shown.
import type { ComponentType } from "preact";

type Load = () => Promise<{ default: ComponentType }>;

// Maps, since a page's name comes out of the address: each object has a `constructor`.
export const PAGES: ReadonlyMap<string, Load> = new Map<string, Load>([
  ["overview", () => import("./pages/Overview")],
  ["jobs", () => import("./pages/Jobs")],
  ["job", () => import("./pages/Job")],
  ["dead", () => import("./pages/Dead")],
  ["trash", () => import("./pages/Trash")],
  ["letter", () => import("./pages/Letter")],
  ["types", () => import("./pages/Types")],
  ["type", () => import("./pages/Type")],
  ["workers", () => import("./pages/Workers")],
  ["worker", () => import("./pages/Worker")],
  ["schedules", () => import("./pages/Schedules")],
  ["queue", () => import("./pages/Queue")],
  ["system", () => import("./pages/System")],
  ["login", () => import("./pages/Login")],
]);

/** Which entry of the bar a page belongs to. */
export const ENTRY: ReadonlyMap<string, string> = new Map([
  ["job", "jobs"],
  ["letter", "dead"],
  ["trash", "dead"],
  ["type", "types"],
  ["worker", "workers"],
]);
