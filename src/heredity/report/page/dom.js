// Elements, numbers and the tooltip. Text reaches the page through text nodes only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const VIEW = DATA.view;
const SUMMARY = VIEW.summary;
const GRAPH = VIEW.graph;
const NODE = Object.fromEntries(GRAPH.map((node) => [node.name, node]));
/** A threshold of null leaves every edge at its own. */
const state = { init: SUMMARY.instrument, threshold: null };

const isSvg = new Set(["svg", "g", "path", "rect", "line", "circle", "text", "title"]);

/** An element with attributes, listeners (`onclick`) and children (strings become text). */
function h(tag, attributes, ...children) {
  const element = isSvg.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, part] of Object.entries(value)) element.style.setProperty(name, part);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Parts of drawings. */
const line = (x1, y1, x2, y2, more) => h("line", { x1, y1, x2, y2, ...more });
const rect = (x, y, width, height, fill, more) => h("rect", { x, y, width: Math.max(0, width), height: Math.max(0, height), fill, ...more });
const label = (x, y, text, look, anchor, fill) => h("text", { x, y, class: look, "text-anchor": anchor, style: fill ? { fill } : null }, text);
const stroke = (d, tint, width, dash) => h("path", { d, fill: "none", stroke: tint, "stroke-width": width, "stroke-dasharray": dash });

const known = (value) => value !== null && value !== undefined;
const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : "–");
const fixed = (value, digits = 2) => (known(value) ? value.toFixed(digits).replace("-", "−") : "–");
function percent(share, digits) {
  if (!known(share) || !isFinite(share)) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.1 && digits === undefined) return "<\u202f0.1\u202f%";
  return `${value.toFixed(digits ?? (value > 0 && value < 10 ? 1 : 0))}\u202f%`;
}
/** An interval of counts or, with `shares`, of shares. */
const range = (ends) => (ends?.every(known) ? `[${count(ends[0])}–${count(ends[1])}]` : "");
const shares = (ends) => (ends?.every(known) ? `[${percent(ends[0], 1).replace(/\s*%$/, "")}–${percent(ends[1], 1)}]` : "");
const share = (part, whole) => (whole ? percent(part / whole) : "–");
function rate(value) {
  if (!known(value)) return "–";
  return value >= 0.01 || value === 0 ? percent(value, 1) : `${(1e4 * value).toPrecision(2)} in 10,000`;
}
function compact(value) {
  if (!value) return "–";
  const unit = [[1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size) || [1, ""];
  return `${+(value / unit[0]).toPrecision(3)}${unit[1]}`;
}

/** The summary's figures of an init. */
const figuresOf = (init) => (init === SUMMARY.instrument ? SUMMARY : SUMMARY.also[init]);
/** What was measured for the chosen init: the summary's figures and the distributions drawn. */
function measured() {
  return { ...VIEW.measured[state.init], figures: figuresOf(state.init) };
}

/** The threshold that counts along an edge: the slider's, or else the edge's own. */
const cutOf = (figures) => state.threshold ?? figures.threshold;
/** The study's threshold between two models, in whichever direction the edge runs. */
function thresholdBetween(a, b) {
  const edge = SUMMARY.edges[`${a}->${b}`] || SUMMARY.edges[`${b}->${a}`];
  return edge ? edge.threshold : null;
}

/** The color of a model, the same on the whole page: start, merges and every other model apart while colors last. */
const STARTS = GRAPH.filter((node) => !node.parents.length).map((node) => node.name);
const COLORED = GRAPH.filter((node) => (node.parents.length ? node.parents.length === 1 : STARTS.length > 1)).map((node) => node.name);
function color(model) {
  const place = COLORED.indexOf(model);
  return place >= 0 ? `var(--c${1 + (place % 5)})` : NODE[model].parents.length ? "var(--both)" : "var(--c0)";
}
/** Sentences made elsewhere: a figure and its percent sign stay on one line. */
const bound = (text) => text.replaceAll(" %", "\u202f%").replace(/(\d) (of|=) (?=\d)/g, "$1\u00a0$2 ").replace(/r > (?=\d)/g, "r\u00a0>\u00a0").replace(/(\d)–(?=\d)/g, "$1\u2060–\u2060");
const arrow = (edge) => edge.replace("->", " → ");

/** A table; columns are [title, key or function, options], rows anything. */
function table(columns, rows, options = {}) {
  const cell = (tag, value, column) =>
    h(tag, { class: column[2]?.text ? column[2].class : "n", scope: tag === "th" ? column[2]?.scope || "col" : null }, value);
  const body = rows.map((row) =>
    h("tr", { class: row.quiet ? "quiet" : null },
      columns.map((column, place) => {
        const value = typeof column[1] === "function" ? column[1](row) : row[column[1]];
        return place || options.plain ? cell("td", value, column) : h("th", { scope: "row" }, value);
      })));
  const head = columns.map((column, place) => cell("th", column[0], place ? column : [0, 0, { text: true }]));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.label || "table" },
    h("table", { class: options.fit ? "fit" : options.tight ? "tight" : null },
      options.caption ? h("caption", null, options.caption) : null,
      h("thead", null, h("tr", null, head)), h("tbody", null, body)));
}
const TEXT = { text: true };

/** Something folded away. */
const folded = (title, ...content) => h("details", null, h("summary", null, title), content);

const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 12, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(6, y - box.height - 12) : y + 18}px`;
}
function hideTip() {
  tip.hidden = true;
}
/** Attributes that show `text` while the pointer or the focus is on an element. */
function hint(text, enter, leave) {
  const off = () => (hideTip(), leave && leave());
  return {
    tabindex: 0,
    role: "img",
    "aria-label": text.replaceAll("\n", "; "),
    onpointermove: (event) => (showTip(text, event.clientX, event.clientY), enter && enter()),
    onpointerleave: off,
    onfocus: (event) => {
      const box = event.target.getBoundingClientRect();
      showTip(text, box.left + box.width / 2, box.top + box.height / 2);
      if (enter) enter();
    },
    onblur: off,
  };
}
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.addEventListener("scroll", hideTip, { passive: true });
