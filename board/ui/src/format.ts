// Figures, durations and instants as text. Pure: what depends on the clock or the zone is passed in.

export type Zone = "local" | "utc";

export const NONE = "–";
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;
const IN_FULL = 9_999_999;

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** Return a count: in full to 9,999,999, then as `12.4 M`. */
export function count(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  if (Math.abs(value) <= IN_FULL) return grouped.format(value);
  return Math.abs(value) < 999.95e6 ? `${(value / 1e6).toFixed(1)} M` : `${(value / 1e9).toFixed(1)} G`;
}

/** Return a count for a narrow place, such as the bar: `1.20 M`, `40.2 k`. */
export function short(value: number): string {
  if (value < 10_000) return grouped.format(value);
  if (value < 999_500) return `${threeDigits(value / 1e3)} k`;
  return value < 999.5e6 ? `${threeDigits(value / 1e6)} M` : `${threeDigits(value / 1e9)} G`;
}

function threeDigits(value: number): string {
  return value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

/** Return a rate with two digits, without its unit. */
export function rate(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  if (value < 0.095) return value < 0.01 ? "< 0.01" : value.toFixed(2);
  return value < 9.95 ? value.toFixed(1) : count(Math.round(value));
}

/** Return a part of 1 in percent. */
export function percent(part: number | null | undefined): string {
  if (part === null || part === undefined) return NONE;
  const value = part * 100;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value < 0.095 ? value.toFixed(2) : value < 9.95 ? String(Number(value.toFixed(1))) : value.toFixed(0)} %`;
}

/** Return how long: `340 ms`, `1.2 s`, `38 s`, `4 m 12 s`, `2 h 14 m`, `41 d 3 h`. */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 0) return `−${duration(-ms)}`;
  if (ms === 0) return "0 ms";
  if (ms < 0.95) return "< 1 ms";
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 9950) return `${oneDigit(ms / SECOND)} s`;
  if (ms < MINUTE - 500) return `${Math.round(ms / SECOND)} s`;
  if (ms < HOUR - 500) return two(Math.round(ms / SECOND), 60, "m", "s");
  if (ms < DAY - 30_000) return two(Math.round(ms / MINUTE), 60, "h", "m");
  const hours = Math.round(ms / HOUR);
  return hours % 24 === 0 || hours >= 240 ? `${Math.floor(hours / 24)} d` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function two(small: number, per: number, large: string, name: string): string {
  const rest = small % per;
  if (rest === 0) return `${small / per} ${large}`;
  return `${Math.floor(small / per)} ${large} ${rest < 10 ? "0" : ""}${rest} ${name}`;
}

/** Return how long in whole seconds where it is short: for what is counted each second. */
export function seconds(ms: number): string {
  const whole = Math.max(1, Math.round(ms / SECOND));
  return whole < 60 ? `${whole} s` : duration(whole * SECOND);
}

const oneDigit = (value: number) => value.toFixed(1).replace(".0", "");

const BYTES = ["B", "KB", "MB", "GB", "TB"] as const;

/** Return an amount of memory; a KB has 1,024 bytes, as Redis counts. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  let left = value;
  let unit = 0;
  while (left >= 1000 && unit < BYTES.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${unit === 0 || left >= 9.95 ? left.toFixed(0) : oneDigit(left)} ${BYTES[unit] ?? ""}`;
}

const pad = (value: number, wide = 2) => String(value).padStart(wide, "0");

/** Return the parts of an instant in a zone: date `2026-11-26`, clock `15:00:07`. */
export function instant(at_ms: number, zone: Zone): { date: string; clock: string; zone: string } {
  const at = new Date(at_ms);
  if (Number.isNaN(at.getTime())) return { date: NONE, clock: NONE, zone: "" };
  if (zone === "utc") {
    const text = at.toISOString();
    return { date: text.slice(0, 10), clock: text.slice(11, 19), zone: "UTC" };
  }
  const behind = -at.getTimezoneOffset();
  const sign = behind < 0 ? "−" : "+";
  const away = `${sign}${pad(Math.floor(Math.abs(behind) / 60))}:${pad(Math.abs(behind) % 60)}`;
  return {
    date: `${pad(at.getFullYear(), 4)}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`,
    clock: `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`,
    zone: behind === 0 ? "UTC" : `UTC${away}`,
  };
}

export function exact(at_ms: number, zone: Zone): string {
  const at = instant(at_ms, zone);
  return `${at.date} ${at.clock} ${at.zone}`.trim();
}

export function clock(at_ms: number, zone: Zone, hasSeconds = true): string {
  const { clock: text } = instant(at_ms, zone);
  return hasSeconds ? text : text.slice(0, 5);
}

/** Return an instant as one reads it: `12 s ago`, `in 9 s`; a date beyond a day. */
export function relative(at_ms: number, now_ms: number, zone: Zone): string {
  const away = at_ms - now_ms;
  if (Math.abs(away) >= DAY) {
    const at = instant(at_ms, zone);
    return `${at.date} ${at.clock.slice(0, 5)}`;
  }
  if (Math.abs(away) < SECOND) return "now";
  return away < 0 ? `${coarse(-away)} ago` : `in ${coarse(away)}`;
}

/** Return how long in one unit, two where it is near: for what is told of the past and of what comes. */
function coarse(ms: number): string {
  if (ms < MINUTE) return `${Math.floor(ms / SECOND)} s`;
  if (ms < 10 * MINUTE) return two(Math.floor(ms / SECOND), 60, "m", "s");
  if (ms < HOUR) return `${Math.floor(ms / MINUTE)} m`;
  return two(Math.floor(ms / MINUTE), 60, "h", "m");
}

/** Return a sentence with a capital at its begin. */
export const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** Return an error with its message: either may have the other in it already. */
export function wholeError(title: string, message: string | null): string {
  if (message === null || title.includes(message)) return visible(title);
  return visible(message.startsWith(title) ? message : `${title}: ${message}`);
}

/** Return a worker's name as its host and process: what is behind them tells one start from another. */
export function workerName(name: string): string {
  return visible(name.replace(/^(.+)-(\d+)-[0-9a-f]{8}$/, "$1 · $2"));
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

// As the server has them: a zero-width joiner is none, emojis are made with it.
const CONTROLS =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Return text of a stranger with control and direction characters made visible. */
export function visible(text: string): string {
  return text.replace(CONTROLS, found => `\\u${pad4(found.charCodeAt(0))}`);
}

const pad4 = (code: number) => code.toString(16).padStart(4, "0");
