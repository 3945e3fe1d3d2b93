// The word of a search that somebody is typing, and what it may become.

export interface Choice {
  readonly text: string; // what the box holds then
  readonly shown: string;
  readonly about: string;
}

const OPERATORS: readonly (readonly [string, string])[] = [
  ["type:", "a type; * at the end, comma for or"],
  ["id:", "one job"],
  ["owner:", "what a worker holds"],
  ["src:", "who sent it"],
  ["group:", "its limit group"],
  ["error:", "a word of its error"],
  ["args:", "args:customer=4711"],
  ["attempt>", "after so many attempts"],
  ["age>", "age>10m"],
];
const MOST = 8; // as many as fit below the box without scrolling

/** Return the choices for the last word of a search. */
export function choicesFor(text: string, types: readonly string[], workers: readonly string[]): Choice[] {
  const start = text.lastIndexOf(" ") + 1;
  const before = text.slice(0, start);
  const [, minus = "", word = ""] = /^(-?)(.*)$/s.exec(text.slice(start)) ?? [];
  const list = (key: string, names: readonly string[], about: string): Choice[] => {
    const asked = word.slice(key.length);
    const comma = asked.lastIndexOf(",") + 1;
    const begun = asked.slice(comma).toLowerCase();
    const kept = `${before}${minus}${key}${asked.slice(0, comma)}`;
    const fit = names.filter(name => name.toLowerCase().includes(begun) && name.toLowerCase() !== begun);
    return fit.map(name => ({ text: `${kept}${name}`, shown: name, about }));
  };
  if (word.startsWith("type:")) return list("type:", types, "type").slice(0, MOST);
  if (word.startsWith("owner:")) return list("owner:", workers, "worker").slice(0, MOST);
  const begun = word.toLowerCase();
  const operators = OPERATORS.filter(([key]) => key.startsWith(begun) && key !== begun);
  const fit = begun === "" ? [] : types.filter(name => name.toLowerCase().includes(begun));
  return [
    ...operators.map(([key, about]) => ({ text: `${before}${minus}${key}`, shown: key, about })),
    ...fit.map(name => ({ text: `${before}${minus}type:${name}`, shown: `type:${name}`, about: "type" })),
  ].slice(0, MOST);
}

/** Return the id that a search may be: one word without an operator. */
export function idOf(text: string): string | null {
  const word = text.trim();
  if (word.startsWith("id:") && !/[\s,*]/.test(word)) return word.slice(3);
  return word === "" || /[\s:>,*=]/.test(word) || word.startsWith("-") ? null : word;
}
