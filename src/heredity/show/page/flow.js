// The study graph and the flow of features through it.
const depths = {};
for (const node of GRAPH) {
  depths[node.name] = node.parents.length ? 1 + Math.max(...node.parents.map((name) => depths[name])) : 0;
}
const layersOf = (names) => {
  const layers = [];
  for (const name of names) (layers[depths[name]] ||= []).push(name);
  return layers.filter(Boolean);
};
function ancestry(name) {
  const members = new Set();
  const visit = (model) => !members.has(model) && (members.add(model), NODE[model].parents.forEach(visit));
  visit(name);
  return GRAPH.map((node) => node.name).filter((model) => members.has(model));
}
const mergeOf = (name) => rowsOf("merges", { model: name })[0];
/** The rows of a table by one rule: the paper's r > 0.8, or else each edge's own threshold. */
const byRule = (name, where, paper = false) => rowsOf(name, where).filter((row) => (row.rule === "paper") === paper);
/** Edges of the chosen instrument by name, at their own thresholds or the paper's. */
const edgesNow = (instrument = state.instrument, paper = false) =>
  Object.fromEntries(byRule("edges", { instrument }, paper).map((row) => [row.edge, row]));
/** Verdicts on the parent's features of an edge on the common text, where there are stable ones. */
const judgedNow = (instrument, edge) =>
  rowsOf("verdicts", { instrument, edge, end: "parent", text: "common" }).find((row) => row.stable);
const STITCHES = rowsOf("stitch_maps").filter((row) => NODE[row.source] && NODE[row.target]);
const TWINS = GRAPH.filter((node) => node.recipe_of);
const recipe = (node) => `by the recipe of ${node.recipe_of}`;

function studyGraph() {
  const layers = layersOf(GRAPH.map((node) => node.name));
  const widest = Math.max(...layers.map((layer) => layer.length));
  return chart("The study graph; the table of models below holds the same", (svg, width) => {
    const across = width >= Math.max(560, layers.length * 190);
    const slots = across ? layers.length : widest;
    const boxWidth = Math.min(190, width / slots - (across ? 56 : 10));
    const boxHeight = 62;
    const place = {};
    const tall = across ? widest * 84 : layers.length * 112 - 40;
    layers.forEach((layer, level) => layer.forEach((name, row) => {
      const middle = (row + 0.5) / layer.length;
      const step = (width - boxWidth) / Math.max(1, layers.length - 1);
      place[name] = across ? { x: level * step, y: middle * tall - boxHeight / 2 + 2 }
        : { x: middle * width - boxWidth / 2, y: level * 112 + 2 };
    }));
    const edges = edgesNow();
    const labels = [];
    const wordsOn = (name) => {
      const [edge, judged] = [edges[name], judgedNow(state.instrument, name)];
      return judged ? `${textOf(DATA.tables.verdicts, "kept_share", judged).split(" [")[0]} kept`
        : edge && `${share(edge.persist, edge.parent_live)} persist`;
    };
    for (const node of GRAPH) for (const parent of node.parents) {
      const [from, to] = [place[parent], place[node.name]];
      const a = across ? [from.x + boxWidth, from.y + boxHeight / 2] : [from.x + boxWidth / 2, from.y + boxHeight];
      const b = across ? [to.x, to.y + boxHeight / 2] : [to.x + boxWidth / 2, to.y];
      const [mx, my] = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      svg.append(stroke(`M${a}C${across ? [mx, a[1], mx, b[1]] : [a[0], my, b[0], my]} ${b}`, "var(--novel)", 1.5));
      // crossing edges have the same middle: there the labels move towards the parent or the child
      const [rows, columns] = [layers[depths[parent]], layers[depths[node.name]]];
      const t = rows[1] && columns[1] ? 0.5 + 0.16 * Math.sign(rows.indexOf(parent) - columns.indexOf(node.name)) : 0.5;
      const name = `${parent}->${node.name}`;
      const at = [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]) + 4];
      const words = wordsOn(name);
      if (words) labels.push(label(...at, words, "soft halo", "middle"));
    }
    const twins = TWINS.map(({ name, recipe_of: source }) =>
      ({ source, target: name, stitch: wordsOn(`${source}->${name}`) || "" }));
    for (const { source, target, stitch } of [...STITCHES, ...twins]) {
      // bent to the right of the boxes, or below them, where no edge runs
      const [a, b] = [place[source], place[target]].map(({ x, y }) =>
        across ? [x + boxWidth, y + boxHeight / 2] : [x + boxWidth / 2, y + boxHeight]);
      const [x, y] = across ? [Math.max(a[0], b[0]) + 46, (a[1] + b[1]) / 2]
        : [(a[0] + b[0]) / 2, Math.max(a[1], b[1]) + 40];
      svg.append(stroke(`M${a}Q${x},${y} ${b}`, "var(--soft)", 1.4, "6 4"));
      labels.push(across ? label(x - 16, y + 4, stitch, "soft halo") : label(x, y - 10, stitch, "soft halo", "middle"));
    }
    svg.append(...labels);
    for (const node of GRAPH) {
      const { x, y } = place[node.name];
      const merge = mergeOf(node.name);
      const made = merge ? `${merge.method}${known(merge.t) ? `, t = ${merge.t.toFixed(2)}` : " merge"}`
        : node.recipe_of ? recipe(node) : node.made;
      const words = [made, node.corpora.length ? `on ${node.corpora.join(", ")}` : node.note];
      svg.append(h("g", null,
        h("title", null, `${node.name}: ${words.filter(Boolean).join(" ")}; has seen ${node.trace.join(", ")}`),
        rect(x + 0.5, y, boxWidth - 1, boxHeight, "var(--card)", { rx: 7, stroke: "var(--line)" }),
        rect(x + 0.5, y, 4, boxHeight, color(node.name), { rx: 2 }),
        label(x + 14, y + 20, clip(node.name, boxWidth - 22, 7.6), "strong"),
        words.filter(Boolean).map((text, row) => label(x + 14, y + 37 + row * 16, clip(text, boxWidth - 20), "soft"))));
    }
    return tall + (STITCHES.length + TWINS.length && !across ? 44 : 4);
  });
}

