import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

interface Props {
  title: ComponentChildren;
  isWide?: boolean;
  onClose: () => void;
  children: ComponentChildren;
}

/** A native dialog: Esc closes it, and the focus goes back to where it was. On a phone it stands on the bottom edge. */
export function Dialog({ title, isWide = false, onClose, children }: Props) {
  const box = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = box.current;
    dialog?.showModal();
    return () => dialog?.close();
  }, []);
  return (
    <dialog ref={box} class={isWide ? "dialog wide" : "dialog"} aria-labelledby={id} onClose={onClose}>
      <h2 id={id} class="ask-title">
        {title}
      </h2>
      {children}
    </dialog>
  );
}
