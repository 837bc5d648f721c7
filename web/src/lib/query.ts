/** Which features fit: one pass over all of them, with the counts of every filter as the others stand. */
import type { Columns, ModelColumns } from "./features";
import { originOf, waysOf } from "./flow";

export interface Filter {
  model?: string;
  edge?: string;
  verdict?: string;
  /** Of the best match along the edge: above or not above `threshold` (or the edge's own). */
  fate?: "match" | "none";
  threshold?: number;
  /** Where it is first found, as *Flow* has it, and along `edge` if there is one; and whether it has a match in no child. */
  origin?: string;
  to?: "nowhere";
  /** Of these two: matches are each other's best. */
  mutual?: boolean;
  kind?: string;
  domain?: string;
  density: [number | null, number | null];
  score: [number | null, number | null];
  /** Exactly a token, or a pattern of tokens. */
  token?: string;
  /** All in the explanation, or a pattern of it. */
  words?: string;
}
export interface Found {
  /** Numbers of features that fit: place in its site's columns, plus the site's start. */
  rows: Int32Array;
  total: number;
  counts: Record<"model" | "edge" | "verdict" | "kind" | "domain" | "fate", Map<string, number>>;
}
export interface Sites {
  columns: Columns;
  start: number;
}
export const stacked = (all: Columns[]): Sites[] => {
  let start = 0;
  return all.map((columns) => {
    const one = { columns, start };
    start += columns.size;
    return one;
  });
};
/** The feature of a number. */
export function featureOf(sites: Sites[], number: number) {
  let site = sites.length - 1;
  while (site > 0 && sites[site].start > number) site--;
  const { columns, start } = sites[site];
  const at = number - start;
  let place = columns.models.length - 1;
  while (place > 0 && columns.models[place].first > at) place--;
  const model = columns.models[place];
  return { columns, model, feature: at - model.first };
}

/** What is written as `/pattern/`, whatever its case; null for anything else. Groups that repeat are none: an address may
 * come from anywhere, and such patterns can take for ever. */
export function patternOf(text: string): RegExp | null {
  const written = /^\/(.+)\/$/s.exec(text)?.[1];
  if (!written || /\)[*+{]/.test(written)) return null;
  try {
    return new RegExp(written, "iu");
  } catch {
    return null;
  }
}
/** Which tokens are looked for, by number; null where none are. */
function tokensOf(texts: string[], token: string | undefined): Uint8Array | null {
  if (token === undefined) return null;
  const pattern = texts.includes(token) ? null : patternOf(token);
  return Uint8Array.from(texts, (text) => +(pattern ? pattern.test(text) : text === token));
}

const FACETS = ["model", "edge", "verdict", "kind", "domain", "fate"] as const;
const [MODEL, EDGE, VERDICT, KIND, DOMAIN, FATE, OTHER] = [1, 2, 4, 8, 16, 32, 64];

