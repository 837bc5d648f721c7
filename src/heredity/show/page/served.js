// Of a page that is served: all features in a table, any of them by its id, and texts to try.
/** The answer of the server, or an error with its reason. */
async function ask(path, values, body) {
  const given = Object.entries(values || {}).filter(([, value]) => known(value) && value !== "");
  const query = given.length ? `?${new URLSearchParams(given)}` : "";
  const post = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(`/api/${path}${query}`, body ? post : {});
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}
const here = () => ({ instrument: state.instrument, site: state.site });
/** Fill a host with what is answered, or with why nothing is; a later question of the same host counts. */
async function fill(host, question, draw) {
  const turn = (host.turn = (host.turn || 0) + 1);
  host.setAttribute("aria-busy", "true");
  let parts;
  try {
    const answer = await question;
    if (turn === host.turn) parts = draw(answer);
  } catch (error) {
    parts = note(error.message);
  }
  if (turn !== host.turn) return;
  host.removeAttribute("aria-busy");
  host.replaceChildren(...[parts].flat(Infinity).filter((part) => known(part) && part !== ""));
  host.querySelectorAll("figure").forEach((figure) => figure.redraw?.());
}
const field = (name, input) => h("label", { class: "field" }, h("span", null, name), input);
const select = (options, any) => h("select", null, h("option", { value: "" }, any),
  options.map((name) => h("option", { value: name }, arrow(name))));
/** White space that cannot be typed is written \\n, \\t, and a backslash \\\\. */
const SIGNS = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
const typed = (text) => text.replace(/\\([ntr\\])/g, (_, sign) => SIGNS[sign]);
const link = (one) => h("a", { class: "id", href: `#${encodeURIComponent(one.model)}/${one.feature}` }, idOf(one));
const judged = (one) => `${one.verdict} ${one.end === "child" ? "compared with" : "in"} ${one.model}`;

/** A feature of the server as the cards of the page have it. */
function asShown(one) {
  const contexts = one.top.map((place) => ({ ...place, values: { [one.model]: place.values, ...place.family } }));
  const weaker = one.levels.slice(1).filter((level) => level.examples.length)
    .map(({ low, high, examples }) => ({ low, high, contexts: examples }));
  const card = { ...one, promoted: [], suppressed: [], no_logits: "its model is asked below", weaker };
  return { ...one, contexts, card, label: one.explanation };
}
function whyTable(one) {
  if (!one.verdicts.length) return note("No verdicts: the study has none, or they are not done.");
  const columns = [["verdict", judged, true], ["along", (row) => arrow(row.edge), true],
    ["because", (row) => row.reason, true]];
  return plainTable(columns, one.verdicts, { label: `Verdicts on ${idOf(one)}`, fit: false });
}
function noteLines(one) {
  return one.notes.map((row) => note(h("b", null, row.by ? `Note by ${row.by}: ` : "Note: "), visible(row.text),
    row.tags.map((tag) => ` #${tag}`)));
}
function tokenRatios(one) {
  if (!one.tokens.length) return null;
  return folded("Log-likelihood ratio of its tokens", plainTable([["token", (row) => chip(row.token), true],
    ["LLR", (row) => fixed(row.llr)], ["activation", (row) => percent(row.share)]], one.tokens,
  { label: `LLR of ${idOf(one)}` }));
}
function plainTexts(title, one, examples) {
  if (!examples.length) return null;
  return lazily(title, () => examples.map((place) => h("div", { class: "context" },
    h("div", { class: "corpus" }, `in ${place.corpus}`),
    tokens({ position: 0, ...place }, place.values || [], one.max, idOf(one)))));
}
function logitsOf(one) {
  const host = h("div");
  const load = () => fill(host, ask("logits", { id: idOf(one), instrument: one.instrument, site: one.site }),
    (answer) => {
      if (answer.no_logits) return note(`Not known: ${answer.no_logits}`);
      const rows = answer.promoted.map((up, at) => [up, answer.suppressed[at]]);
      const pushed = (title, at) => [[title, (row) => (row[at] ? chip(row[at].token) : ""), true],
        ["logit", (row) => (row[at] ? fixed(row[at].weight) : "")]];
      return plainTable([...pushed("promotes", 0), ...pushed("suppresses", 1)], rows,
        { label: `Predictions of ${idOf(one)}` });
    });
  const details = h("details", null, h("summary", null, "What it predicts (loads the model once)"), host);
  details.addEventListener("toggle", () => details.open && !host.children.length && load());
  return details;
}
function wholeFeature(one) {
  const silent = one.firings ? "" : " It never fires on the sample.";
  const kind = one.class ? `${one.class.class}${one.class.domain ? `, in ${one.class.domain}` : ""}. ` : "";
  return [h("h3", { tabindex: -1, id: "asked" }, `${idOf(one)} at ${one.site}`), note(kind, silent), noteLines(one),
    whyTable(one), featureCard(asShown(one), true), tokenRatios(one), logitsOf(one),
    plainTexts("Firings at random", one, one.drawn), plainTexts("Text where it is silent", one, one.silent)];
}

