// Every view is an address: the history of the browser is the only memory of where one is.
import { useEffect } from "preact/hooks";
import { createStore, useStore } from "./store";
import { baseOf, type Query, type Route, routeOf, to } from "./url";

const base = baseOf(location.pathname);
const route = createStore<Route>(routeOf(new URL(location.href)));

/** Return a path below the base of this board. */
export const below = (path: string) => base + path;

export function useRoute(): Route {
  return useStore(route);
}

export function currentRoute(): Route {
  return route.get();
}

/** Go to a page of this board; `isSmall` where the page stays and only its view changes, which back does not undo step by step. */
export function go(href: string, isSmall = false): void {
  const url = new URL(href, location.origin + base);
  const before = route.get();
  if (isSmall) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  route.set(routeOf(url));
  if (!isSmall && before.page !== route.get().page) scrollTo(0, 0);
}

/** Change members of the query of the shown page. */
export function setQuery(change: Query, isSmall = false): void {
  const { page, query } = route.get();
  go(to(page, { ...Object.fromEntries(query), ...change }), isSmall);
}

function ownLink(event: MouseEvent): HTMLAnchorElement | null {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey)
    return null;
  const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
  if (!(link instanceof HTMLAnchorElement) || link.target !== "" || link.hasAttribute("download")) return null;
  const isOwn = link.origin === location.origin && baseOf(link.pathname) === base && link.hash === "";
  return isOwn ? link : null;
}

/** Follow links to pages of this board without loading it again. */
export function useLinks(): void {
  useEffect(() => {
    const follow = (event: MouseEvent) => {
      const link = ownLink(event);
      if (link === null) return;
      event.preventDefault();
      go(link.href);
    };
    const back = () => route.set(routeOf(new URL(location.href)));
    addEventListener("click", follow);
    addEventListener("popstate", back);
    return () => {
      removeEventListener("click", follow);
      removeEventListener("popstate", back);
    };
  }, []);
}
