/** The layout of models and what goes between them, by d3-sankey: bands with a width of their own at either end. */
import { sankey, type SankeyGraph } from "d3-sankey";
import { NODE } from "./data";
import { short } from "./format";

export interface LineageNode {
  name: string;
  /** Height of the bar, in features. */
  size: number;
  /** Parts of the bar from the top: color and size; what is left is drawn pale. */
  parts: { tint: string; size: number; words: string }[];
  title: string;
  words: string;
  href?: string;
}
/** What goes from one model to another. A band without a target ends after its source: lost; without a source: new. */
export interface Band {
  id: string;
  source: string | null;
  target: string | null;
  sourceSize: number;
  targetSize: number;
  tint: string;
  words: string;
  href?: string;
  /** Written on the band where there is room. */
  label?: string;
  /** Drawn paler. */
  faint?: boolean;
}
export interface PlacedNode extends LineageNode {
  x: number;
  y: number;
  height: number;
  /** How its words stand to the bar, and where they begin, middle or end. */
  anchor: "start" | "middle" | "end";
  middle: number;
}
export interface PlacedBand extends Band {
  path: string;
  x: number;
  y: number;
  thick: number;
  fades: "" | "out" | "in";
  /** The upper edge of one that goes from model to model: from where to where. */
  edge?: { x0: number; y0: number; x1: number; y1: number };
}

const depths = new Map<string, number>();
/** Steps from a model without parents. */
export function depthOf(name: string): number {
  if (!depths.has(name)) {
    const parents = NODE[name].parents.filter((parent) => NODE[parent]);
    const before = [...parents, ...(NODE[name].recipe_of && NODE[NODE[name].recipe_of] ? [NODE[name].recipe_of] : [])];
    depths.set(name, before.length ? 1 + Math.max(...before.map(depthOf)) : 0);
  }
  return depths.get(name)!;
}

export const BAR = 13;
/** Height of a line of the words above a bar, and of what stands there besides. */
export const LINE = 16;
const [NAME, STUB] = [26, 74];
/** Height of the words above a bar that take some lines. */
export const above = (lines: number): number => NAME + LINE * lines;
/** A text in lines of so many characters, at its blanks; what is longer than a line is cut. */
export function lined(text: string, most: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= most) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(short(word, most));
  }
  return lines;
}

interface Node {
  name: string;
  fixedValue: number;
}
interface Link {
  source: string;
  target: string;
  value: number;
}

/** lines: of the words above each bar, at most. */
export function placed(nodes: LineageNode[], bands: Band[], width: number, height: number, lines: number): { nodes: PlacedNode[]; bands: PlacedBand[]; height: number } {
  const through = bands.filter((band): band is Band & { source: string; target: string } => Boolean(band.source && band.target));
  const pairs = new Map<string, Link>();
  for (const { source, target, sourceSize, targetSize } of through) {
    const key = `${source}\n${target}`;
    const link = pairs.get(key) ?? { source, target, value: 0 };
    link.value += (sourceSize + targetSize) / 2;
    pairs.set(key, link);
  }
  const levels = [...new Set(nodes.map(({ name }) => depthOf(name)))].sort((a, b) => a - b);
  const most = Math.max(...levels.map((level) => nodes.filter(({ name }) => depthOf(name) === level).length), 1);
  const [top, gap] = [above(lines) + 8, above(lines) + 20];
  const tall = Math.max(height, most * (gap + 40) + top);
  const layout = sankey<Node, Link>().nodeId((node) => node.name).nodeWidth(BAR).nodePadding(gap)
    .nodeAlign((node) => levels.indexOf(depthOf((node as unknown as Node).name)))
    .extent([[1, top], [width - 1, tall - 8]]);
  const graph: SankeyGraph<Node, Link> = layout({
    nodes: nodes.map(({ name, size }) => ({ name, fixedValue: Math.max(size, 1e-9) })),
    links: [...pairs.values()].map((link) => ({ ...link })),
  });
  const found = new Map(graph.nodes.map((node) => [node.name, node]));
  const unit = Math.min(...graph.nodes.filter((node) => node.fixedValue! > 1e-6).map((node) => (node.y1! - node.y0!) / node.fixedValue!));
  const put = nodes.map((node) => {
    const at = found.get(node.name)!;
    const level = levels.indexOf(depthOf(node.name));
    const [first, last] = [level === 0, level === levels.length - 1 && level > 0];
    const anchor = first ? "start" as const : last ? "end" as const : "middle" as const;
    return { ...node, x: at.x0!, y: at.y0!, height: at.y1! - at.y0!, anchor, middle: at.x0! + (first ? 0 : last ? BAR : BAR / 2) };
  });
  return { nodes: put, bands: ribbons(put, bands, unit), height: tall };
}

