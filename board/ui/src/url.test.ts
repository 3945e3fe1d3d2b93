import { describe, expect, it } from "vitest";
import { baseOf, routeOf, safe, to, traceUrl } from "./url";

describe("addresses of pages", () => {
  it("have their places in the query, whatever those hold", () => {
    const href = to("job", { place: "s/high 1-0 ✓&?#", open: null, q: "" });
    expect(new URL(href, "http://board/jobs/").searchParams.get("place")).toBe("s/high 1-0 ✓&?#");
    expect(href).not.toContain("open");
  });
  it.each([
    ["http://h/", "overview"],
    ["http://h/index.html", "overview"],
    ["http://h/jobs?state=claimed", "jobs"],
    ["http://h/any/where/letter?place=1", "letter"],
  ])("%s is %s", (url, page) => expect(routeOf(new URL(url)).page).toBe(page));
  it("lie in one folder", () => expect(baseOf("/any/where/jobs")).toBe("/any/where/"));
});

describe("what may stand in a link", () => {
  it.each([
    ["jobs?state=waiting&q=type%3Aa", "jobs?state=waiting&q=type%3Aa"],
    ["/dead?group=ab", "dead?group=ab"],
    ["./", "./"],
    ["", "./"],
    ["#main", "#main"],
    ["https://traces.example/t/1", "https://traces.example/t/1"],
  ])("%s", (href, address) => expect(safe(href)).toBe(address));
  it.each([
    "javascript:alert(1)",
    " javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "//evil.example/x",
    "\\\\evil.example",
    "../admin",
    "jobs/../../x",
    "java\nscript:alert(1)",
    "https://",
    "blob:http://h/1",
  ])("not %s", href => expect(safe(href)).toBeNull());
});

describe("traces", () => {
  const id = "0af7651916cd43dd8448eb211c80319c";
  it("go into the template", () => expect(traceUrl("https://t.example/{trace_id}", id)).toBe(`https://t.example/${id}`));
  it.each([
    [null, id],
    ["https://t.example/{trace_id}", "../../x"],
    ["https://t.example/{trace_id}", `${id}?x`],
    ["javascript:{trace_id}", id],
  ])("are no link: %s %s", (template, trace) => expect(traceUrl(template, trace)).toBeNull());
});
