// The two charts, drawn by uPlot on a canvas: loaded when a chart is first seen. It sets styles through the DOM, never as text.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Series } from "./api/types";
import { clock, count, duration, type Zone } from "./format";
import { apart, STEPS_MS, ticksIn } from "./axis";

export interface Plot {
  update(series: Series, zone: Zone): void;
  destroy(): void;
}

/** What stands under the cursor, or null where it is nowhere. */
export type Pointed = (text: string | null) => void;

interface Drawn {
  series: Series;
  zone: Zone;
}

const COLORS = [
  "done-fill",
  "retry-fill",
  "dead-fill",
  "critical",
  "high",
  "medium",
  "low",
  "text",
  "text2",
  "text3",
  "grid",
  "strong",
] as const;
type Colors = Record<(typeof COLORS)[number], string>;
const FADED = 0.55; // the step that still runs
const TOP = 24; // room for the marks above the plot
const HALF_LABEL = 20; // room for half of the last time of the axis
const ONE_CURSOR = uPlot.sync("board");

/** Return the colours of the theme as they are now: a token is a function of it, which only an element resolves. */
function colorsOf(box: HTMLElement): Colors {
  const probe = box.appendChild(document.createElement("i"));
  probe.style.forcedColorAdjust = "none"; // what is told apart by colour alone stays so
  const found = COLORS.map(name => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color] as const;
  });
  probe.remove();
  return Object.fromEntries(found) as Colors;
}

const font = () => `${12 * devicePixelRatio}px Inter, system-ui, sans-serif`;
const isNarrow = (box: HTMLElement) => box.clientWidth < 480;

function timesOf({ series }: Drawn): number[] {
  return series.done.map((_, at) => (series.start_ms + at * series.step_ms) / 1000);
}

function drawMarks(u: uPlot, { series }: Drawn, colors: Colors, hasText: boolean): void {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = colors.strong;
  ctx.fillStyle = colors.text3;
  ctx.font = font();
  ctx.textBaseline = "middle";
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const mark of series.marks) {
    const x = Math.round(u.valToPos(mark.at_ms / 1000, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top - 16 * devicePixelRatio);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
    const away = (ctx.textAlign === "right" ? -6 : 6) * devicePixelRatio;
    if (hasText) ctx.fillText(mark.text, x + away, bbox.top - 12 * devicePixelRatio);
  }
  ctx.restore();
}

function axes(colors: Colors, drawn: Drawn, left: number, y: Partial<uPlot.Axis>): uPlot.Axis[] {
  const common = { stroke: colors.text3, font: "12px Inter, system-ui, sans-serif", ticks: { show: false } };
  // A label at the very left would stand in the lowest one of the other axis.
  const times = (u: uPlot, at: number[]) =>
    at.map(value => (u.valToPos(value, "x") < HALF_LABEL ? "" : clock(value * 1000, drawn.zone, false)));
  return [
    { ...common, size: 24, gap: 6, space: 64, grid: { show: false }, values: times },
    { ...common, size: left, gap: 8, grid: { stroke: colors.grid, width: 1 }, ...y },
  ];
}

function options(box: HTMLElement, drawn: Drawn, rest: Omit<uPlot.Options, "width" | "height">): uPlot.Options {
  return {
    width: Math.max(200, box.clientWidth),
    height: box.clientHeight,
    tzDate: at => (drawn.zone === "utc" ? uPlot.tzDate(new Date(at * 1000), "Etc/UTC") : new Date(at * 1000)),
    legend: { show: false },
    cursor: { sync: { key: ONE_CURSOR.key, setSeries: false }, points: { show: false }, drag: { x: false, y: false }, y: false },
    ...rest,
  };
}

/** Keep a chart: made anew where the theme changes, since its colours are the theme's; as wide as its place. */
function keep(box: HTMLElement, make: (colors: Colors) => uPlot, data: () => uPlot.AlignedData, drawn: Drawn): Plot {
  let plot = make(colorsOf(box));
  let size = `${box.clientWidth} ${box.clientHeight}`;
  const anew = () => {
    plot.destroy();
    plot = make(colorsOf(box));
  };
  const resized = new ResizeObserver(() => {
    const now = `${box.clientWidth} ${box.clientHeight}`;
    if (now !== size && box.clientWidth > 0) anew();
    size = now;
  });
  resized.observe(box);
  const themed = new MutationObserver(anew);
  themed.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", anew);
  return {
    update: (series, zone) => {
      const isOther = zone !== drawn.zone;
      Object.assign(drawn, { series, zone });
      if (isOther) anew();
      else plot.setData(data());
    },
    destroy: () => {
      resized.disconnect();
      themed.disconnect();
      scheme.removeEventListener("change", anew);
      plot.destroy();
    },
  };
}

