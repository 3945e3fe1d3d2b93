import { count, duration, rate } from "../format";
import { classes, type Tone } from "./tone";

/** A count: `0` faint, `–` for none. */
export function Count({ value, tone = "" }: { value: number | null; tone?: Tone }) {
  return <span class={classes(!value && "faint", value && tone && `${tone} strong`)}>{count(value)}</span>;
}

export function Rate({ value }: { value: number | null }) {
  if (value === null) return <span class="faint">–</span>;
  return (
    <>
      {rate(value)}
      <span class="unit">/s</span>
    </>
  );
}

export function Duration({ ms, tone = "" }: { ms: number | null; tone?: Tone }) {
  return <span class={classes(ms === null && "faint", tone && `${tone} strong`)}>{duration(ms)}</span>;
}
