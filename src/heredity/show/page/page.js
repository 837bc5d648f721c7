// The page: sections in order, their list, the choice of instrument, the threshold.
const SAES = { joint: "joint", parent: "continued", independent: "independent" };
const QUESTIONS = {
  merge: "made", sites: "by site", inherited: "inherited", lost: "lost", changed: "changed", new: "new",
  sure: "how sure",
};
const FROM = { merge: " of", load: "; its parent is said to be" };
const LABELS = { ...QUESTIONS, matches: "by matches" }; // what matches count is folded where an edge has verdicts

function findings() {
  const mine = DATA.statements.filter((one) =>
    ["instrument", "site"].every((key) => [state[key], ""].includes(one[key])));
  const order = Object.keys(QUESTIONS);
  const rank = (one) => (order.includes(one.question) ? order.indexOf(one.question) : order.length);
  const names = [...new Set(mine.map((one) => one.about))];
  // the last child first: what the whole study leads up to; what is no model after that
  const models = GRAPH.map((node) => node.name).filter((name) => names.includes(name)).reverse();
  const lines = (rows) => h("dl", null, rows.map((one, place) => [
    h("dt", null, rows[place - 1]?.question === one.question ? "" : LABELS[one.question] || one.question),
    h("dd", null, bound(one.text), h("small", null, bound(one.evidence.join(" · "))))]));
  const more = (title, parts) => (parts.length ? h("details", null, h("summary", null, title), parts) : null);
  const block = (name) => {
    const rows = mine.filter((one) => one.about === name).sort((a, b) => rank(a) - rank(b));
    const first = rows.filter((one) => one.question in QUESTIONS);
    const rest = rows.filter((one) => !(one.question in QUESTIONS));
    const node = NODE[name];
    const made = node?.parents.length
      ? `, ${node.made}${FROM[node.kind] || " from"} ${node.parents.join(" and ")}` : "";
    const again = node?.recipe_of ? `, ${recipe(node)}` : "";
    return h("div", { class: "finding" }, h("h3", null, h("b", null, arrow(name)), made, again),
      first.length ? [lines(first), more("More", rest.length ? [lines(rest)] : [])] : lines(rest));
  };
  const others = names.filter((name) => !NODE[name]).map(block);
  const blocks = models.length ? [...models.map(block), more("Along edges and stitches", others)] : others;
  const notes = h("div", { class: "warning", role: "note" }, h("b", null, "Before relying on these figures"),
    h("ul", null, DATA.notes.map((text) => h("li", null, bound(text)))));
  return [blocks.length ? blocks : lede("This study has no parent and child: the page shows its models and SAEs."),
    MEASURED.length > 1 && hasEdges ? byInstrument() : null, DATA.notes.length ? notes : null];
}

const limits = () => h("ul", { class: "limits" }, DATA.limits.map((text) => h("li", null, text)));

function byInstrument() {
  const cell = (one) => (name) => {
    const edge = edgesNow(one)[name];
    if (!edge) return "–";
    const row = judgedNow(one, name);
    if (row) return [share(row.kept, row.stable), h("small", null, ` ${share(row.lost, row.stable)} lost`)];
    return [share(edge.persist, edge.parent_live), h("small", null, ` ${percent(edge.relative)} of ceiling`)];
  };
  const columns = [["edge", arrow, true], ...MEASURED.map((one) => [`SAEs ${SAES[one] || one}`, cell(one)])];
  const label_ = "Edges by instrument";
  return [h("h3", null, "By instrument"), plainTable(columns, Object.keys(edgesNow()), { label: label_ }),
    note(Object.keys(edgesNow()).some((name) => MEASURED.some((one) => judgedNow(one, name)))
      ? "Share of the parent’s stable features that the child kept, and beside it the share it lost, by verdicts."
      : "Share of the parent’s live features that persist, and beside it that share over the ceiling.")];
}

/** The threshold that counts along every edge, and the fates that follow from it. */
function slider() {
  const edges = Object.values(edgesNow());
  if (!edges.length) return null;
  const mean = edges.reduce((sum, edge) => sum + edge.threshold, 0) / edges.length;
  const output = h("output");
  const counts = h("div");
  const above = (edge, end) => rowsOf("best_r", { edge: edge.edge, end })
    .reduce((sum, row) => sum + (row.r >= state.threshold - 1e-9 ? row.features : 0), 0);
  const recounted = (edge) => {
    if (!known(state.threshold)) return edge;
    const persist = above(edge, "parent");
    return { ...edge, threshold: state.threshold, persist, disappear: edge.parent_live - persist,
      emerge: edge.child_live - above(edge, "child") };
  };
  const of = (part, whole) => [count(part), h("small", null, ` ${share(part, whole)}`)];
  const show = () => {
    output.textContent = known(state.threshold) ? `r > ${fixed(state.threshold)} everywhere` : "each edge at its own";
    counts.replaceChildren(plainTable([["edge", (row) => arrow(row.edge), true], ["r >", (row) => fixed(row.threshold)],
      ["persist", (row) => of(row.persist, row.parent_live)],
      ["disappear", (row) => of(row.disappear, row.parent_live)],
      ["emerge", (row) => of(row.emerge, row.child_live)],
    ], edges.map(recounted), { label: "Fates at the chosen threshold" }));
    redraw();
  };
  const choose = (threshold) => {
    state.threshold = threshold;
    input.value = threshold ?? mean;
    show();
  };
  const input = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: state.threshold ?? mean,
    "aria-label": "Threshold of r", oninput: () => choose(Math.round(input.value * 100) / 100) });
  const reset = h("button", { type: "button", onclick: () => choose(null) }, "reset");
  show();
  return h("div", null, h("div", { class: "slider" }, h("span", null, "Threshold"), input, output, reset), counts);
}