/** The feature that the address names. */
const asked = { host: h("div", { id: "asked-feature", "aria-live": "polite" }) };
function openAsked() {
  const match = /^#(.+)\/(\d+)$/.exec(location.hash);
  if (!match) return;
  const id = `${decodeURIComponent(match[1])}/${match[2]}`;
  fill(asked.host, ask("feature", { id, ...here() }), wholeFeature)
    .then(() => document.getElementById("asked")?.scrollIntoView());
}
addEventListener("hashchange", openAsked);
// an id anywhere on the page opens its feature
document.addEventListener("click", (event) => {
  const id = event.target.closest?.("span.id");
  const match = id && /^(.+)\/(\d+)$/.exec(id.textContent);
  if (!match || id.closest("#asked-feature")) return;
  event.preventDefault();
  location.hash = `${encodeURIComponent(match[1])}/${match[2]}`;
});

const HEADS = [["feature", "feature", link, true], ["fires on", "density", (row) => rate(row.density)],
  ["highest", "max", (row) => fixed(row.max)], ["class", null, (row) => row.class || "", true],
  ["most on", null, (row) => (known(row.top_token) ? chip(row.top_token) : ""), true],
  ["score", "simulation", (row) => fixed(row.simulation)], ["explanation", null, (row) => row.description || "", true],
  ["verdicts", null, (row) => row.verdicts.map((one) => `${one.verdict} ${arrow(one.edge)}`).join("; "), true]];
