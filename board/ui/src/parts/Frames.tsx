// The frames of a stack: one's own open, those of libraries folded.

import type { StackFrame } from "../api/types";
import { plural } from "../format";
import { Icon } from "./Icon";

interface Run {
  readonly isOwn: boolean;
  readonly frames: readonly StackFrame[];
}

function runsOf(frames: readonly StackFrame[]): Run[] {
  const runs: { isOwn: boolean; frames: StackFrame[] }[] = [];
  for (const frame of frames) {
    const last = runs.at(-1);
    if (last !== undefined && last.isOwn === frame.is_own) last.frames.push(frame);
    else runs.push({ isOwn: frame.is_own, frames: [frame] });
  }
  return runs;
}

export function Frames({ frames }: { frames: readonly StackFrame[] }) {
  return (
    <div class="frames">
      {runsOf(frames).map((run, at) =>
        run.isOwn ? (
          <FrameList key={at} frames={run.frames} />
        ) : (
          <details key={at}>
            <summary class="lib">
              <Icon name="right" size={12} /> {saidOf(run.frames)}
            </summary>
            <FrameList frames={run.frames} />
          </details>
        ),
      )}
    </div>
  );
}

function FrameList({ frames }: { frames: readonly StackFrame[] }) {
  return (
    <ul>
      {frames.map((frame, at) => (
        <li key={at} class={frame.is_own ? "own" : "lib"}>
          <span>{frame.function}</span>
          <span class="loc">{`${frame.file}:${frame.line}`}</span>
          {frame.code !== "" && <span class="src">{frame.code}</span>}
        </li>
      ))}
    </ul>
  );
}

function saidOf(frames: readonly StackFrame[]): string {
  const names = [...new Set(frames.map(frame => libraryOf(frame.file)))].slice(0, 3);
  return `${plural(frames.length, "frame")} of ${names.join(", ")}`;
}

/** Return whose code a file is that is not one's own: its path begins with its package, or ends with where Python keeps its own. */
function libraryOf(file: string): string {
  if (/(^|\/)runtime\/(worker\/)?\w+\.py$/.test(file)) return "the runtime";
  const [, python] = /python3\.\d+\/([^/]+)/.exec(file) ?? [];
  return (python ?? file.split("/")[0] ?? file).replace(/\.py$/, "");
}