function originLabel(origin, merge) {
  if (origin === "novel") return "no match in a parent";
  if (origin === "both") return `emerged in ${NODE[merge].parents.length > 2 ? "several" : "both"}`;
  if (origin !== "base") return NODE[origin].parents.length ? `emerged in ${origin}` : `from ${origin} alone`;
  const roots = ancestry(merge).filter((name) => !NODE[name].parents.length);
  return `from ${roots.length === 1 ? roots[0] : "a common ancestor"}`;
}
const FIXED = { base: "var(--c0)", both: "var(--both)", novel: "var(--novel)" };
const originColor = (origin) => FIXED[origin] || color(origin);

/** [origin, count] of the live features of a merge, in the order they are drawn. */
function origins(merge, paper) {
  const counts = Object.fromEntries(byRule("flow", { model: merge }, paper).map((row) => [row.origin, row.features]));
  const [first, ...rest] = NODE[merge].parents;
  const emerged = (parent) => [parent, counts[`emerged_in_${parent}`] || 0];
  const [base, both] = [counts.from_base, counts.emerged_in_both].map((size) => size || 0);
  return [emerged(first), ["base", base], ["both", both], ...rest.map(emerged), ["novel", counts.novel || 0]];
}
const hasFlow = (name) => rowsOf("flow", { model: name }).length > 0;

