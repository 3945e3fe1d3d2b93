// What the viewer may do, and whether it can be done now.
import { about } from "./api";
import type { Right } from "./api/names";
import { live } from "./live";
import { useStore } from "./store";

export function useCan(right: Right): boolean {
  return useStore(about, now => now?.rights.includes(right) ?? false);
}

/** Return whether the viewer may act by this right, and why it cannot be done now, in words, else "". */
export function useActs(right: Right | undefined): { may: boolean; whyNot: string } {
  const may = useStore(about, now => right === undefined || (now?.rights.includes(right) ?? false));
  const trouble = useStore(live, now => (now.state === "away" ? "The board does not answer." : (now.frame?.trouble ?? "")));
  return { may, whyNot: right === undefined ? "" : trouble };
}
