import { say } from "../notice";
import { Button } from "./Button";
import { Icon } from "./Icon";

/** A button that copies a text. */
export function Copy({ text, what, isBare = false }: { text: string; what: string; isBare?: boolean }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied ${what}.`);
    } catch {
      say("This browser lets no page copy here: mark the text and copy it.");
    }
  };
  return (
    <Button kind="quiet" isSmall onClick={() => void copy()} aria-label={`Copy ${what}`}>
      <Icon name="copy" size={14} />
      {!isBare && `Copy ${what}`}
    </Button>
  );
}
