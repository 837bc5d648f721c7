// What features mean: kinds among what persists, is lost and emerges; scores of explanations; labels handed down.
const FATES = [["persist", "persist", "disc"], ["disappear", "lost", "ring"], ["emerge", "emerged", "diamond"]];
const fateColor = (edge, fate) => color(edge.split("->")[fate === "emerge" ? 1 : 0]);
const bracketed = (found) => (known(found?.share) ? [percent(found.share, 1), h("small", null, ` ${shares(found.interval)}`)] : "–");
const points = (value) => `${value > 0 ? "+" : ""}${fixed(100 * value, 1)}`;

const CLASS_WORDS = { "non-ascii": "non-ASCII", domain: "one corpus" };
const RULES = { single: "share of a feature’s activation on one token text, at least, for a single token", share: "share on one category, beside one token text or at one position, at least",
  lift: "that share over the share of the sample’s positions, at least", domain: "share in one corpus, at least", firings: "firings, at least, to be judged" };

/** One tab stop for many marks: the arrow keys, Home and End move between them. */
function roving(marks) {
  marks.forEach((mark, place) => {
    mark.setAttribute("tabindex", place ? -1 : 0);
    mark.addEventListener("keydown", (event) => {
      const to = { ArrowDown: place + 1, ArrowRight: place + 1, ArrowUp: place - 1, ArrowLeft: place - 1, Home: 0, End: marks.length - 1 }[event.key];
      if (!marks[to]) return;
      event.preventDefault();
      mark.setAttribute("tabindex", -1);
      marks[to].setAttribute("tabindex", 0);
      marks[to].focus();
    });
  });
}

/** Kinds that any feature of an edge belongs to: [part, name, words], the most frequent first; with headings. */
function kindsOf(found) {
  const every = Object.values(found.edges).flatMap((edge) => FATES.map(([fate]) => edge[fate]));
  const size = (part, name) => every.reduce((sum, group) => sum + (group[part][name]?.count || 0), 0);
  const seen = (part) => [...new Set(every.flatMap((group) => Object.keys(group[part])))].filter((name) => size(part, name)).sort((a, b) => size(part, b) - size(part, a));
  return [["classes", "each feature in one", seen("classes").map((name) => [name, CLASS_WORDS[name] || name.replaceAll("-", " ")])],
    ["groups", "taken together", seen("groups").filter((name) => name !== "punctuation").map((name) => [name, name === "single-token" ? "any single token" : name])],
    ["domains", "in one corpus only", seen("domains").map((name) => [name, name])],
  ].filter((block) => block[2].length);
}

/** Shares of kinds among what persists, is lost and emerges, each with its interval. */
function classChart(edge, found, kinds, level) {
  return chart(`Shares of kinds of features along ${arrow(edge)}; a table below holds the same`, (svg, width) => {
    const ends = kinds.flatMap(([part, , names]) => names.flatMap(([name]) => FATES.map(([fate]) => found[fate][part][name]?.interval?.[1]))).filter(known);
    const most = Math.min(1, Math.max(0.05, ...ends));
    const box = { left: Math.min(148, Math.floor(0.38 * width)), right: width - 16, top: 4 };
    const rows = kinds.reduce((sum, [, , names]) => sum + names.length, 0);
    box.bottom = box.top + 26 * rows + 30 * kinds.length;
    const X = scale(0, most, box.left, box.right);
    for (const value of ticks(0, most, width < 380 ? 3 : 5)) {
      svg.append(line(X(value), box.top, X(value), box.bottom, { class: "gridline" }), label(X(value), box.bottom + 17, percent(value, 0), "soft", "middle"));
    }
    svg.append(label((box.left + box.right) / 2, box.bottom + 34, "share of the judged features", "soft", "middle"));
    const marks = [];
    let top = box.top;
    for (const [part, heading, names] of kinds) {
      svg.append(line(0, top + 25, box.right, top + 25, { class: "axis" }), label(0, top + 18, heading, "soft halo"));
      top += 30;
      for (const [name, words] of names) {
        const told = [];
        svg.append(label(box.left - 10, top + 16, clip(words, box.left - 10), null, "end"));
        FATES.forEach(([fate, fateWords, shape], place) => {
          const own = found[fate][part][name];
          if (!known(own?.share)) return;
          const [x, y, tint] = [X(own.share), top + 5 + 7.5 * place, fateColor(edge, fate)];
          svg.append(line(X(own.interval[0]), y, X(own.interval[1]), y, { stroke: tint, "stroke-opacity": 0.6, "stroke-width": 1.6 }));
          svg.append(shape === "diamond" ? h("path", { d: `M${x},${y - 4.4}L${x + 4.4},${y}L${x},${y + 4.4}L${x - 4.4},${y}Z`, fill: tint })
            : h("circle", { cx: x, cy: y, r: 3.4, fill: shape === "ring" ? "var(--bg)" : tint, stroke: tint, "stroke-width": 1.6 }));
          told.push(`${fateWords}: ${percent(own.share, 1)} ${shares(own.interval)}, ${count(own.count)} features`);
        });
        const mark = rect(0, top - 1, box.right, 26, "transparent", hint(`${words}, ${percent(level)} intervals\n${told.join("\n")}`));
        marks.push(mark);
        svg.append(mark);
        top += 26;
      }
    }
    roving(marks);
    return box.bottom + 42;
  });
}

