interface Props {
  values: readonly (number | null)[];
  /** The class of its colour, as in `f-low`. */
  tone: string;
  label: string;
  width?: number;
  height?: number;
}

/** Return runs of known values, with their places: a gap parts them. */
export function runs(values: readonly (number | null)[]): [number, number][][] {
  const found: [number, number][][] = [];
  let open: [number, number][] = [];
  values.forEach((value, at) => {
    if (value !== null) open.push([at, value]);
    else if (open.length > 0) {
      found.push(open);
      open = [];
    }
  });
  return open.length > 0 ? [...found, open] : found;
}

/** How something went, from zero, without an axis; a dot at now. */
export function Spark({ values, tone, label, width = 92, height = 24 }: Props) {
  const top = Math.max(1e-9, ...values.map(value => value ?? 0));
  const x = (at: number) => ((at * (width - 5)) / Math.max(1, values.length - 1) + 1).toFixed(1);
  const y = (value: number) => (height - 2 - (value / top) * (height - 5)).toFixed(1);
  const parts = runs(values);
  const last = values.at(-1);
  return (
    <svg class="spark" width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={label}>
      {parts.map(part => {
        const line = part.map(([at, value]) => `${x(at)},${y(value)}`).join(" ");
        const [first, end] = [part[0]?.[0] ?? 0, part.at(-1)?.[0] ?? 0];
        return (
          <g key={first}>
            <polygon points={`${x(first)},${height - 1} ${line} ${x(end)},${height - 1}`} class={`f-${tone} area`} />
            <polyline points={line} class={`line s-${tone}`} />
          </g>
        );
      })}
      {last !== null && last !== undefined && <circle cx={x(values.length - 1)} cy={y(last)} r="2" class={`f-${tone}`} />}
    </svg>
  );
}

/** The same as bars, for what is rare. */
export function Bars({ values, tone, label, width = 96, height = 24 }: Props) {
  const top = Math.max(1, ...values.map(value => value ?? 0));
  const step = width / Math.max(1, values.length);
  return (
    <svg class="spark" width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={label}>
      {values.map((value, at) => {
        const tall = Math.max(1.5, ((value ?? 0) / top) * (height - 2));
        const name = value ? `f-${tone}` : "f-strong off";
        return (
          <rect key={at} x={at * step} y={height - tall} width={Math.max(1, step - 1.2)} height={tall} rx=".6" class={name} />
        );
      })}
    </svg>
  );
}