/** What each step did, as stacked bars: done, retried, dead. */
export function jobsPlot(box: HTMLElement, series: Series, zone: Zone, onPoint: Pointed): Plot {
  const drawn: Drawn = { series, zone };
  const total = (at: number) => {
    const { done, retried, dead } = drawn.series;
    return done[at] == null ? null : (done[at] ?? 0) + (retried[at] ?? 0) + (dead[at] ?? 0);
  };
  const data = (): uPlot.AlignedData => [timesOf(drawn), drawn.series.done.map((_, at) => total(at))];
  const said = (at: number) => {
    const { done, retried, dead, start_ms, step_ms } = drawn.series;
    const when = clock(start_ms + at * step_ms, drawn.zone, false);
    return done[at] == null
      ? `${when}: not known`
      : `${when}: ${count(done[at])} done, ${count(retried[at])} retried, ${count(dead[at])} dead`;
  };
  const make = (colors: Colors) => {
    const axis = { values: (_: uPlot, at: number[]) => at.map(thousands), space: 30, incrs: INTEGERS };
    return new uPlot(
      options(box, drawn, {
        padding: [TOP, HALF_LABEL, 0, 0],
        // Bars stand at the middle of their step: half a step more at both ends.
        scales: {
          x: { range: () => spanOf(drawn) },
          y: { range: (_, __, max) => [0, Math.max(4, max * 1.04)] },
        },
        axes: axes(colors, drawn, isNarrow(box) ? 42 : 48, axis),
        series: [{}, { paths: () => null, points: { show: false } }],
        hooks: {
          draw: [u => drawBars(u, drawn, colors), u => drawMarks(u, drawn, colors, true)],
          setCursor: [u => onPoint(u.cursor.idx == null ? null : said(u.cursor.idx))],
        },
      }),
      data(),
      box,
    );
  };
  return keep(box, make, data, drawn);
}

const thousands = (value: number) => (value < 1000 ? String(value) : value < 1e6 ? `${value / 1e3}k` : `${value / 1e6}M`);
const INTEGERS = [1, 2, 2.5, 5]
  .flatMap(digit => Array.from({ length: 10 }, (_, power) => digit * 10 ** power))
  .filter(Number.isInteger)
  .sort((a, b) => a - b);

function spanOf({ series }: Drawn): [number, number] {
  const half = series.step_ms / 2000;
  const first = series.start_ms / 1000;
  return [first - half, first + ((series.done.length - 1) * series.step_ms) / 1000 + half];
}

function drawBars(u: uPlot, { series }: Drawn, colors: Colors): void {
  const { ctx, bbox } = u;
  const wide = bbox.width / series.done.length;
  const gap = Math.min(1.4 * devicePixelRatio, wide / 4);
  const parts = [
    [series.done, colors["done-fill"], 0],
    [series.retried, colors["retry-fill"], 1],
    [series.dead, colors["dead-fill"], 1],
  ] as const;
  ctx.save();
  series.done.forEach((_, at) => {
    const x = bbox.left + at * wide + gap / 2;
    let below = bbox.top + bbox.height;
    ctx.globalAlpha = at === series.done.length - 1 ? FADED : 1;
    for (const [values, color, least] of parts) {
      const value = values[at] ?? 0;
      if (value <= 0) continue;
      const tall = Math.max(least * devicePixelRatio, u.valToPos(0, "y", true) - u.valToPos(value, "y", true));
      ctx.fillStyle = color;
      ctx.fillRect(x, below - tall, wide - gap, tall);
      below -= tall;
    }
  });
  ctx.restore();
}

const NAMES = ["critical", "high", "medium", "low"] as const;
const nameOf = (name: string) => NAMES.find(known => known === name) ?? "text";

