// The page: sections in order, navigation, the choice of instrument, the threshold.
const INITS = { joint: "joint", parent: "continued", independent: "independent" };
const available = [SUMMARY.instrument, ...Object.keys(SUMMARY.also)];
const merges = Object.keys(SUMMARY.merges);
const stitches = Object.keys(SUMMARY.stitches);
const lede = (text) => h("p", { class: "lede" }, text);

const QUESTIONS = { merge: "made", inherited: "inherited", lost: "lost", new: "new", sure: "how sure" };
function findings() {
  const mine = DATA.headline.filter((statement) => [state.init, null].includes(statement.instrument));
  const order = Object.keys(QUESTIONS);
  const names = [...new Set(mine.map((statement) => statement.about))];
  // the last child first: what the whole study leads up to; stitches as the study has them
  const blocks = [...names.filter((name) => SUMMARY.models[name]).reverse(), ...names.filter((name) => !SUMMARY.models[name])].map((name) => {
    const model = SUMMARY.models[name];
    const statements = mine.filter((statement) => statement.about === name).sort((a, b) => order.indexOf(a.question) - order.indexOf(b.question));
    return h("div", { class: "finding" },
      h("h3", null, h("b", null, name), model ? `, ${KINDS[model.kind]} ${model.kind === "merge" ? "of" : "from"} ${model.parents.join(" and ")}` : null),
      h("dl", null, statements.map((statement, place) => [
        h("dt", null, statements[place - 1]?.question === statement.question ? "" : QUESTIONS[statement.question] || statement.question),
        h("dd", null, bound(statement.text), h("small", null, bound(statement.evidence.join(" · "))))])));
  });
  const notes = SUMMARY.notes.map((note) => lede(`Note: ${note}`));
  if (!blocks.length) return [notes, lede("This study has no parent and child, so nothing is inherited: the page shows its models and SAEs.")];
  return [notes, blocks, hasEdges ? [h("h3", null, "In numbers"), edgeTable()] : null];
}

function edgeTable() {
  const rows = available.flatMap((init) =>
    Object.entries(figuresOf(init).edges).map(([name, edge]) => ({ init, name, ...edge })));
  const both = (size, live, all, ends) => [count(size), h("small", null, ` ${share(size, live)} / ${known(all) ? share(size, all) : "–"}`), h("small", { class: "under" }, range(ends))];
  const measured_ = (value, ends) => [percent(value), h("small", { class: "under" }, ends)];
  const built = rows.some((row) => row.one_dictionary);
  return [table([
    ["edge", (row) => [arrow(row.name), available.length > 1 ? h("small", { class: "under" }, `SAEs ${INITS[row.init]}`) : null], TEXT],
    ["r >", (row) => fixed(row.threshold)],
    ["inherited", (row) => both(row.persist, row.parent_live, row.parent_features, row.intervals.persist)],
    ["lost", (row) => both(row.disappear, row.parent_live, row.parent_features, row.intervals.disappear)],
    ["new", (row) => both(row.emerge, row.child_live, row.child_features, row.intervals.emerge)],
    ["ceiling", (row) => measured_(row.ceiling, row.one_dictionary ? "built in" : shares(row.intervals.ceiling))],
    ["of ceiling", (row) => measured_(row.relative, shares(row.intervals.relative))], ["floor", (row) => percent(row.floor)],
    ["at r > 0.8", (row) => (row.paper ? both(row.paper.persist, row.parent_live, row.parent_features, row.paper.intervals.persist) : "–")],
  ], rows, { label: "Fates along every edge", tight: true, caption: `Features, their share of live / of all features, and the ${level(rows[0])}` }),
  note("A feature is inherited when the r of its best match exceeds its edge’s threshold, ", rows.some((row) => row.threshold_by === "evidence") ? "chosen between what chance and what a kept feature reaches; " : "which the study sets; ", "beside it the count at the paper’s 0.8. ",
    built ? "One SAE for all models keeps every feature of an unchanged model: its ceiling is built in, not measured." : "The ceiling is what persists between two SAEs of one model.")];
}

function flowSection() {
  const { figures } = measured();
  const named = Object.keys(figures.flow);
  const drawings = (named.length ? named : [null]).map((merge) => {
    const models = merge ? ancestry(merge) : GRAPH.map((node) => node.name);
    const host = h("div");
    let whole = true;
    const show = () => host.replaceChildren(sankey(models, whole));
    show();
    const live = merge ? origins(merge).reduce((sum, [, size]) => sum + size, 0) : 0;
    return [
      named.length > 1 ? h("h3", null, `Into ${merge}`) : null,
      merge ? choice([["all live features", true], ["only inherited", false]], () => whole, (value) => ((whole = value), show()), "What the bars show") : null,
      host,
      merge ? legend(origins(merge).map(([origin, size]) => [originColor(origin), originLabel(origin, merge), `${count(size)} (${share(size, live)})`])) : null,
      folded("The flow as a table", flowTable(models)),
    ];
  });
  return [lede("Widths are numbers of features. Where two ribbons overlap, features come through both parents or go to both children. Matching is many-to-many, so a ribbon may be wider at one end."), drawings];
}

