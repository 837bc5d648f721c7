// Charts: a figure that draws itself anew when its width changes, axes, and the five pictures of a declared table.
const charts = new Set();
const watch = new ResizeObserver((entries) =>
  requestAnimationFrame(() => entries.forEach(({ target }) => target.redraw())));

/** A figure; draw(svg, width) -> height. `title` is read by screen readers. */
function chart(title, draw) {
  const figure = h("figure", { role: "group", "aria-label": title });
  let drawn = 0;
  figure.redraw = (force) => {
    const width = Math.floor(figure.clientWidth);
    if (!width || (!force && width === drawn)) return;
    drawn = width;
    const svg = h("svg", { width });
    const height = draw(svg, width);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    figure.replaceChildren(svg);
  };
  watch.observe(figure);
  charts.add(figure);
  return figure;
}
function redraw() {
  for (const figure of charts) {
    if (figure.isConnected) figure.redraw(true);
    else charts.delete(figure);
  }
}

const scale = (from, to, low, high) => (value) => low + ((value - from) / (to - from || 1)) * (high - low);
/** Round values between two ends, about `wanted` of them. */
function ticks(from, to, wanted) {
  const rough = (to - from) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  const last = Math.floor(to / step + 1e-9);
  for (let n = Math.ceil(from / step - 1e-9); n <= last; n++) values.push(+(n * step).toPrecision(12));
  return values;
}
/** Ticks of an axis as text; the values themselves are written by the package. */
const tickText = (kind) => (value) =>
  kind === "share" ? percent(value, Math.abs(100 * value % 1) > 1e-6 ? 1 : 0) : value === 0 ? "0" : compact(value);

