import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Refusal } from "../api";
import { count as shown } from "../format";
import { say } from "../notice";
import { Button } from "./Button";
import { Dialog } from "./Dialog";
import { LevelMark } from "./Level";

const ASK_ABOVE = 100; // more than so many at once, or what cannot be undone: the count is typed

interface Props {
  title: string;
  /** What will happen, how long, what stays, what can be undone. */
  children: ComponentChildren;
  verb: string;
  count?: number;
  isFinal?: boolean;
  isDanger?: boolean;
  isReasonAsked?: boolean;
  /** The word that leaves all as it is. */
  leave?: string;
  /** Do it; what it returns is said once it is done. */
  onDo: (reason: string) => Promise<string>;
  onClose: () => void;
}

/** The question before an action. What is refused says what is true now, and the dialog stays. */
export function Question(props: Props) {
  const {
    title,
    children,
    verb,
    count = 1,
    isFinal = false,
    isDanger = false,
    isReasonAsked = true,
    leave = "Cancel",
    onDo,
    onClose,
  } = props;
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const isCountAsked = count > ASK_ABOVE || isFinal;
  const isTyped = !isCountAsked || typed.replace(/[\s,.]/g, "") === String(count);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!isTyped || isBusy) return;
    setBusy(true);
    try {
      say(await onDo(reason.trim()));
      onClose();
    } catch (error) {
      setRefusal(error instanceof Refusal ? error : new Refusal(0, "page", String(error), null));
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form onSubmit={submit}>
        {children}
        {isReasonAsked && (
          <label class="labelled">
            <span>Reason, for the audit (optional)</span>
            <input class="field wide" value={reason} maxLength={500} onInput={event => setReason(event.currentTarget.value)} />
          </label>
        )}
        {isCountAsked && (
          <label class="labelled">
            <span>
              Type <b>{shown(count)}</b> to confirm
            </span>
            <input
              class="field wide"
              inputMode="numeric"
              autoComplete="off"
              value={typed}
              onInput={event => setTyped(event.currentTarget.value)}
            />
          </label>
        )}
        {refusal !== null && <Refused refusal={refusal} />}
        <div class="row end">
          <Button onClick={onClose}>{leave}</Button>
          <Button kind={isDanger ? "danger" : "main"} isSubmit right="view" isOff={!isTyped || isBusy}>
            {verb}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

export function Refused({ refusal }: { refusal: Refusal }) {
  return (
    <p class="refused" role="alert">
      <LevelMark level="look" />
      <span>
        {refusal.text} {refusal.now !== null && <b>{refusal.now}</b>}
      </span>
    </p>
  );
}
