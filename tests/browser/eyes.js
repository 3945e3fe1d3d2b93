// What a test sees from within a page: what has run or was refused, what stands where only text should, and a way from page to page.
(() => {
  const reports = [];
  addEventListener("securitypolicyviolation", event => reports.push(`refused: ${event.violatedDirective} ${event.blockedURI}`));
  let [asked, pending] = [0, 0];
  const ask = window.fetch;
  window.fetch = (...given) => {
    [asked, pending] = [asked + 1, pending + 1];
    return ask(...given).finally(() => (pending -= 1));
  };

  const OWN = new Set(
    ("a aside b body br button circle clipPath code dd defs details dialog div dl dt em form g h1 h2 h3 head header hr html i input " +
      "kbd label legend li line link main meta nav noscript figure figcaption ol option p path polygon polyline pre rect script search section select small span " +
      "strong summary svg table tbody td text textarea th thead time title tr ul canvas").split(" "),
  );
  // As the board has them: what turns text around, hides it, or ends a line of a terminal.
  const RAW = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;
  const TRACE = /^https:\/\/traces\.example\/t\/[0-9a-f]{32}$/;

  function wrongWith(element) {
    const wrong = [];
    if (!OWN.has(element.localName)) wrong.push("is none of the board's");
    if (element.localName === "script" && !element.src.startsWith(`${location.origin}/assets/`)) wrong.push("is no script of ours");
    for (const { name, value } of element.attributes) {
      if (/^on|^(srcdoc|formaction|action|ping|background|http-equiv|xlink:href)$/.test(name)) wrong.push(`has ${name}`);
      if (name === "style" && /url|expression|import/.test(value)) wrong.push(`has a style of ${value}`);
      if (RAW.test(value)) wrong.push(`has raw signs in ${name}: ${JSON.stringify(value.slice(0, 80))}`);
      if (["href", "src", "data"].includes(name) && !isOurs(element, name)) wrong.push(`has ${name}=${value.slice(0, 80)}`);
    }
    return wrong.map(text => `<${element.localName} class="${element.getAttribute("class") ?? ""}"> ${text}`);
  }

  function isOurs(element, name) {
    const { href, origin } = new URL(element.getAttribute(name), document.baseURI);
    return origin === location.origin || (TRACE.test(href) && element.rel === "noopener noreferrer");
  }

  /** Return all that is wrong with what is shown now. */
  window.look = () => {
    const wrong = [...document.querySelectorAll("*")].flatMap(wrongWith);
    const texts = document.createTreeWalker(document, NodeFilter.SHOW_TEXT);
    while (texts.nextNode() !== null) {
      const text = texts.currentNode.data;
      if (RAW.test(text)) wrong.push(`raw signs in <${texts.currentNode.parentNode.localName}>: ${JSON.stringify(text.slice(0, 80))}`);
    }
    if (RAW.test(document.title)) wrong.push("raw signs in the title");
    const taught = Object.keys(Object.prototype).concat(Object.keys(Array.prototype));
    if (taught.length > 0) wrong.push(`every object has ${taught}`);
    return [...new Set(wrong), ...reports.splice(0)];
  };

  const turn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const rest = ms => new Promise(done => setTimeout(done, ms));
  const isDrawn = () => pending === 0 && document.querySelector("#main") !== null && document.querySelector("#main .skeleton") === null;

  /** Return once nothing is asked for any more, and no part of the page waits for an answer. */
  window.drawn = async () => {
    const end = performance.now() + 120_000;
    await turn();
    while (!isDrawn()) {
      if (performance.now() > end) throw new Error(`${location} is not drawn`);
      await rest(10);
    }
    await turn();
  };

  /** Go to a page as a link of the board does. */
  window.goTo = async path => {
    const [before, end] = [asked, performance.now() + 300]; // a page that has all it shows asks for nothing
    history.pushState(null, "", path);
    dispatchEvent(new PopStateEvent("popstate"));
    while (asked === before && performance.now() < end) await rest(10);
    await drawn();
  };

  /** Open what can be opened of a page: folded parts, then up to `most` dialogs, each by its button; return what was wrong. */
  window.openAll = async most => {
    const wrong = [];
    for (const folded of document.querySelectorAll("details")) folded.open = true;
    const buttons = [...document.querySelectorAll("#main button:not(:disabled)")].filter(button => button.textContent.trim().endsWith("…"));
    for (const button of buttons.slice(0, most)) {
      if (!button.isConnected) continue;
      button.click();
      await drawn();
      wrong.push(...look().map(text => `${button.textContent.trim()}: ${text}`));
      for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
      await turn();
    }
    return { wrong, opened: Math.min(most, buttons.length) };
  };
})();
