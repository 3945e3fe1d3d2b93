/** How much of something is used, as a thin bar. */
export function Meter({ part, tone = "text", width = 44 }: { part: number; tone?: string; width?: number }) {
  const filled = Math.min(1, Math.max(0, part));
  return (
    <svg class="meter-bar" width={width} height="4" viewBox={`0 0 ${width} 4`} aria-hidden="true">
      <rect width={width} height="4" rx="2" class="f-track" />
      <rect width={Math.max(2, width * filled)} height="4" rx="2" class={`f-${tone}`} />
    </svg>
  );
}

const CELLS = 40;

/** Busy lanes as cells: one for each lane where there are few. */
export function Cells({ busy, lanes }: { busy: number; lanes: number }) {
  const cells = Math.max(1, Math.min(CELLS, lanes));
  const on = lanes === 0 ? 0 : Math.min(cells, Math.ceil((busy / lanes) * cells - 0.5));
  const step = 180 / cells;
  return (
    <svg class="cells" width="100%" height="8" viewBox="0 0 180 8" preserveAspectRatio="none" aria-hidden="true">
      {Array.from({ length: cells }, (_, at) => (
        <rect key={at} x={at * step} width={step - 1.1} height="8" rx="1" class={at < on ? "f-busy" : "f-track"} />
      ))}
    </svg>
  );
}
