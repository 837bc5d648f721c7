/** What a reader takes along, made in the page: rows as CSV or JSON, pictures as SVG or PNG. */
import { address } from "./address.svelte";
import { DATA } from "./data";
import { arrow, SAES, siteName, spaced } from "./format";

export type Cells = Record<string, unknown>;

/** A cell that begins as a formula does gets a quote of its own, so that a spreadsheet takes it for text. */
function cell(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number" || typeof value === "boolean") return `${value}`;
  return `"${`${value}`.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
}
export function csv(rows: Cells[]): string {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [names.map(cell), ...rows.map((row) => names.map((name) => cell(row[name])))];
  return lines.map((line) => line.join(",")).join("\r\n");
}

const ENDS: Record<string, string> = { "text/csv": ".csv", "application/json": ".json", "application/toml": ".toml", "image/svg+xml": ".svg", "image/png": ".png" };
export function save(name: string, content: Blob | string, type = "text/plain"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(typeof content === "string" ? new Blob([content], { type: `${type};charset=utf-8` }) : content);
  link.download = `${DATA.study}-${name.toLowerCase().replace(/[^\p{L}\p{N}_]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60)}`
    + ENDS[typeof content === "string" ? type : content.type];
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const OWN = ["at", "table", "part", "sort", "down", "sae", "site"]; // in the address, but of no figure
/** Where the reader is and what they chose, in words. */
export function chosen(): string {
  const { instrument, site, params } = address;
  return [
    DATA.study,
    DATA.instruments.length > 1 && `SAEs ${SAES[instrument] ?? instrument}`,
    DATA.sites.length > 0 && siteName(site),
    ...Object.entries(params).filter(([name]) => !OWN.includes(name)).map(([name, value]) => arrow(`${spaced(name)} ${value}`)),
  ].filter(Boolean).join(" · ");
}

const dot = document.createElement("canvas").getContext("2d", { willReadFrequently: true })!;
[dot.canvas.width, dot.canvas.height] = [1, 1];
/** A color as every program reads it: mixes of style sheets come out as they are painted. */
function painted(color: string): string {
  if (!/^(color|oklab|oklch|lab|lch)\(/.test(color)) return color;
  dot.clearRect(0, 0, 1, 1);
  dot.fillStyle = color;
  dot.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
  return a === 255 ? `rgb(${r}, ${g}, ${b})` : `rgba(${r}, ${g}, ${b}, ${(a / 255).toFixed(3)})`;
}

/** Properties that a picture takes from style sheets, with what they are anyway. */
const PLAIN: Record<string, string> = {
  fill: "rgb(0, 0, 0)", "fill-opacity": "1", stroke: "none", "stroke-opacity": "1", "stroke-width": "1px", "stroke-dasharray": "none", "stroke-linejoin": "miter",
  "stroke-linecap": "butt", opacity: "1", "font-size": "", "font-weight": "400", "text-anchor": "start", "dominant-baseline": "auto", "paint-order": "normal",
  "stop-color": "rgb(0, 0, 0)", "stop-opacity": "1", visibility: "visible",
};
const INHERITED = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "font-size", "font-weight",
  "text-anchor", "paint-order", "visibility"];
const SVG = "http://www.w3.org/2000/svg";

/** A copy of a drawn element that needs no style sheet: colors computed, links and tips left out. */
function bare(from: Element, above: Record<string, string>): Element | null {
  const tag = from.localName;
  if (["style", "title", "foreignObject"].includes(tag) || from.getAttribute("aria-label") === "tip") return null;
  const style = getComputedStyle(from);
  if (style.display === "none") return null;
  const copy = document.createElementNS(SVG, tag === "a" ? "g" : tag);
  for (const { name, value } of from.attributes) {
    if (!/^(on|aria-|class$|style$|role$|tabindex$|href$|xlink|data-|target$)/.test(name) && !(name in PLAIN)) copy.setAttribute(name, value);
  }
  const own = { ...above };
  for (const name of Object.keys(PLAIN)) {
    if (name.startsWith("stop-") && tag !== "stop") continue;
    // the browser answers with an address of this page for a fill by a gradient of the picture
    const value = painted(style.getPropertyValue(name)).replace(/url\("[^"]*#([^"]+)"\)/, "url(#$1)");
    const inherits = INHERITED.includes(name);
    if (value && value !== (inherits ? (above[name] ?? PLAIN[name]) : PLAIN[name])) copy.setAttribute(name, value);
    if (inherits && value) own[name] = value;
  }
  for (const child of from.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(child.textContent ?? "");
    else if (child instanceof Element) {
      const made = bare(child, own);
      if (made) copy.append(made);
    }
  }
  return copy;
}

interface Entry {
  text: string;
  tint: string;
  line: boolean;
  dash: boolean;
}
function legendOf(list: Element | null): Entry[] {
  if (!list?.matches(".legend")) return [];
  return [...list.querySelectorAll("li")].map((item) => {
    const mark = item.querySelector("i");
    const style = mark && getComputedStyle(mark);
    const line = Boolean(mark?.classList.contains("line"));
    return { text: (item.textContent ?? "").trim().replace(/\s+/g, " "), line, dash: style?.borderTopStyle === "dashed",
      tint: !style ? "" : line ? style.borderTopColor : style.backgroundColor };
  });
}
/** Lines of a text that fit a width, by the mean width of letters. */
function wrapped(text: string, width: number, size: number): string[] {
  const most = Math.max(20, Math.floor(width / (0.54 * size)));
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines[lines.length - 1] && lines[lines.length - 1].length + word.length >= most) lines.push("");
    lines[lines.length - 1] += `${lines[lines.length - 1] ? " " : ""}${word}`;
  }
  return lines;
}

/** A shaded table as a picture: its cells where they stand, each with its color and its words. */
function tabled(table: HTMLTableElement): SVGSVGElement {
  const box = table.getBoundingClientRect();
  const made = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["width", box.width], ["height", box.height], ["viewBox", `0 0 ${box.width} ${box.height}`]]) made.setAttribute(`${name}`, `${value}`);
  for (const cell of table.querySelectorAll<HTMLElement>("th, td")) {
    const at = cell.getBoundingClientRect();
    const style = getComputedStyle(cell);
    if (!/, 0\)$|transparent/.test(style.backgroundColor)) {
      const rect = document.createElementNS(SVG, "rect");
      for (const [name, value] of [["x", at.x - box.x], ["y", at.y - box.y], ["width", at.width], ["height", at.height], ["rx", 6], ["fill", painted(style.backgroundColor)]]) rect.setAttribute(`${name}`, `${value}`);
      made.append(rect);
    }
    const range = document.createRange();
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      if (!node.textContent?.trim()) continue;
      range.selectNodeContents(node);
      const place = range.getBoundingClientRect();
      const own = getComputedStyle(node.parentElement!);
      const text = document.createElementNS(SVG, "text");
      for (const [name, value] of [["x", place.x - box.x], ["y", place.bottom - box.y - 0.24 * place.height], ["font-size", parseFloat(own.fontSize)], ["font-weight", own.fontWeight], ["fill", painted(own.color)]]) text.setAttribute(`${name}`, `${value}`);
      text.textContent = node.textContent.trim();
      made.append(text);
    }
  }
  return made;
}

/** The title of a picture without what it says of the page around it. */
export const named = (title: string): string => title.replace(/[;,]? the tables? (above |below )?holds? .*$/i, "").replace(/\. *$/, "");

/** The picture in an element as a file of its own, under its title and what was chosen. */
export function picture(host: Element, name: string): { svg: string; width: number; height: number } | null {
  const title = named(name);
  const table = host instanceof HTMLTableElement ? tabled(host) : null;
  const drawn = table ?? host.querySelector("svg");
  if (!drawn) return null;
  const box = drawn.viewBox.baseVal;
  const [wide, high] = box && box.width ? [box.width, box.height] : [drawn.clientWidth, drawn.clientHeight];
  const root = getComputedStyle(document.documentElement);
  const [ink, soft, card] = ["--ink", "--soft", "--card"].map((name) => root.getPropertyValue(name).trim());
  const PAD = 24;
  const width = wide + 2 * PAD;
  const made = document.createElementNS(SVG, "svg");
  const add = (parent: Element, tag: string, values: Record<string, string | number>, text = ""): Element => {
    const one = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(values)) one.setAttribute(name, `${value}`);
    one.textContent = text;
    parent.append(one);
    return one;
  };
  const back = add(made, "rect", { width: "100%", height: "100%", fill: card });
  let y = PAD + 12;
  for (const line of wrapped(title, wide, 15)) {
    add(made, "text", { x: PAD, y, fill: ink, "font-size": 15, "font-weight": 600 }, line);
    y += 20;
  }
  for (const line of wrapped(chosen(), wide, 12)) {
    add(made, "text", { x: PAD, y, fill: soft, "font-size": 12 }, line);
    y += 16;
  }
  y += 14;
  const copy = table ?? bare(drawn, {})!;
  for (const [name, value] of Object.entries({ x: PAD, y, width: wide, height: high, overflow: "visible" })) copy.setAttribute(name, `${value}`);
  made.append(copy);
  y += high + 22;
  let x = PAD;
  for (const { text, tint, line, dash } of legendOf(host.closest("figure")?.nextElementSibling ?? null)) {
    const size = 12.5 * 0.56 * text.length + (tint ? 24 : 0);
    if (x > PAD && x + size > width - PAD) {
      x = PAD;
      y += 20;
    }
    if (line) add(made, "line", { x1: x, x2: x + 16, y1: y - 4, y2: y - 4, stroke: tint, "stroke-width": 2.5, ...(dash ? { "stroke-dasharray": "4 3" } : {}) });
    else if (tint) add(made, "rect", { x, y: y - 10, width: 11, height: 11, rx: 3, fill: tint });
    add(made, "text", { x: x + (tint ? 22 : 0), y, fill: soft, "font-size": 12.5 }, text);
    x += size + 18;
  }
  const height = Math.ceil(y + (x > PAD ? 18 : 2));
  for (const [name, value] of Object.entries({ xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}`, "font-family": getComputedStyle(document.body).fontFamily })) {
    made.setAttribute(name, `${value}`);
  }
  back.setAttribute("height", `${height}`);
  add(made, "title", {}, `${title}. ${chosen()}`);
  return { svg: new XMLSerializer().serializeToString(made), width, height };
}
/** The same drawn at twice its size. Rejects where the browser cannot draw it. */
export async function pixels({ svg, width, height }: { svg: string; width: number; height: number }): Promise<Blob> {
  const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    await new Promise((done, fail) => {
      image.onload = done;
      image.onerror = () => fail(new Error("the browser cannot draw it"));
      image.src = address;
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("the browser gave no picture"))), "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}
