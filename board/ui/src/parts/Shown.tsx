import type { ComponentChildren } from "preact";
import type { Loaded } from "../load";
import { Button } from "./Button";
import { Empty } from "./Empty";

/** What was loaded; until then lines as tall as it will be, or why there is nothing. */
export function Shown<T>({
  of,
  lines = 8,
  children,
}: {
  of: Loaded<T>;
  lines?: number;
  children: (data: T) => ComponentChildren;
}) {
  if (of.data !== null) return <>{children(of.data)}</>;
  if (of.failure === null) return <Skeleton lines={lines} />;
  return (
    <section class="panel">
      <Empty why={of.failure.text}>
        {of.failure.status === 0 || of.failure.status >= 500 ? (
          <Button onClick={of.again}>Ask again</Button>
        ) : (
          of.failure.now !== null && <p class="muted">{of.failure.now}</p>
        )}
      </Empty>
    </section>
  );
}

export function Skeleton({ lines }: { lines: number }) {
  return (
    <section class="panel skeleton" aria-busy="true">
      <span class="sr">Loading</span>
      {Array.from({ length: lines + 1 }, (_, at) => (
        <i key={at} />
      ))}
    </section>
  );
}
