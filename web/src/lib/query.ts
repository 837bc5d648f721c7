/** Which features fit: one pass over all of them, with the counts of every filter as the others stand. */
import type { Columns } from "./features";

export interface Filter {
  model?: string;
  edge?: string;
  verdict?: string;
  /** Of the best match along the edge: above or not above `threshold` (or the edge's own). */
  fate?: "match" | "none";
  threshold?: number;
  kind?: string;
  domain?: string;
  density: [number | null, number | null];
  score: [number | null, number | null];
  /** Exactly a token. */
  token?: string;
  /** All in the explanation. */
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

const FACETS = ["model", "edge", "verdict", "kind", "domain", "fate"] as const;
const [MODEL, EDGE, VERDICT, KIND, DOMAIN, FATE, OTHER] = [1, 2, 4, 8, 16, 32, 64];

export function select(sites: Sites[], filter: Filter): Found {
  const counts = Object.fromEntries(FACETS.map((name) => [name, new Map<string, number>()])) as Found["counts"];
  const add = (name: (typeof FACETS)[number], value: string): void => {
    counts[name].set(value, (counts[name].get(value) ?? 0) + 1);
  };
  const size = sites.reduce((sum, { columns }) => sum + columns.size, 0);
  const rows = new Int32Array(size);
  const words = (filter.words ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  let total = 0;
  for (const { columns, start } of sites) {
    const { raw } = columns;
    const token = filter.token === undefined ? -2 : raw.tokens.indexOf(filter.token);
    const kind = filter.kind === undefined ? -2 : raw.classes.indexOf(filter.kind);
    const domain = filter.domain === undefined ? -2 : raw.domains.indexOf(filter.domain);
    const wanted = filter.verdict === undefined ? 0 : raw.verdicts.indexOf(filter.verdict);
    const cut = (threshold: number): number => (filter.threshold ?? threshold) * columns.unit + 1e-6;
    for (const model of columns.models) {
      const ends = columns.endsOf(model.name);
      const chosen = filter.edge === undefined ? ends : ends.filter(({ edge }) => edge.edge === filter.edge);
      const ofModel = filter.model === undefined || filter.model === model.name ? 0 : MODEL;
      const ofEdge = filter.edge === undefined || chosen.length ? 0 : EDGE;
      const [least, most] = filter.density;
      const [lowest, highest] = filter.score;
      for (let feature = 0; feature < model.size; feature++) {
        let fail = ofModel | ofEdge;
        if (kind !== -2 && model.kind[feature] !== kind) fail |= KIND;
        if (domain !== -2 && model.domain[feature] !== domain) fail |= DOMAIN;
        if (filter.verdict !== undefined && !chosen.some(({ end }) => end.verdict[feature] === wanted)) fail |= VERDICT;
        if (filter.fate !== undefined) {
          const fits = chosen.some(({ edge, end }) => end.r[feature] !== columns.none &&
            end.r[feature] > cut(edge.threshold) === (filter.fate === "match"));
          if (!fits) fail |= FATE;
        }
        const density = model.density[feature];
        const score = model.score[feature];
        if ((least !== null && density < least) || (most !== null && density > most)) fail |= OTHER;
        if ((lowest !== null && (score === null || score < 100 * lowest)) || (highest !== null && (score === null || score > 100 * highest))) fail |= OTHER;
        if (token !== -2) {
          const at = 3 * feature;
          if (model.top[at] !== token && model.top[at + 1] !== token && model.top[at + 2] !== token) fail |= OTHER;
        }
        if (words.length && !(fail & OTHER)) {
          const text = model.text[feature]?.toLowerCase();
          if (!text || !words.every((word) => text.includes(word))) fail |= OTHER;
        }
        if (!fail) rows[total++] = start + model.first + feature;
        if (!(fail & ~MODEL)) add("model", model.name);
        if (!(fail & ~KIND) && model.kind[feature] >= 0) add("kind", raw.classes[model.kind[feature]]);
        if (!(fail & ~DOMAIN) && model.domain[feature] >= 0) add("domain", raw.domains[model.domain[feature]]);
        if (!(fail & ~EDGE)) for (const { edge } of ends) add("edge", edge.edge);
        if (!(fail & ~VERDICT)) {
          let seen = 0; // each verdict once, along however many edges
          for (const { end } of chosen) {
            const code = end.verdict[feature];
            if (code && !(seen & (1 << code))) add("verdict", raw.verdicts[code]);
            seen |= 1 << code;
          }
        }
        if (!(fail & ~FATE)) {
          let seen = 0;
          for (const { edge, end } of chosen) {
            if (end.r[feature] === columns.none) continue;
            const match = end.r[feature] > cut(edge.threshold) ? 1 : 2;
            if (!(seen & match)) add("fate", match === 1 ? "match" : "none");
            seen |= match;
          }
        }
      }
    }
  }
  return { rows: rows.slice(0, total), total, counts };
}

export type SortBy = "id" | "density" | "max" | "score" | "r" | "share";
/** The numbers in order; what is not known comes last. by `r`: the least along the chosen edge, or along any. */
export function ordered(sites: Sites[], found: Found, by: SortBy, down: boolean, filter: Filter): Int32Array {
  if (by === "id") return down ? found.rows.slice().reverse() : found.rows;
  const keys = new Float64Array(found.total);
  const way = down ? -1 : 1;
  for (let place = 0; place < found.total; place++) {
    const { columns, model, feature } = featureOf(sites, found.rows[place]);
    let value: number | null = null;
    if (by === "density") value = model.density[feature];
    else if (by === "max") value = model.max[feature];
    else if (by === "score") value = model.score[feature];
    else if (by === "share") {
      const token = columns.raw.tokens.indexOf(filter.token ?? "");
      const at = [0, 1, 2].find((rank) => model.top[3 * feature + rank] === token);
      value = at === undefined ? model.share[3 * feature] : model.share[3 * feature + at];
    } else {
      for (const { edge, end } of columns.endsOf(model.name)) {
        if ((filter.edge && edge.edge !== filter.edge) || end.r[feature] === columns.none) continue;
        value = value === null ? end.r[feature] : Math.min(value, end.r[feature]);
      }
    }
    keys[place] = value === null ? Infinity : way * value;
  }
  const order = Uint32Array.from({ length: found.total }, (_, place) => place).sort((a, b) => keys[a] - keys[b] || a - b);
  return Int32Array.from(order, (place) => found.rows[place]);
}
