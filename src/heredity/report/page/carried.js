// What goes through the maps of a stitch beside SAEs: probes, steering, single features, the lineage.
const PROBES = [["source"], ["native"], ["refitted"], ["unchanged", "7 3"], ["random"]];
function probeWords(arm, maps) {
  return { source: `${maps.source}, its own features`, native: `${maps.target}, its own features`, refitted: `${maps.target}, ${maps.source}’s features, refitted`, unchanged: `${maps.target}, ${maps.source}’s features and weights`, random: `${maps.target}, random features`,
    dense_source: `${maps.source}, all dimensions`, dense_native: `${maps.target}, all dimensions`, dense_unchanged: `${maps.target}, ${maps.source}’s dense weights` }[arm];
}
function probeTint(arm, maps) {
  const tint = tintOf(maps);
  return { source: tint.source, dense_source: tint.source, native: tint.target, dense_native: tint.target, random: "var(--novel)" }[arm] || "var(--both)";
}
function probeChart(task, found, maps) {
  const own = (arm) => found.means.filter((row) => row.arm === arm).sort((a, b) => a.k - b.k);
  const text = (row) => `${probeWords(row.arm, maps)}\n${count(row.k)} ${row.arm.startsWith("dense") ? "dimensions" : row.k === 1 ? "feature" : "features"}: balanced accuracy ${percent(row.balanced_accuracy, 1)}${row.classes > 1 ? `, mean of ${row.classes} classes` : ""}`;
  const series = PROBES.map(([arm, dash]) => ({ tint: probeTint(arm, maps), dash, points: own(arm).map((row) => ({ x: row.k, y: row.balanced_accuracy, text: text(row) })) })).filter((one) => one.points.length);
  const levels = ["dense_source", "dense_native", "dense_unchanged"].flatMap((arm) => own(arm).slice(0, 1).map((row) => ({ y: row.balanced_accuracy, tint: probeTint(arm, maps) })));
  const sizes = [...new Set(series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  if (!sizes.length) return note("No size has a probe.");
  return lineChart(`Balanced accuracy of probes for ${task} by features read; a table below holds the same`, series, levels, { label: "features that a probe reads", ticks: sizes, format: (k) => `${k}`, y: (value) => percent(value, Math.abs((100 * value) % 1) < 1e-6 ? 0 : 1), floor: 0 });
}
function probesBlock({ maps, probes }) {
  const tasks = Object.entries(probes);
  if (!tasks.length) return null;
  const asked = tasks.filter(([, found]) => !found.reason);
  const dense = [["var(--soft)", "dotted and level: probes on all dimensions, in the color of their model", "", "dot"]];
  return [h("h3", null, "Probes"), asked.length ? lede("Logistic regression on the mean activations of few features over a text, judged on other texts. Each class against as many texts of the rest; the mean over classes.") : null,
    h("div", { class: "grid" }, asked.map(([task, found]) => h("div", null, h("h4", null, `${task}: ${found.classes.join(", ")}`), probeChart(task, found, maps),
      note(`${count(found.fitted)} texts to fit on, ${count(found.tested)} to test on, of ${found.origin}; the rarest class is ${percent(found.least_share)}.${found.left_out.length ? ` Some class has no probe of ${found.left_out.map((k) => count(k)).join(", ")} features.` : ""}`)))),
    asked.length ? legend([...PROBES.map(([arm, dash]) => [probeTint(arm, maps), probeWords(arm, maps), "", dashOf(dash)]), ...dense]) : null,
    tasks.filter(([, found]) => found.reason).map(([task, found]) => note(`${task}: ${found.reason}`)), asked.map(([task, found]) => probeTable(task, found, maps))];
}
function probeTable(task, found, maps) {
  const sizes = [...new Set(found.rows.filter((row) => !row.arm.startsWith("dense")).map((row) => row.k))].sort((a, b) => a - b);
  const at = Object.fromEntries(found.rows.map((row) => [`${row.label}|${row.arm}|${row.arm.startsWith("dense") ? "dense" : row.k}`, row]));
  const rows = [...new Set(found.rows.map((row) => row.label))].flatMap((name) => PROBES.map(([arm]) => ({ name, arm })));
  const cell = (row, key) => {
    const own = at[`${row.name}|${row.arm}|${key}`];
    return own ? [percent(own.balanced_accuracy[0], 1), h("small", { class: "under" }, shares(own.balanced_accuracy.slice(1)))] : "–";
  };
  const dense = { source: "dense_source", native: "dense_native", unchanged: "dense_unchanged" };
  return folded(`${task}, every class`, table([["class", "name", TEXT], ["probe", (row) => probeWords(row.arm, maps), TEXT], ...sizes.map((k) => [`${k}`, (row) => cell(row, k)]), ["all dimensions", (row) => cell({ ...row, arm: dense[row.arm] }, "dense")]], rows,
    { label: `Probes for ${task}`, tight: true, caption: "Balanced accuracy by features read, with 95 % intervals" }));
}

const STEERED = [["none", "unsteered", "var(--lost)"], ["random", "random direction", "var(--novel)"], ["native", "its own direction", null], ["carried", "the other’s direction", "var(--both)"]];
function steeringBlock({ maps, steering }) {
  if (!steering) return null;
  const head = h("h3", null, "Steering");
  if (steering.reason) return [head, note(steering.reason)];
  const tint = tintOf(maps);
  const models = [...new Set(steering.rows.map((row) => row.model))];
  const own = (model, wanted, arm) => steering.rows.find((row) => row.model === model && row.wanted === wanted && row.arm === arm);
  const wantedOf = (model) => [...new Set(steering.rows.filter((row) => row.model === model).map((row) => row.wanted))];
  const gapOf = (model, wanted) => steering.gaps.find((row) => row.model === model && row.wanted === wanted);
  const block = (model) => {
    const groups = wantedOf(model).map((wanted) => ({ heading: `towards ${wanted}${known(gapOf(model, wanted)?.gap) ? `: carried over native ${fixed(gapOf(model, wanted).gap)}` : ""}`,
      rows: STEERED.filter(([arm]) => own(model, wanted, arm)).map(([arm, words, color_]) => {
        const row = own(model, wanted, arm);
        return { words, value: row.share[0], ends: row.share.slice(1), tint: color_ || (model === maps.target ? tint.target : tint.source), shown: percent(row.share[0]), text: `${model} towards ${wanted}, ${words}\n${spoken(row.share)} of ${count(row.n)} texts\nmoves vectors by ${digits(row.change)}` };
      }) }));
    return h("div", null, h("h4", null, `${model} writes`), barChart(`Share of the texts of ${model} that are like the wanted corpus; a table below holds the same`, groups, 1, (value) => percent(value, 0)));
  };
  const rows = steering.rows.map((row) => ({ ...row, words: STEERED.find(([arm]) => arm === row.arm)[1] }));
  return [head, lede("A direction is the difference of the mean activations on one corpus and on the others. Held at the wanted corpus’s level at every token, it makes a model write what that corpus holds; shown is the share of its texts that a classifier takes for the wanted corpus."),
    h("div", { class: "grid" }, models.map(block)),
    note(steering.accuracy ? `The classifier tells ${steering.classes.join(", ")} apart with an accuracy of ${spoken(steering.accuracy)}, on ${count(steering.tested)} pieces of held-out documents. ` : "", "A random direction moves vectors as far as the native one. Carried over native is the ratio of both shares, at most 1 (equation 16)."),
    folded("Steering as a table", table([["model", "model", TEXT], ["towards", "wanted", TEXT], ["arm", "words", TEXT], ["share", (row) => estimated(row.share, (value) => percent(value, 1))], ["texts", (row) => count(row.n)], ["moves by", (row) => digits(row.change)]], rows, { label: "Steering", fit: true }),
      table([["carried to", "model", TEXT], ["towards", "wanted", TEXT], ["carried over native", (row) => fixed(row.gap)], ["cosine with native", (row) => fixed(row.cosine)]], steering.gaps, { label: "What is left of carried directions", fit: true })),
    folded("Some of the texts", models.flatMap((model) => wantedOf(model).map((wanted) => [h("h4", null, `${model} towards ${wanted}`), examples(STEERED.map(([arm, words]) => [words, own(model, wanted, arm)]).filter(([, row]) => row))])))];
}
/** The same beginnings under every arm. */
function examples(arms) {
  const most = Math.max(...arms.map(([, row]) => row.examples.length));
  return Array.from({ length: most }, (_, place) => h("div", { class: "context" }, h("div", { class: "row" }, h("span", { class: "who" }, "beginning"), h("span", { class: "tokens" }, arms.map(([, row]) => row.examples[place]?.prompt).find(known))),
    arms.map(([words, row]) => (row.examples[place] ? h("div", { class: "row" }, h("span", { class: "who" }, words), h("span", { class: "tokens" }, row.examples[place].text)) : null))));
}

/** Correlations of trained features, filled, and of random ones, as a line. */
function attributionChart({ trained, random, cut }, tint) {
  const size = trained.histogram.length;
  const share_ = (group, bin) => (group.n ? group.histogram[bin] / group.n : 0);
  return chart("Correlation of what features push in both models; a table below holds the same", (svg, width) => {
    const box = { left: 46, right: width - 12, top: 22, bottom: 200 };
    const most = Math.max(0.02, ...trained.histogram.flatMap((_, bin) => [share_(trained, bin), share_(random, bin)]));
    const [X, Y] = [scale(0, size, box.left, box.right), scale(0, most, box.bottom, box.top)];
    const at = (r) => X(((r + 1) / 2) * size);
    axes(svg, box, { scale: at, ticks: [-1, -0.5, 0, 0.5, 1], format: (r) => fixed(r, 1), label: "r of attributions" }, { scale: Y, ticks: ticks(0, most, 4), format: (value) => percent(value, 0) });
    const marks = trained.histogram.map((held, bin) => {
      svg.append(rect(X(bin) + 0.5, Y(share_(trained, bin)), X(bin + 1) - X(bin) - 1, box.bottom - Y(share_(trained, bin)), tint, { "fill-opacity": 0.65 }));
      return rect(X(bin), box.top, X(bin + 1) - X(bin), box.bottom - box.top, "transparent", hint(`r from ${fixed(-1 + (2 * bin) / size)} to ${fixed(-1 + (2 * (bin + 1)) / size)}\ntrained: ${count(held)} of ${count(trained.n)}\nrandom: ${count(random.histogram[bin])} of ${count(random.n)}`));
    });
    svg.append(stroke(path(random.histogram.flatMap((_, bin) => [[X(bin), Y(share_(random, bin))], [X(bin + 1), Y(share_(random, bin))]])), "var(--ink)", 1.5));
    if (known(cut)) svg.append(marker(at(cut), box), label(at(cut) + (cut > 0 ? -5 : 5), 12, `95 % of random ones below ${fixed(cut)}`, "soft halo", cut > 0 ? "end" : "start"));
    svg.append(...marks);
    roving(marks);
    return box.bottom + 40;
  });
}
const REASONED = { attribution: "What they push", split: "Structural and semantic", entropy: "Null space", deactivation: "Attention" };
function keptBlock({ maps, kept }) {
  if (!kept) return null;
  const { attribution, split, entropy, deactivation } = kept;
  const tint = tintOf(maps);
  const spreads = [["activations", kept.activation], ...(attribution ? [["attributions", attribution.trained], ["attributions, random", attribution.random]] : []),
    ...(split ? ["structural", "semantic"].flatMap((kind) => [[`${kind}, activations`, split[kind].activation], [`${kind}, attributions`, split[kind].attribution]]) : [])].filter(([, own]) => own.n);
  const shade = (words) => (words.includes("random") ? "var(--novel)" : words.startsWith("structural") ? tint.target : words.startsWith("semantic") ? "var(--both)" : tint.source);
  return [h("h3", null, `What single features of ${maps.source} keep`), lede(`The same feature in both models, as it is and carried over, on ${count(kept.tokens)} tokens: do its activations agree, and does it push the same next tokens? Judged are the ${count(kept.judged)} of ${count(kept.d_sae)} features that fire often enough.`),
    h("div", { class: "grid" }, h("div", null, h("h4", null, "Correlation between both models"), boxChart("Quantiles of correlations; a table below holds the same", spreads.map(([words, own]) => ({ words, tint: shade(words), quantiles: own.quantiles, text: quantileWords(words, own) }))), note("Line: 5 to 95 % of the features. Bar: half of them. Ring: the median.")),
      attribution ? h("div", null, h("h4", null, "Do they push the same tokens?"), attributionChart(attribution, tint.source), legend([[tint.source, "trained", `n ${count(attribution.trained.n)}`], ["var(--ink)", "random directions", `n ${count(attribution.random.n)}`, "solid"]]), note(`${percent(attribution.above)} are above 95 % of the random ones; ${percent(attribution.negative)} push the other way. Equation 10, over ${count(attribution.tokens)} tokens.`)) : null),
    folded("Correlations as a table", table([["correlation of", (row) => row[0], TEXT], ["features", (row) => count(row[1].n)], ...["5 %", "25 %", "median", "75 %", "95 %"].map((words, place) => [words, (row) => fixed(row[1].quantiles[place])])], spreads, { label: "Correlations between both models", fit: true })),
    split ? splitBlock(split) : null, entropy ? entropyBlock(entropy, maps) : null, deactivation ? deactivationBlock(deactivation, maps) : null,
    Object.entries(kept.reasons).map(([part, reason]) => note(`${REASONED[part] || part}: not known. ${reason}`))];
}
function splitBlock(split) {
  const rows = ["structural", "semantic"].map((kind) => ({ kind, ...split[kind] }));
  const compared = Object.entries(split.tests).map(([of, test]) => ({ of, ...test }));
  return [h("h4", null, "Structural and semantic features"),
    note(`Told apart by ${count(split.prompts)} texts of ${split.corpus} in ${count(split.versions)} versions of one structure and other words: structural features fire in all versions of at least half of the texts they fire in. ${count(split.neither)} fire in none.`),
    table([["", "kind", TEXT], ["features", (row) => count(row.features)], ["silent in the target", (row) => count(row.silent)], ["density", (row) => rate(row.density)], ["median r of activations", (row) => fixed(row.activation.quantiles[2])], ["of attributions", (row) => fixed(row.attribution.quantiles[2])]], rows, { label: "Structural and semantic features", fit: true }),
    folded("Structural beside semantic: tests", table([["of", "of", TEXT], ["a structural one is higher", (row) => estimated([row.effect, ...row.interval], (value) => percent(value))], ["p", (row) => chanceOf(row.p).replace("p = ", "").replace("p ", "")]], compared, { label: "Structural beside semantic", fit: true, caption: "Mann–Whitney; 50 % is no difference" }))];
}
function entropyBlock(entropy, maps) {
  return [h("h4", null, "Features that write where the unembedding hardly reads"),
    note(`Share of a feature’s direction in the null space: median ${fixed(entropy.source[2])} in ${maps.source} (by chance ${fixed(entropy.by_chance[0])}), ${fixed(entropy.target[2])} in ${maps.target} (${fixed(entropy.by_chance[1])}); rank correlation ${fixed(entropy.rank)}. Null spaces have ${entropy.dimensions.join(" and ")} dimensions.`),
    entropy.features.length ? table([["feature", (row) => `${row.feature}`, TEXT], [`share in ${maps.source}`, (row) => fixed(row.share)], [`in ${maps.target}`, (row) => fixed(row.carried)], [`push in ${maps.source}`, (row) => digits(row.push)], [`in ${maps.target}`, (row) => digits(row.carried_push)]], entropy.features, { label: "Entropy features", fit: true }) : null];
}
function deactivationBlock(found, maps) {
  const rows = found.features.flatMap((own) => ["source", "target"].map((end) => ({ feature: end === "source" ? `${own.feature}` : "", model: maps[end], ...own[end] })));
  return [h("h4", null, "Features that turn heads off"), note(`A head that attends to the first token (here ${found.first}) does nothing. The head that each feature scores highest on, with and without it; rank correlation of the highest scores ${fixed(found.rank)}.`),
    rows.length ? table([["feature", "feature", TEXT], ["model", "model", TEXT], ["layer, head", (row) => `${row.layer}, ${row.head}`], ["score", (row) => fixed(row.score)], ["tokens", (row) => count(row.tokens)], ["attention to the first", (row) => fixed(row.attention, 3)], ["less without it", (row) => fixed(row.attention_drop, 3)], ["length of output", (row) => digits(row.norm)], ["less without it", (row) => digits(row.norm_drop)]], rows, { label: "Attention deactivation", fit: true }) : null];
}

function bridgeBlock({ bridge }) {
  if (!bridge) return null;
  const head = h("h3", null, `The lineage of ${arrow(bridge.edge)} through the maps`);
  const found = bridge.compared;
  if (!found) return [head, note(bridge.reason)];
  const rows = [["carried by the maps", found.carried], ["read as it is", found.unchanged]].filter(([, own]) => own);
  return [head, note(`Each of the ${count(found.live)} live features with itself, carried to the child, instead of with its best match; at the edge’s r > ${fixed(found.threshold)} the best match persists for ${count(found.matched)}.${found.one_sae ? " One SAE reads both models, so the child’s own SAE is the parent’s as it is." : ""} Correlations over ${count(found.tokens)} tokens.`),
    table([["the parent’s SAE", (row) => row[0], TEXT], ["persist", (row) => count(row[1].persisting)], ["by match too", (row) => count(row[1].both)], ["by this only", (row) => count(row[1].only)], ["by match only", (row) => count(row[1].only_matched)], ["by neither", (row) => count(row[1].neither)], ["kappa", (row) => fixed(row[1].kappa)], ["rank", (row) => fixed(row[1].rank)], ["median r", (row) => fixed(row[1].median)]], rows, { label: "Lineage through the maps", fit: true }),
    note(`Explained variance of the parent’s SAE: ${fixed(found.parent_explained_variance, 3)} on the parent, ${fixed(found.carried_explained_variance, 3)} carried to the child${known(found.unchanged_explained_variance) ? `, ${fixed(found.unchanged_explained_variance, 3)} as it is` : ""}.`)];
}
