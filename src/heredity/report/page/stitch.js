// Stitches: the maps between two models, and what was carried through them. The page has this part where there are any.
const tintOf = (maps) => ({ source: color(maps.source), target: color(maps.target) === color(maps.source) ? "var(--c3)" : color(maps.target) });
const digits = (value) => (known(value) ? (+value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 }).replace("-", "−") : "–");
const signed = (value) => (known(value) ? `${value >= 0.001 ? "+" : ""}${percent(value).replace("-", "−")}` : "–");
const UNITS = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
function flops(value) {
  if (!known(value)) return "–";
  const [size, unit] = UNITS.find(([least]) => value >= least) || [1, ""];
  return `${digits(value / size)} ${unit}FLOP`;
}
const seconds = (value) => (known(value) ? `${digits(value)} s` : "–");
const power = (value) => `10${[...`${Math.round(Math.log10(value))}`].map((mark) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[mark] || "⁻").join("")}`;
const estimated = ([value, low, high], show) => (known(value) ? [show(value), h("small", null, known(low) && known(high) ? ` [${show(low)} to ${show(high)}]` : "")] : "–");
const spoken = ([value, low, high]) => `${percent(value, 1)}${known(low) && known(high) ? `, 95 % interval ${percent(low, 1)} to ${percent(high, 1)}` : ""}`;
const layerOf = (point) => point.replace(/^blocks\.(\d+)\.hook_resid_pre$/, "$1");

/** Bars in groups. groups: [{heading, rows: [{words, value, ends, tint, shown, text}]}]. */
function barChart(title, groups, most, format) {
  return chart(title, (svg, width) => {
    const rows = groups.flatMap((group) => group.rows);
    const left = Math.min(12 + 7 * Math.max(...rows.map((row) => row.words.length)), Math.floor(0.42 * width));
    const X = scale(0, most, left, width - 16 - 7 * Math.max(...rows.map((row) => row.shown.length)));
    const marks = [];
    let top = 0;
    for (const { heading, rows: own } of groups) {
      if (heading) {
        svg.append(label(0, top + 15, clip(heading, width), "soft"));
        top += 22;
      }
      for (const row of own) {
        svg.append(label(left - 8, top + 14, clip(row.words, left - 8), null, "end"), rect(left, top + 3, X(row.value ?? 0) - left, 14, row.tint, { rx: 1.5 }));
        const ends = row.ends?.every(known) ? row.ends.map(X) : null;
        if (ends) svg.append(line(ends[0], top + 10, ends[1], top + 10, { stroke: "var(--ink)", "stroke-width": 1.4 }), ...ends.map((x) => line(x, top + 6, x, top + 14, { stroke: "var(--ink)", "stroke-width": 1.4 })));
        svg.append(label(Math.max(X(row.value ?? 0), ends?.[1] ?? 0) + 7, top + 14, row.shown, "halo"));
        const mark = rect(0, top, width, 20, "transparent", hint(row.text));
        marks.push(mark);
        svg.append(mark);
        top += 21;
      }
      top += 9;
    }
    svg.append(line(left, 0, left, top - 9, { class: "axis" }));
    if (format) for (const value of ticks(0, most, 4)) svg.append(label(X(value), top + 8, format(value), "soft", "middle"));
    roving(marks);
    return top + (format ? 14 : 0);
  });
}

/** Lines over a logarithmic axis, where 0 stands left of a gap.
    series: [{words, tint, dash, points: [{x, y, text}]}]; levels: [{y, words, tint}]; axis: {label, ticks, format, y, floor}. */
