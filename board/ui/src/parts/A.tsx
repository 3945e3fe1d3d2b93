import type { ComponentChildren, JSX } from "preact";
import { safe } from "../url";

type Given = "class" | "title" | "aria-current" | "aria-label" | "download";
type Props = Pick<JSX.IntrinsicElements["a"], Given> & { href: string | null; isRow?: boolean; children?: ComponentChildren };

/** A link, with `isRow` that of its row, for the keyboard: the only place that sets `href`. An address that is neither a page of this board nor http(s) becomes plain text. */
export function A({ href, isRow = false, children, ...rest }: Props) {
  const address = href === null ? null : safe(href);
  if (address === null) return <span class={rest.class ?? ""}>{children}</span>;
  const isOut = /^https?:/i.test(address);
  return (
    <a
      {...rest}
      data-row={isRow ? "" : undefined}
      href={address}
      {...(isOut ? { target: "_blank", rel: "noopener noreferrer" } : {})}
    >
      {children}
    </a>
  );
}
