import type { ComponentChildren, JSX } from "preact";
import type { Right } from "../api/names";
import { useActs } from "../rights";
import { classes } from "./tone";

type Props = Omit<JSX.IntrinsicElements["button"], "type" | "disabled"> & {
  kind?: "main" | "quiet" | "danger" | "";
  isSmall?: boolean;
  /** The right that its action needs: without it there is no button; while Redis is away it is off, and says why. */
  right?: Right;
  isOff?: boolean;
  isSubmit?: boolean;
  children: ComponentChildren;
};

/** A button: a verb and its object, with … where it asks first. */
export function Button({ kind = "", isSmall = false, right, isOff = false, isSubmit = false, children, ...rest }: Props) {
  const acts = useActs(right);
  if (!acts.may) return null;
  return (
    <button
      {...rest}
      type={isSubmit ? "submit" : "button"}
      class={classes("btn", kind, isSmall && "small", rest.class as string)}
      disabled={isOff || acts.whyNot !== ""}
      title={acts.whyNot || rest.title}
    >
      {children}
    </button>
  );
}
