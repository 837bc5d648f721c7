/** A feature followed through all models by its best matches, as the package follows it: from the columns alone. */
import { GRAPH, type Member } from "./data";
import type { Columns, EdgeColumns, Family } from "./features";

/** The best match of a feature of `via` at the other end of an edge. */
function step(columns: Columns, edge: EdgeColumns, via: string, feature: number): Member | null {
  const end = via === edge.parent ? edge.ends.parent : edge.ends.child;
  const match = end.match[feature];
  return match < 0 || end.r[feature] === columns.none ? null : member(columns, end.other, match, end.r[feature] / columns.unit, via);
}
function member(columns: Columns, model: string, feature: number, r: number | null, via: string | null): Member {
  const own = columns.model(model)!;
  return { model, feature, r, via, density: own.density[feature], max: own.max[feature] };
}

/** Members reached from a feature: descendants first, then ancestors, then their other descendants; a model that several
 * ways lead to is entered by the highest r. null where there is no such feature. */
export function followed(columns: Columns, model: string, feature: number): Family | null {
  const own = columns.model(model);
  if (!own || feature < 0 || feature >= own.size) return null;
  const members = new Map<string, Member>([[model, member(columns, model, feature, null, null)]]);
  const children = [...new Set(columns.edges.map((edge) => edge.child))];
  const descend = (): void => {
    for (const child of children) {
      if (members.has(child)) continue;
      const ways = columns.edges.filter((edge) => edge.child === child && members.has(edge.parent))
        .map((edge) => step(columns, edge, edge.parent, members.get(edge.parent)!.feature)).filter((way) => way !== null);
      if (ways.length) members.set(child, ways.reduce((best, way) => (way.r! > best.r! ? way : best)));
    }
  };
  descend();
  const line = new Set([model]);
  for (const edge of [...columns.edges].reverse()) {
    if (!line.has(edge.child) || members.has(edge.parent)) continue;
    const way = step(columns, edge, edge.child, members.get(edge.child)!.feature);
    if (!way) continue;
    members.set(edge.parent, way);
    line.add(edge.parent);
  }
  descend();
  const all = [...members.values()].map((one) => ({ ...one, explanation: null }));
  // along the edges r is known; of the other pairs it is not
  const pairs = columns.edges.flatMap((edge) => {
    const [a, b] = [members.get(edge.parent), members.get(edge.child)];
    if (!a || !b) return [];
    const [down, up] = [step(columns, edge, a.model, a.feature), step(columns, edge, b.model, b.feature)];
    const r = down?.feature === b.feature ? down.r : up?.feature === a.feature ? up.r : null;
    return [{ model_a: a.model, feature_a: a.feature, model_b: b.model, feature_b: b.feature, r }];
  });
  return { members: all, pairs, near: [] };
}
const ORDER = GRAPH.map((node) => node.name);
/** In the order of the models. */
export const ordered = <T extends { model: string }>(members: T[]): T[] =>
  [...members].sort((a, b) => ORDER.indexOf(a.model) - ORDER.indexOf(b.model));
