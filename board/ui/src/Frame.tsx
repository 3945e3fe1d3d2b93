import { useEffect, useState } from "preact/hooks";
import { about, askAbout, login, logout, Refusal, toLogin } from "./api";
import type { Level } from "./api/names";
import type { About } from "./api/types";
import { duration, exact, short, visible } from "./format";
import { heading } from "./heading";
import { Help } from "./Help";
import { PAGES, useKey, useKeyboard } from "./keys";
import { ageOf, live, STALE_MS, useFrame, useLive, useNow } from "./live";
import { notice } from "./notice";
import { ENTRY } from "./pages";
import { Page } from "./Page";
import { A } from "./parts/A";
import { Dialog } from "./parts/Dialog";
import { Icon, type IconName } from "./parts/Icon";
import { LevelMark } from "./parts/Level";
import { Mark } from "./parts/Mark";
import { type Choice, Menu } from "./parts/Menu";
import { SearchBox } from "./parts/SearchBox";
import { quietTone } from "./parts/tone";
import { go, useLinks, useRoute } from "./router";
import { keys, type Theme, theme, zone } from "./settings";
import { useStore } from "./store";
import { to } from "./url";

const RIGHTS = { view: "may view", payload: "may read payloads", operate: "may operate", send: "may do all" } as const;

/** Take the token out of the address that the board prints at its start, and log in with it. */
async function begin(): Promise<About> {
  const token = /^#token=([^&]+)/.exec(location.hash)?.[1];
  if (token === undefined) return askAbout();
  history.replaceState(null, "", location.pathname + location.search);
  try {
    await login(decodeURIComponent(token));
  } catch {
    // an old one: the login page asks for another
  }
  return askAbout();
}

/** All pages stand in it: the bar, the top, and what is above every page. */
export function Frame() {
  const who = useStore(about);
  const [trouble, setTrouble] = useState("");
  const { page } = useRoute();
  useLinks();
  useKeyboard();
  useEffect(() => {
    const ask = () =>
      begin().then(
        found => {
          setTrouble("");
          if (found.rights.length === 0) toLogin();
        },
        error => {
          setTrouble(error instanceof Refusal ? error.text : String(error));
          setTimeout(ask, 2000);
        },
      );
    void ask();
  }, []);
  if (page === "login") return <Page name="login" />;
  if (who === null) return <Starting trouble={trouble} />;
  if (who.rights.length === 0) return <Starting trouble="" />;
  return <Whole who={who} page={page} />;
}

function Starting({ trouble }: { trouble: string }) {
  return (
    <main class="starting" aria-busy={trouble === ""}>
      <Mark size={40} />
      <p role="status">{trouble === "" ? <span class="sr">Loading</span> : trouble}</p>
    </main>
  );
}

function Whole({ who, page }: { who: About; page: string }) {
  const [isHelp, setHelp] = useState(false);
  useLive();
  useTab(who);
  useKey("?", () => setHelp(true));
  const entry = ENTRY.get(page) ?? page;
  return (
    <>
      <A class="skip" href="#main">
        Skip to content
      </A>
      <div class="frame">
        <aside class="side">
          <A class="brand" href="./">
            <Mark />
            backend-jobs
          </A>
          <div class="place">
            <span class="faint">queue</span>
            <b>{who.queue}</b>
            {who.label !== "" && <span class={`env ${quietTone(who.label_level)}`}>{who.label}</span>}
          </div>
          <nav class="nav" aria-label="Pages">
            <Entries entry={entry} />
          </nav>
          <Foot who={who} onHelp={() => setHelp(true)} />
        </aside>
        <div class="rest">
          <Top page={page} />
          <Trouble />
          <Main page={page} />
        </div>
      </div>
      <Bottom who={who} entry={entry} />
      <Noticed />
      {isHelp && <Help onClose={() => setHelp(false)} />}
    </>
  );
}

