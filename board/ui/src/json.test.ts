import { expect, it } from "vitest";
import { REDACTED, tokensOf } from "./json";

const kinds = (line: string) => tokensOf(line).map(token => `${token.kind} ${token.text}`);

it("tells keys, strings, numbers, words and redacted values apart", () => {
  expect(kinds('  "a": "b", "n" : -12.5e3, "t": true')).toEqual([
    "plain   ",
    'key "a"',
    "plain :",
    "plain  ",
    'string "b"',
    "plain , ",
    'key "n"',
    "plain  :",
    "plain  ",
    "number -12.5e3",
    "plain , ",
    'key "t"',
    "plain :",
    "plain  ",
    "word true",
  ]);
  expect(kinds(`"${REDACTED}"`)).toEqual([`redacted "${REDACTED}"`]);
});

it("changes nothing of a text: a number of 19 digits, an open string, an escape, garbage", () => {
  for (const line of [
    '{"order": 9007199254740993}',
    '"open \\" string',
    "nul tru -",
    '\\"\\',
    "💌 <b>",
    "",
    "-".repeat(50),
    '"\\',
  ]) {
    expect(
      tokensOf(line)
        .map(token => token.text)
        .join(""),
    ).toBe(line);
  }
});

it("reads a long line once", () => {
  expect(tokensOf(`${'"\\'.repeat(100_000)}`).length).toBeLessThan(200_001);
  expect(tokensOf(`"${" ".repeat(200_000)}`).length).toBe(1);
});