function lineChart(title, series, levels, axis) {
  return chart(title, (svg, width) => {
    const named = levels.some((level) => level.words);
    const box = { left: 46, right: width - (named ? 44 : 14), top: 12, bottom: 210 };
    const all = series.flatMap((one) => one.points);
    const positive = all.map((point) => point.x).filter((x) => x > 0);
    const zero = all.some((point) => point.x === 0) ? 30 : 8;
    const [least, most] = [Math.min(...positive), Math.max(...positive)];
    const log = scale(Math.log(least), Math.log(most), box.left + zero, box.right);
    const X = (x) => (x > 0 ? log(Math.log(x)) : box.left);
    const values = [...all, ...levels].map((point) => point.y).filter(known);
    const low = Math.max(axis.floor, Math.min(...values));
    const high = Math.max(low + 1e-6, ...values);
    const margin = 0.06 * (high - low);
    const Y = (y) => scale(low - margin, high + margin, box.bottom, box.top)(Math.max(y, axis.floor));
    const at = axis.ticks || Array.from({ length: 40 }, (_, n) => 10 ** n).filter((x) => x >= 0.99 * least && x <= 1.01 * most);
    axes(svg, box, { scale: X, ticks: zero > 8 ? [0, ...at] : at, format: (x) => (x ? axis.format(x) : "0"), label: axis.label }, { scale: Y, ticks: ticks(low, high, 4), format: axis.y });
    for (const level of levels) svg.append(line(box.left, Y(level.y), box.right, Y(level.y), { stroke: level.tint, "stroke-dasharray": "1.5 4", "stroke-width": 1.4 }));
    if (named) for (const { y, words } of spread(levels.map((level) => ({ y: Y(level.y) + 4, words: level.words })), 14, box.top, box.bottom)) svg.append(label(box.right + 7, y, words, "soft"));
    const marks = [];
    for (const one of series) {
      svg.append(stroke(path(one.points.map((point) => [X(point.x), known(point.y) ? Y(point.y) : null])), one.tint, 2, one.dash));
      for (const point of one.points) if (known(point.y)) marks.push(h("circle", { cx: X(point.x), cy: Y(point.y), r: 3, fill: one.tint, ...hint(point.text) }));
    }
    svg.append(...marks);
    roving(marks);
    return box.bottom + (axis.label ? 40 : 24);
  });
}

/** Quantiles of correlations, a row each: 5 to 95 % as a line, 25 to 75 % as a bar, the median as a dot. */
function boxChart(title, rows) {
  return chart(title, (svg, width) => {
    const left = Math.min(14 + 6.8 * Math.max(...rows.map((row) => row.words.length)), Math.floor(0.45 * width));
    const ends = rows.flatMap((row) => row.quantiles).filter(known);
    const X = scale(Math.min(0, ...ends), Math.max(1, ...ends), left, width - 12);
    const bottom = 26 * rows.length;
    for (const value of ticks(Math.min(0, ...ends), 1, width < 420 ? 3 : 5)) svg.append(line(X(value), 0, X(value), bottom, { class: "gridline" }), label(X(value), bottom + 16, `${value}`.replace("-", "−"), "soft", "middle"));
    const marks = rows.map((row, place) => {
      const y = 26 * place + 13;
      svg.append(label(left - 10, y + 4, clip(row.words, left - 10), null, "end"));
      const [a, b, middle, c, d] = row.quantiles;
      if (known(middle)) svg.append(line(X(a), y, X(d), y, { stroke: row.tint, "stroke-width": 1.6 }), rect(X(b), y - 5, X(c) - X(b), 10, row.tint, { "fill-opacity": 0.55 }), h("circle", { cx: X(middle), cy: y, r: 4, fill: "var(--bg)", stroke: row.tint, "stroke-width": 2 }));
      return rect(0, 26 * place, width, 26, "transparent", hint(row.text));
    });
    svg.append(...marks);
    roving(marks);
    return bottom + 24;
  });
}
const quantileWords = (words, { n, quantiles }) => `${words}: ${count(n)} features\nmedian ${fixed(quantiles[2])}, half of them ${fixed(quantiles[1])} to ${fixed(quantiles[3])}\n5 to 95 %: ${fixed(quantiles[0])} to ${fixed(quantiles[4])}`;

