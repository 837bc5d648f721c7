/** Where the features of each model come from and go to, counted anew at any threshold. */
import { NODE } from "./data";
import type { Columns, EdgeColumns, End } from "./features";

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

const other = (edge: EdgeColumns, end: End): End => edge.ends[end.name === "parent" ? "child" : "parent"];

/** threshold: r above it is a match; null: each edge's own. mutual: only matches that are each other's best count. */
export function flow(columns: Columns, threshold: number | null, mutual: boolean): FlowCounts {
  const counts: FlowCounts = { models: [], bands: [] };
  const leaving = new Map<EdgeColumns, number>();
  const descent = columns.edges.filter(({ parent, child }) => NODE[child].parents.includes(parent));
  const cut = (edge: EdgeColumns): number => (threshold ?? edge.threshold) * columns.unit + 1e-6;
  const matched = (edge: EdgeColumns, end: End) => {
    const [least, { r, match }, back] = [cut(edge), end, other(edge, end).match];
    return mutual ? (feature: number) => r[feature] > least && back[match[feature]] === feature : (feature: number) => r[feature] > least;
  };
  for (const { name, size } of columns.models) {
    const into = descent.filter(({ child }) => child === name);
    const out = descent.filter(({ parent }) => parent === name);
    if (!into.length && !out.length) continue;
    const ends = [...into.map((edge) => edge.ends.child), ...out.map((edge) => edge.ends.parent)];
    const comes = into.map((edge) => matched(edge, edge.ends.child));
    const goes = out.map((edge) => matched(edge, edge.ends.parent));
    const chains = into.map(({ parent }) => columns.raw.chains[name]?.[parent]);
    const merged = chains.some(Boolean);
    const least = (threshold ?? 0) * columns.unit + 1e-6;
    const gone = new Float64Array(out.length);
    // by way in: from an ancestor, from both, from that parent; in parts and in whole
    const parts = into.map(() => [0, 0, 0]);
    const wholes = into.map(() => [0, 0, 0]);
    const origins = new Map<Origin, number>();
    let [live, silent, above, both, own] = [0, 0, 0, 0, 0];
    const alone = new Float64Array(into.length);
    for (let feature = 0; feature < size; feature++) {
      let alive = false;
      for (const end of ends) if (end.r[feature] !== columns.none) alive = true;
      if (!alive) continue;
      live++;
      let ways = 0;
      for (const fits of goes) if (fits(feature)) ways++;
      if (ways) for (let at = 0; at < goes.length; at++) gone[at] += goes[at](feature) ? 1 / ways : 0;
      else silent++;
      ways = 0;
      let [first, based] = [-1, false];
      for (let at = 0; at < comes.length; at++) {
        if (!comes[at](feature)) continue;
        ways++;
        if (first < 0) first = at;
      }
      for (const chain of chains) if (chain && (threshold === null ? chain.own[feature] === 1 : chain.r[feature] > least)) based = true;
      if (!ways) {
        own++;
        continue;
      }
      const kind = merged && based ? 0 : ways > 1 ? 1 : 2;
      if (kind === 0) above++;
      else if (kind === 1) both++;
      else alone[first]++;
      for (let at = 0; at < comes.length; at++) {
        if (!comes[at](feature)) continue;
        parts[at][kind] += 1 / ways;
        wholes[at][kind]++;
      }
    }
    if (above) origins.set(ANCESTOR, above);
    if (both) origins.set(BOTH, both);
    into.forEach(({ parent }, at) => alone[at] && origins.set(parent, alone[at]));
    origins.set(name, own);
    counts.models.push({ name, live, origins, ends: out.length ? silent : null });
    into.forEach((edge, at) => [ANCESTOR, BOTH, edge.parent].forEach((origin, kind) => {
      if (wholes[at][kind]) counts.bands.push({ edge, origin, out: 0, into: parts[at][kind], features: wholes[at][kind] });
    }));
    out.forEach((edge, at) => leaving.set(edge, gone[at]));
  }
  // what leaves a parent along an edge goes the ways of what comes to the child
  for (const edge of descent) {
    const bands = counts.bands.filter((band) => band.edge === edge);
    const whole = bands.reduce((sum, band) => sum + band.into, 0);
    for (const band of bands) band.out = whole ? ((leaving.get(edge) ?? 0) * band.into) / whole : 0;
  }
  return counts;
}
