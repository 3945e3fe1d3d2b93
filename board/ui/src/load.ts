// What a page shows: asked for once, and again while it is seen. The last picture stays where an answer fails.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { type AnswerOf, type AskOf, type GetPath, get, Refusal } from "./api";

export interface Loaded<T> {
  data: T | null;
  /** Why the last question was not answered; the data may still be there, from before. */
  failure: Refusal | null;
  came_ms: number;
  /** The data answer another question than the one that is asked now. */
  isOld: boolean;
  again: () => void;
}

/** Ask for a path, and each `every_ms` again; 0 asks once. Another question clears the picture unless `isKept`. */
export function useLoad<N extends GetPath>(
  path: N,
  ask: AskOf<N> | null,
  every_ms = 0,
  isKept = false,
): Loaded<AnswerOf<"get", N>> {
  type Answer = AnswerOf<"get", N>;
  const question = ask === null ? null : JSON.stringify(ask);
  const [shown, show] = useState<{ question: string | null; data: Answer | null; failure: Refusal | null; came_ms: number }>({
    question: null,
    data: null,
    failure: null,
    came_ms: 0,
  });
  const asked = useRef(0);
  const load = useCallback(async () => {
    if (question === null) return;
    asked.current += 1;
    const turn = asked.current;
    try {
      const data = await get(path, JSON.parse(question) as AskOf<N>);
      if (turn === asked.current) show({ question, data, failure: null, came_ms: Date.now() });
    } catch (error) {
      const failure = error instanceof Refusal ? error : new Refusal(0, "page", String(error), null);
      const keep = (before: typeof shown) => (before.question === question ? before : { ...before, data: null });
      if (turn === asked.current) show(before => ({ ...keep(before), question, failure }));
    }
  }, [path, question]);
  useEffect(() => {
    void load();
    if (every_ms === 0) return;
    const timer = setInterval(() => document.hidden || void load(), every_ms);
    return () => clearInterval(timer);
  }, [load, every_ms]);
  const isOld = shown.question !== question;
  const isLeft = isOld && !isKept;
  return {
    data: isLeft ? null : shown.data,
    failure: isLeft ? null : shown.failure,
    isOld,
    came_ms: shown.came_ms,
    again: () => void load(),
  };
}