/** The title and the sign of the tab tell the level. */
function useTab(who: About): void {
  const frame = useFrame();
  const { text } = useStore(heading);
  const acts = frame?.acts ?? 0;
  const looks = frame?.looks ?? 0;
  const place = who.label === "" ? who.queue : `${who.queue}, ${who.label}`;
  const sign = acts > 0 ? `◆ ${acts} · ` : looks > 0 ? `▲ ${looks} · ` : "";
  const title = `${sign}${text === "" || text === "Overview" ? "" : `${text} · `}${place}`;
  const level = frame?.level ?? "ok";
  useEffect(() => {
    document.title = visible(title);
  }, [title]);
  useEffect(() => {
    const icon = document.querySelector<HTMLLinkElement>('link[rel="icon"]');
    if (icon !== null) icon.href = icon.href.replace(/mark(-\w+)?\.svg/, level === "ok" ? "mark.svg" : `mark-${level}.svg`);
  }, [level]);
}

function useCounts(): Record<string, { text: string; level: Level }> {
  const frame = useFrame();
  if (frame === null) return {};
  const { jobs, dead, types, workers, schedules, findings } = frame.counts;
  const plain = (value: number): { text: string; level: Level } => ({ text: short(value), level: "ok" });
  return {
    jobs: plain(jobs),
    dead: { text: short(dead), level: frame.dead_level },
    types: plain(types),
    workers: { text: short(workers), level: frame.workers_level },
    schedules: plain(schedules),
    ...(findings > 0 ? { system: { text: short(findings), level: frame.system_level } } : {}),
  };
}

function Entries({ entry }: { entry: string }) {
  const counts = useCounts();
  return (
    <>
      {PAGES.map(({ page, name }) => (
        <>
          {page === "types" && <hr />}
          <A key={page} href={to(page)} aria-current={page === entry ? "page" : undefined}>
            <Icon name={page as IconName} />
            {name}
            {counts[page] !== undefined && <span class={`n ${quietTone(counts[page].level)}`}>{counts[page].text}</span>}
          </A>
        </>
      ))}
    </>
  );
}

function mayWords(who: About): string {
  const best = (["send", "operate", "payload", "view"] as const).find(right => who.rights.includes(right));
  return best === undefined ? "" : RIGHTS[best];
}

function useChoices(who: About): Choice[] {
  const [chosen, times, hears] = [useStore(theme), useStore(zone), useStore(keys)];
  const themes: Theme[] = ["system", "light", "dark"];
  return [
    ...themes.map(name => ({ text: `Theme: ${name}`, isChosen: chosen === name, onChoose: () => theme.set(name) })),
    { text: "Times: local", isChosen: times === "local", onChoose: () => zone.set("local") },
    { text: "Times: UTC", isChosen: times === "utc", onChoose: () => zone.set("utc") },
    { text: "Keyboard", isChosen: hears === "on", onChoose: () => keys.set(hears === "on" ? "off" : "on") },
    ...(who.is_guest ? [{ text: "Log in for more", onChoose: () => go(to("login")) }] : []),
    ...(who.must_login && who.rights.length > 0
      ? [{ text: "Log out", onChoose: () => void logout().then(toLogin, toLogin) }]
      : []),
  ];
}

function Foot({ who, onHelp }: { who: About; onHelp: () => void }) {
  const choices = useChoices(who);
  return (
    <div class="foot">
      <span class="who">
        <span title={who.who}>{who.who}</span>
        <span class="faint">{mayWords(who)}</span>
      </span>
      <span class="keys">
        <Menu label="Settings" face={<Icon name="moon" />} choices={choices} isUp />
        <button type="button" class="iconbtn" aria-label="Keyboard and help" onClick={onHelp}>
          <kbd>?</kbd>
        </button>
      </span>
    </div>
  );
}

function Top({ page }: { page: string }) {
  const { text, above, isCode } = useStore(heading);
  return (
    <header class="top">
      <div class="crumb">
        {above.map(({ text: name, href }) => (
          <span key={href} class="up">
            <A href={href}>{name}</A>
            <span class="sep">/</span>
          </span>
        ))}
        <h1 class={isCode ? "mono" : ""} title={text}>
          {text}
        </h1>
      </div>
      <SearchBox page={page} />
      <div class="right">
        <LiveSign />
        <Clock />
      </div>
    </header>
  );
}