function choice(options, current, choose, label) {
  const host = h("div", { class: "choice", role: "group", "aria-label": label });
  const buttons = options.map(([text, value]) => h("button", { type: "button", onclick: () => (choose(value), mark()) }, text));
  const mark = () => buttons.forEach((button, place) => button.setAttribute("aria-pressed", options[place][1] === current()));
  host.append(...buttons);
  mark();
  return host;
}

function mergeSection() {
  return merges.map((name) => {
    const merge = SUMMARY.merges[name];
    const parents = merge.parents.length ? merge.parents : [merge.first, merge.second].filter(known);
    const said = known(merge.t) && merge.second
      ? [h("b", null, mixture(merge)), `: t = ${merge.t.toFixed(3)}`, merge.interval?.every(known) ? ` (95 % interval ${merge.interval[0].toFixed(3)} to ${merge.interval[1].toFixed(3)})` : "",
        merge.crossed ? "; there both accuracies are equal" : merge.crossed === false ? "; the curves do not cross, t is where they come nearest" : ""]
      : [parents.join(", "), merge.weights ? ` with weights ${merge.weights.join(", ")}` : ""];
    const tensors = VIEW.tensors[name] || [];
    const angles = tensors.map((row) => row.angle_degrees).filter(known);
    return [
      h("h3", null, `${name}: ${merge.method}`),
      h("p", { class: "note" }, said, ". ", angles.length ? `The parents’ tensors stand ${fixed(Math.min(...angles), 1)}° to ${fixed(Math.max(...angles), 1)}° apart; ${count(merge.linear_fallback)} of ${count(tensors.length)} all but agree and were interpolated linearly.` : ""),
      merge.sweep.length > 1 ? sweepChart(name, merge) : null,
      tensors.length ? folded("Every tensor", table([["tensor", (row) => h("code", null, row.name), TEXT], ["method", "method", TEXT], ["angle", (row) => (known(row.angle_degrees) ? `${fixed(row.angle_degrees)}°` : "–")],
        ["cosine", (row) => fixed(row.cosine, 5)], ["norm ratio", (row) => fixed(row.norm_ratio, 4)], [`norm in ${parents[0]}`, (row) => fixed(row.norm_a)], [`norm in ${parents[1] || "–"}`, (row) => fixed(row.norm_b)]], tensors, { label: "Tensors" })) : null,
    ];
  });
}

function edgesSection() {
  const { figures, edges } = measured();
  const blocks = Object.entries(figures.edges).map(([name, edge]) => {
    const drawn = edges[name];
    const [parent, child] = name.split("->");
    const counts = h("div", { class: "grid" });
    const fill = () => counts.replaceChildren(...countsTable(name, edge, drawn));
    fill();
    updates.push(fill);
    return h("div", { class: "edge" }, h("h3", null, arrow(name)), counts, edgeNote(name, edge, drawn),
      h("div", { class: "grid" },
        h("div", null, h("h4", null, "Best match of every live feature"), histogram(name, edge, drawn),
          legend([[color(parent), parent, `median ${fixed(drawn.parent_median)}`], [color(child), child, `median ${fixed(drawn.child_median)}`, "solid"]])),
        h("div", null, h("h4", null, "The counts at other thresholds"), curve(name, edge, drawn),
          legend([[color(parent), `persist, of ${parent}’s live`, "", "solid"], [color(child), `emerge, of ${child}’s live`, "", "dash"]]))),
      ...[chanceBlock, rulesBlock, strataBlock, newnessBlock, shiftBlock].map((block) => block(name, edge)),
      drawn.rows.length ? folded(`The ${drawn.rows.length} closest pairs`, table([[`${parent} feature`, "parent"], [`${child} feature`, "child"], ["r", (row) => fixed(row.r, 3)], ["runner-up", (row) => fixed(row.runner_up, 3)],
        [`density in ${parent}`, (row) => rate(row.parent_density)], [`density in ${child}`, (row) => rate(row.child_density)], ["mutual", (row) => (row.mutual ? "yes" : "no"), TEXT]], drawn.rows, { label: "Closest pairs", plain: true, fit: true })) : null);
  });
  return [lede("The Pearson r of every feature’s best match at the other end, over the same tokens. Move the threshold to recount."), slider(), blocks];
}