/** Kinds that what persists has more or less of than what is lost, in words. */
function gapWords(found, kinds) {
  const named = kinds.filter(([part]) => part !== "domains").flatMap(([part, , names]) => names.map(([name, words]) => ({ words, ...found[part === "groups" ? "group_gaps" : "class_gaps"][name] })))
    .filter((one) => known(one.value) && one.interval?.every(known) && (one.interval[0] > 0 || one.interval[1] < 0)).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const list = (some) => some.slice(0, 5).map((one) => `${one.words} (${points(one.value)})`).join(", ");
  const [more, less] = [named.filter((one) => one.value > 0), named.filter((one) => one.value < 0)];
  if (!named.length) return "No kind differs clearly between what persists and what is lost.";
  return [more.length ? `What persists is more often ${list(more)}` : "", less.length ? `${more.length ? "; " : "What persists is "}less often ${list(less)}` : "", " than what is lost, in percentage points."].join("");
}

function classTable(edge, found, kinds) {
  const rows = kinds.flatMap(([part, , names]) => names.map(([name, words]) => ({ part, name, words: part === "domains" ? `only in ${words}` : words, gap: found[{ groups: "group_gaps", classes: "class_gaps" }[part]]?.[name] })));
  const gap = ({ gap: own }) => (known(own?.value) ? [points(own.value), h("small", null, own.interval?.every(known) ? ` [${points(own.interval[0])} to ${points(own.interval[1])}]` : "")] : "–");
  return folded(`${arrow(edge)} as a table`, table([["kind", "words", TEXT], ...FATES.map(([fate, words]) => [words, (row) => bracketed(found[fate][row.part][row.name])]), ["persist − lost, points", gap]],
    rows, { label: `Kinds of features: ${arrow(edge)}`, fit: true }));
}

function classesBlock(found) {
  const kinds = kindsOf(found);
  const edges = Object.entries(found.edges);
  return [
    h("h3", null, "Kinds of features"),
    note(`Told by fixed rules from where a feature fires, on ${compact(found.tokens)} tokens of all corpora; lines are ${percent(found.level)} intervals over features. Features that fire too seldom there are not judged.`),
    h("div", { class: "grid" }, edges.map(([edge, own]) => h("div", null, h("h4", null, arrow(edge)), classChart(edge, own, kinds, found.level),
      legend(FATES.map(([fate, words, shape]) => [fateColor(edge, fate), words, `${count(own[fate].judged)} of ${count(own[fate].features)} judged`, shape])), note(gapWords(own, kinds))))),
    edges.map(([edge, own]) => classTable(edge, own, kinds)),
    pathsBlock(found),
    folded("Languages, base rates and rules", note("Languages, told from the words: ", Object.entries(found.languages).map((pair) => pair.join(" is ")).join(", "), ". Keywords and dashes are judged by them."),
      table([["tokens of the sample", (row) => row[0], TEXT], ["share", (row) => percent(row[1], 1)]], Object.entries(found.base_rates).filter((row) => row[1] > 0).sort((a, b) => b[1] - a[1]), { label: "Base rates", fit: true }),
      table([["rule", (row) => RULES[row[0]] || row[0].replaceAll("_", " "), { text: true, class: "wrap" }], ["value", (row) => `${row[1]}`]], Object.entries(found.rules), { label: "Rules", fit: true })),
  ];
}

