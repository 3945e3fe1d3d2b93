import { useHeading } from "../heading";
import { Empty } from "../parts/Empty";

export default function Types() {
  useHeading("Types");
  return (
    <section class="panel">
      <Empty why="This page is being built." />
    </section>
  );
}