const updates = [];
function slider() {
  const own = Object.values(measured().figures.edges).map((edge) => edge.threshold);
  const mean = own.reduce((sum, value) => sum + value, 0) / own.length;
  const output = h("output");
  const input = h("input", { type: "range", min: DATA.thresholds[0], max: DATA.thresholds[DATA.thresholds.length - 1], step: 0.01, value: mean, "aria-label": "Threshold of r",
    oninput: () => {
      state.threshold = Math.round(input.value * 100) / 100;
      show();
    } });
  const show = () => {
    output.textContent = known(state.threshold) ? `r > ${state.threshold.toFixed(2)} everywhere` : "each edge at its own";
    for (const update of updates) update();
    redraw();
  };
  const reset = h("button", { type: "button", onclick: () => ((input.value = mean), (state.threshold = null), show()) }, "reset");
  output.textContent = known(state.threshold) ? `r > ${state.threshold.toFixed(2)} everywhere` : "each edge at its own";
  return h("div", { class: "slider" }, h("span", null, "Threshold"), input, output, reset);
}

function saeSection() {
  const { figures, densities } = measured();
  const rows = Object.entries(figures.saes).map(([model, sae]) => ({ model, ...sae }));
  return [
    lede(`Sparse autoencoders at ${VIEW.provenance.hook_point}, judged on held-out text.`),
    table([["SAE of", "model", TEXT], ["width → features", (row) => `${count(row.d_in)} → ${count(row.d_sae)}`], ["trained on", (row) => compact(row.tokens)], ["L0", (row) => fixed(row.l0, 1)], ["MSE", (row) => (known(row.mse) ? row.mse.toPrecision(3) : "–")],
      ["explained variance", (row) => fixed(row.explained_variance, 3)], ["CE loss recovered", (row) => fixed(row.ce_loss_recovered, 3)], ["dead", (row) => percent(row.dead_share, 1)]], rows, { label: "SAE quality" }),
    Object.keys(densities).length ? [h("h3", null, "Live features by the share of tokens they fire on"),
      h("div", { class: "grid small" }, Object.entries(densities).map(([model, drawn]) =>
        h("div", null, h("h4", null, model), densityChart(model, drawn), h("p", { class: "note" }, `Median ${rate(drawn.median)}; ${count(drawn.dead)} never fire.`))))] : null,
  ];
}

function modelSection() {
  const names = Object.keys(SUMMARY.models);
  const corpora = [...new Set(names.flatMap((name) => Object.keys(SUMMARY.models[name].accuracy)))];
  const best = Object.fromEntries(corpora.map((corpus) => [corpus, Math.max(...names.map((name) => SUMMARY.models[name].accuracy[corpus] ?? 0))]));
  const rows = names.map((name) => ({ name, ...SUMMARY.models[name] }));
  const cell = (row, corpus) => {
    const value = row.accuracy[corpus];
    const text = percent(value, 1);
    return [known(value) && value === best[corpus] ? h("b", null, text) : text, known(row.ce_loss?.[corpus]) ? h("small", null, ` ${fixed(row.ce_loss[corpus])}`) : null];
  };
  const unigram = Object.fromEntries(corpora.map((corpus) => [corpus, rows.map((row) => row.unigram_accuracy[corpus]).find(known)]));
  if (Object.values(unigram).some(known)) rows.push({ name: "unigram", quiet: true, accuracy: unigram, kind: null, parents: [] });
  return table([["model", "name", TEXT], ["made", (row) => (row.kind ? KINDS[row.kind] : "most frequent token"), TEXT], ["parents", (row) => row.parents.join(", "), { text: true, class: "wrap" }], ["parameters", (row) => (row.kind ? compact(row.parameters) : "")],
    ["trained on", (row) => (row.kind ? compact(row.tokens) : "")], ...corpora.map((corpus) => [corpus, (row) => cell(row, corpus)])], rows,
  { label: "Models", caption: "Next-token accuracy on held-out text, the best in bold; beside it cross-entropy, nats a token" });
}

