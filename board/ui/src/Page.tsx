import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { PAGES } from "./pages";
import { A } from "./parts/A";
import { Button } from "./parts/Button";
import { Empty } from "./parts/Empty";
import { Skeleton } from "./parts/Shown";
import { useHeading } from "./heading";

const loaded = new Map<string, ComponentType>();

/** The page of a name, loaded when it is first shown. */
export function Page({ name }: { name: string }) {
  const [, draw] = useState(0);
  const [failed, setFailed] = useState("");
  useEffect(() => {
    const load = PAGES.get(name);
    if (load === undefined || loaded.has(name)) return;
    load().then(
      found => {
        loaded.set(name, found.default);
        draw(turn => turn + 1);
      },
      () => setFailed(name),
    );
  }, [name]);
  const Found = loaded.get(name);
  if (Found !== undefined) return <Found />;
  if (!PAGES.has(name)) return <NoPage />;
  if (failed !== name) return <Skeleton lines={8} />;
  return (
    <section class="panel">
      <Empty why="This page could not be loaded: the board was updated, or does not answer.">
        <Button onClick={() => location.reload()}>Load again</Button>
      </Empty>
    </section>
  );
}

function NoPage() {
  useHeading("No such page");
  return (
    <section class="panel">
      <Empty why="No page has this address.">
        <A class="link" href="./">
          Overview
        </A>
      </Empty>
    </section>
  );
}
