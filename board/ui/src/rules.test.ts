// What no linter rule says: text of strangers reaches the page as text alone, and a link by one function.
import { expect, it } from "vitest";

const files = import.meta.glob<string>(["./**/*.{ts,tsx}", "!./**/*.test.ts", "!./api/types.ts"], {
  query: "?raw",
  import: "default",
  eager: true,
});
const sources = Object.entries(files);

const FORBIDDEN: [RegExp, string, string[]][] = [
  [/innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc/i, "raw HTML", []],
  [/\beval\(|new Function|setTimeout\(["'`]/, "text that runs", []],
  [
    /<(a|area|iframe|object|embed|form [^>]*action|script|style)\s[^>]*\b(href|src|data|action)=/,
    "an address in an element",
    ["./parts/A.tsx"],
  ],
  [/\bfetch\(|XMLHttpRequest|sendBeacon|WebSocket/, "a request", ["./api.ts"]],
  [/window\.open|location\.(href\s*=|assign|replace)/, "another way to an address", []],
];

it.each(FORBIDDEN)("%s stands in no source", (pattern, _, allowed) => {
  const found = sources.filter(([name, text]) => pattern.test(text) && !allowed.includes(name));
  expect(found.map(([name]) => name)).toEqual([]);
});

it("looks at the sources", () => expect(sources.length).toBeGreaterThan(30));
