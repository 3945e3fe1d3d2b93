// The dialog that sends one job of a type: an example to begin with, checked while it is written.
import { useState } from "preact/hooks";
import type { Type } from "../api/types";
import { useLoad } from "../load";
import { go } from "../router";
import { to } from "../url";
import { Button } from "./Button";
import { Dialog } from "./Dialog";
import { SendQuestion, standOf, useDraft } from "./Draft";
import { Editor } from "./Editor";
import { Shown } from "./Shown";

export function SendOne({ type, onClose }: { type: string; onClose: () => void }) {
  const loaded = useLoad("type", { type });
  return (
    <Dialog title={`Send one ${type}`} isWide onClose={onClose}>
      <Shown of={loaded} lines={4}>
        {found => <Writing found={found} onClose={onClose} />}
      </Shown>
    </Dialog>
  );
}

function Writing({ found, onClose }: { found: Type; onClose: () => void }) {
  const { type } = found.row;
  const draft = useDraft(type, found.example, "");
  const [isAsked, ask] = useState(false);
  const problems = draft.found?.problems ?? [];
  return (
    <>
      <div class="boxed">
        <Editor text={draft.text} problems={problems} label="Payload" onText={draft.write} />
      </div>
      <div class="row">
        <span class="muted">{standOf(draft)}</span>
        <span class="push" />
        <Button onClick={onClose}>Cancel</Button>
        <Button kind="main" right="send" isOff={!draft.isChecked || problems.length > 0} onClick={() => ask(true)}>
          Send one …
        </Button>
      </div>
      {isAsked && (
        <SendQuestion
          type={type}
          draft={draft}
          pri={found.pri}
          place=""
          onClose={() => ask(false)}
          onSent={id => {
            onClose();
            go(to("job", { id }));
          }}
        />
      )}
    </>
  );
}