export function select(sites: Sites[], filter: Filter): Found {
  const counts = Object.fromEntries(FACETS.map((name) => [name, new Map<string, number>()])) as Found["counts"];
  const add = (name: (typeof FACETS)[number], value: string, more: number): void => {
    if (more) counts[name].set(value, (counts[name].get(value) ?? 0) + more);
  };
  const rows = new Int32Array(sites.reduce((sum, { columns }) => sum + columns.size, 0));
  const pattern = patternOf(filter.words ?? "");
  const words = pattern ? [] : (filter.words ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const codeOf = (texts: string[], text: string | undefined): number => (text === undefined ? -2 : texts.indexOf(text));
  const [least, most] = [filter.density[0] ?? -1, filter.density[1] ?? 2];
  const [lowest, highest] = filter.score;
  const scored = lowest !== null || highest !== null;
  let total = 0;
  for (const { columns, start } of sites) {
    const { raw, none } = columns;
    const [kind, domain] = [codeOf(raw.classes, filter.kind), codeOf(raw.domains, filter.domain)];
    const tokens = tokensOf(raw.tokens, filter.token);
    const verdict = codeOf(raw.verdicts, filter.verdict);
    // by code, the last of them for what is not known
    const [kinds, domains] = [new Int32Array(raw.classes.length + 1), new Int32Array(raw.domains.length + 1)];
    const verdicts = new Int32Array(raw.verdicts.length);
    const fates = new Int32Array(4); // bits: has a match, has none
    for (const model of columns.models) {
      const ends = columns.endsOf(model.name);
      const chosen = ends.filter(({ edge }) => filter.edge === undefined || edge.edge === filter.edge);
      const [codes, rs] = [chosen.map(({ end }) => end.verdict), chosen.map(({ end }) => end.r)];
      const cuts = chosen.map(({ edge }) => columns.cut(filter.threshold ?? edge.threshold));
      const never = (filter.model === undefined || filter.model === model.name ? 0 : MODEL) | (filter.edge === undefined || chosen.length ? 0 : EDGE);
      const wanted = filter.fate === undefined ? 0 : filter.fate === "match" ? 1 : 2;
      const ways = filter.origin === undefined && !filter.to ? null : waysOf(columns, model.name, model.size, filter.threshold ?? null, !!filter.mutual);
      const way = ways && filter.edge !== undefined ? 1 << ways.into.findIndex(({ edge }) => edge === filter.edge) : 0;
      let ofModel = 0;
      let ofEdge = 0;
      for (let feature = 0; feature < model.size; feature++) {
        let fail = never;
        let judged = 0;
        let fate = 0;
        for (let at = 0; at < codes.length; at++) {
          judged |= 1 << codes[at][feature];
          const r = rs[at][feature];
          if (r !== none) fate |= r > cuts[at] ? 1 : 2;
        }
        if (kind !== -2 && model.kind[feature] !== kind) fail |= KIND;
        if (domain !== -2 && model.domain[feature] !== domain) fail |= DOMAIN;
        if (verdict !== -2 && !(verdict >= 0 && judged & (1 << verdict))) fail |= VERDICT;
        if (wanted && !(fate & wanted)) fail |= FATE;
        if (ways) {
          const [comes, goes] = [ways.comes[feature], ways.goes[feature]];
          if (!ways.live.flags[feature] || (filter.to && (goes || !ways.out.length))) fail |= OTHER;
          if (filter.origin !== undefined && (originOf(model.name, ways.into, comes) !== filter.origin || (way && !(comes & way)))) fail |= OTHER;
        }
        if (model.density[feature] < least || model.density[feature] > most) fail |= OTHER;
        if (scored) {
          const score = model.score[feature];
          if (score === null || score < 100 * (lowest ?? -Infinity) || score > 100 * (highest ?? Infinity)) fail |= OTHER;
        }
        if (tokens) {
          const at = 3 * feature;
          if (!tokens[model.top[at]] && !tokens[model.top[at + 1]] && !tokens[model.top[at + 2]]) fail |= OTHER;
        }
        if ((pattern || words.length) && !(fail & OTHER)) {
          const text = model.text[feature];
          if (!text || !(pattern ? pattern.test(text) : words.every((word) => text.toLowerCase().includes(word)))) fail |= OTHER;
        }
        if (!fail) rows[total++] = start + model.first + feature;
        if (!(fail & ~MODEL)) ofModel++;
        if (!(fail & ~EDGE)) ofEdge++;
        if (!(fail & ~KIND)) kinds[model.kind[feature] < 0 ? raw.classes.length : model.kind[feature]]++;
        if (!(fail & ~DOMAIN)) domains[model.domain[feature] < 0 ? raw.domains.length : model.domain[feature]]++;
        if (!(fail & ~FATE)) fates[fate]++;
        // each verdict once, along however many edges
        if (!(fail & ~VERDICT)) for (let code = 1; code < verdicts.length; code++) if (judged & (1 << code)) verdicts[code]++;
      }
      add("model", model.name, ofModel);
      for (const { edge } of ends) add("edge", edge.edge, ofEdge);
    }
    raw.classes.forEach((name, code) => add("kind", name, kinds[code]));
    raw.domains.forEach((name, code) => add("domain", name, domains[code]));
    raw.verdicts.forEach((name, code) => add("verdict", name, verdicts[code]));
    add("fate", "match", fates[1] + fates[3]);
    add("fate", "none", fates[2] + fates[3]);
  }
  return { rows: rows.slice(0, total), total, counts };
}

export type SortBy = "id" | "density" | "max" | "score" | "r" | "share";
/** The numbers in order; what is not known comes last. by `r`: the least along the chosen edge, or along any. */
export function ordered(sites: Sites[], found: Found, by: SortBy, down: boolean, filter: Filter): Int32Array {
  if (by === "id") return down ? found.rows.slice().reverse() : found.rows;
  const keys = new Float64Array(found.total);
  const way = down ? -1 : 1;
  let place = 0;
  for (const { columns, start } of sites) {
    for (const model of columns.models) {
      const from = start + model.first;
      const value = valueOf(columns, model, by, filter);
      for (; place < found.total && found.rows[place] < from + model.size; place++) {
        const one = value(found.rows[place] - from);
        keys[place] = one === null ? Infinity : way * one;
      }
    }
  }
  const order = Uint32Array.from({ length: found.total }, (_, at) => at).sort((a, b) => keys[a] - keys[b] || a - b);
  return Int32Array.from(order, (at) => found.rows[at]);
}

function valueOf(columns: Columns, model: ModelColumns, by: SortBy, filter: Filter): (feature: number) => number | null {
  if (by === "density") return (feature) => model.density[feature];
  if (by === "max") return (feature) => model.max[feature];
  if (by === "score") return (feature) => model.score[feature];
  if (by === "share") {
    const tokens = tokensOf(columns.raw.tokens, filter.token);
    return (feature) => model.share[3 * feature + Math.max(0, [0, 1, 2].findIndex((rank) => tokens?.[model.top[3 * feature + rank]]))];
  }
  const along = columns.endsOf(model.name).filter(({ edge }) => !filter.edge || edge.edge === filter.edge).map(({ end }) => end.r);
  return (feature) => {
    let least: number | null = null;
    for (const r of along) if (r[feature] !== columns.none && (least === null || r[feature] < least)) least = r[feature];
    return least;
  };
}
