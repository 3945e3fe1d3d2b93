import { setQuery, useRoute } from "../router";
import { classes } from "./tone";

/** Heads of columns: figures stand right. `by` names the order of a column that sorts, in the address. */
export interface Column {
  text: string;
  isNum?: boolean;
  by?: string;
  title?: string;
}

/** The head of a table. `order` is how it is sorted where the address says nothing. */
export function Head({ columns, order }: { columns: readonly Column[]; order?: string }) {
  const shown = useRoute().query.get("sort") ?? order;
  return (
    <thead>
      <tr>
        {columns.map(({ text, isNum, by, title }, at) => {
          const isSorted = by !== undefined && by === shown;
          return (
            <th
              key={at}
              scope="col"
              class={classes(isNum && "num", isSorted && "sort")}
              aria-sort={isSorted ? "descending" : undefined}
              title={title}
            >
              {by === undefined ? (
                text || <span class="sr">actions</span>
              ) : (
                <button type="button" onClick={() => setQuery({ sort: by === order ? null : by }, true)}>
                  {text}
                  {isSorted && <span class="arrow">↓</span>}
                </button>
              )}
            </th>
          );
        })}
      </tr>
    </thead>
  );
}
