import { describe, expect, it } from "vitest";
import { bytes, count, duration, exact, percent, rate, relative, seconds, short, visible, wholeError } from "./format";

const NOW = Date.UTC(2026, 10, 26, 15, 0, 7);

it.each([
  [0, "1 s"],
  [3999, "4 s"],
  [59_700, "1 m"],
  [252_000, "4 m 12 s"],
])("seconds %s", (ms, text) => expect(seconds(ms)).toBe(text));

describe("figures", () => {
  it.each([
    [null, "–"],
    [0, "0"],
    [9_999_999, "9,999,999"],
    [12_400_000, "12.4 M"],
    [1_250_000_000, "1.3 G"],
  ])("count %s", (value, text) => expect(count(value)).toBe(text));

  it.each([
    [132, "132"],
    [9_999, "9,999"],
    [40_212, "40.2 k"],
    [999_600, "1.00 M"],
    [1_204_411, "1.20 M"],
  ])("short %s", (value, text) => expect(short(value)).toBe(text));

  it.each([
    [0, "0"],
    [0.004, "< 0.01"],
    [0.013, "0.01"],
    [0.1, "0.1"],
    [3.14, "3.1"],
    [9.96, "10"],
    [122.4, "122"],
  ])("rate %s", (value, text) => expect(rate(value)).toBe(text));

  it.each([
    [0, "0 %"],
    [0.00001, "< 0.01 %"],
    [0.0001, "0.01 %"],
    [0.042, "4.2 %"],
    [0.05, "5 %"],
    [0.38, "38 %"],
    [1, "100 %"],
  ])("percent %s", (value, text) => expect(percent(value)).toBe(text));

  it.each([
    [412, "412 B"],
    [1024 * 1024, "1 MB"],
    [2.8 * 1024 ** 3, "2.8 GB"],
    [158 * 1024 ** 2, "158 MB"],
  ])("bytes %s", (value, text) => expect(bytes(value)).toBe(text));
});

describe("durations", () => {
  it.each([
    [null, "–"],
    [0.4, "< 1 ms"],
    [340, "340 ms"],
    [999.7, "1 s"],
    [1234, "1.2 s"],
    [9_960, "10 s"],
    [38_000, "38 s"],
    [59_700, "1 m"],
    [252_000, "4 m 12 s"],
    [842_000, "14 m 02 s"],
    [3_599_700, "1 h"],
    [8_040_000, "2 h 14 m"],
    [86_390_000, "1 d"],
    [3 * 3_600_000 + 86_400_000, "1 d 3 h"],
    [41 * 86_400_000 + 3_600_000, "41 d"],
    [-4000, "−4 s"],
  ])("%s", (ms, text) => expect(duration(ms)).toBe(text));
});

describe("instants", () => {
  it("is exact in UTC", () => expect(exact(NOW, "utc")).toBe("2026-11-26 15:00:07 UTC"));
  it.each([
    [-500, "now"],
    [-12_000, "12 s ago"],
    [9_999, "in 9 s"],
    [-180_000, "3 m ago"],
    [-3 * 3_600_000, "3 h ago"],
    [-26 * 3_600_000, "2026-11-25 13:00"],
  ])("%s ms away", (away, text) => expect(relative(NOW + away, NOW, "utc")).toBe(text));
  it("says nothing of what is no instant", () => expect(exact(Number.NaN, "utc")).toContain("–"));
});

it("shows what would be unseen, or would turn the line around", () => {
  expect(visible("a\u202eb\u0000c\td\n")).toBe("a\\u202eb\\u0000c\td\n");
  expect(visible("a\u061c\u00ad🏴\u200d☠️")).toBe("a\\u061c\\u00ad🏴\u200d☠️");
});

it("says an error once, whichever of its parts has the other in it", () => {
  expect(wholeError("KeyError", "no such account")).toBe("KeyError: no such account");
  expect(wholeError("expired", "expired at …")).toBe("expired at …");
  expect(wholeError("KeyError: 'a'", "'a'")).toBe("KeyError: 'a'");
  expect(wholeError("KeyError", null)).toBe("KeyError");
});
