import { clock, exact, instant, relative } from "../format";
import { useNow } from "../live";
import { zone } from "../settings";
import { useStore } from "../store";

/** An instant: as how long ago it is within a day, else as its date; exact on hover. `as="clock"` shows the time of the day. */
export function Time({ at_ms, as = "relative" }: { at_ms: number | null; as?: "relative" | "clock" | "exact" }) {
  const now = useNow();
  const where = useStore(zone);
  if (at_ms === null) return <span class="faint">–</span>;
  const { date } = instant(at_ms, where);
  if (date === "–") return <span class="faint">–</span>;
  const text = as === "exact" ? exact(at_ms, where) : as === "clock" ? clock(at_ms, where) : relative(at_ms, now, where);
  return (
    <time dateTime={new Date(at_ms).toISOString()} title={exact(at_ms, where)}>
      {text}
    </time>
  );
}