function LiveSign() {
  const now = useStore(live);
  const at = useNow() - now.ahead_ms;
  const age = ageOf(now, at);
  if (now.frame === null) return <span class="live wait">{now.state === "away" ? "away" : "…"}</span>;
  if (age > STALE_MS || now.state === "away") {
    return (
      <span class="live old" title="The figures are as old as this.">
        <i />
        {duration(Math.max(age, 1000))} old
      </span>
    );
  }
  return (
    <span
      class="live"
      title={now.state === "polling" ? "There is no stream: asked for each 5 s." : "The figures come each second."}
    >
      <i key={now.came_ms} />
      {now.state === "polling" ? "each 5 s" : "live"}
    </span>
  );
}

function Clock() {
  const now = useNow();
  const where = useStore(zone);
  const other = where === "local" ? "utc" : "local";
  const [, clock = "", name = ""] = exact(now, where).split(" ");
  return (
    <button
      type="button"
      class="clock hide"
      title={`Times are ${where === "utc" ? "UTC" : `local (${name})`}. Switch`}
      onClick={() => zone.set(other)}
    >
      {clock}
      {where === "utc" && <span class="unit"> UTC</span>}
    </button>
  );
}

/** What is said above every page while Redis or the board is away: aloud once, with its age for the eye alone. */
function Trouble() {
  const now = useStore(live);
  const at = useNow() - now.ahead_ms;
  const why = now.state === "away" ? "The board does not answer." : (now.frame?.trouble ?? "");
  return (
    <>
      <p role="status" class="sr">
        {why}
      </p>
      {why !== "" && (
        <div class="away">
          <LevelMark level="act" />
          <p>
            <b aria-hidden="true">{why.replace(/[^.]$/, "$&.")}</b> The page shows what was so {duration(Math.max(1000, ageOf(now, at)))} ago; actions
            wait until it is back.
          </p>
        </div>
      )}
    </>
  );
}

function Main({ page }: { page: string }) {
  const isOld = useStore(live, now => now.state === "away" || (now.frame?.trouble ?? null) !== null);
  return (
    <main id="main" class={isOld ? "main isold" : "main"} tabIndex={-1}>
      <Page key={page} name={page} />
    </main>
  );
}

function Bottom({ who, entry }: { who: About; entry: string }) {
  const counts = useCounts();
  const [isOpen, open] = useState(false);
  const [route, choices] = [useRoute(), useChoices(who)];
  useEffect(() => open(false), [route]);
  const first = [
    ["overview", "Overview"],
    ["jobs", "Jobs"],
    ["dead", "Dead"],
    ["workers", "Workers"],
  ] as const;
  const isMore = !first.some(([page]) => page === entry);
  return (
    <>
      <nav class="bar" aria-label="Main pages">
        {first.map(([page, name]) => (
          <A key={page} href={to(page)} aria-current={page === entry ? "page" : undefined}>
            <Icon name={page} size={20} />
            {name}
            {page === "dead" && counts.dead !== undefined && counts.dead.text !== "0" && (
              <span class={`n ${quietTone(counts.dead.level)}`}>{counts.dead.text}</span>
            )}
          </A>
        ))}
        <button type="button" class={isMore ? "here" : ""} aria-haspopup="dialog" onClick={() => open(true)}>
          <Icon name="more" size={20} />
          More
        </button>
      </nav>
      {isOpen && (
        <Dialog title={who.label === "" ? who.queue : `${who.queue}, ${who.label}`} isCalm onClose={() => open(false)}>
          <SearchBox page={entry} isPlain />
          <nav class="nav" aria-label="All pages">
            <Entries entry={entry} />
          </nav>
          <div class="facets wrap">
            {choices.map(choice => (
              <button
                key={choice.text}
                type="button"
                class="facet"
                aria-pressed={choice.isChosen ?? false}
                onClick={choice.onChoose}
              >
                {choice.text}
              </button>
            ))}
          </div>
        </Dialog>
      )}
    </>
  );
}

function Noticed() {
  const shown = useStore(notice);
  return (
    <div class="notice" role="status">
      {shown !== null && (
        <p>
          {shown.text}
          {shown.href !== null && (
            <A class="link" href={shown.href}>
              Show
            </A>
          )}
        </p>
      )}
    </div>
  );
}
