import type { JSX } from "preact";

const SHAPES = {
  overview: (
    <>
      <path d="M2.5 13.5v-5M6.2 13.5v-8M9.8 13.5v-4M13.5 13.5v-11" />
    </>
  ),
  jobs: (
    <>
      <path d="M2.5 4h11M2.5 8h11M2.5 12h6.5" />
    </>
  ),
  dead: (
    <>
      <rect x={2} y={3.5} width={12} height={9} rx={1.5} />
      <path d="m2.5 5 5.5 4 5.5-4" />
    </>
  ),
  types: (
    <>
      <path d="M5.5 2.5C3.5 2.5 4.6 7 2.5 8c2.1 1 1 5.5 3 5.5M10.5 2.5c2 0 .9 4.5 3 5.5-2.1 1-1 5.5-3 5.5" />
    </>
  ),
  workers: (
    <>
      <rect x={4} y={4} width={8} height={8} rx={1.5} />
      <path d="M6.5 1.8V4M9.5 1.8V4M6.5 12v2.2M9.5 12v2.2M1.8 6.5H4M1.8 9.5H4M12 6.5h2.2M12 9.5h2.2" />
    </>
  ),
  schedules: (
    <>
      <circle cx={8} cy={8} r={5.75} />
      <path d="M8 4.8V8l2.3 1.6" />
    </>
  ),
  queue: (
    <>
      <path d="m8 2 6 3-6 3-6-3zM2.5 8.2 8 11l5.5-2.8M2.5 11.2 8 14l5.5-2.8" />
    </>
  ),
  system: (
    <>
      <path d="M2.5 11a5.75 5.75 0 0 1 11 0M8 11l2.6-3.6" />
      <circle cx={8} cy={11} r={0.6} />
    </>
  ),
  search: (
    <>
      <circle cx={7} cy={7} r={4.25} />
      <path d="m10.2 10.2 3.3 3.3" />
    </>
  ),
  moon: (
    <>
      <path d="M13 9.6A5.5 5.5 0 0 1 6.4 3 5.5 5.5 0 1 0 13 9.6z" />
    </>
  ),
  more: (
    <>
      <path d="M3.5 8h.01M8 8h.01M12.5 8h.01" stroke-width={2.2} />
    </>
  ),
  right: (
    <>
      <path d="m6 3.5 4.5 4.5L6 12.5" />
    </>
  ),
  down: (
    <>
      <path d="m3.5 6 4.5 4.5L12.5 6" />
    </>
  ),
  back: (
    <>
      <path d="M13 8H3.5M7 4 3 8l4 4" />
    </>
  ),
  copy: (
    <>
      <rect x={5.5} y={5.5} width={8} height={8} rx={1.5} />
      <path d="M10.5 5.5v-2a1 1 0 0 0-1-1h-6a1 1 0 0 0-1 1v6a1 1 0 0 0 1 1h2" />
    </>
  ),
  pause: (
    <>
      <path d="M5.5 3.5v9M10.5 3.5v9" />
    </>
  ),
  out: (
    <>
      <path d="M6.5 3.5h-3v9h9v-3M9.5 2.5h4v4M13.2 2.8 7.5 8.5" />
    </>
  ),
  close: (
    <>
      <path d="m4 4 8 8M12 4l-8 8" />
    </>
  ),
  sun: (
    <>
      <circle cx={8} cy={8} r={2.75} />
      <path d="M8 1.5v1.5M8 13v1.5M1.5 8H3M13 8h1.5M3.4 3.4l1.05 1.05M11.55 11.55l1.05 1.05M3.4 12.6l1.05-1.05M11.55 4.45l1.05-1.05" />
    </>
  ),
  system_theme: (
    <>
      <rect x={2} y={3} width={12} height={8.5} rx={1.5} />
      <path d="M6 14h4" />
    </>
  ),
  play: (
    <>
      <path d="m5 3.5 7 4.5-7 4.5z" />
    </>
  ),
  plus: (
    <>
      <path d="M8 3v10M3 8h10" />
    </>
  ),
  check: (
    <>
      <path d="m3.5 8.5 3 3 6-7" />
    </>
  ),
  trash: (
    <>
      <path d="M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9" />
    </>
  ),
  table: (
    <>
      <rect x={2} y={3} width={12} height={10} rx={1.5} />
      <path d="M2 6.5h12M2 9.75h12M6.5 6.5V13" />
    </>
  ),
  chart: (
    <>
      <path d="M2.5 13.5h11M4 11V8M7 11V4.5M10 11V6.5M13 11V3" />
    </>
  ),
} satisfies Record<string, JSX.Element>;

export type IconName = keyof typeof SHAPES;

/** A small drawing that says nothing by itself: a word stands beside it, or the label of its button. */
export function Icon({ name, size = 16 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" aria-hidden="true">
      {SHAPES[name]}
    </svg>
  );
}
