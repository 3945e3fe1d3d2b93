// Addresses of pages and of others' sites. Each page lies one step below the board's base, whatever that is: places go in the query.

export interface Route {
  page: string;
  query: URLSearchParams;
}

/** Return the base of the pages: the folder in which the shown page lies. */
export function baseOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/") + 1);
}

export function routeOf(url: URL): Route {
  const page = url.pathname.slice(baseOf(url.pathname).length);
  return { page: page === "" || page === "index.html" ? "overview" : page, query: url.searchParams };
}

export type Query = Record<string, string | number | boolean | null | undefined>;

/** Return the relative address of a page; what is empty is left out. */
export function to(page: string, query: Query = {}): string {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) found.set(name, String(value));
  }
  const text = found.toString();
  return (page === "overview" ? "./" : page) + (text === "" ? "" : `?${text}`);
}

const PAGE = /^\.?\/?[a-z]*(\?[^#]*)?$/;

/** Return an address that may stand in a link, or null: a page of this board, or a site by http or https. */
export function safe(href: string): string | null {
  if (/^#[a-z]+$/.test(href)) return href;
  if (PAGE.test(href)) return href.replace(/^\.?\//, "") || "./";
  if (!/^https?:\/\//i.test(href)) return null;
  try {
    return new URL(href).href;
  } catch {
    return null;
  }
}

/** Return where a trace is shown: only an id of 32 hex digits goes into the template. */
export function traceUrl(template: string | null, trace: string | null): string | null {
  if (template === null || trace === null || !/^[0-9a-f]{32}$/.test(trace)) return null;
  return safe(template.replaceAll("{trace_id}", trace));
}