/** What flows along two edges, beside the paper's two groups. */
function pathsBlock(found) {
  const rows = Object.entries(found.paths).map(([path, group]) => ({ path: path.replaceAll("->", " → ").replaceAll("|", " or "), ...group }));
  if (!rows.length) return null;
  const paper = { punctuation: { share: 0.2 }, formatting: { share: 0.05 } };
  rows.push({ path: ["base → Lua → merge", h("small", { class: "under" }, "the paper, grouped by hand from explanations")], groups: paper, quiet: true });
  const group = (name) => (row) => (row.quiet ? (row.groups[name] ? percent(row.groups[name].share, 0) : "–") : bracketed(row.groups[name]));
  return [h("h3", null, "What flows the whole way"),
    table([["path", "path", TEXT], ["features", (row) => count(row.features)], ["judged", (row) => count(row.judged)], ...["punctuation", "formatting", "code"].map((name) => [name, group(name)]), ["any single token", group("single-token")]],
      rows, { label: "Kinds along paths", fit: true }),
    note("Formatting is whitespace and line breaks. The paper: Horn & Elliott, arXiv 2410.12391, section 4.1, which finds most of the rest to be about code. Its groups were made by hand from explanations, ours by rule: compare the order, not the digits.")];
}

/** Simulation scores of features that persist and of others. */
function scoreChart(title, found, tint) {
  const bins = DATA.bins;
  const groups = [[found.persisting, tint, "persist"], [found.others, "var(--soft)", "do not"]];
  const share = (group, bin) => (group.n ? group.histogram[bin] / group.n : 0);
  return chart(`Simulation scores along ${title}; a table below holds the same`, (svg, width) => {
    const box = { left: 46, right: width - 14, top: 34, bottom: 200 };
    const most = Math.max(0.05, ...groups.flatMap(([group]) => group.histogram.map((_, bin) => share(group, bin))));
    const X = scale(bins[0], bins[bins.length - 1], box.left, box.right);
    const Y = scale(0, most, box.bottom, box.top);
    axes(svg, box, { scale: X, ticks: [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1], format: (value) => fixed(value, 1), label: "simulation score" }, { scale: Y, ticks: ticks(0, most, 4), format: (value) => percent(value, 0) });
    const marks = found.persisting.histogram.map((size, bin) => {
      const [from, to] = [X(bins[bin]), X(bins[bin + 1])];
      svg.append(rect(from + 0.5, Y(share(found.persisting, bin)), to - from - 1, box.bottom - Y(share(found.persisting, bin)), tint, { "fill-opacity": 0.6 }));
      return rect(from, box.top, to - from, box.bottom - box.top, "transparent", hint(`score ${bin ? "from" : "up to"} ${bin ? `${fixed(bins[bin])} to ` : ""}${fixed(bins[bin + 1])}\n${groups.map(([group, , words]) => `${words}: ${count(group.histogram[bin])} of ${count(group.n)}`).join("\n")}`));
    });
    if (found.others.n) {
      const steps = found.others.histogram.flatMap((_, bin) => [[X(bins[bin]), Y(share(found.others, bin))], [X(bins[bin + 1]), Y(share(found.others, bin))]]);
      svg.append(stroke(path(steps), "var(--ink)", 1.6));
    }
    groups.forEach(([group], place) => {
      if (!known(group.median)) return;
      const [y, own] = [8 + 12 * place, place ? "var(--ink)" : tint];
      if (group.interval.every(known)) svg.append(line(X(group.interval[0]), y, X(group.interval[1]), y, { stroke: own, "stroke-width": 2 }));
      svg.append(h("circle", { cx: X(group.median), cy: y, r: 4, fill: place ? "var(--bg)" : own, stroke: own, "stroke-width": 1.8 }));
    });
    svg.append(label(box.left, 12, "medians", "soft halo"), ...marks);
    roving(marks);
    return box.bottom + 40;
  });
}

const median = (group) => (known(group.median) ? `${fixed(group.median)}${group.interval.every(known) ? ` [${group.interval.map((end) => fixed(end)).join(" to ")}]` : ""}` : "–");
const chanceOf = (p) => (known(p) ? (p < 0.001 ? "p < 0.001" : `p = ${p.toPrecision(2)}`) : "");

