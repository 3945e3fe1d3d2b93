import { useState } from "preact/hooks";
import { about, login, Refusal } from "../api";
import { Button } from "../parts/Button";
import { LevelMark } from "../parts/Level";
import { Mark } from "../parts/Mark";
import { go, useRoute } from "../router";
import { useStore } from "../store";
import { safe } from "../url";

/** Ask for a token, then go on to where one wanted to be. */
export default function Login() {
  const { query } = useRoute();
  const who = useStore(about);
  const [token, setToken] = useState("");
  const [refusal, setRefusal] = useState("");
  const [isBusy, setBusy] = useState(false);
  const next = query.get("next") ?? "./";
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await login(token.trim());
      const href = safe(next);
      go(href === null || /^https?:/i.test(href) ? "./" : href, true);
    } catch (error) {
      setRefusal(error instanceof Refusal ? error.text : String(error));
      setBusy(false);
    }
  };
  return (
    <main class="login" id="main">
      <form class="panel" onSubmit={submit}>
        <Mark size={40} />
        <h1>Log in{who !== null && who.queue !== "" ? ` to ${who.queue}` : ""}</h1>
        <p class="muted">The board prints a link at its start; its token, or one of those that were configured, goes here.</p>
        <label class="labelled">
          <span>Token</span>
          <input
            class="field wide mono"
            type="password"
            autoComplete="current-password"
            required
            maxLength={500}
            value={token}
            onInput={event => setToken(event.currentTarget.value)}
          />
        </label>
        {refusal !== "" && (
          <p class="refused" role="alert">
            <LevelMark level="act" />
            <span>{refusal}</span>
          </p>
        )}
        <Button kind="main" isSubmit isOff={isBusy || token.trim() === ""}>
          Log in
        </Button>
      </form>
    </main>
  );
}
