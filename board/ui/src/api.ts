// The only module that asks the board for something. Its types are made of the board's OpenAPI document.
import type { About, Failure, paths } from "./api/types";
import { below, currentRoute, go } from "./router";
import { createStore } from "./store";
import { to } from "./url";

type Names<V extends "get" | "post"> = {
  [K in keyof paths]: paths[K] extends Record<V, { responses: unknown }> ? (K extends `/api/${infer N}` ? N : never) : never;
}[keyof paths];
type Of<V extends "get" | "post", N extends string> = `/api/${N}` extends keyof paths
  ? paths[`/api/${N}`] extends Record<V, infer O>
    ? O
    : never
  : never;
export type GetPath = Names<"get">;
export type PostPath = Names<"post">;
type JsonOf<R> = R extends { 200: { content: { "application/json": infer A } } } ? A : never;
export type AnswerOf<V extends "get" | "post", N extends string> = Of<V, N> extends { responses: infer R } ? JsonOf<R> : never;
type NoQuery = Record<string, never>;
type QueryOf<Q> = [NonNullable<Q>] extends [never] ? NoQuery : NonNullable<Q>;
export type AskOf<N extends GetPath> = Of<"get", N> extends { parameters: { query?: infer Q } } ? QueryOf<Q> : NoQuery;
export type BodyOf<N extends PostPath> =
  Of<"post", N> extends { requestBody: { content: { "application/json": infer B } } } ? B : never;

/** What the board has refused, or why it has not answered: `status` is 0 where nothing came. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly text: string,
    readonly now: string | null,
  ) {
    super(text);
  }
}

const NOBODY = 0;
const ANSWER_WITHIN_MS = 20_000; // a guess: a search over a window may take seconds

/** Who asks and what this board is; null until it has answered. */
export const about = createStore<About | null>(null);

async function refusalOf(response: Response): Promise<Refusal> {
  try {
    const found = (await response.json()) as Failure;
    return new Refusal(response.status, found.code, found.text, found.now);
  } catch {
    return new Refusal(response.status, "unreadable", `The board answered ${response.status}.`, null);
  }
}

async function call(path: string, init: RequestInit): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(below(path), { ...init, credentials: "same-origin", signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
  } catch {
    throw new Refusal(NOBODY, "away", "The board does not answer.", null);
  }
  if (response.ok) return response.json();
  const refusal = await refusalOf(response);
  if (response.status === 401 && !path.endsWith("login")) toLogin();
  throw refusal;
}

/** Show the login page, which comes back to where one is. */
export function toLogin(): void {
  const { page, query } = currentRoute();
  if (page !== "login") go(to("login", { next: to(page, Object.fromEntries(query)) }), true);
}

export async function get<N extends GetPath>(path: N, ask?: AskOf<N>): Promise<AnswerOf<"get", N>> {
  return (await call(to(`api/${path}`, ask ?? {}), { method: "GET" })) as AnswerOf<"get", N>;
}

export async function post<N extends PostPath>(path: N, body: BodyOf<N>): Promise<AnswerOf<"post", N>> {
  const headers = { "Content-Type": "application/json" };
  return (await call(`api/${path}`, { method: "POST", headers, body: JSON.stringify(body) })) as AnswerOf<"post", N>;
}

/** Return the address of the stream for this tab. */
export function eventsUrl(topics: string, range: string): string {
  return below(to("events", { topics, range }));
}

/** Ask who one is; again after a login. */
export async function askAbout(): Promise<About> {
  const found = await get("meta");
  about.set(found);
  return found;
}

export async function login(token: string): Promise<void> {
  about.set(await post("login", { token }));
}

export async function logout(): Promise<void> {
  about.set(await post("logout", {}));
}
