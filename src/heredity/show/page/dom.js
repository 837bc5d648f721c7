// Data, elements, text and the tooltip. Text reaches the page through text nodes only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GRAPH = DATA.graph;
const NODE = Object.fromEntries(GRAPH.map((node) => [node.name, node]));
/** Chosen by the reader. A threshold of null leaves every edge at its own. */
const state = { instrument: DATA.instruments[0] || "", site: DATA.sites[0], threshold: null };

/** What a page adds that is served: sections, each with id, title and build. */
const MORE = [];

const known = (value) => value !== null && value !== undefined;
const arrow = (text) => `${text}`.replaceAll("->", " → ");
const spaced = (name) => name.replaceAll("_", " ");

/** Rows of a table, of the chosen instrument and site unless given; `at` is a row's place. */
function rowsOf(name, where = {}) {
  const table = DATA.tables[name];
  if (!table) return [];
  const names = Object.keys(table.values);
  table.objects ||= Array.from({ length: table.rows }, (_, at) => {
    const row = { at };
    for (const column of names) row[column] = table.values[column][at];
    return row;
  });
  const { instrument, site } = state;
  const wanted = { instrument, ...(table.plot?.by === "site" ? {} : { site }), ...where };
  const pairs = Object.entries(wanted).filter(([column]) => table.values[column]);
  return table.objects.filter((row) => pairs.every(([column, value]) => row[column] === value));
}
/** A cell as text, written by the one formatter of the package. */
const textOf = (table, column, row) => `${table.text[column]?.[row.at] ?? row[column] ?? ""}`;

const isSvg = new Set(["svg", "g", "path", "rect", "line", "circle", "text", "title"]);
/** An element with attributes, listeners (`onclick`) and children (strings become text). */
function h(tag, attributes, ...children) {
  const element = isSvg.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (!known(value) || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, part] of Object.entries(value)) element.style.setProperty(name, part);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => known(child) && child !== "" && child !== false));
  return element;
}
const note = (...text) => h("p", { class: "note" }, text);
const lede = (...text) => h("p", { class: "lede" }, text);
const folded = (title, ...content) => h("details", null, h("summary", null, title), content);

/** Parts of drawings. */
const line = (x1, y1, x2, y2, more) => h("line", { x1, y1, x2, y2, ...more });
const rect = (x, y, width, height, fill, more) =>
  h("rect", { x, y, width: Math.max(0, width), height: Math.max(0, height), fill, ...more });
const label = (x, y, text, look, anchor, fill) =>
  h("text", { x, y, class: look, "text-anchor": anchor, style: fill ? { fill } : null }, text);
const stroke = (d, tint, width, dash) =>
  h("path", { d, fill: "none", stroke: tint, "stroke-width": width, "stroke-dasharray": dash });
const clip = (text, width, size = 6.6) =>
  text.length * size <= width ? text : `${text.slice(0, Math.max(1, Math.floor(width / size) - 1))}…`;

/** Figures that the page computes itself: ticks of axes, sums of the flow, counts at the slider. */
const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : "–");
const fixed = (value, digits = 2) => (known(value) ? value.toFixed(digits).replace("-", "−") : "–");
function percent(share, digits) {
  if (!known(share) || !isFinite(share)) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.1 && digits === undefined) return "<\u202f0.1\u202f%";
  return `${value.toFixed(digits ?? (value > 0 && value < 10 ? 1 : 0))}\u202f%`;
}
const share = (part, whole) => (whole ? percent(part / whole) : "–");
function rate(value) {
  if (!known(value)) return "–";
  return value >= 0.01 || value === 0 ? percent(value, 1) : `${(1e4 * value).toPrecision(2)} in 10,000`;
}
const UNITS = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
function compact(value) {
  const [size, unit] = UNITS.find(([least]) => Math.abs(value) >= least) || [1, ""];
  return `${+(value / size).toPrecision(3)}${unit}`.replace("-", "−");
}

/** The color of a model, the same on the whole page: starts, merges and all other models apart while colors last. */
const STARTS = GRAPH.filter((node) => !node.parents.length && !node.recipe_of).map((node) => node.name);
const COLORED = GRAPH.filter((node) => (node.parents.length ? node.parents.length === 1 : STARTS.length > 1));
function color(model) {
  const place = COLORED.findIndex((node) => node.name === model);
  if (place >= 0) return `var(--c${1 + (place % 5)})`;
  return NODE[model].parents.length ? "var(--both)" : "var(--c0)";
}
/** Sentences made elsewhere: a figure and its percent sign stay on one line. */
const bound = (text) => arrow(text).replaceAll(" %", "\u202f%").replace(/(\d) of (?=\d)/g, "$1\u00a0of ")
  .replace(/r > (?=\d)/g, "r\u00a0>\u00a0").replace(/(\d)–(?=\d)/g, "$1\u2060–\u2060");

/** Buttons of which one is pressed. options: [text, value]. */
function choice(options, current, choose, name) {
  const mark = () => buttons.forEach((button, at) => button.setAttribute("aria-pressed", options[at][1] === current()));
  const buttons = options.map(([text, value]) =>
    h("button", { type: "button", onclick: () => (choose(value), mark()) }, text));
  mark();
  return h("div", { class: "choice", role: "group", "aria-label": name }, buttons);
}

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
function hint(text, enter, leave, role = "img") {
  const off = () => (hideTip(), leave && leave());
  return {
    tabindex: 0,
    role,
    "aria-label": role ? text.replaceAll("\n", "; ") : null,
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
/** One stop of the tab key for all marks of a chart; arrow keys, Home and End move between them. */
function roving(marks) {
  marks.forEach((mark, place) => {
    mark.setAttribute("tabindex", place ? -1 : 0);
    mark.addEventListener("keydown", (event) => {
      const ends = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1 };
      const next = marks[{ ...ends, Home: 0, End: marks.length - 1 }[event.key]];
      if (!next) return;
      event.preventDefault();
      marks.forEach((other) => other.setAttribute("tabindex", other === next ? 0 : -1));
      next.focus();
    });
  });
  return marks;
}
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.addEventListener("scroll", hideTip, { passive: true });