/** Nodes with segments, and ribbons between segments, for the models given. */
function flowModel(models, whole, paper) {
  const edges = edgesNow(undefined, paper);
  const nodes = {};
  const ribbons = [];
  const childrenOf = (name) =>
    models.filter((child) => NODE[child].parents.includes(name) && edges[`${name}->${child}`]);
  const links = models.filter(hasFlow).flatMap((name) => byRule("flow_links", { model: name }, paper));
  for (const name of models) {
    const segments = [];
    const add = (key, size, tint, text) => size && segments.push({ key, size, tint, text });
    const out = childrenOf(name).map((child) => edges[`${name}->${child}`]);
    const parent = NODE[name].parents[0];
    if (hasFlow(name)) {
      for (const [origin, size] of origins(name, paper)) {
        if (whole || origin !== "novel") add(origin, size, originColor(origin), originLabel(origin, name));
      }
    } else if (parent && models.includes(parent)) {
      const edge = edges[`${parent}->${name}`];
      if (!edge) continue;
      const onward = links.filter((link) => link.source === name && link.origin !== "base");
      const kept = onward.reduce((sum, link) => sum + link.features, 0);
      const base = () => add("base", edge.child_live - edge.emerge, color(parent), `from ${parent}`);
      const below = NODE[childrenOf(name)[0] || name].parents.indexOf(name) > 0;
      if (below) base();
      const text = whole ? `emerged in ${name}` : "emerged and persist";
      add("own", whole ? edge.emerge : Math.min(edge.emerge, kept), color(name), text);
      if (!below) base();
    } else if (out.length) {
      const live = Math.max(...out.map((edge) => edge.parent_live));
      const going = byRule("reach", { model: name }, paper)[0]?.features
        ?? Math.min(live, out.reduce((sum, edge) => sum + edge.persist, 0));
      add("base", going, color(name), out.length > 1 ? "persist in a child" : "persist");
      if (whole) add("lost", live - going, "var(--lost)", out.length > 1 ? "no match in any child" : "no match");
    } else continue;
    nodes[name] = { name, segments, size: segments.reduce((sum, segment) => sum + segment.size, 0) };
  }
  for (const name of Object.keys(nodes)) {
    const parent = NODE[name].parents[0];
    if (hasFlow(name) || !parent || !nodes[parent]) continue;
    const edge = edges[`${parent}->${name}`];
    const siblings = childrenOf(parent).filter((child) => !hasFlow(child));
    const inherited = edge.child_live - edge.emerge;
    ribbons.push({ from: parent, to: name, fromKey: STARTS.includes(parent) ? "base" : null, toKey: "base",
      fromSize: edge.persist, toSize: inherited, origin: "base", tint: color(parent),
      at: siblings.length > 1 ? siblings.indexOf(name) / (siblings.length - 1) : 0,
      text: `${parent} → ${name}\n${count(edge.persist)} of ${count(edge.parent_live)} live features of ${parent}`
        + " persist"
        + `\n${count(inherited)} of ${count(edge.child_live)} live features of ${name} are inherited` });
  }
  for (const link of links) {
    const [source, target] = [nodes[link.source], nodes[link.model]];
    if (!source || !target) continue;
    const parents = NODE[link.model].parents;
    const live = origins(link.model, paper).reduce((sum, [, size]) => sum + size, 0);
    const segment = source.segments.find(({ key }) => key === (link.origin === "base" ? "base" : "own"));
    const alone = links.find((other) =>
      other.source === link.source && other.model === link.model && other.origin === link.source);
    ribbons.push({ from: link.source, to: link.model, fromKey: segment ? segment.key : source.segments[0]?.key,
      skip: link.origin === "both" && segment ? alone?.features : 0, toKey: link.origin, fromSize: link.features,
      toSize: link.features, at: parents.indexOf(link.source) / Math.max(1, parents.length - 1), origin: link.origin,
      tint: originColor(link.origin),
      text: `${link.source} → ${link.model}: ${originLabel(link.origin, link.model)}\n${count(link.features)} of `
        + `${count(live)} live features of ${link.model} (${share(link.features, live)})`
        + (link.shared ? `\n${count(link.shared)} of them through another parent as well` : "") });
  }
  return { nodes, ribbons };
}