/** How long jobs waited, a line for each priority on an axis of powers, with its name at its end. */
export function waitsPlot(box: HTMLElement, series: Series, zone: Zone, onPoint: Pointed): Plot {
  const drawn: Drawn = { series, zone };
  const names = () => Object.keys(drawn.series.waits_p95_ms);
  const known = (name: string) =>
    (drawn.series.waits_p95_ms[name] ?? []).map(value => (value == null ? null : Math.max(value, STEPS_MS[0])));
  const made = names();
  // The last step still runs: it is drawn apart, dashed.
  const data = (): uPlot.AlignedData => [
    timesOf(drawn),
    ...made.map(name => known(name).map((value, at, all) => (at === all.length - 1 ? null : value))),
  ];
  const said = (at: number) => {
    const when = clock(drawn.series.start_ms + at * drawn.series.step_ms, drawn.zone, false);
    const parts = names().map(name => `${name} ≈ ${duration(drawn.series.waits_p95_ms[name]?.[at])}`.trim());
    return `${when}: ${parts.join(", ")}`;
  };
  const make = (colors: Colors) => {
    const ticks = (u: uPlot) => ticksIn(u.scales.y?.min ?? 1, u.scales.y?.max ?? 1000);
    const axis = {
      splits: ticks,
      values: (_: uPlot, at: number[]) =>
        at.map(ms =>
          duration(ms)
            .replace(/ 00 \w| 0 \w/, "")
            .replace(".0", ""),
        ),
      filter: (_: uPlot, at: number[]) => at,
    };
    return new uPlot(
      options(box, drawn, {
        padding: [TOP, made.length > 1 ? 70 : HALF_LABEL, 0, 0],
        scales: { x: { range: () => spanOf(drawn) }, y: { distr: 3, log: 10, range: () => boundsOf(made.flatMap(known)) } },
        axes: axes(colors, drawn, 60, axis),
        series: [
          {},
          ...made.map(name => ({ stroke: colors[nameOf(name)], width: 1.6, spanGaps: false, points: { show: false } })),
        ],
        hooks: {
          draw: [u => drawEnds(u, made, known, colors), u => drawMarks(u, drawn, colors, false)],
          setCursor: [u => onPoint(u.cursor.idx == null ? null : said(u.cursor.idx))],
        },
      }),
      data(),
      box,
    );
  };
  return keep(box, make, data, drawn);
}

/** Return between which marks the axis goes: at least two apart, so that a calm line does not look like a storm. */
function boundsOf(values: (number | null)[]): [number, number] {
  const known = values.filter(value => value !== null);
  if (known.length === 0) return [1, 1000];
  const low = STEPS_MS.findLastIndex(step => step <= Math.min(...known));
  const high = STEPS_MS.findIndex(step => step >= Math.max(1000, ...known));
  const from = Math.max(0, low);
  const to = Math.max(high < 0 ? STEPS_MS.length - 1 : high, from + 2);
  return [STEPS_MS[from] ?? 1, STEPS_MS[to] ?? 1000];
}

function drawEnds(u: uPlot, names: string[], known: (name: string) => (number | null)[], colors: Colors): void {
  const { ctx, bbox } = u;
  const ends: { name: string; y: number }[] = [];
  ctx.save();
  ctx.lineWidth = 1.6 * devicePixelRatio;
  for (const name of names) {
    const values = known(name);
    const at = values.findLastIndex(value => value !== null);
    const value = values[at];
    if (value == null) continue;
    ends.push({ name, y: u.valToPos(value, "y", true) });
    const before = values[at - 1];
    if (at !== values.length - 1 || before == null) continue;
    ctx.setLineDash([2 * devicePixelRatio, 2 * devicePixelRatio]);
    ctx.strokeStyle = colors[nameOf(name)];
    ctx.beginPath();
    ctx.moveTo(u.valToPos(u.data[0][at - 1] ?? 0, "x", true), u.valToPos(before, "y", true));
    ctx.lineTo(u.valToPos(u.data[0][at] ?? 0, "x", true), u.valToPos(value, "y", true));
    ctx.stroke();
  }
  ctx.font = `500 ${font()}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  const free = apart(
    ends.map(end => end.y),
    15 * devicePixelRatio,
    bbox.top + bbox.height,
  );
  if (names.length > 1) {
    ends.forEach((end, at) => {
      ctx.fillStyle = colors[nameOf(end.name)];
      ctx.fillText(end.name, bbox.left + bbox.width + 7 * devicePixelRatio, free[at] ?? end.y);
    });
  }
  ctx.restore();
}