/** How alike all layers are; the stitched pair is framed. */
function layersBlock({ layers, source, target, source_hook_point, target_hook_point }) {
  const across = layers.target.map(layerOf);
  const drawn = chart(`SVCCA of the layers of ${source} and ${target}; a table below holds the same`, (svg, width) => {
    const left = Math.min(110, Math.max(7.2 * source.length + 22, 24 + 7 * Math.max(...layers.source.map((point) => layerOf(point).length))));
    const cell = Math.min(64, (width - left - 2) / across.length);
    const tall = Math.min(40, Math.max(26, cell * 0.62));
    svg.append(label(left, 12, clip(`layers of ${target} →`, width - left), "soft"), label(0, 32, clip(`${source} ↓`, left - 4), "soft"));
    across.forEach((words, column) => svg.append(label(left + (column + 0.5) * cell, 32, clip(words, Math.max(cell, 16)), "soft", "middle")));
    const all = layers.svcca.flat().filter(known);
    const shade = scale(Math.min(...all), Math.max(...all), 6, 58);
    const marks = layers.source.flatMap((point, row) => {
      svg.append(label(left - 10, 40 + (row + 0.5) * tall + 4, clip(layerOf(point), left - 10), "soft", "end"));
      return layers.target.map((other, column) => {
        const [x, y, value] = [left + column * cell, 40 + row * tall, layers.svcca[row][column]];
        const chosen = point === source_hook_point && other === target_hook_point;
        svg.append(rect(x + 1, y + 1, cell - 2, tall - 2, known(value) ? `color-mix(in srgb, var(--c0) ${shade(value).toFixed(0)}%, var(--bg))` : "var(--grid)", chosen ? { stroke: "var(--ink)", "stroke-width": 2.5 } : {}));
        if (cell >= 34) svg.append(label(x + cell / 2, y + tall / 2 + 4, fixed(value), chosen ? "strong" : null, "middle"));
        return rect(x, y, cell, tall, "transparent", hint(`${source} ${point}\n${target} ${other}\nSVCCA ${fixed(value, 3)}, CKA ${fixed(layers.cka[row][column], 3)}${chosen ? "\nstitched here" : ""}`));
      });
    });
    svg.append(...marks);
    roving(marks);
    return 44 + tall * layers.source.length;
  });
  const rows = layers.source.map((point, row) => ({ point, row }));
  return h("div", null, h("h4", null, "How alike the layers are"), drawn, note(`Mean canonical correlation of the residual streams before each layer (SVCCA), over ${compact(layers.tokens)} tokens. Framed: where the models are joined.`),
    folded("SVCCA and CKA as a table", table([[`${source} / ${target}`, (row) => layerOf(row.point), TEXT], ...across.map((words, column) => [words, (row) => [fixed(layers.svcca[row.row][column]), h("small", null, ` ${fixed(layers.cka[row.row][column])}`)]])], rows, { label: "Likeness of layers", fit: true, caption: "SVCCA, beside it linear CKA" })));
}

const WAYS = [["source", "{s}", "source"], ["source_round_trip", "{s} → {t} → {s}", "source"], ["down", "{t} → {s}", "source"], ["target", "{t}", "target"], ["target_round_trip", "{t} → {s} → {t}", "target"], ["up", "{s} → {t}", "target"]];
function waysBlock(maps) {
  const tint = tintOf(maps);
  const rows = WAYS.filter(([key]) => maps.ways[key]).map(([key, words, end]) => ({ end, words: words.replaceAll("{s}", maps.source).replaceAll("{t}", maps.target), tint: tint[end], value: maps.ways[key].ce_loss, ...maps.ways[key] }));
  for (const row of rows) Object.assign(row, { shown: `${fixed(row.value)}${known(row.increase) ? ` ${signed(row.increase)}` : ""}`, text: `${row.words}\ncross-entropy ${fixed(row.value, 3)} nats a token${known(row.increase) ? ` (${signed(row.increase)})` : ""}\naccuracy ${percent(row.accuracy, 1)}` });
  const groups = ["source", "target"].map((end) => ({ heading: `${maps[end]} predicts`, rows: rows.filter((row) => row.end === end) }));
  return h("div", null, h("h4", null, "Front of the first, back of the last"), barChart("Cross-entropy of stitched models; a table below holds the same", groups, Math.max(...rows.map((row) => row.value ?? 0))),
    note("Cross-entropy on held-out text, nats a token, and its rise against the model whose back half predicts."),
    folded("The ways as a table", table([["way", "words", TEXT], ["cross-entropy", (row) => fixed(row.ce_loss, 3)], ["rise", (row) => signed(row.increase)], ["accuracy", (row) => percent(row.accuracy, 1)]], rows, { label: "Ways through the maps", fit: true })));
}

function fitsBlock(maps) {
  const rows = Object.entries(maps.fits).map(([method, fit]) => ({ method, quiet: method !== maps.method, ...fit }));
  const r2 = (key) => (row) => fixed(row.r2[key], 3);
  const points = Object.entries(maps.curves).flatMap(([method, rows]) => rows.map((row) => ({ method, ...row })));
  return [h("h4", null, "The maps"),
    table([["fit", (row) => [row.method, row.method === maps.method ? h("small", null, " in use") : row.converged === false ? h("small", null, " not at its end") : null], TEXT], ["loss", (row) => digits(row.loss)], ["R² up", r2("up")], ["down", r2("down")], ["there and back", r2("there_and_back")], ["back and there", r2("back_and_there")],
      ["condition", (row) => row.condition.map(digits).join(" / ")], ["rank", (row) => row.effective_rank.map((value) => fixed(value, 0)).join(" / ")], ["tokens", (row) => compact(row.tokens)], ["cost", (row) => flops(row.flops)], ["time", (row) => seconds(row.seconds)]], rows,
    { label: "Fits of the maps", tight: true, caption: `Judged on ${count(maps.held_out)} held-out tokens; condition and effective rank of up / down` }),
    note("The loss is the mean squared error of both maps plus that of both round trips (Chen et al., arXiv 2506.06609, equation 3). Joint minimizes it exactly; adam is the published way, by gradient descent."),
    points.length > 1 ? folded("Loss by cost", table([["fit", "method", TEXT], ["tokens", (row) => count(row.tokens)], ["cost", (row) => flops(row.flops)], ["loss", (row) => digits(row.loss)]], points, { label: "Loss by cost", fit: true, plain: true })) : null];
}

