// The study graph and the flow of features through it.
const depths = {};
for (const node of GRAPH) depths[node.name] = node.parents.length ? 1 + Math.max(...node.parents.map((name) => depths[name])) : 0;
const layersOf = (names) => {
  const layers = [];
  for (const name of names) (layers[depths[name]] ||= []).push(name);
  return layers.filter(Boolean);
};
function ancestry(name) {
  const found = new Set();
  const visit = (model) => !found.has(model) && (found.add(model), NODE[model].parents.forEach(visit));
  visit(name);
  return GRAPH.map((node) => node.name).filter((model) => found.has(model));
}
const clip = (text, width, size = 6.6) => (text.length * size <= width ? text : `${text.slice(0, Math.max(1, Math.floor(width / size) - 1))}…`);
const KINDS = { train: "trained from scratch", load: "loaded", merge: "merge", finetune: "fine-tuned" };

function studyGraph() {
  const layers = layersOf(GRAPH.map((node) => node.name));
  const widest = Math.max(...layers.map((layer) => layer.length));
  return chart("The study graph; the table of models below holds the same", (svg, width) => {
    const across = width >= Math.max(560, layers.length * 190);
    const slots = across ? layers.length : widest;
    const boxWidth = Math.min(190, width / slots - (across ? 56 : 10));
    const boxHeight = 62;
    const place = {};
    const rowsHeight = across ? widest * 84 : layers.length * 112 - 40;
    layers.forEach((layer, level) => layer.forEach((name, row) => {
      const middle = (row + 0.5) / layer.length;
      place[name] = across
        ? { x: layers.length > 1 ? level * ((width - boxWidth) / (layers.length - 1)) : 0, y: middle * rowsHeight - boxHeight / 2 + 2 }
        : { x: middle * width - boxWidth / 2, y: level * 112 + 2 };
    }));
    const edges = measured().figures.edges;
    const labels = [];
    for (const node of GRAPH) for (const parent of node.parents) {
      const [from, to] = [place[parent], place[node.name]];
      const a = across ? [from.x + boxWidth, from.y + boxHeight / 2] : [from.x + boxWidth / 2, from.y + boxHeight];
      const b = across ? [to.x, to.y + boxHeight / 2] : [to.x + boxWidth / 2, to.y];
      const bend = across ? [(a[0] + b[0]) / 2, a[1], (a[0] + b[0]) / 2, b[1]] : [a[0], (a[1] + b[1]) / 2, b[0], (a[1] + b[1]) / 2];
      svg.append(stroke(`M${a}C${bend} ${b}`, "var(--novel)", 1.5));
      const edge = edges[`${parent}->${node.name}`];
      // crossing edges have the same middle: there the labels move towards the parent or the child
      const [rows, columns] = [layers[depths[parent]], layers[depths[node.name]]];
      const t = rows[1] && columns[1] ? 0.5 + 0.16 * Math.sign(rows.indexOf(parent) - columns.indexOf(node.name)) : 0.5;
      const on = (end) => a[end] + t * (b[end] - a[end]);
      if (edge) labels.push(label(on(0), on(1) + 4, `${share(edge.persist, edge.parent_live)} kept`, "soft halo", "middle"));
    }
    svg.append(...labels);
    if (stitches.length) stitchLines(svg, place, boxWidth, boxHeight, across);
    for (const node of GRAPH) {
      const { x, y } = place[node.name];
      const merge = SUMMARY.merges[node.name];
      const lines = [
        merge ? `${merge.method}${known(merge.t) ? `, t = ${merge.t.toFixed(2)}` : " merge"}` : KINDS[SUMMARY.models[node.name].kind],
        node.corpora.length ? `on ${node.corpora.join(", ")}` : node.note,
      ];
      svg.append(h("g", null,
        h("title", null, `${node.name}: ${lines.filter(Boolean).join(" ")}; has seen ${node.trace.join(", ")}`),
        rect(x + 0.5, y, boxWidth - 1, boxHeight, "var(--card)", { rx: 7, stroke: "var(--line)" }),
        rect(x + 0.5, y, 4, boxHeight, color(node.name), { rx: 2 }),
        label(x + 14, y + 20, clip(node.name, boxWidth - 22, 7.6), "strong"),
        lines.map((text, row) => label(x + 14, y + 37 + row * 16, clip(text, boxWidth - 20), "soft"))));
    }
    return rowsHeight + (stitches.length && !across ? 44 : 4);
  });
}

const originLabel = (origin, merge) =>
  origin === "base" ? `from ${rootsOf(merge)}`
    : origin === "both" ? `emerged in ${NODE[merge].parents.length > 2 ? "several" : "both"}`
      : origin === "novel" ? "novel" : NODE[origin].parents.length ? `emerged in ${origin}` : `from ${origin} alone`;
