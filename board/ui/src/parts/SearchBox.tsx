// The one search box: it completes types and workers, opens a job by its id, and else narrows the list of the page.
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { get } from "../api";
import { useKey } from "../keys";
import { go, useRoute } from "../router";
import { to } from "../url";
import { type Choice, choicesFor, idOf } from "../words";
import { Icon } from "./Icon";

const LIST_PAGES = new Set(["jobs", "dead", "trash"]);

/** The one search box: of letters on the pages of dead letters, else of jobs. */
export function SearchBox({ page, isPlain = false }: { page: string; isPlain?: boolean }) {
  const { query } = useRoute();
  const isLetters = page === "dead" || page === "letter" || page === "trash";
  const [text, setText] = useState("");
  const box = useRef<HTMLInputElement>(null);
  const shown = LIST_PAGES.has(page) ? (query.get("q") ?? "") : "";
  useEffect(() => setText(shown), [shown, page]);
  useKey("/", () => box.current?.select());
  const search = async (asked: string) => {
    box.current?.blur();
    const id = idOf(asked);
    if (id !== null && !isLetters && (await isJob(id))) go(to("job", { id }));
    else if (isLetters) go(to(page === "trash" ? "trash" : "dead", { q: asked.trim() }));
    else go(to("jobs", { state: query.get("state"), q: asked.trim() }));
  };
  const hint = isLetters ? "letter, job id, type, or a word of the error" : "type: id: owner: args:, or any word";
  return <Combo isPlain={isPlain} box={box} text={text} onText={setText} onDone={asked => void search(asked)} hint={hint} />;
}

async function isJob(id: string): Promise<boolean> {
  try {
    await get("job", { id });
    return true;
  } catch {
    return false; // it is no id then: a word
  }
}

interface Names {
  readonly types: readonly string[];
  readonly workers: readonly string[];
}

const NOBODY: Names = { types: [], workers: [] };
const KEPT_MS = 30_000; // a guess: types and workers come seldom
let names: { readonly at: number; readonly found: Promise<Names> } = {
  at: Number.NEGATIVE_INFINITY,
  found: Promise.resolve(NOBODY),
};

function askNames(): Promise<Names> {
  if (Date.now() - names.at > KEPT_MS) names = { at: Date.now(), found: loadNames() };
  return names.found;
}

async function loadNames(): Promise<Names> {
  const [types, workers] = await Promise.all([get("types").catch(() => null), get("workers").catch(() => null)]);
  return {
    types: types?.types.map(row => row.type) ?? [],
    workers: workers?.workers.map(row => row.name) ?? [],
  };
}

interface ComboProps {
  readonly isPlain: boolean;
  readonly box: { current: HTMLInputElement | null };
  readonly text: string;
  readonly hint: string;
  readonly onText: (text: string) => void;
  readonly onDone: (text: string) => void;
}

function Combo({ isPlain, box, text, hint, onText, onDone }: ComboProps) {
  const list = useId();
  const [known, setKnown] = useState(NOBODY);
  const [isOpen, setOpen] = useState(false);
  const [at, setAt] = useState(-1);
  const choices = isOpen ? choicesFor(text, known.types, known.workers) : [];
  const take = (choice: Choice) => {
    onText(choice.text);
    setAt(-1);
    box.current?.focus();
  };
  const press = (event: KeyboardEvent) => {
    const chosen = choices[at];
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setOpen(true);
      const by = event.key === "ArrowDown" ? 1 : -1;
      setAt(Math.min(choices.length - 1, Math.max(-1, at + by)));
    } else if ((event.key === "Enter" || event.key === "Tab") && chosen !== undefined) {
      event.preventDefault();
      take(chosen);
    } else if (event.key === "Enter") {
      event.preventDefault();
      setOpen(false);
      onDone(text);
    } else if (event.key === "Escape" && isOpen && choices.length > 0) {
      event.preventDefault();
      setOpen(false);
    }
  };
  return (
    <search class={isPlain ? "find plain" : "find"}>
      <Icon name="search" />
      <input
        ref={box}
        type="text"
        role="combobox"
        aria-label="Search"
        aria-expanded={choices.length > 0}
        aria-controls={list}
        aria-autocomplete="list"
        aria-activedescendant={at >= 0 && at < choices.length ? `${list}-${at}` : undefined}
        placeholder={hint}
        maxLength={1000}
        autocomplete="off"
        spellcheck={false}
        value={text}
        onInput={event => {
          onText(event.currentTarget.value);
          setOpen(true);
          setAt(-1);
        }}
        onFocus={() => void askNames().then(setKnown)}
        onClick={() => setOpen(true)}
        onBlur={() => setOpen(false)}
        onKeyDown={press}
      />
      {text === "" ? (
        !isPlain && <kbd>/</kbd>
      ) : (
        <button
          type="button"
          class="clear"
          aria-label="Clear the search"
          onMouseDown={event => event.preventDefault()}
          onClick={() => onDone("")}
        >
          ×
        </button>
      )}
      <div id={list} role="listbox" aria-label="Completions" class="choices" hidden={choices.length === 0}>
        {choices.map((choice, index) => (
          <div
            key={choice.text}
            tabIndex={-1}
            id={`${list}-${index}`}
            role="option"
            aria-selected={index === at}
            onMouseDown={event => {
              event.preventDefault();
              take(choice);
            }}
          >
            <code>{choice.shown}</code>
            <span class="faint">{choice.about}</span>
          </div>
        ))}
      </div>
    </search>
  );
}
