// Charts: a figure that draws itself anew when its width changes, with scales and axes.
const charts = new Set();
const watch = new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach(({ target }) => target.redraw())));

/** A figure; draw(svg, width) -> height. `title` is what a screen reader says of it. */
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
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n++) found.push(+(n * step).toPrecision(12));
  return found;
}

/** Axes with gridlines. box = {left, right, top, bottom} in pixels. */
function axes(svg, box, x, y) {
  for (const value of y.ticks) {
    const at = y.scale(value);
    svg.append(line(box.left, at, box.right, at, { class: "gridline" }), label(box.left - 8, at + 4, y.format(value), "soft", "end"));
  }
  svg.append(line(box.left, box.bottom, box.right, box.bottom, { class: "axis" }));
  for (const value of x.ticks) {
    const at = x.scale(value);
    svg.append(line(at, box.bottom, at, box.bottom + 4, { class: "axis" }), label(at, box.bottom + 17, x.format(value), "soft", "middle"));
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
/** A closed band between two lines of points. */
const band = (upper, lower) => `${path(upper)}L${path([...lower].reverse()).slice(1)}Z`;

/** Move labels [{y, ...}] apart so that none overlaps, keeping their order; stays between low and high. */
function spread(labels, gap, low, high) {
  const sorted = labels.sort((a, b) => a.y - b.y);
  sorted.forEach((one, place) => (one.y = Math.max(one.y, place ? sorted[place - 1].y + gap : low)));
  for (let place = sorted.length - 1; place >= 0; place--) {
    const limit = place === sorted.length - 1 ? high : sorted[place + 1].y - gap;
    sorted[place].y = Math.min(sorted[place].y, limit);
  }
  return sorted;
}

/** items: [color, text, bold text, line style]. */
function legend(items) {
  return h("ul", { class: "legend" }, items.map(([tint, text, strong, dash]) =>
    h("li", null, h("i", { class: dash ? `line ${dash}` : null, style: dash ? { "border-color": tint } : { background: tint } }),
      text, strong ? [" ", h("b", null, strong)] : null)));
}