/** Analyses with a view of their own. */
const VIEWS = { flow: flowSection, features: () => [caseSection(), featureSection()] };
/** A section of an analysis: its definition, then its tables with their pictures. */
function analysisSection({ kind, doc, tables }) {
  const [first, ...rest] = doc.split(/\n\n/);
  const blocks = tables.map((name) => tableBlock(DATA.tables[name], name === "best_r" ? slider() : null, kind in VIEWS))
    .filter(Boolean);
  const open = blocks.filter((block) => block.tagName !== "DETAILS");
  const shut = blocks.filter((block) => block.tagName === "DETAILS");
  if (!blocks.length && !(kind in VIEWS)) return [note("Nothing was measured with this instrument.")];
  return [first ? lede(first) : null, rest.length ? folded("Definition", rest.map((text) => note(text))) : null,
    kind in VIEWS ? VIEWS[kind]() : null, open, shut.length ? h("div", { class: "folds" }, shut) : null];
}

function provenance() {
  const pairs = (values) => Object.entries(values).map((pair) => pair.join(" ")).join(", ");
  const rows = [["hook point", DATA.sites.join(", ")], ["seed", `${DATA.seed}`], ["machine", DATA.machine],
    ["made", DATA.created.replace("T", " ").replace("Z", " UTC")], ["work", `${count(DATA.seconds)} s`],
    ["versions", pairs(DATA.versions)]];
  return [h("dl", { class: "method" }, rows.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    lazily("The study file", () => h("pre", { tabindex: 0 }, DATA.toml)),
    lazily(`${DATA.artifacts.length} artifacts`, () => plainTable([["stage", (row) => row.stage, true],
      ["hash", (row) => h("code", { title: row.key }, row.key.slice(0, 12)), true], ["time", (row) => row.seconds]],
    DATA.artifacts, { label: "Artifacts" }))];
}

const MEASURED = DATA.instruments.filter((name) =>
  Object.values(DATA.tables).some((table) => table.values.instrument?.includes(name)));
const hasEdges = Boolean(DATA.tables.edges);
const DASHED = "Dashed: models that are stitched to each other, or trained by one recipe with different seeds.";
const graphSection = () => [studyGraph(), STITCHES.length || TWINS.length ? note(DASHED) : null];
const FIRST = ["flow", "verdicts"]; // the last of these leads
const analyses = (finds) => DATA.sections.filter((part) => part.finds === finds)
  .sort((a, b) => FIRST.indexOf(b.kind) - FIRST.indexOf(a.kind))
  .map((part) => ({ id: part.kind, title: part.title, build: () => analysisSection(part) }));
const SECTIONS = [
  { id: "findings", title: "Findings", build: findings },
  ...MORE,
  DATA.limits.length && { id: "limits", title: "What verdicts do not say", build: limits, once: true },
  { id: "graph", title: "Study graph", build: graphSection },
  hasEdges && !DATA.tables.reach && GRAPH.some((node) => node.parents.length)
    && { id: "flow", title: "Where features go", build: flowSection },
  ...analyses(true),
  ...analyses(false),
  { id: "provenance", title: "Provenance", build: provenance, once: true },
].filter(Boolean);

function build(section) {
  const parts = [section.build()].flat(Infinity).filter((part) => known(part) && part !== "");
  section.body.replaceChildren(h("h2", { id: `${section.id}-title` }, section.title), ...parts);
  // at once, not with the next frame: nothing jumps, and a page that is printed unseen has its pictures
  section.body.querySelectorAll("figure").forEach((figure) => figure.redraw());
}
function choose(what) {
  Object.assign(state, what);
  state.threshold = null;
  SECTIONS.filter((section) => !section.once).forEach(build);
}

function start() {
  const main = document.getElementById("main");
  const topic = hasEdges || !STITCHES.length
    ? "What was inherited, what was lost, what is new, and how sure that is"
    : "What maps between models carry";
  main.replaceChildren(h("header", { class: "top" }, h("h1", null, DATA.study),
    h("p", null, `${topic} · heredity ${DATA.heredity}`)));
  for (const section of SECTIONS) {
    section.body = h("section", { id: section.id, "aria-labelledby": `${section.id}-title` });
    main.append(section.body);
    build(section);
  }
  const links = SECTIONS.map((section) => h("a", { href: `#${section.id}` }, section.title));
  const contents = document.getElementById("contents");
  const list = h("details", null, h("summary", null, "Sections"), links);
  const wide = matchMedia("(min-width: 1000px)");
  const fit = () => (list.open = wide.matches);
  wide.addEventListener("change", fit);
  fit();
  list.addEventListener("click", (event) => event.target.tagName === "A" && !wide.matches && (list.open = false));
  const pick = (title, key, names) => (names.length > 1 ? h("div", { class: "switch" }, h("span", null, title),
    choice(names.map((name) => [SAES[name] || name, name]), () => state[key], (value) => choose({ [key]: value }),
      title)) : "");
  contents.append(pick("SAEs", "instrument", MEASURED), pick("Site", "site", DATA.sites), list);
  contents.hidden = false;
  const seen = new IntersectionObserver((entries) => {
    const entry = entries.find((one) => one.isIntersecting);
    if (entry) for (const link of links) {
      link.removeAttribute("aria-current");
      if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  SECTIONS.forEach((section) => seen.observe(section.body));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
start();
