// Letters that were moved to the trash: they can be restored until they are deleted.
import { useHeading } from "../heading";
import { LetterList } from "../parts/LetterList";
import { useRoute } from "../router";
import { to } from "../url";

export default function Trash() {
  const { query } = useRoute();
  const q = query.get("q") ?? "";
  useHeading("Trash", [{ text: "Dead letters", href: to("dead") }]);
  return (
    <section class="panel" aria-label="Trash">
      <header>
        <h2>In the trash</h2>
        <p>deleted 7 days after they came here</p>
      </header>
      <LetterList ask={{ trash: true, q }} onDone={() => undefined} hasType />
    </section>
  );
}
