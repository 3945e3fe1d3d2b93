import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { classes } from "./tone";

export interface Choice {
  text: string;
  isChosen?: boolean;
  onChoose: () => void;
}

interface Props {
  label: string;
  face: ComponentChildren;
  choices: readonly Choice[];
  isUp?: boolean;
}

/** A button that opens a short list of choices. Esc and a click elsewhere close it. */
export function Menu({ label, face, choices, isUp = false }: Props) {
  const [isOpen, open] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!isOpen) return;
    const leave = (event: Event) => event.target instanceof Node && box.current?.contains(event.target) !== true && open(false);
    addEventListener("pointerdown", leave);
    addEventListener("focusin", leave);
    box.current?.querySelector<HTMLElement>("[role^=menuitem]")?.focus();
    return () => {
      removeEventListener("pointerdown", leave);
      removeEventListener("focusin", leave);
    };
  }, [isOpen]);
  const press = (event: KeyboardEvent) => {
    if (event.key === "Escape") close();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") move(box.current, event.key === "ArrowDown" ? 1 : -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const close = () => {
    open(false);
    box.current?.querySelector("button")?.focus();
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: it hears what its buttons do not
    <div class="menu" ref={box} onKeyDown={press}>
      <button
        type="button"
        class="iconbtn"
        aria-label={label}
        title={label}
        aria-haspopup="menu"
        aria-expanded={isOpen}
        onClick={() => open(!isOpen)}
      >
        {face}
      </button>
      {isOpen && (
        <div role="menu" aria-label={label} class={classes("pop", isUp && "up")}>
          {choices.map(choice => (
            <button
              key={choice.text}
              type="button"
              role={choice.isChosen === undefined ? "menuitem" : "menuitemradio"}
              aria-checked={choice.isChosen}
              onClick={() => {
                close();
                choice.onChoose();
              }}
            >
              {choice.text}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}

function move(box: HTMLElement | null, by: number): void {
  const items = [...(box?.querySelectorAll<HTMLElement>("[role^=menuitem]") ?? [])];
  const at = items.indexOf(document.activeElement as HTMLElement);
  items[(at + by + items.length) % items.length]?.focus();
}
