import { createElement, type VNode } from "preact";
import { expect, it } from "vitest";
import { shownVisibly } from "./text";

it("makes the signs of a text and of its labels visible, and leaves what a field holds", () => {
  const text = { type: null, props: "gnp\u202e.exe" };
  shownVisibly(text as never);
  expect(text.props).toBe("gnp\\u202e.exe");
  const element = createElement("input", { title: "a\u0007", "aria-label": "\u200b", value: "\u202e" });
  shownVisibly(element as VNode);
  expect(element.props).toEqual({ title: "a\\u0007", "aria-label": "\\u200b", value: "\u202e" });
});
