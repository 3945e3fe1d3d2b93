import { expect, it } from "vitest";
import { hold, type Row } from "./held";

const key = (row: string) => row.slice(0, 1);
const shown = (rows: string[]): Row<string>[] => hold([], rows, key, false).rows;
const keys = (rows: Row<string>[]) => rows.map(entry => entry.key).join("");

it("shows the list as it is while nothing is held, and what is new", () => {
  const held = hold(shown(["a1", "b1"]), ["c1", "a2"], key, false);
  expect(keys(held.rows)).toBe("ca");
  expect(held.rows.map(entry => entry.isNew)).toEqual([true, false]);
});

it("moves no held row: it takes new figures, keeps what is gone, and counts what waits", () => {
  const held = hold(shown(["a1", "b1"]), ["c1", "d1", "b2"], key, true);
  expect(keys(held.rows)).toBe("ab");
  expect(held.rows.map(entry => entry.row)).toEqual(["a1", "b2"]);
  expect(held.rows.map(entry => entry.isGone)).toEqual([true, false]);
  expect(held.waiting).toBe(2);
});

it("marks nothing as new in the first picture", () => expect(shown(["a1"])[0]?.isNew).toBe(false));
