// The colours of a payload's text, by its tokens: nothing is parsed, so each number stays what it was.

export type TokenKind = "key" | "string" | "number" | "word" | "redacted" | "plain";

export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
}

export const REDACTED = "•••••• redacted";

/* A string (with the colon that makes it a key), a number, a word, or anything else up to the next of them. Each alternative
   begins with other characters than the others, so that a text is read once. A string ends with its line. */
const TOKEN = /("(?:[^"\\]|\\.)*"?)(\s{0,8}:)?|(-?\d[\w.+-]*)|(true|false|null)|([^"\dtfn-]+|.)/gsu;

/** Return the tokens of one line. */
export function tokensOf(line: string): Token[] {
  const tokens: Token[] = [];
  for (const [, string, colon, number, word, plain] of line.matchAll(TOKEN)) {
    if (string !== undefined) {
      tokens.push({ kind: colon === undefined ? kindOfString(string) : "key", text: string });
      if (colon !== undefined) tokens.push({ kind: "plain", text: colon });
    } else if (number !== undefined) tokens.push({ kind: "number", text: number });
    else if (word !== undefined) tokens.push({ kind: "word", text: word });
    else tokens.push({ kind: "plain", text: plain ?? "" });
  }
  return tokens;
}

function kindOfString(text: string): TokenKind {
  return text.includes(REDACTED) ? "redacted" : "string";
}
