// The text of a payload with its line numbers, its colours, and what is wrong with a line below it.

import type { Problem } from "../api/types";
import { tokensOf } from "../json";
import { LevelMark } from "./Level";

const CLASS = { key: "k", string: "s", number: "d", word: "d", redacted: "red", plain: "" } as const;

/** One line in its colours. */
export function Coloured({ line }: { line: string }) {
  return (
    <>
      {tokensOf(line).map(({ kind, text }, at) =>
        kind === "plain" ? (
          text
        ) : (
          <span key={at} class={CLASS[kind]}>
            {text}
          </span>
        ),
      )}
    </>
  );
}

export function Code({ text, problems = [], label }: { text: string; problems?: readonly Problem[]; label: string }) {
  const whole = problems.filter(problem => problem.line === 0);
  return (
    <section class="code" tabIndex={0} aria-label={label}>
      {text.split("\n").map((line, at) => {
        const wrong = problems.filter(problem => problem.line === at + 1);
        return (
          <>
            <div class={wrong.length > 0 ? "err" : ""}>
              <span aria-hidden="true">{at + 1}</span>
              <span>
                <Coloured line={line} />
              </span>
            </div>
            {wrong.map(problem => (
              <ProblemLine key={problem.path} problem={problem} />
            ))}
          </>
        );
      })}
      {whole.map(problem => (
        <ProblemLine key={problem.path} problem={problem} />
      ))}
    </section>
  );
}

function ProblemLine({ problem }: { problem: Problem }) {
  return (
    <div class="err">
      <span />
      <span class="problem">
        <LevelMark level="act" size={11} /> <ProblemText problem={problem} />
      </span>
    </div>
  );
}

export function ProblemText({ problem }: { problem: Problem }) {
  return (
    <>
      {problem.path !== "" && <b>{problem.path}: </b>}
      {problem.text}
    </>
  );
}