function rootsOf(merge) {
  const roots = ancestry(merge).filter((name) => !NODE[name].parents.length);
  return roots.length === 1 ? roots[0] : "a common ancestor";
}
const originColor = (origin) => ({ base: "var(--c0)", both: "var(--both)", novel: "var(--novel)" })[origin] || color(origin);

/** [origin, count] of the live features of a merge, in the order they are drawn. */
function origins(merge) {
  const counts = measured().figures.flow[merge];
  const [first, ...rest] = NODE[merge].parents;
  const emerged = (parent) => [parent, counts[`emerged_in_${parent}`] || 0];
  return [emerged(first), ["base", counts.from_base], ["both", counts.emerged_in_both], ...rest.map(emerged), ["novel", counts.novel]];
}

/** Nodes with segments, and ribbons between segments, for the models given. */
function flowModel(models, whole) {
  const { figures, flows, kept } = measured();
  const nodes = {};
  const ribbons = [];
  const inside = (name) => models.includes(name);
  const childrenOf = (name) => models.filter((child) => NODE[child].parents.includes(name) && figures.edges[`${name}->${child}`]);
  const links = models.filter((name) => figures.flow[name]).flatMap((name) => flows[name]);
  for (const name of models) {
    const segments = [];
    const add = (key, size, color, label) => size && segments.push({ key, size, color, label });
    const out = childrenOf(name).map((child) => figures.edges[`${name}->${child}`]);
    const parent = NODE[name].parents[0];
    if (figures.flow[name]) {
      for (const [origin, size] of origins(name)) {
        if (whole || origin !== "novel") add(origin, size, originColor(origin), originLabel(origin, name));
      }
    } else if (parent && inside(parent)) {
      const edge = figures.edges[`${parent}->${name}`];
      if (!edge) continue;
      const onward = links.filter((link) => link.source === name && link.origin !== "base").reduce((sum, link) => sum + link.count, 0);
      const base = () => add("base", edge.child_live - edge.emerge, color(parent), `from ${parent}`);
      const low = NODE[models.find((child) => NODE[child].parents.includes(name)) || name].parents.indexOf(name) > 0;
      if (low) base();
      add("own", whole ? edge.emerge : Math.min(edge.emerge, onward), color(name), whole ? `emerged in ${name}` : "emerged and kept");
      if (!low) base();
    } else {
      if (!out.length) continue;
      const live = Math.max(...out.map((edge) => edge.parent_live));
      const going = kept[name] ?? Math.min(live, out.reduce((sum, edge) => sum + edge.persist, 0));
      add("base", going, color(name), out.length > 1 ? "kept by a child" : "kept");
      if (whole) add("lost", live - going, "var(--lost)", out.length > 1 ? "lost by every child" : "lost");
    }
    nodes[name] = { name, segments, size: segments.reduce((sum, segment) => sum + segment.size, 0) };
  }
  for (const name of Object.keys(nodes)) {
    const parent = NODE[name].parents[0];
    if (!figures.flow[name] && parent && nodes[parent]) {
      const edge = figures.edges[`${parent}->${name}`];
      const brothers = childrenOf(parent).filter((child) => !figures.flow[child]);
      ribbons.push({ from: parent, to: name, fromKey: STARTS.includes(parent) ? "base" : null, toKey: "base", fromSize: edge.persist, toSize: edge.child_live - edge.emerge,
        at: brothers.length > 1 ? brothers.indexOf(name) / (brothers.length - 1) : 0, origin: "base", color: color(parent),
        text: `${parent} → ${name}\n${count(edge.persist)} of ${count(edge.parent_live)} live features of ${parent} persist\n${count(edge.child_live - edge.emerge)} of ${count(edge.child_live)} live features of ${name} are inherited` });
    }
  }
  for (const link of links) {
    if (!nodes[link.source] || !nodes[link.target]) continue;
    const parents = NODE[link.target].parents;
    const live = origins(link.target).reduce((sum, [, size]) => sum + size, 0);
    const segment = nodes[link.source].segments.find(({ key }) => key === (link.origin === "base" ? "base" : "own"));
    const skip = link.origin === "both" && segment ? links.find((other) => other.source === link.source && other.target === link.target && other.origin === link.source)?.count : 0;
    ribbons.push({ from: link.source, to: link.target, skip, fromKey: segment ? segment.key : nodes[link.source].segments[0]?.key, toKey: link.origin,
      fromSize: link.count, toSize: link.count, at: parents.indexOf(link.source) / Math.max(1, parents.length - 1), origin: link.origin, color: originColor(link.origin),
      text: `${link.source} → ${link.target}: ${originLabel(link.origin, link.target)}\n${count(link.count)} of ${count(live)} live features of ${link.target} (${share(link.count, live)})${link.shared ? `\n${count(link.shared)} of them through another parent as well` : ""}` });
  }
  return { nodes, ribbons };
}

