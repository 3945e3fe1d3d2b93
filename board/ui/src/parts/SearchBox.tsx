import { useEffect, useRef, useState } from "preact/hooks";
import { useKey } from "../keys";
import { go, useRoute } from "../router";
import { to } from "../url";
import { Icon } from "./Icon";

/** The one search box: of letters on the pages of dead letters, else of jobs. */
export function SearchBox({ page, isPlain = false }: { page: string; isPlain?: boolean }) {
  const { query } = useRoute();
  const asked = query.get("q") ?? "";
  const [text, setText] = useState(asked);
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => setText(asked), [asked]);
  useKey("/", () => box.current?.focus());
  const submit = (event: Event) => {
    event.preventDefault();
    const isDead = page === "dead" || page === "trash";
    const rest = isDead ? { group: query.get("group") } : { state: page === "jobs" ? query.get("state") : null };
    go(to(isDead ? page : "jobs", { ...rest, q: text.trim() }));
  };
  return (
    <search class={isPlain ? "find plain" : "find"}>
      <form onSubmit={submit}>
        <Icon name="search" />
        <input
          ref={box}
          aria-label="Search"
          placeholder="Job id, type, or a word of it"
          value={text}
          maxLength={1000}
          spellcheck={false}
          autoComplete="off"
          onInput={event => setText(event.currentTarget.value)}
        />
        {!isPlain && <kbd>/</kbd>}
      </form>
    </search>
  );
}
