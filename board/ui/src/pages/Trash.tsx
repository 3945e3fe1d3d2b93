import { useHeading } from "../heading";
import { Empty } from "../parts/Empty";

export default function Trash() {
  useHeading("Trash");
  return (
    <section class="panel">
      <Empty why="This page is being built." />
    </section>
  );
}
