import { PAGES } from "./keys";
import { Dialog } from "./parts/Dialog";
import { Button } from "./parts/Button";
import { about } from "./api";
import { keys } from "./settings";
import { useStore } from "./store";

const OTHERS = [
  ["/", "find"],
  ["j k", "next and previous row"],
  ["Enter", "open the row"],
  ["x", "mark the row"],
  ["Esc", "close what is open"],
  ["?", "this list"],
] as const;

/** What the keyboard does. */
export function Help({ onClose }: { onClose: () => void }) {
  const hears = useStore(keys);
  const version = useStore(about, now => now?.version ?? "");
  return (
    <Dialog title="Keyboard" isWide onClose={onClose}>
      <dl class="keylist">
        {PAGES.map(({ key, name }) => (
          <div key={key}>
            <dt>
              <kbd>g</kbd> <kbd>{key}</kbd>
            </dt>
            <dd>{name}</dd>
          </div>
        ))}
        {OTHERS.map(([key, what]) => (
          <div key={key}>
            <dt>
              {key.split(" ").map(one => (
                <kbd key={one}>{one}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <label class="switch">
        <input
          type="checkbox"
          checked={hears === "on"}
          onChange={event => keys.set(event.currentTarget.checked ? "on" : "off")}
        />
        These keys are on
      </label>
      <div class="row end">
        <span class="faint push-right">backend-jobs {version}</span>
        <Button onClick={onClose}>Close</Button>
      </div>
    </Dialog>
  );
}
