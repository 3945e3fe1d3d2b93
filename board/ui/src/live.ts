// What changes by itself. One stream for each tab, closed while it is hidden; where none can be had, the same is asked for each 5 s.
import { useEffect } from "preact/hooks";
import { about, askAbout, eventsUrl, get } from "./api";
import type { Range } from "./api/names";
import type { Frame, Overview, Tick } from "./api/types";
import { createStore, useStore } from "./store";

const POLL_MS = 5000; // as often as the specification of the stream says for who gets none
const AGAIN_MS = 30_000; // a guess: a stream was refused, most likely since there are too many
export const STALE_MS = 5000;

export interface Live {
  frame: Frame | null;
  overview: Overview | null;
  /** By which the server's clock is ahead of this one. */
  ahead_ms: number;
  /** When the last figures came, by the clock of this browser. */
  came_ms: number;
  state: "starting" | "live" | "polling" | "away" | "hidden";
}

export const live = createStore<Live>({ frame: null, overview: null, ahead_ms: 0, came_ms: 0, state: "starting" });

let topics = "";
let range: Range = "1h";
let source: EventSource | null = null;
let timer: number | undefined;

function take(tick: Tick, state: Live["state"]): void {
  const before = live.get();
  const came_ms = Date.now();
  const ahead_ms = tick.frame.now_ms - came_ms;
  const overview = tick.overview ?? before.overview;
  live.set({ frame: tick.frame, overview, came_ms, ahead_ms, state });
}

const say = (state: Live["state"]) => live.set({ ...live.get(), state });

function close(): void {
  source?.close();
  source = null;
  clearTimeout(timer);
  timer = undefined;
}

function open(): void {
  close();
  asked = `${topics} ${range}`;
  const opened = new EventSource(eventsUrl(topics, range));
  source = opened;
  opened.addEventListener("tick", event => {
    try {
      take(JSON.parse(String(event.data)) as Tick, "live");
    } catch {
      // one that cannot be read is worth no more than one that was lost
    }
  });
  opened.addEventListener("error", () => {
    if (source !== opened) return;
    const isRefused = opened.readyState === EventSource.CLOSED;
    askAbout().catch(() => null); // it may have ended since the session has
    if (isRefused) close();
    void poll(isRefused ? AGAIN_MS : 0);
  });
}

/** Ask once; then, where there is no stream, each 5 s until it is time to try one again. */
async function poll(again_ms: number): Promise<void> {
  try {
    const [frame, overview] = await Promise.all([get("frame"), topics === "overview" ? get("overview", { range }) : null]);
    take({ frame, overview }, "polling");
  } catch {
    say("away");
  }
  if (source !== null || document.hidden || about.get()?.rights.length === 0) return;
  clearTimeout(timer);
  timer = again_ms > POLL_MS ? setTimeout(() => void poll(again_ms - POLL_MS), POLL_MS) : setTimeout(open, POLL_MS);
}

function listen(): void {
  if (document.hidden) {
    close();
    say("hidden");
  } else {
    open();
  }
}

/** Listen while this tab is seen. Once, by the frame. */
export function useLive(): void {
  useEffect(() => {
    listen();
    document.addEventListener("visibilitychange", listen);
    return () => {
      document.removeEventListener("visibilitychange", listen);
      close();
    };
  }, []);
}

let asked = "";

/** Open the stream anew where the page asks for something else than before: once it has said all that it asks for. */
function retopic(): void {
  queueMicrotask(() => {
    if (asked !== `${topics} ${range}` && (source !== null || timer !== undefined)) open();
  });
}

/** Ask the stream for more than the frame, as long as the page is shown. */
export function useTopic(topic: string, span: Range = "1h"): void {
  useEffect(() => {
    topics = topic;
    range = span;
    retopic();
    return () => {
      topics = "";
      retopic();
    };
  }, [topic, span]);
}

export function useFrame(): Frame | null {
  return useStore(live, now => now.frame);
}

/** Return how old the shown figures are: of the board where Redis is away, else of this tab. */
export function ageOf(now: Live, at_ms: number): number {
  if (now.frame === null) return 0;
  const since = at_ms - now.came_ms;
  return now.frame.age_ms + (since > STALE_MS ? since : 0);
}

/** The time by the server's clock, each second: what is told of the past and the future counts by it. */
export const serverNow = createStore(Date.now());
setInterval(() => {
  if (!document.hidden) serverNow.set(Date.now() + live.get().ahead_ms);
}, 1000);

export function useNow(): number {
  return useStore(serverNow);
}