/** Axes with gridlines. box = {left, right, top, bottom} in pixels. */
function axes(svg, box, x, y) {
  for (const value of y.ticks) {
    const at = y.scale(value);
    svg.append(line(box.left, at, box.right, at, { class: "gridline" }),
      label(box.left - 8, at + 4, y.format(value), "soft", "end"));
  }
  svg.append(line(box.left, box.bottom, box.right, box.bottom, { class: "axis" }));
  for (const value of x.ticks) {
    const at = x.scale(value);
    svg.append(line(at, box.bottom, at, box.bottom + 4, { class: "axis" }),
      label(at, box.bottom + 17, x.format(value), "soft", "middle"));
  }
  if (x.label) svg.append(label((box.left + box.right) / 2, box.bottom + 34, x.label, "soft", "middle"));
}
/** Path through points [[x, y], ...]; a gap where y is not known. */
function path(points) {
  let pen = "M";
  return points.map(([x, y]) => {
    if (!known(y)) return (pen = "M"), "";
    const part = `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
    return part;
  }).join("");
}
/** Move labels [{y, ...}] apart so that none overlaps, keeping their order; stays between low and high. */
function spread(labels, gap, low, high) {
  const sorted = labels.sort((a, b) => a.y - b.y);
  sorted.forEach((one, at) => (one.y = Math.max(one.y, at ? sorted[at - 1].y + gap : low)));
  for (let at = sorted.length - 1; at >= 0; at--) {
    sorted[at].y = Math.min(sorted[at].y, at === sorted.length - 1 ? high : sorted[at + 1].y - gap);
  }
  return sorted;
}
/** items: {tint, text, dash}; dash: undefined for an area, "" for a solid line. */
const legend = (items) => h("ul", { class: "legend" }, items.map(({ tint, text, strong, dash }) => {
  const look = { "6 4": "dash", "10 3": "dash", "1.5 4": "dot", "2 3": "dot" }[dash] || "solid";
  const [name, style] = known(dash) ? [`line ${look}`, { "border-color": tint }] : [null, { background: tint }];
  return h("li", null, h("i", { class: name, style }), text, strong ? [" ", h("b", null, strong)] : "");
}));

const TINTS = ["c0", "c1", "c2", "c3", "both", "c4", "c5", "novel"].map((name) => `var(--${name})`);
/** Series of a panel: rows by value of the `by` column, each with its color. */
function seriesOf(plot, panel) {
  const names = [...new Set(panel.rows.map((row) => row[plot.by] ?? ""))];
  const { edge, model: own } = panel.rows[0];
  const ends = `${edge || ""}`.split("->");
  const alone = !plot.by && [own, ends[0]].find((name) => NODE[name]);
  let next = 0;
  return names.map((name) => {
    const model = { parent: ends[0], child: ends[1] }[name] || name;
    const quiet = { ceiling: "6 4", floor: "1.5 4", chance: "1.5 4", unsteered: "1.5 4" }[name];
    const colored = alone || (NODE[model] ? model : "");
    const tint = quiet ? "var(--soft)" : colored ? color(colored) : TINTS[next++ % TINTS.length];
    const rows = panel.rows.filter((row) => (row[plot.by] ?? "") === name);
    const words = NODE[model] && model !== name ? `${name}, ${model}` : spaced(`${name}`);
    return { name: words, tint, rows, dash: quiet || "" };
  });
}
const hintOf = (table, plot, row) => [plot.by, plot.x, plot.y].filter(Boolean)
  .map((name) => `${spaced(name)}: ${arrow(textOf(table, name, row))}`).join("\n");
const kindOf = (table, name) => table.columns.find((column) => column.name === name).kind;

/** Where a panel is marked: {x, low, high, text}; the t of a merge, the threshold of an edge. */
function markOf(table, panel) {
  const row = panel.rows[0];
  if (table.name === "sweeps") {
    const [merge] = rowsOf("merges", { model: row.model });
    if (!merge || !known(merge.t)) return null;
    return { x: merge.t, low: merge.t_low, high: merge.t_high, text: `t = ${fixed(merge.t, 3)}` };
  }
  if (table.name !== "best_r" && table.name !== "curves") return null;
  const edge = rowsOf("edges", { edge: row.edge }).find((one) => one.rule !== "paper");
  const x = state.threshold ?? edge?.threshold;
  return known(x) ? { x, text: `threshold ${fixed(x)}` } : null;
}
function drawMark(svg, box, X, mark) {
  const x = mark ? X(mark.x) : NaN;
  if (!(x >= box.left && x <= box.right)) return;
  if (known(mark.low) && known(mark.high)) {
    const wide = X(mark.high) - X(mark.low);
    svg.append(rect(X(mark.low), box.top, wide, box.bottom - box.top, "var(--novel)", { "fill-opacity": 0.22 }));
  }
  const anchor = x < box.left + 70 ? "start" : x > box.right - 70 ? "end" : "middle";
  svg.append(line(x, box.top - 6, x, box.bottom, { stroke: "var(--ink)", "stroke-width": 1.2 }),
    label(x, box.top - 10, mark.text, "halo", anchor));
}

const pictured = (table, panel, draw) => chart(`${table.doc} ${panel.title}; the table below holds the same`, draw);

/** Bars over bins of x: the first series filled, the others as outlines. x holds lower edges of bins. */
function histogram(table, plot, panel) {
  const series = seriesOf(plot, panel);
  const at = [...new Set(panel.rows.map((row) => row[plot.x]))].sort((a, b) => a - b);
  const finest = Math.min(...at.slice(1).map((x, place) => x - at[place]), at.length > 1 ? Infinity : 1);
  const range = Math.round((at[at.length - 1] - at[0]) / finest) + 1;
  const size = finest * Math.ceil(range / 36); // no more bars than can be told apart
  const first = Math.floor(at[0] / size + 1e-9) * size;
  const bin = (row) => Math.floor((row[plot.x] - first) / size + 1e-6);
  const bins = Math.max(...panel.rows.map(bin)) + 1;
  for (const one of series) {
    one.sizes = Array(bins).fill(0);
    for (const row of one.rows) one.sizes[bin(row)] += row[plot.y];
  }
  // what only serves comparison may leave the picture at the top
  const most = Math.max(1e-9, ...series.filter(({ dash }) => !dash).flatMap(({ sizes }) => sizes));
  return [pictured(table, panel, (svg, width) => {
    const box = { left: 46, right: width - 10, top: 26, bottom: 200 };
    const X = scale(first, first + bins * size, box.left, box.right);
    const Y = (value) => scale(0, most, box.bottom, box.top)(Math.min(value, 1.04 * most));
    const edge = (place) => X(first + place * size);
    const mark = markOf(table, panel);
    const number = tickText(kindOf(table, plot.y));
    axes(svg, box, { scale: X, ticks: ticks(first, first + bins * size, 6), format: tickText(kindOf(table, plot.x)),
      label: spaced(plot.x) }, { scale: Y, ticks: ticks(0, most, 4), format: number });
    series.forEach(({ tint, sizes, dash }, number_) => {
      if (number_) {
        const steps = sizes.flatMap((value, place) => [[edge(place), Y(value)], [edge(place + 1), Y(value)]]);
        svg.append(stroke(path(steps), tint, dash ? 1.3 : 1.8, dash));
      } else sizes.forEach((value, place) => {
        const above = !mark || first + (place + 0.5) * size >= mark.x;
        svg.append(rect(edge(place) + 0.5, Y(value), edge(place + 1) - edge(place) - 1, box.bottom - Y(value), tint,
          { "fill-opacity": above ? 0.85 : 0.35 }));
      });
    });
    drawMark(svg, box, X, mark);
    const marks = Array.from({ length: bins }, (_, place) => {
      const ends = [place, place + 1].map((one) => fixed(first + one * size));
      const sizes = series.map((one) => `${one.name || spaced(plot.y)}: ${number(one.sizes[place])}`);
      return rect(edge(place), box.top, edge(1) - edge(0), box.bottom - box.top, "transparent",
        hint([`${spaced(plot.x)} from ${ends[0]} to ${ends[1]}`, ...sizes].join("\n")));
    });
    svg.append(...roving(marks));
    return box.bottom + 40;
  }), series.length > 1 ? legend(series.map(({ tint, name, dash }, place) =>
    ({ tint, text: name, dash: place ? dash : undefined }))) : null];
}

/** Lines over x with bands of intervals; costs and sizes on a logarithmic axis, 0 left of a gap. */
function lines(table, plot, panel) {
  const series = seriesOf(plot, panel);
  const kinds = [kindOf(table, plot.x), kindOf(table, plot.y)];
  return [pictured(table, panel, (svg, width) => {
    const box = { left: 50, right: width - 14, top: 26, bottom: 220 };
    const all = panel.rows.filter((row) => known(row[plot.x]) && known(row[plot.y]));
    const xs = all.map((row) => row[plot.x]);
    const positive = xs.filter((x) => x > 0);
    const log = ["flops", "count", "seconds"].includes(kinds[0]) && Math.max(...positive) / Math.min(...positive) > 20;
    const zero = log && xs.some((x) => x === 0) ? 30 : 0;
    const ends = log ? positive.map(Math.log) : xs;
    const line_ = scale(Math.min(...ends), Math.max(...ends), box.left + zero, box.right);
    const X = log ? (x) => (x > 0 ? line_(Math.log(x)) : box.left) : line_;
    const ys = all.flatMap((row) => [row[plot.y], row[`${plot.y}_low`], row[`${plot.y}_high`]]).filter(known);
    const low = kinds[1] === "count" ? 0 : Math.min(...ys);
    const high = Math.max(low + 1e-9, ...ys);
    const room = kinds[1] === "count" ? 0 : 0.05 * (high - low);
    const Y = scale(low - room, high + room, box.bottom, box.top);
    const powers = Array.from({ length: 40 }, (_, n) => 10 ** (n - 3))
      .filter((x) => x >= 0.99 * Math.min(...positive) && x <= 1.01 * Math.max(...positive));
    const at = log ? [...(zero ? [0] : []), ...powers] : ticks(Math.min(...xs), Math.max(...xs), 6);
    axes(svg, box, { scale: X, ticks: at, format: tickText(kinds[0]), label: spaced(plot.x) },
      { scale: Y, ticks: ticks(low, high, 4), format: tickText(kinds[1]) });
    const marks = [];
    for (const { rows, tint, dash } of series) {
      const points = rows.filter((row) => known(row[plot.x])).sort((a, b) => a[plot.x] - b[plot.x]);
      const within = points.filter((row) => known(row[`${plot.y}_low`]) && known(row[`${plot.y}_high`]));
      if (within.length > 1) {
        const side = (end) => within.map((row) => [X(row[plot.x]), Y(row[`${plot.y}_${end}`])]);
        const d = `${path(side("high"))}L${path(side("low").reverse()).slice(1)}Z`;
        svg.append(h("path", { d, fill: tint, "fill-opacity": 0.16 }));
      }
      const places = points.map((row) => [X(row[plot.x]), known(row[plot.y]) ? Y(row[plot.y]) : null]);
      svg.append(stroke(path(places), tint, 2, dash));
      for (const row of points) if (known(row[plot.y])) {
        marks.push(h("circle", { cx: X(row[plot.x]), cy: Y(row[plot.y]), r: points.length > 25 ? 1.8 : 3, fill: tint,
          ...hint(hintOf(table, plot, row)) }));
      }
    }
    svg.append(...roving(marks));
    drawMark(svg, box, X, markOf(table, panel));
    return box.bottom + 40;
  }), series.length > 1 ? legend(series.map(({ tint, name, dash }) => ({ tint, text: name, dash }))) : null];
}

/** Horizontal bars by category, with whiskers where there are intervals. */
function bars(table, plot, panel) {
  const zeros = panel.rows.length > 12 ? panel.rows.filter((row) => row[plot.y] === 0).length : 0;
  const drawn = zeros ? panel.rows.filter((row) => row[plot.y] !== 0) : panel.rows;
  if (!drawn.length) return [note("All values are 0.")];
  const groups = [...new Set(drawn.map((row) => row[plot.x]))].map((name) =>
    ({ name: arrow(`${name}`), rows: drawn.filter((row) => row[plot.x] === name) }));
  const grouped = groups.some((group) => group.rows.length > 1);
  const tints = {};
  for (const { rows, tint } of seriesOf(plot, panel)) for (const row of rows) tints[row.at] = tint;
  const words = (row) => (grouped ? spaced(textOf(table, plot.by, row)) : arrow(textOf(table, plot.x, row)));
  return [pictured(table, panel, (svg, width) => {
    const texts = drawn.map((row) => textOf(table, plot.y, row).replace(/ \[.*/, ""));
    const left = Math.min(14 + 6.8 * Math.max(...drawn.map((row) => words(row).length)), Math.floor(0.4 * width));
    const ends = drawn.flatMap((row) => [row[plot.y], row[`${plot.y}_high`], row[`${plot.y}_low`]]).filter(known);
    const right = width - 14 - 6.6 * Math.max(...texts.map((text) => text.length));
    const X = scale(Math.min(0, ...ends), Math.max(1e-9, ...ends), left, right);
    const marks = [];
    let top = 0;
    for (const { name, rows } of groups) {
      if (grouped) {
        svg.append(label(0, top + 15, clip(name, width), "strong"));
        top += 22;
      }
      for (const row of rows) {
        const value = row[plot.y] ?? 0;
        const ends = [row[`${plot.y}_low`], row[`${plot.y}_high`]].map((end) => (known(end) ? X(end) : X(value)));
        const [from, to] = [X(Math.min(0, value)), X(Math.max(0, value))];
        const text = textOf(table, plot.y, row).replace(/ \[.*/, "");
        svg.append(label(left - 8, top + 14, clip(words(row), left - 8), null, "end"),
          rect(from, top + 3, to - from, 14, tints[row.at], { rx: 1.5 }),
          stroke(`M${ends[0]},${top + 10}H${ends[1]}`, "var(--ink)", 1.4),
          label(Math.max(to, ends[1]) + 7, top + 14, text, "halo"));
        marks.push(rect(0, top, width, 20, "transparent", hint(hintOf(table, plot, row))));
        top += 21;
      }
      top += grouped ? 9 : 0;
    }
    svg.append(line(X(0), 0, X(0), top, { class: "axis" }), ...marks);
    roving(marks);
    return top + 4;
  }), zeros ? note(`${zeros} values of 0 are not drawn.`) : null];
}

/** A heat map of y over x, a row for each value of `by`. */
function heat(table, plot, panel) {
  const across = [...new Set(panel.rows.map((row) => `${row[plot.x]}`))];
  const down = [...new Set(panel.rows.map((row) => `${row[plot.by]}`))];
  const short = (name) => arrow(spaced(name)).replace(/^blocks\.(\d+)\.hook resid pre$/, "$1");
  return [pictured(table, panel, (svg, width) => {
    const left = Math.min(18 + 6.8 * Math.max(...down.map((name) => short(name).length)), 0.36 * width);
    const cell = Math.min(96, (width - left - 2) / across.length);
    const tall = Math.min(40, Math.max(28, 0.62 * cell));
    const values = panel.rows.map((row) => row[plot.y]).filter(known);
    const shade = scale(Math.min(...values), Math.max(...values), 6, 62);
    svg.append(label(left, 12, clip(`${spaced(plot.x)} →`, width - left), "soft"),
      label(0, 32, clip(`${spaced(plot.by)} ↓`, left - 4), "soft"));
    const named = (x, y, name, room, anchor) => svg.append(label(x, y, clip(short(name), room), "soft", anchor));
    across.forEach((name, at) => named(left + (at + 0.5) * cell, 32, name, Math.max(cell - 4, 14), "middle"));
    down.forEach((name, at) => named(left - 10, 44 + (at + 0.5) * tall, name, left - 10, "end"));
    const marks = panel.rows.map((row) => {
      const [x, y] = [left + across.indexOf(`${row[plot.x]}`) * cell, 40 + down.indexOf(`${row[plot.by]}`) * tall];
      const tint = `color-mix(in srgb, var(--c0) ${shade(row[plot.y]).toFixed(0)}%, var(--bg))`;
      svg.append(rect(x + 1, y + 1, cell - 2, tall - 2, tint));
      const text = clip(textOf(table, plot.y, row), cell);
      if (cell >= 34) svg.append(label(x + cell / 2, y + tall / 2 + 4, text, null, "middle"));
      return rect(x, y, cell, tall, "transparent", hint(hintOf(table, plot, row)));
    });
    svg.append(...roving(marks));
    return 44 + tall * down.length;
  })];
}

/** A point for each row; x on a logarithmic axis where it spans much. */
function points(table, plot, panel) {
  const series = seriesOf(plot, panel);
  return [pictured(table, panel, (svg, width) => {
    const box = { left: 50, right: width - 14, top: 14, bottom: 240 };
    const [xs, ys] = [plot.x, plot.y].map((name) => panel.rows.map((row) => row[name]));
    const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 20;
    const line_ = scale(...[Math.min(...xs), Math.max(...xs)].map((x) => (log ? Math.log(x) : x)), box.left, box.right);
    const X = (x) => line_(log ? Math.log(x) : x);
    const high = Math.max(1e-9, ...ys);
    const low = Math.min(0, ...ys);
    const Y = scale(low, high, box.bottom, box.top);
    const powers = Array.from({ length: 13 }, (_, n) => 10 ** (n - 6));
    const at = log ? powers.filter((x) => x >= Math.min(...xs) && x <= Math.max(...xs))
      : ticks(Math.min(...xs), Math.max(...xs), 6);
    axes(svg, box, { scale: X, ticks: at, format: tickText(kindOf(table, plot.x)), label: spaced(plot.x) },
      { scale: Y, ticks: ticks(low, high, 4), format: tickText(kindOf(table, plot.y)) });
    const names = [...table.columns.filter((column) => column.kind === "feature").map(({ name }) => name),
      plot.by, plot.x, plot.y].filter(Boolean);
    const marks = series.flatMap(({ rows, tint }) => rows.map((row) =>
      h("circle", { cx: X(row[plot.x]), cy: Y(row[plot.y]), r: 2.4, fill: tint, "fill-opacity": 0.6,
        ...hint(names.map((name) => `${spaced(name)}: ${textOf(table, name, row)}`).join("\n")) })));
    svg.append(...roving(marks));
    return box.bottom + 40;
  }), series.length > 1 ? legend(series.map(({ tint, name }) => ({ tint, text: name }))) : null];
}

const PICTURES = { histogram, lines, bars, heat, points };
/** Pictures of a table: one for each value of the key columns that its plot does not name. */
function pictures(table, rows) {
  const { plot } = table;
  const usable = rows.filter((row) => known(row[plot.x]) && known(row[plot.y]));
  const keys = table.columns.filter((column) => column.key && ![plot.x, plot.by, "instrument"].includes(column.name));
  let varying = keys.map((column) => column.name).filter((name) => new Set(usable.map((row) => row[name])).size > 1);
  // a number that goes along with x, such as the step of a cost, tells no pictures apart
  const longest = (names) => {
    const sizes = {};
    for (const row of usable) {
      const series = [plot.by, ...names].map((name) => row[name]).join("\n");
      sizes[series] = (sizes[series] || 0) + 1;
    }
    return Math.max(0, ...Object.values(sizes));
  };
  for (const { name, kind } of keys) {
    const others = varying.filter((one) => one !== name);
    if (kind !== "text" && ["lines", "points"].includes(plot.kind) && longest(varying) === 1 && longest(others) > 1) {
      varying = others;
    }
  }
  const panels = {};
  for (const row of usable) {
    const title = varying.map((name) => arrow(textOf(table, name, row))).join(", ");
    (panels[title] ||= { title, rows: [] }).rows.push(row);
  }
  const drawn = Object.values(panels).map((panel) =>
    h("div", null, panel.title ? h("h4", null, panel.title) : null, PICTURES[plot.kind](table, plot, panel)));
  const wide = drawn.length === 1 && plot.kind !== "heat";
  return drawn.length ? h("div", { class: wide ? "grid one" : "grid" }, drawn) : null;
}
