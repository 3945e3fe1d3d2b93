import type { Level } from "../api/names";
import { count } from "../format";
import { quietTone } from "./tone";

interface Props {
  text: string;
  count: number;
  level: Level;
  isPressed: boolean;
  onPress: () => void;
}

/** A way to narrow a list. */
export function Facet({ text, count: value, level, isPressed, onPress }: Props) {
  return (
    <button type="button" class={`facet ${value > 0 ? quietTone(level) : ""}`} aria-pressed={isPressed} onClick={onPress}>
      {text} <b>{count(value)}</b>
    </button>
  );
}
