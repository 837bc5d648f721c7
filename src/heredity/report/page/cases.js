// Cases: one question followed through every model.
/** LLR of a case's family over the models, with r along the edges, and of the features that fit best by themselves. */
function caseChart(name, found) {
  const place = Object.fromEntries(GRAPH.map((node, number) => [node.name, number]));
  const best = Object.entries(found.best).filter(([model, fit]) => known(fit.llr) && !found.members.some((one) => one.model === model && one.feature === fit.feature));
  const drawn = found.members.filter((one) => known(one.llr));
  if (drawn.length < 2) return null;
  const highest = found.base_rate > 0 ? -Math.log(found.base_rate) : null;
  return [chart(`LLR of case ${name} over the models; the table below holds the same`, (svg, width) => {
    const box = { left: 46, right: Math.min(width - 24, 760), top: 26, bottom: 220 };
    const values = [0, highest, ...drawn.map((one) => one.llr), ...best.map(([, fit]) => fit.llr)].filter(known);
    const y = ticks(Math.min(...values), Math.max(...values), 5);
    const Y = scale(Math.min(...values), Math.max(...values), box.bottom, box.top);
    const X = scale(-0.5, GRAPH.length - 0.5, box.left, box.right);
    axes(svg, box, { scale: X, ticks: GRAPH.map((node) => place[node.name]), format: (at) => clip(GRAPH[at].name, (box.right - box.left) / GRAPH.length - 8) },
      { scale: Y, ticks: y, format: (value) => fixed(value, 1) });
    if (known(highest)) svg.append(line(box.left, Y(highest), box.right, Y(highest), { stroke: "var(--soft)", "stroke-dasharray": "1.5 4" }), label(box.right, Y(highest) - 6, "highest possible", "soft halo", "end"));
    for (const one of drawn) {
      const from = drawn.find((other) => other.model === one.previous);
      if (!from) continue;
      const [x1, y1, x2, y2] = [X(place[from.model]), Y(from.llr), X(place[one.model]), Y(one.llr)];
      const same = one.status === "kept" || !one.status;
      svg.append(line(x1, y1, x2, y2, { stroke: same ? "var(--ink)" : "var(--soft)", "stroke-width": same ? 1.8 : 1.2, "stroke-dasharray": same ? null : "5 4" }),
        label(x1 + 0.62 * (x2 - x1), y1 + 0.62 * (y2 - y1) - 6, `r ${fixed(one.r)}`, "soft halo", "middle"));
    }
    for (const [model, fit] of best) {
      const [x, at] = [X(place[model]), Y(fit.llr)];
      svg.append(h("path", { d: `M${x},${at - 6}L${x + 6},${at}L${x},${at + 6}L${x - 6},${at}Z`, fill: "var(--bg)", stroke: color(model), "stroke-width": 1.8,
        ...hint(`${model}/${fit.feature}: fits best in ${model}\nLLR ${fixed(fit.llr)}, sensitivity ${fixed(fit.sensitivity)}`) }));
    }
    for (const one of drawn) {
      const lost = !["kept", "start", ""].includes(one.status);
      svg.append(h("circle", { cx: X(place[one.model]), cy: Y(one.llr), r: 5, fill: lost ? "var(--bg)" : color(one.model), stroke: color(one.model), "stroke-width": 2,
        ...hint(`${one.model}/${one.feature}${lost ? ", below the threshold" : ""}\nLLR ${fixed(one.llr)}${known(one.r) ? `, r ${fixed(one.r)} with ${one.previous}` : ""}`) }));
    }
    return box.bottom + 26;
  }), legend([["var(--ink)", "the family, by matches above the threshold", "", "solid"], ["var(--soft)", "nearest misses, below it", "", "dash"]]),
    best.length ? h("p", { class: "note" }, "Diamonds: the feature that fits best in a model, where it is not the family’s.") : null];
}

/** How often a feature is active on other tokens, in the words of the table. */
const times = (value) => (known(value) ? `${value < 9.95 ? fixed(value, 1) : count(value)}×` : "–");

function caseTokens(found) {
  const chips = (texts) => texts.map((token) => h("span", { class: "chip" }, visible(token)));
  const asked = { regex: "Tokens that match ", script: "Tokens in the script ", predicate: "Positions chosen by " }[found.kind];
  const some = known(found.set_size) && found.set_size > found.tokens.length && asked;
  return h("p", { class: "note" }, asked ? [asked, h("span", { class: "chip" }, found.value)] : "Tokens ",
    asked && found.tokens.length ? (some ? `${count(found.set_size)} of them, most often ` : "") : "", chips(found.tokens),
    known(found.base_rate) ? ` ${rate(found.base_rate)} of the sample. ` : " ",
    found.not_in_vocabulary.length ? ["Not single tokens, and so not looked for: ", chips(found.not_in_vocabulary)] : "",
    found.top_tokens.length ? ["The feature it starts with is active on ", found.top_tokens.map((top) => [h("span", { class: "chip" }, visible(top.token)), `${percent(top.share)} `])] : "");
}

function caseBlock(name, found) {
  const rows = found.members.map((member) => ({ ...member, id: known(member.feature) ? `${member.model}/${member.feature}` : "–" }));
  const best = Object.entries(found.best).map(([model, fit]) => ({ ...fit, model, id: `${model}/${fit.feature}` }));
  const id = ["feature", (row) => h("span", { class: "id" }, row.id), TEXT];
  const fit = [["LLR by activation", (row) => fixed(row.llr)], ["LLR by count", (row) => fixed(row.llr_count)], ["sensitivity", (row) => fixed(row.sensitivity)],
    ["active elsewhere", (row) => times(row.elsewhere)], ["firings on them", (row) => count(row.hits)]];
  const words = { lost: "below the threshold", absent: "below the threshold", beyond: "match of a miss" };
  return [
    h("h3", null, name),
    h("p", { class: "verdict" }, `${found.verdict[0].toUpperCase()}${arrows(found.verdict.slice(1))}${/[.!?]$/.test(found.verdict) ? "" : "."}`,
      known(SUMMARY.cases[name]?.mean_r) ? ` Mean r along the lineage ${fixed(SUMMARY.cases[name].mean_r)}.` : ""),
    caseTokens(found),
    caseChart(name, found),
    rows.length ? table([["model", "model", TEXT], id, ...fit, ["r", (row) => fixed(row.r)],
      ["with its match in", (row) => [row.previous || "–", words[row.status] ? h("small", null, ` ${words[row.status]}`) : ""], TEXT]],
    rows, { label: `Case ${name}`, fit: true }) : null,
    found.nearest_misses.map((miss) => h("p", { class: "note" }, `Nearest miss in ${miss.model}: `, h("span", { class: "id" }, `${miss.model}/${miss.feature}`), `, r = ${fixed(miss.r)}`,
      known(miss.threshold) ? ` (threshold ${fixed(miss.threshold)})` : "", known(miss.llr) ? `, LLR ${fixed(miss.llr)}` : "", known(miss.elsewhere) ? `, ${times(miss.elsewhere)} as active on other tokens` : "", ".")),
    best.length ? folded("The feature that fits best in each model, whatever it matches",
      table([["model", "model", TEXT], id, ...fit, ["r with the family’s", (row) => fixed(row.r)]], best, { label: `Best features of case ${name}`, fit: true })) : null,
    VIEW.highlights.filter((highlight) => highlight.list === `case:${name}`).map((highlight) => featureCard(highlight, false)),
  ];
}
const arrows = (text) => text.replaceAll("->", " → ");
