import type { Payload } from "../api/types";
import { bytes, plural } from "../format";
import { useLoad } from "../load";
import { useCan } from "../rights";
import { Code } from "./Code";
import { Copy } from "./Copy";
import { Panel } from "./Panel";
import { Shown } from "./Shown";

/** The payload of a job or a letter, asked for by itself: it may be long. */
export function PayloadPanel({ place, type }: { place: string; type: string }) {
  const may = useCan("payload");
  const loaded = useLoad("payload", may ? { place } : null);
  if (!may) {
    return (
      <Panel title="Payload">
        <p class="pad faint">Its arguments are shown to who may read payloads.</p>
      </Panel>
    );
  }
  return (
    <Shown of={loaded} lines={4}>
      {payload => (
        <Panel title="Payload" note={saidOf(payload, type)} more={<Copy text={payload.text} what="payload" isBare />}>
          <Code text={payload.text} problems={payload.problems} label="Payload" />
          {payload.is_cut && <p class="pad faint">{`The first part of ${bytes(payload.size)}.`}</p>}
        </Panel>
      )}
    </Shown>
  );
}

export function saidOf(payload: Payload, type: string): string {
  const name = `${type}@${payload.version}`;
  if (payload.fits === null) return `${name}, not checked in full`;
  return payload.fits ? `${name}, fits` : `${name}, ${plural(payload.problems.length, "problem")}`;
}