/** Whether those that persist are explained better, in words. */
function comparedWords({ p, effect, interval }) {
  if (!known(effect)) return "No comparison: a group has no score.";
  const sure = interval.every(known);
  const verdict = sure && interval[0] > 0.5 ? "Those that persist are explained better" : sure && interval[1] < 0.5 ? "Those that persist are explained worse" : "No difference is shown";
  return bound(`${verdict}: one that persists scores above one that does not with a chance of ${percent(effect)} ${shares(interval)}, where 50 % is no difference (Mann–Whitney, ${chanceOf(p)}).`);
}

function scoresBlock(found) {
  const rows = [...Object.entries(found.edges).map(([edge, own]) => [arrow(edge), own, color(edge.split("->")[0])]), ...Object.entries(found.merges).map(([name, own]) => [`all edges into ${name}`, own, color(name)])];
  if (!rows.length) return null;
  const group = (key) => [[`${key === "others" ? "others" : "persist"}: n`, (row) => count(row[1][key].n)], ["median", (row) => median(row[1][key])], ["without score / too rare", (row) => `${count(row[1][key].unscored)} / ${count(row[1][key].rare)}`]];
  const bins = DATA.bins.slice(0, -1).map((from, bin) => ({ from, bin }));
  const judge = found.judge === "offline" ? "The judge is statistics of the text (tokens, neighbors, positions, corpora), no language model; its descriptions are fixed phrases." : `The judge is ${found.judge}.`;
  return [h("h3", null, "Are features that persist explained better?"),
    note("The simulation score of a feature is the r between its activations and those that its description predicts. Filled: features of the parent that persist. Line: as many that do not. Above them the medians and their intervals over features. ", judge),
    h("div", { class: "grid" }, rows.map(([title, own, tint]) => h("div", null, h("h4", null, title), scoreChart(title, own, tint),
      legend([[tint, "persist", `n ${count(own.persisting.n)}, median ${median(own.persisting)}`], ["var(--ink)", "do not", `n ${count(own.others.n)}, median ${median(own.others)}`, "solid"]]), note(comparedWords(own))))),
    folded("The scores as a table", table([["", (row) => row[0], TEXT], ...group("persisting"), ...group("others"), ["scores higher", (row) => [percent(row[1].effect), h("small", null, ` ${shares(row[1].interval)}`)]], ["p", (row) => chanceOf(row[1].p).replace("p = ", "").replace("p ", "")]], rows, { label: "Simulation scores" }),
      table([["score from", (row) => (row.bin ? fixed(row.from) : "below"), TEXT], ...rows.flatMap(([title, own]) => [[`${title}: persist`, (row) => count(own.persisting.histogram[row.bin])], ["others", (row) => count(own.others.histogram[row.bin])]])], bins, { label: "Histograms of simulation scores", fit: true }))];
}

function labelsBlock(found) {
  const whole = found.features;
  const failed = Object.entries(found.failures).map(([kind, size]) => `${kind.replaceAll("_", " ")} ${count(size)}`).join(", ");
  const rows = [["explained", found.explained, "explanations asked for"], ["tried on", found.carried, "features that a matched feature’s label was tried on"], ["kept", found.kept, "of those tried keep it: it predicts them about as well as where it comes from", found.carried],
    ["explained anew", found.re_explained, "of those tried were explained anew, since the score fell", found.carried], ["saved", found.saved, `explanations that need not be asked for${found.saved_cost ? `, worth $${found.saved_cost.toFixed(2)}` : ""}`], ["failed", found.failed, `explanations that did not come${failed ? `; of all answers: ${failed}` : ""}`]];
  return [h("h3", null, "Labels inherited"),
    note(`A label follows its feature along matches above the threshold. Asked about: ${count(whole)} features; ${count(found.too_rare)} more fire too seldom.`),
    table([["label", (row) => row[0], TEXT], ["features", (row) => count(row[1])], ["share", (row) => share(row[1], row[3] ?? whole)], ["", (row) => row[2], { text: true, class: "wrap" }]], rows, { label: "Labels inherited", fit: true })];
}

function meaningSection() {
  const { classes, explained } = measured().figures;
  const edges = classes && Object.keys(classes.edges).length > 0;
  return [lede("Which kinds of features are kept, lost and new, how well a description predicts them, and how many descriptions are inherited with the feature."),
    edges ? classesBlock(classes) : null, explained ? [scoresBlock(explained), labelsBlock(explained)] : note("No explanations were asked for.")];
}