function methodSection() {
  const { corpora, artifacts, versions, seeds, config, seed, device, created, hook_point } = VIEW.provenance;
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const pairs = (found) => Object.entries(found).map((pair) => pair.join(" ")).join(", ");
  const facts = [["hook point", hook_point], ["seed", `${seed}`], ["machine", device], ["made", created], ["time", `${count(SUMMARY.seconds)} s`], ["versions", pairs(versions)], ["seeds", pairs(seeds)]];
  return [
    h("dl", { class: "method" }, DATA.definitions.map(([word, meaning]) => [h("dt", null, word), h("dd", null, meaning)])),
    h("h3", null, "Provenance"),
    h("dl", { class: "method" }, facts.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    corpora.length ? table([["corpus", "name", TEXT], ["source", (row) => h("code", null, row.source), { text: true, class: "wrap" }], ["documents", (row) => [count(row.documents_train), h("small", null, ` + ${count(row.documents_validation)}`)]], ["text", (row) => [mib(row.bytes_train), h("small", null, ` + ${mib(row.bytes_validation)}`)]],
      ["duplicates removed", (row) => count(row.duplicates)], ["licences, documents", (row) => pairs(row.licences), { text: true, class: "wrap" }], ["SHA-256", (row) => h("code", { title: row.sha256 }, row.sha256.slice(0, 12)), TEXT]], corpora, { label: "Corpora", caption: "Corpora: training + held-out" }) : null,
    config ? folded("The study file", h("pre", { tabindex: 0 }, config)) : null,
    artifacts.length ? folded(`${artifacts.length} artifacts`, table([["stage", "stage", TEXT], ["name", "name", TEXT], ["hash", (row) => h("code", { title: row.key }, row.key.slice(0, 12)), TEXT], ["seconds", (row) => fixed(row.seconds, 1)]], artifacts, { label: "Artifacts", fit: true })) : null,
  ];
}

const lists = [...new Set(VIEW.highlights.map((highlight) => highlight.list))].filter((name) => !name.startsWith("case:"));
const hasEdges = Object.keys(SUMMARY.edges).length > 0;
const SECTIONS = [
  { id: "findings", title: "Findings", build: findings, measured: true },
  { id: "graph", title: "Study graph", short: "Graph", build: () => [studyGraph(), stitches.length ? note("Dashed: models that are stitched to each other.") : null], measured: true },
  hasEdges && { id: "flow", title: "Where features go", short: "Flow", build: flowSection, measured: true },
  merges.length && { id: "merge", title: merges.length > 1 ? "The merges" : "The merge", short: "Merge", build: mergeSection },
  hasEdges && { id: "edges", title: "Edge by edge", short: "Edges", build: edgesSection, measured: true },
  hasEdges && available.some((init) => figuresOf(init).classes || figuresOf(init).explained) && { id: "meaning", title: "What features mean", short: "Meaning", build: meaningSection, measured: true },
  SUMMARY.repeats && { id: "repeats", title: "Between seeds", short: "Seeds", build: repeatsSection, measured: true },
  stitches.length && { id: "stitches", title: "Stitches", build: stitchSection },
  Object.keys(SUMMARY.saes).length && { id: "saes", title: "Quality of the SAEs", short: "SAEs", build: saeSection, measured: true },
  { id: "models", title: "Quality of the models", short: "Models", build: modelSection },
  lists.length && { id: "features", title: "Features", build: () => [lede("The text that features fire on most, shaded by activation, and under it the same text as seen by their matches. Figures are the r of the match, dotted when below the threshold."), featureLists(lists)] },
  Object.keys(VIEW.cases).length && { id: "cases", title: "Cases", build: () => Object.entries(VIEW.cases).map(([name, found]) => caseBlock(name, found)) },
  { id: "method", title: "Method and provenance", short: "Method", build: methodSection },
].filter(Boolean);

function build(section) {
  section.body.replaceChildren(h("h2", { id: `${section.id}-title` }, section.title), ...[section.build()].flat(Infinity).filter((part) => known(part) && part !== ""));
  // at once, not with the next frame: nothing jumps, and a page that is printed unseen has its pictures
  section.body.querySelectorAll("figure").forEach((figure) => figure.redraw?.());
}

function choose(init) {
  state.init = init;
  updates.length = 0;
  SECTIONS.filter((section) => section.measured).forEach(build);
}

function start() {
  const main = document.getElementById("main");
  main.replaceChildren(h("header", { class: "top" }, h("h1", null, SUMMARY.study),
    h("p", null, hasEdges || !stitches.length ? "What was inherited, what was lost, what is new, and how sure that is" : "What maps between models carry", " · heredity ", SUMMARY.heredity)));
  for (const section of SECTIONS) {
    section.body = h("section", { id: section.id, "aria-labelledby": `${section.id}-title` });
    main.append(section.body);
    build(section);
  }
  const links = SECTIONS.map((section) => h("a", { href: `#${section.id}` }, section.short || section.title));
  const bar = document.getElementById("bar");
  bar.append(h("div", { class: "in" }, h("nav", { "aria-label": "Sections" }, links),
    available.length > 1 ? choice(available.map((init) => [`SAEs ${INITS[init]}`, init]), () => state.init, choose, "How SAEs were initialized") : null));
  bar.hidden = false;
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      links.forEach((link, place) => (SECTIONS[place].body === entry.target ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  SECTIONS.forEach((section) => seen.observe(section.body));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
start();