function ribbons(nodes: PlacedNode[], bands: Band[], unit: number): PlacedBand[] {
  const node = new Map(nodes.map((one) => [one.name, one]));
  const middle = (name: string | null, otherwise: number): number => {
    const one = name && node.get(name);
    return one ? one.y + one.height / 2 : otherwise;
  };
  const starts = new Map<Band, number>();
  const ends = new Map<Band, number>();
  for (const one of nodes) {
    // by where the other end is; what has none is lowest
    const out = bands.filter((band) => band.source === one.name).sort((a, b) => middle(a.target, Infinity) - middle(b.target, Infinity) || 0);
    let y = one.y;
    for (const band of out) {
      starts.set(band, y);
      y += band.sourceSize * unit;
    }
    y = one.y;
    const into = bands.filter((band) => band.target === one.name).sort((a, b) => middle(a.source, Infinity) - middle(b.source, Infinity) || 0);
    for (const band of into) {
      ends.set(band, y);
      y += band.targetSize * unit;
    }
  }
  return bands.filter((band) => node.has(band.source ?? "") || node.has(band.target ?? "")).map((band) => {
    const [source, target] = [node.get(band.source ?? ""), node.get(band.target ?? "")];
    const [a, b] = [band.sourceSize * unit, band.targetSize * unit];
    if (source && target) {
      const [x0, x1, y0, y1] = [source.x + BAR, target.x, starts.get(band)!, ends.get(band)!];
      const bend = (x0 + x1) / 2;
      const path = `M${x0},${y0}C${bend},${y0} ${bend},${y1} ${x1},${y1}V${y1 + b}C${bend},${y1 + b} ${bend},${y0 + a} ${x0},${y0 + a}Z`;
      return { ...band, path, x: bend, y: (y0 + y1 + (a + b) / 2) / 2, thick: Math.min(a, b), fades: "", edge: { x0, y0, x1, y1 } };
    }
    const own = source ? { x: source.x + BAR, y: starts.get(band)!, size: a } : { x: target!.x - STUB, y: ends.get(band)!, size: b };
    const path = `M${own.x},${own.y}h${STUB}v${Math.max(own.size, 0.5)}h${-STUB}Z`;
    return { ...band, path, x: own.x + STUB / 2, y: own.y + own.size / 2, thick: own.size, fades: source ? "out" : "in" };
  });
}

/** How far words of some width above a bar rise, so that no band of it which climbs runs through them; no further than
 * to the bar above. */
export function lift(node: PlacedNode, drawn: { nodes: PlacedNode[]; bands: PlacedBand[] }, width: number, lines: number): number {
  const left = node.middle - { start: 0, middle: width / 2, end: width }[node.anchor];
  let top = node.y;
  for (const { edge } of drawn.bands.filter((band) => [band.source, band.target].includes(node.name))) {
    for (let t = 0; edge && t <= 1; t += 0.02) {
      const x = edge.x0 + (edge.x1 - edge.x0) * (1.5 * t - 1.5 * t * t + t ** 3); // as the path bends
      if (x >= left && x <= left + width) top = Math.min(top, edge.y0 + (edge.y1 - edge.y0) * (3 * t * t - 2 * t ** 3));
    }
  }
  const upper = drawn.nodes.filter((one) => one.x === node.x && one.y < node.y).map((one) => one.y + one.height);
  return Math.max(0, Math.min(node.y - top, node.y - above(lines) - Math.max(0, ...upper)));
}

/** Bands and models that a band or a model hangs together with: all it comes from, and all that comes of it. */
export function related(bands: Band[], of: { band?: Band; model?: string }): { bands: Set<string>; models: Set<string> } {
  const found = { bands: new Set<string>(), models: new Set<string>() };
  const up = (model: string): void => {
    found.models.add(model);
    for (const band of bands.filter((one) => one.target === model)) {
      found.bands.add(band.id);
      if (band.source && !found.models.has(band.source)) up(band.source);
    }
  };
  const down = (model: string, seen = new Set<string>()): void => {
    found.models.add(model);
    seen.add(model);
    for (const band of bands.filter((one) => one.source === model)) {
      found.bands.add(band.id);
      if (band.target && !seen.has(band.target)) down(band.target, seen);
    }
  };
  if (of.model) {
    up(of.model);
    down(of.model);
  }
  if (of.band) {
    if (of.band.source) up(of.band.source);
    if (of.band.target) down(of.band.target);
    found.bands.add(of.band.id);
  }
  return found;
}