function allFeatures() {
  const view = { sort: "density", down: true, start: 0, size: 50 };
  const input = h("input", { type: "search", maxlength: 200, "aria-label": "What to look for", spellcheck: "false" });
  const kind = h("select", { "aria-label": "Kind of search" }, [["id", "id, such as base/158"],
    ["token", "token, exactly"], ["words", "words of explanations"]].map(([value, text]) =>
    h("option", { value }, text)));
  const [filters, table, heading] = [h("div", { class: "fields" }), h("div", { class: "declared" }), h("p")];
  const inputs = {};
  const load = () => {
    const search = kind.value !== "id" && input.value ? { [kind.value]: typed(input.value) } : {};
    const given = Object.fromEntries(Object.entries(inputs).map(([name, one]) => [name, one.value]));
    for (const name of ["least_density", "most_density"]) given[name] = given[name] && +given[name] / 100;
    if (view.sort === "share" && !search.token) view.sort = "density";
    fill(table, ask("features", { ...here(), ...given, ...search, ...view }), drawn);
  };
  const turn = (step) => () => (Object.assign(view, { start: view.start + step * view.size }), load());
  const drawn = (answer) => {
    const from = Math.min(view.start + 1, answer.total);
    heading.textContent = `${count(answer.total)} features, ${count(from)} to ${
      count(view.start + answer.rows.length)}`;
    const heads = HEADS.map(([title, name]) => {
      if (!name) return h("th", { scope: "col" }, title);
      const mine = view.sort === name;
      const sort = () => (Object.assign(view, { sort: name, down: mine ? !view.down : name !== "feature", start: 0 }),
        load());
      return h("th", { scope: "col", "aria-sort": mine ? (view.down ? "descending" : "ascending") : null },
        h("button", { type: "button", onclick: sort }, title, mine ? (view.down ? " ↓" : " ↑") : ""));
    });
    const body = answer.rows.map((row) => h("tr", null, HEADS.map(([, , cell, text]) =>
      h("td", { class: text ? "text" : "n" }, cell(row)))));
    return [h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "All features" },
      h("table", { class: "tight" }, h("thead", null, h("tr", null, heads)), h("tbody", null, body))),
    h("button", { type: "button", disabled: view.start === 0, onclick: turn(-1) }, "before"), " ",
    h("button", { type: "button", disabled: view.start + view.size >= answer.total, onclick: turn(1) }, "next")];
  };
  const find = (event) => {
    event?.preventDefault();
    view.start = 0;
    if (kind.value === "id" && /^.+\/\d+$/.test(input.value.trim())) {
      const [, model, index] = /^(.+)\/(\d+)$/.exec(input.value.trim());
      location.hash = `${encodeURIComponent(model)}/${index}`;
      return;
    }
    Object.assign(view, kind.value === "token" && input.value ? { sort: "share", down: true } : {});
    load();
  };
  const number = () => h("input", { type: "number", step: "any" });
  fill(filters, ask("choices", here()), (choices) => {
    Object.assign(inputs, { model: select(choices.models, "all"), verdict: select(choices.verdicts, "all"),
      edge: select(choices.edges, "all"), class: select(choices.classes, "all"), least_density: number(),
      most_density: number(), least_score: number(), most_score: number() });
    const names = { least_density: "fires on at least %", most_density: "at most %", least_score: "score at least",
      most_score: "score at most" };
    for (const one of Object.values(inputs)) one.addEventListener("change", find);
    return Object.entries(inputs).map(([name, one]) => field(names[name] || name, one));
  });
  load();
  openAsked();
  return [lede("Every feature of the run. Type an id, a token (\\n for a line break) or words."),
    h("form", { class: "fields", onsubmit: find }, input, kind, h("button", { type: "submit" }, "find")),
    filters, heading, table, allNotes(), asked.host];
}

/** Notes on features of the SAEs that are shown, asked for when they are opened. */
function allNotes() {
  const host = h("div");
  const mine = (row) => row.current && row.instrument === state.instrument && row.site === state.site;
  const load = () => fill(host, ask("notes"), (rows) => (rows.some(mine) ? plainTable([["feature", link, true],
    ["by", (row) => row.by, true], ["note", (row) => visible(row.text), true], ["tags", (row) => row.tags, true]],
  rows.filter(mine), { label: "Notes", fit: false }) : note("None yet: `heredity note` writes them.")));
  const details = h("details", null, h("summary", null, "Notes"), host);
  details.addEventListener("toggle", () => details.open && load());
  return details;
}

function triedFamily(answer, one) {
  const member = (row) => h("div", { class: "row" }, h("div", { class: "who" }, link(row)),
    tokens({ tokens: answer.tokens, position: row.values.indexOf(Math.max(...row.values)) }, row.values, row.max,
      idOf(row), 60));
  const said = one.verdicts.map((row) => h("span", { title: row.reason }, `${judged(row)}. `));
  return h("div", { class: "context" }, one.members.map(member), note(said));
}
function tryText() {
  const text = h("textarea", { rows: 3, maxlength: 2000, "aria-label": "Your text" });
  const shown = h("div", { "aria-live": "polite" });
  const run = (event) => {
    event.preventDefault();
    shown.replaceChildren(note("The models read it; the first time they are loaded."));
    const question = ask("try", {}, { text: text.value, instrument: state.instrument });
    fill(shown, question, (answer) => [answer.cut ? note("The text was cut to the length of one block.") : null,
      Object.entries(answer.sites).map(([site, part]) => [h("h3", null, site), part.families.length
        ? part.families.map((one) => triedFamily(answer, one)) : note("No feature fires on it.")])]);
  };
  return [lede("Every model’s features on a text of yours, the strongest families first."),
    h("form", { class: "fields", onsubmit: run }, text, h("button", { type: "submit" }, "read")), shown];
}
MORE.push({ id: "all-features", title: "All features", build: allFeatures },
  { id: "try", title: "Try your own text", build: tryText });
