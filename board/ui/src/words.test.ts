import { expect, it } from "vitest";
import { choicesFor, idOf } from "./words";

const TYPES = ["send-email", "send-sms", "export-csv"];
const WORKERS = ["api-1:4121", "pay-2:833"];
const texts = (text: string) => choicesFor(text, TYPES, WORKERS).map(choice => choice.text);

it("completes a type, a worker, and the operators, of the last word alone", () => {
  expect(texts("type:se")).toEqual(["type:send-email", "type:send-sms"]);
  expect(texts("owner:")).toEqual(["owner:api-1:4121", "owner:pay-2:833"]);
  expect(texts("id:7 -type:csv")).toEqual(["id:7 -type:export-csv"]);
  expect(texts("type:send-email,ex")).toEqual(["type:send-email,export-csv"]);
  expect(texts("ow")).toEqual(["owner:"]);
  expect(texts("sms")).toEqual(["type:send-sms"]);
  expect(texts("").slice(0, 3)).toEqual(["type:", "id:", "owner:"]);
});

it("does not offer what is written already", () => {
  expect(texts("type:send-sms")).toEqual([]);
});

it("takes one word without an operator for an id", () => {
  expect(idOf(" crm-20940 ")).toBe("crm-20940");
  expect(idOf("id:crm-1")).toBe("crm-1");
  expect(idOf("a/💌")).toBe("a/💌");
  for (const text of ["", "two words", "type:x", "-x", "x,y", "send*", "age>5"]) expect(idOf(text)).toBeNull();
});
