// A payload that somebody writes: a textarea over the same text in its colours, with line numbers, and its problems below.

import { useLayoutEffect, useRef } from "preact/hooks";

import type { Problem } from "../api/types";
import { Coloured, ProblemText } from "./Code";
import { LevelMark } from "./Level";

interface EditorProps {
  readonly text: string;
  readonly problems: readonly Problem[];
  readonly label: string;
  readonly onText: (text: string) => void;
}

export function Editor({ text, problems, label, onText }: EditorProps) {
  const area = useRef<HTMLTextAreaElement>(null);
  const behind = useRef<HTMLDivElement>(null);
  const lines = text.split("\n");
  const wrong = new Set(problems.map(problem => problem.line));
  const follow = () => {
    if (area.current && behind.current) behind.current.scrollLeft = area.current.scrollLeft;
  };
  useLayoutEffect(follow, [text]);
  return (
    <>
      <div class="editor">
        <div class="lines" aria-hidden="true">
          {lines.map((_, at) => (
            <span key={at} class={wrong.has(at + 1) ? "err" : ""}>
              {at + 1}
            </span>
          ))}
        </div>
        <div class="over">
          <div class="behind" ref={behind} aria-hidden="true">
            {lines.map((line, at) => (
              <div key={at} class={wrong.has(at + 1) ? "err" : ""}>
                <Coloured line={line} />
                {"\u200b"}
              </div>
            ))}
          </div>
          <textarea
            ref={area}
            value={text}
            rows={lines.length}
            wrap="off"
            spellcheck={false}
            autocapitalize="off"
            autocomplete="off"
            aria-label={label}
            aria-invalid={problems.length > 0}
            aria-describedby="problems"
            onInput={event => onText(event.currentTarget.value)}
            onScroll={follow}
          />
        </div>
      </div>
      <div id="problems" role="status">
        <ul class="problems">
          {problems.map(problem => (
            <li key={`${problem.path} ${problem.line} ${problem.text}`}>
              <LevelMark level="act" size={11} />
              {problem.line > 0 && (
                <button type="button" class="link" onClick={() => area.current && goToLine(area.current, problem.line)}>
                  line {problem.line}
                </button>
              )}
              <span>
                <ProblemText problem={problem} />
              </span>
            </li>
          ))}
        </ul>
      </div>
    </>
  );
}

function goToLine(area: HTMLTextAreaElement, line: number) {
  const before = area.value.split("\n").slice(0, line - 1);
  const start = before.reduce((sum, each) => sum + each.length + 1, 0);
  const end = area.value.indexOf("\n", start);
  area.focus();
  area.setSelectionRange(start, end < 0 ? area.value.length : end);
}
