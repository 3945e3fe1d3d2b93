import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface Props {
  title: ComponentChildren;
  note?: ComponentChildren;
  more?: ComponentChildren;
  class?: string;
  children: ComponentChildren;
}

/** A part of a page with a heading. */
export function Panel({ title, note, more, class: name = "", children }: Props) {
  const id = useId();
  return (
    <section class={`panel ${name}`} aria-labelledby={id}>
      <header>
        <h2 id={id}>{title}</h2>
        {note !== undefined && <p>{note}</p>}
        {more !== undefined && <span class="more">{more}</span>}
      </header>
      {children}
    </section>
  );
}
