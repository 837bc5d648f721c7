/** Where the features of each model come from and go to, counted anew at any threshold. */
import { ancestry, NODE } from "./data";
import type { Alive, Chain, Columns, EdgeColumns, EndName } from "./features";

export const ANCESTOR = "ancestor";
export const BOTH = "both";
/** Where a feature of a model is first found: ANCESTOR (further up than the parents of a merge), BOTH of its parents
 * but not above them, or a model: a parent, or the model itself where no parent has a match. */
export type Origin = string;

export interface FlowBand {
  edge: EdgeColumns;
  origin: Origin;
  /** The parent's features that go this way; one that goes several ways counts in parts. */
  out: number;
  /** The child's features that come this way, likewise. */
  into: number;
  /** The child's features with a match along the edge, each in whole. */
  features: number;
}
export interface FlowModel {
  name: string;
  live: number;
  /** Its live features by origin. */
  origins: Map<Origin, number>;
  /** Live features without a match in any child; null without children. */
  ends: number | null;
}
export interface FlowCounts {
  models: FlowModel[];
  bands: FlowBand[];
}

/** The ways of a model's features, by the set of edges along which they have a match. */
export interface Ways {
  /** Edges from its parents and to its children, a bit for each in the order of these. */
  into: EdgeColumns[];
  out: EdgeColumns[];
  live: Alive;
  /** By feature; the bit after the edges': in a chain. */
  comes: Int32Array;
  goes: Int32Array;
}
/** threshold: r above it is a match; null: each edge's own. mutual: only matches that are each other's best count. */
export function waysOf(columns: Columns, name: string, size: number, threshold: number | null, mutual: boolean): Ways {
  const descent = columns.edges.filter(({ parent, child }) => NODE[child].parents.includes(parent));
  const into = descent.filter(({ child }) => child === name);
  const out = descent.filter(({ parent }) => parent === name);
  const live = columns.alive(name, [...into.map((edge) => edge.ends.child), ...out.map((edge) => edge.ends.parent)]);
  const chains = into.map(({ parent }) => columns.chains[name]?.[parent]).filter(Boolean);
  const comes = sets(columns, size, into, "child", threshold, mutual, chains);
  return { into, out, live, comes, goes: sets(columns, size, out, "parent", threshold, mutual) };
}
/** Where a feature of a model with this set of `comes` is first found. */
export function originOf(name: string, into: EdgeColumns[], set: number): Origin {
  const based = 1 << into.length;
  const ways = set & (based - 1);
  if (!ways) return name;
  return set & based ? ANCESTOR : bits(ways) > 1 ? BOTH : into[31 - Math.clz32(ways)].parent;
}
export const originWords = (origin: Origin, model: string): string => {
  const { parents } = NODE[model];
  if (origin === ANCESTOR) {
    const roots = ancestry(model).filter((one) => !NODE[one].parents.length);
    return `from ${roots.length === 1 ? roots[0] : "a common ancestor"}`;
  }
  if (origin === BOTH) return `emerged in ${parents.length > 2 ? "several parents" : "both parents"}`;
  if (origin === model) return parents.length ? "no match in a parent" : "all of it";
  return parents.length > 1 ? `emerged in ${origin}` : `from ${origin}`;
};

/** threshold and mutual: as for `waysOf`. */
export function flow(columns: Columns, threshold: number | null, mutual: boolean): FlowCounts {
  const counts: FlowCounts = { models: [], bands: [] };
  const leaving = new Map<EdgeColumns, number>();
  const descent = columns.edges.filter(({ parent, child }) => NODE[child].parents.includes(parent));
  for (const { name, size } of columns.models) {
    const { into, out, live, ...found } = waysOf(columns, name, size, threshold, mutual);
    if (!into.length && !out.length) continue;
    const goes = tally(live, found.goes, out);
    const gone = new Float64Array(out.length);
    each(goes, out.length, (features, ways, at) => (gone[at] += features / ways));
    out.forEach((edge, at) => leaving.set(edge, gone[at]));

    const comes = tally(live, found.comes, into);
    const based = 1 << into.length;
    const origins = new Map<Origin, number>();
    const bands = new Map<string, FlowBand>();
    const add = (origin: Origin, features: number): void => {
      origins.set(origin, (origins.get(origin) ?? 0) + features);
    };
    for (const [set, features] of comes.entries()) if (features && set & (based - 1)) add(originOf(name, into, set), features);
    each(comes, into.length, (features, ways, at, set) => {
      const origin = originOf(name, into, set);
      const key = `${at} ${origin}`;
      const band = bands.get(key) ?? { edge: into[at], origin, out: 0, into: 0, features: 0 };
      band.into += features / ways;
      band.features += features;
      bands.set(key, band);
    });
    add(name, comes[0] + (comes[based] ?? 0));
    counts.models.push({ name, live: live.count, origins, ends: out.length ? goes[0] : null });
    counts.bands.push(...bands.values());
  }
  // what leaves a parent along an edge goes the ways of what comes to the child
  for (const edge of descent) {
    const bands = counts.bands.filter((band) => band.edge === edge);
    const whole = bands.reduce((sum, band) => sum + band.into, 0);
    for (const band of bands) band.out = whole ? ((leaving.get(edge) ?? 0) * band.into) / whole : 0;
  }
  return counts;
}

function bits(set: number): number {
  let count = 0;
  for (let rest = set; rest; rest &= rest - 1) count++;
  return count;
}
/** Every way of every set with features in it. */
function each(tallied: Int32Array, ways: number, take: (features: number, ways: number, at: number, set: number) => void): void {
  const all = (1 << ways) - 1;
  for (let set = 1; set < tallied.length; set++) {
    if (!tallied[set]) continue;
    for (let at = 0; at < ways; at++) if (set & (1 << at)) take(tallied[set], bits(set & all), at, set);
  }
}
/** By feature the set of edges along which it has a match; the bit after the edges': in a chain. */
function sets(
  columns: Columns, size: number, edges: EdgeColumns[], name: EndName, threshold: number | null, mutual: boolean, chains: Chain[] = [],
): Int32Array {
  const sets = new Int32Array(size);
  edges.forEach((edge, at) => {
    const [own, back] = [edge.ends[name], edge.ends[name === "parent" ? "child" : "parent"]];
    const [least, bit, { r, match }, returned] = [columns.cut(threshold ?? edge.threshold), 1 << at, own, back.match];
    if (mutual) {
      for (let feature = 0; feature < size; feature++) if (r[feature] > least && returned[match[feature]] === feature) sets[feature] |= bit;
    } else for (let feature = 0; feature < size; feature++) if (r[feature] > least) sets[feature] |= bit;
  });
  const [bit, least] = [1 << edges.length, columns.cut(threshold ?? 0)];
  for (const { r, own } of chains) {
    if (threshold === null) {
      for (let feature = 0; feature < size; feature++) if (own[feature]) sets[feature] |= bit;
    } else for (let feature = 0; feature < size; feature++) if (r[feature] > least) sets[feature] |= bit;
  }
  return sets;
}
/** Live features by set. */
function tally({ flags }: Alive, sets: Int32Array, edges: EdgeColumns[]): Int32Array {
  const tallied = new Int32Array(1 << (edges.length + 1));
  for (let feature = 0; feature < sets.length; feature++) tallied[sets[feature]] += flags[feature];
  return tallied;
}
