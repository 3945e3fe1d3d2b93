import { useHeading } from "../heading";
import { Empty } from "../parts/Empty";

export default function System() {
  useHeading("System");
  return (
    <section class="panel">
      <Empty why="This page is being built." />
    </section>
  );
}