function sankey(models, whole) {
  return chart("Flow of features; the table below holds the same numbers", (svg, width) => {
    const { nodes, ribbons } = flowModel(models, whole);
    const columns = layersOf(models.filter((name) => nodes[name]));
    const wide = width >= 700;
    const [gap, top, bar, right] = [58, 44, 14, wide ? 178 : 0];
    const height = wide ? 470 : 400;
    const unit = Math.min(...columns.map((column) =>
      (height - (column.length - 1) * gap) / column.reduce((sum, name) => sum + nodes[name].size, 0)));
    columns.forEach((column, level) => {
      const total = column.reduce((sum, name) => sum + nodes[name].size * unit, (column.length - 1) * gap);
      let y = top + (height - total) / 2;
      for (const name of column) {
        const node = nodes[name];
        node.x = columns.length > 1 ? (level * (width - right - bar)) / (columns.length - 1) : 0;
        node.y = y;
        node.level = level;
        for (const segment of node.segments) {
          segment.y = y;
          y += segment.size * unit;
        }
        y += gap;
      }
    });
    const parts = [];
    for (const ribbon of ribbons) {
      const [from, to] = [nodes[ribbon.from], nodes[ribbon.to]];
      const start = from.segments.find(({ key }) => key === ribbon.fromKey) || from;
      const end = to.segments.find(({ key }) => key === ribbon.toKey) || to;
      const [a, b] = [Math.min(ribbon.fromSize, start.size) * unit, Math.min(ribbon.toSize, end.size) * unit];
      const beside = (ribbon.skip || 0) * unit * (1 - 2 * ribbon.at);
      const [y0, y1] = [start.y + (start.size * unit - a) * ribbon.at + beside, end.y + (end.size * unit - b) * ribbon.at];
      const [x0, x1] = [from.x + bar, to.x];
      const middle = (x0 + x1) / 2;
      const shape = `M${x0},${y0}C${middle},${y0} ${middle},${y1} ${x1},${y1}V${y1 + b}C${middle},${y1 + b} ${middle},${y0 + a} ${x0},${y0 + a}Z`;
      const element = h("path", { class: "link", d: shape, fill: ribbon.color,
        ...hint(ribbon.text, () => focusOrigin(ribbon.origin), () => svg.classList.remove("hover")) });
      parts.push([ribbon.origin, element]);
    }
    const focusOrigin = (origin) => {
      svg.classList.add("hover");
      for (const [own, element] of parts) element.classList.toggle("on", own === origin);
    };
    svg.append(...parts.map(([, element]) => element));
    for (const node of Object.values(nodes)) {
      const last = node.level === columns.length - 1;
      const anchor = node.level === 0 ? "start" : last ? "end" : "middle";
      const x = node.level === 0 ? node.x : last ? node.x + bar : node.x + bar / 2;
      const room = width / columns.length - 8;
      svg.append(label(x, node.y - 24, clip(node.name, room, 7.6), "strong halo", anchor));
      svg.append(label(x, node.y - 8, `${count(node.size)} ${whole ? "live" : "shown"}`, "soft halo", anchor));
      const labels = [];
      for (const segment of node.segments) {
        const tall = segment.size * unit;
        svg.append(rect(node.x, segment.y, bar, Math.max(1, tall), segment.color, hint(`${node.name}: ${segment.label}\n${count(segment.size)} of ${count(node.size)} (${share(segment.size, node.size)})`)));
        if (wide && (last || tall > 13)) labels.push({ y: segment.y + tall / 2 + 4, text: `${count(segment.size)} ${segment.label}` });
      }
      for (const { y, text } of spread(labels, 17, node.y + 8, Infinity)) {
        svg.append(label(node.x + bar + 8, y, clip(text, last ? right - 24 : 240), last ? null : "halo"));
      }
    }
    return top + height + 6;
  });
}

function flowTable(models) {
  const { figures, flows } = measured();
  const rows = [];
  for (const name of models) {
    if (figures.flow[name]) {
      const live = origins(name).reduce((sum, [, size]) => sum + size, 0);
      for (const link of flows[name]) rows.push({ to: name, from: link.source, what: originLabel(link.origin, name), size: link.count, live, note: count(link.shared) });
      rows.push({ to: name, from: "nowhere", what: "novel", size: figures.flow[name].novel, live, note: "–" });
      continue;
    }
    for (const parent of NODE[name].parents) {
      const edge = figures.edges[`${parent}->${name}`];
      if (!edge) continue;
      rows.push({ to: name, from: parent, what: "inherited", size: edge.child_live - edge.emerge, live: edge.child_live, note: "–" });
      rows.push({ to: name, from: "nowhere", what: `emerged in ${name}`, size: edge.emerge, live: edge.child_live, note: "–" });
    }
  }
  return table([["into", "to", TEXT], ["from", "from", TEXT], ["origin", "what", TEXT], ["features", (row) => count(row.size)],
    ["of its live features", (row) => share(row.size, row.live)], ["through another parent, too", "note"]], rows, { label: "Flow of features", fit: true });
}