const VARIANTS = { source: "in {s} itself", transferred: "folded through the maps", normalized: "decoder rows of length 1", bias: "bias refitted", decoder: "decoder refitted", density: "thresholds set anew", unchanged: "as it is", aligned: "only turned and scaled" };
function carriedBlock(own) {
  const rows = Object.entries(own.carried).flatMap(([width, found]) => Object.entries(found.figures).map(([variant, figures]) => ({ width, words: VARIANTS[variant].replace("{s}", own.maps.source), quiet: variant === "source", ...figures })));
  if (!rows.length) return null;
  const left = Object.values(own.carried).flatMap((found) => Object.entries(found.left_out).map(([variant, reason]) => `${VARIANTS[variant]} (${count(found.d_sae)} features): ${reason}`));
  return [h("h3", null, `SAEs of ${own.maps.source} in ${own.maps.target}, untrained`),
    table([["SAE", "words", TEXT], ["features", (row) => count(+row.width)], ["L0", (row) => fixed(row.l0, 1)], ["unexplained", (row) => fixed(row.fvu, 3)], ["rise of CE", (row) => fixed(row.delta_loss, 3)], ["CE recovered", (row) => fixed(row.ce_loss_recovered, 3)], ["dead", (row) => percent(row.dead_share, 1)]], rows, { label: "SAEs carried over", fit: true }),
    note("Unexplained is the share of the activations’ variance. The rise of cross-entropy is that of putting the reconstruction in place of the activations. What is refitted is fitted to activations of the target, without gradient descent."),
    left.length ? folded("Left out", left.map((words) => note(words))) : null];
}

const ARMS = { random: ["random start", "var(--ink)"], transferred: ["carried over", "var(--c0)"], repaired: ["carried over, repaired", "var(--both)", "7 3"], geometry: ["turned at random", "var(--novel)", "2 3"] };
const dashOf = (dash) => (dash ? (dash[0] === "2" ? "dot" : "dash") : "solid");
function trainingBlock(own) {
  const widths = Object.entries(own.beginnings).filter(([, arms]) => Object.keys(arms).length);
  if (!widths.length) return null;
  const thresholds = [...new Set(own.savings.map((row) => row.threshold))];
  const blocks = widths.map(([width, arms]) => {
    const series = Object.entries(arms).map(([arm, found]) => ({ tint: ARMS[arm][1], dash: ARMS[arm][2],
      points: found.curve.map((row) => ({ x: row.flops, y: row.explained_variance, text: `${ARMS[arm][0]}, after ${count(row.vectors)} vectors\n${flops(row.flops)}, ${seconds(row.seconds)}\nexplained variance ${fixed(row.explained_variance, 3)}, L0 ${fixed(row.l0, 1)}, dead ${percent(row.dead_share, 1)}` })) }));
    return h("div", null, h("h4", null, `${count(+width)} features`), lineChart(`Explained variance by cost of training, ${width} features; a table below holds the ends`, series, thresholds.map((y) => ({ y, words: `${y}`, tint: "var(--soft)" })), { label: "FLOPs of training", format: power, y: (value) => fixed(value), floor: 0 }));
  });
  const rows = widths.flatMap(([width, arms]) => Object.entries(arms).map(([arm, found]) => ({ width, words: ARMS[arm][0], ...found })));
  return [h("h3", null, `Training an SAE in ${own.maps.target}`), lede(`Explained variance on held-out activations along the training, from different starts. Dotted: the levels that savings are told at. Below 0 is drawn at 0.`),
    h("div", { class: "grid" }, blocks), legend([...new Set(widths.flatMap(([, arms]) => Object.keys(arms)))].map((arm) => [ARMS[arm][1], ARMS[arm][0], "", dashOf(ARMS[arm][2])])),
    savingsTable(own), folded("Ends of the trainings", table([["start", "words", TEXT], ["features", (row) => count(+row.width)], ["explained at the start", (row) => fixed(row.curve[0]?.explained_variance, 3)], ["at the end", (row) => fixed(row.explained_variance, 3)], ["L0", (row) => fixed(row.l0, 1)], ["dead", (row) => percent(row.dead_share, 1)], ["revived", (row) => count(row.revived)],
      ["cost of the start", (row) => flops(row.start_flops)], ["training", (row) => flops(row.flops)], ["done sparsely", (row) => flops(row.sparse_flops)], ["time", (row) => seconds(row.seconds)]], rows, { label: "Ends of the trainings", tight: true }))];
}

