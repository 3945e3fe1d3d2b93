import { visible } from "../format";

/** Text that its column cuts; whole on hover, and on focus, by the title and a line of its own. */
export function Cut({ text, isCode = false }: { text: string; isCode?: boolean }) {
  const shown = visible(text);
  return isCode ? (
    <code class="muted" title={shown}>
      {shown}
    </code>
  ) : (
    <span title={shown}>{shown}</span>
  );
}
