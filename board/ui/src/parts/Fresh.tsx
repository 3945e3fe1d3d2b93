import { count } from "../format";

/** How many rows came while the shown ones were held in their places; a press shows them. */
export function Fresh({ waiting, onShow }: { waiting: number; onShow: () => void }) {
  if (waiting === 0) return null;
  return (
    <button type="button" class="fresh" onClick={onShow}>
      {count(waiting)} new
    </button>
  );
}