function savingsTable(own) {
  const rows = own.savings.filter((row) => row.arm !== "random");
  if (!rows.length) return null;
  const never = (row) => (row.never.length ? ["never", h("small", { class: "under" }, row.never.length > 1 ? "both" : ARMS[row.never[0]][0])] : "–");
  const saved = (key) => (row) => (known(row[key]) ? signed(row[key]) : "–");
  return [h("h4", null, "Saved against a random start"),
    table([["start", (row) => ARMS[row.arm][0], TEXT], ["features", (row) => count(row.d_sae)], ["explained", (row) => `${row.threshold}`], ["FLOPs until there", (row) => flops(row.flops)], ["FLOPs saved", (row) => (known(row.saved_flops) ? signed(row.saved_flops) : never(row))], ["time saved", saved("saved_seconds")], ["FLOPs, source too", saved("saved_flops_with_source")], ["time, source too", saved("saved_seconds_with_source")]], rows, { label: "Savings", tight: true }),
    note(`The cost of a start counts, and of the maps where it needs them; in the last two columns that of training ${own.maps.source}’s SAE too. Below 0 it costs more.`)];
}

function stitchSection() {
  return Object.entries(SUMMARY.stitches).map(([name, own]) => {
    const { maps } = own;
    return h("div", { class: "stitch" }, h("h3", null, `${name}: ${maps.source} → ${maps.target}`),
      lede(`Affine maps between ${maps.source} at ${maps.source_hook_point}, ${count(maps.widths[0])} wide, and ${maps.target} at ${maps.target_hook_point}, ${count(maps.widths[1])} wide, fitted on ${maps.corpora.join(", ")}.`),
      h("div", { class: "grid" }, layersBlock(maps), waysBlock(maps)), fitsBlock(maps), [carriedBlock, trainingBlock, probesBlock, steeringBlock, keptBlock, bridgeBlock].map((block) => block(own)));
  });
}

/** Dashed lines between stitched models, into a study graph whose boxes stand at `place`; stitches of one pair share a line. */
function stitchLines(svg, place, wide, tall, across) {
  const pairs = {};
  for (const [name, { maps }] of Object.entries(SUMMARY.stitches)) ((pairs[`${maps.source}\n${maps.target}`] ||= { ...maps, names: [] }).names).push(name);
  for (const { source, target, names } of Object.values(pairs)) {
    const [from, to] = [source, target].sort((a, b) => depths[a] - depths[b]).map((name) => place[name]);
    const beside = depths[source] === depths[target];
    const [a, b] = across
      ? [[from.x + wide, from.y + tall / 2 + (beside ? 0 : 12)], [to.x + (beside ? wide : 0), to.y + tall / 2 + (beside ? 0 : 12)]]
      : [[from.x + wide / 2 + (beside ? 0 : 12), from.y + tall], [to.x + wide / 2 + (beside ? 0 : 12), to.y + (beside ? tall : 0)]];
    // models of one generation are joined by an arc, a parent and its child beside their edge
    const half = across ? (a[0] + b[0]) / 2 : (a[1] + b[1]) / 2;
    const bend = beside
      ? [a, b].map(([x, y]) => (across ? [x + 44, y] : [x, y + 30]))
      : across ? [[half, a[1]], [half, b[1]]] : [[a[0], half], [b[0], half]];
    const text = `${names.length > 1 ? "stitches" : "stitch"} ${names.join(", ")}`;
    svg.append(h("g", null, h("title", null, text), stroke(`M${a}C${bend[0]} ${bend[1]} ${b}`, "var(--both)", 1.5, "5 4")));
    if (!beside) continue; // what an edge keeps is written there
    const [x, y] = [0, 1].map((axis) => (a[axis] + b[axis] + 3 * (bend[0][axis] + bend[1][axis])) / 8);
    svg.append(across ? label(x + 8, y + 4, text, "soft halo") : label(x, y + 15, text, "soft halo", "middle"));
  }
}
