import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

interface Props {
  title: ComponentChildren;
  isWide?: boolean;
  /** The focus begins at its title, not in its first field: on a phone that would bring up the keyboard. */
  isCalm?: boolean;
  onClose: () => void;
  children: ComponentChildren;
}

/** A native dialog: Esc closes it, and the focus goes back to where it was. On a phone it stands on the bottom edge. */
export function Dialog({ title, isWide = false, isCalm = false, onClose, children }: Props) {
  const box = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = box.current;
    dialog?.showModal();
    if (isCalm) dialog?.querySelector("h2")?.focus();
    return () => dialog?.close();
  }, [isCalm]);
  return (
    <dialog ref={box} class={isWide ? "dialog wide" : "dialog"} aria-labelledby={id} onClose={onClose}>
      <h2 id={id} class="ask-title" tabIndex={-1}>
        {title}
      </h2>
      {children}
    </dialog>
  );
}
