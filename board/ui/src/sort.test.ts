import { expect, it } from "vitest";
import { sorted } from "./sort";

const rows = [
  { n: 1, t: "b" },
  { n: null, t: "a" },
  { n: 3, t: "c" },
  { n: 1, t: "d" },
  { n: -2, t: "e" },
];
const by = { n: (row: (typeof rows)[number]) => row.n, t: (row: (typeof rows)[number]) => row.t };
const shown = (name: string) =>
  sorted(rows, by, name)
    .map(row => row.t)
    .join("");

it("has the largest first, what is not known last, equal ones as they came", () => expect(shown("n")).toBe("cbdea"));
it("has text from a to z", () => expect(shown("t")).toBe("abcde"));
it.each(["age", "constructor", "hasOwnProperty", "__proto__"])("leaves the rows alone for %s, which is no order", name =>
  expect(shown(name)).toBe("bacde"),
);