function sankey(models, whole, paper) {
  return chart("Flow of features; the tables below hold the same numbers", (svg, width) => {
    const { nodes, ribbons } = flowModel(models, whole, paper);
    const columns = layersOf(models.filter((name) => nodes[name]));
    const wide = width >= 700;
    const [gap, top, bar, right, height] = [58, 44, 14, wide ? 178 : 0, wide ? 470 : 400];
    const sizeOf = (column) => column.reduce((sum, name) => sum + nodes[name].size, 0);
    const unit = Math.min(...columns.map((column) => (height - (column.length - 1) * gap) / sizeOf(column)));
    columns.forEach((column, level) => {
      let y = top + (height - sizeOf(column) * unit - (column.length - 1) * gap) / 2;
      for (const name of column) {
        const x = columns.length > 1 ? (level * (width - right - bar)) / (columns.length - 1) : 0;
        Object.assign(nodes[name], { x, y, level });
        for (const segment of nodes[name].segments) {
          segment.y = y;
          y += segment.size * unit;
        }
        y += gap;
      }
    });
    const focusOrigin = (origin) => {
      svg.classList.add("hover");
      for (const [own, element] of parts) element.classList.toggle("on", own === origin);
    };
    const parts = ribbons.map((ribbon) => {
      const [from, to] = [nodes[ribbon.from], nodes[ribbon.to]];
      const start = from.segments.find(({ key }) => key === ribbon.fromKey) || from;
      const end = to.segments.find(({ key }) => key === ribbon.toKey) || to;
      const [a, b] = [Math.min(ribbon.fromSize, start.size) * unit, Math.min(ribbon.toSize, end.size) * unit];
      const y0 = start.y + (start.size * unit - a) * ribbon.at + (ribbon.skip || 0) * unit * (1 - 2 * ribbon.at);
      const y1 = end.y + (end.size * unit - b) * ribbon.at;
      const [x0, x1, middle] = [from.x + bar, to.x, (from.x + bar + to.x) / 2];
      const shape = `M${x0},${y0}C${middle},${y0} ${middle},${y1} ${x1},${y1}V${y1 + b}`
        + `C${middle},${y1 + b} ${middle},${y0 + a} ${x0},${y0 + a}Z`;
      const show = hint(ribbon.text, () => focusOrigin(ribbon.origin), () => svg.classList.remove("hover"));
      return [ribbon.origin, h("path", { class: "link", d: shape, fill: ribbon.tint, ...show })];
    });
    svg.append(...parts.map(([, element]) => element));
    for (const node of Object.values(nodes)) {
      const last = node.level === columns.length - 1;
      const anchor = node.level === 0 ? "start" : last ? "end" : "middle";
      const x = node.level === 0 ? node.x : last ? node.x + bar : node.x + bar / 2;
      svg.append(label(x, node.y - 24, clip(node.name, width / columns.length - 8, 7.6), "strong halo", anchor),
        label(x, node.y - 8, `${count(node.size)} ${whole ? "live" : "shown"}`, "soft halo", anchor));
      const labels = [];
      for (const { size, y, tint, text } of node.segments) {
        const tall = size * unit;
        const words = `${node.name}: ${text}\n${count(size)} of ${count(node.size)} (${share(size, node.size)})`;
        svg.append(rect(node.x, y, bar, Math.max(1, tall), tint, hint(words)));
        if (wide && (last || tall > 13)) labels.push({ y: y + tall / 2 + 4, text: `${count(size)} ${text}` });
      }
      for (const { y, text } of spread(labels, 17, node.y + 8, Infinity)) {
        svg.append(label(node.x + bar + 8, y, clip(text, last ? right - 24 : 240), last ? null : "halo"));
      }
    }
    return top + height + 6;
  });
}

function flowSection() {
  const merges = GRAPH.map((node) => node.name).filter(hasFlow);
  const drawings = (merges.length ? merges : [null]).map((merge) => {
    const models = merge ? ancestry(merge) : GRAPH.map((node) => node.name);
    const host = h("div");
    const view = { whole: true, paper: false };
    const show = () => {
      const counts = merge ? origins(merge, view.paper) : [];
      const live = counts.reduce((sum, [, size]) => sum + size, 0);
      host.replaceChildren(sankey(models, view.whole, view.paper), legend(counts.filter(([, size]) => size)
        .map(([origin, size]) => ({ tint: originColor(origin), text: originLabel(origin, merge),
          strong: `${count(size)} (${share(size, live)})` }))));
      redraw();
    };
    const choose = (key, options, name) =>
      choice(options, () => view[key], (value) => (view[key] = value, show()), name);
    show();
    return [merges.length > 1 ? h("h3", null, `Into ${merge}`) : null,
      merge ? choose("whole", [["all live features", true], ["only inherited", false]], "What the bars show") : null,
      choose("paper", [["each edge’s own threshold", false], ["the paper’s r > 0.8", true]], "What counts as a match"),
      host];
  });
  const judged = Object.keys(edgesNow()).some((name) => judgedNow(state.instrument, name));
  return [lede("Widths are numbers of live features, by matches alone. ", judged
    ? "Unstable features are among them, which two SAEs of one model do not share either: what is lost or new, "
      + "verdicts say. " : "", "Where two ribbons overlap, features come through both parents or go ",
    "to both children. Matching is many-to-many, so a ribbon may be wider at one end."), drawings];
}
