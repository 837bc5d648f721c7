/** All features of a place, in columns, with counts at any threshold. */
import type { Context, Excerpt, Fired, Label, Member, Pushed, Table, Verdict } from "./data";
import { known } from "./format";

interface RawEnd {
  r: number[];
  match: number[];
  verdict: number[];
  reason?: number[];
  examined?: Record<string, Examined>;
  [figure: string]: (number | null)[] | Record<string, Examined> | undefined;
}
/** What became of a lost, changed or new feature that was looked at by itself. */
export interface Examined {
  fate: string;
  readable_apart: number | null;
  first: number;
  second: number;
  pair_r: number | null;
  absorber: number;
  absorbed: number | null;
}
export interface RawColumns {
  tokens: string[];
  classes: string[];
  domains: string[];
  verdicts: string[];
  /** Sentences with figures left open, as `{name}`. */
  reasons: string[];
  unit: number;
  models: Record<string, {
    counted: number;
    firings: number[];
    max: number[];
    class: number[];
    domain: number[];
    top: number[];
    share: number[];
    text: (string | null)[];
    score: (number | null)[];
  }>;
  edges: { edge: string; parent: string; child: string; threshold: number; ends: Record<EndName, RawEnd> }[];
  chains: Record<string, Record<string, { r: number[]; own: number[] }>>;
  /** Of features that have cards. */
  audits?: Record<string, Audit[]>;
  said?: Record<string, Said[]>;
  families?: Record<string, Family>;
}
/** A feature in every model that the lineage connects it with, itself first. */
export interface Family {
  members: (Member & { explanation?: Label | null })[];
  pairs: { model_a: string; feature_a: number; model_b: string; feature_b: number; r: number | null }[];
  near: { model: string; feature: number; edge: string; other: string; matches: { feature: number; r: number }[] }[];
}
/** Text that an explanation was scored on, with what it predicts there. */
export interface Audit {
  corpus: string;
  tokens: string[];
  position: number;
  values: number[];
  predicted: number[];
}
/** What a language model said of a feature. */
export interface Said {
  /** Beside the run, one for each model that was asked. */
  folder: string;
  by: string;
  description: string | null;
  failure: string | null;
  carried: boolean;
  origin_model: string;
  origin_feature: number;
  simulation: number | null;
  detection: number | null;
  fuzzing: number | null;
  intruder: number | null;
  /** USD. */
  cost: number;
}
/** A request to it, with what came back. */
export interface Sent {
  feature: string;
  question: string;
  provider: string;
  model: string;
  /** Not known of a request without an answer. */
  prompt: string | null;
  answer: string | null;
  /** Tokens of the prompt that came back with log-probabilities. */
  echoed: number;
  failure: string | null;
  detail: string | null;
  tokens_in: number | null;
  tokens_out: number | null;
  cost: number;
  seconds: number;
  attempts: number;
  time: string;
}
/** What it was asked for what it says, and what that predicts. */
export interface Asked {
  requests: Sent[];
  /** Further requests of the ledger about the feature. */
  others: number;
  audit: Audit[];
}
export type EndName = "parent" | "child";
export const FIGURES = ["stability", "direction", "match_r", "map_r", "transmission", "strength", "readable", "retained"];

/** One end of an edge: by feature, its best match at the other end. */
export interface End {
  name: EndName;
  /** Whose features these are, and in which model they are looked for. */
  model: string;
  other: string;
  r: Int16Array;
  match: Int32Array;
  verdict: Uint8Array;
  /** Why it has its verdict, as a form; empty where nothing was judged. */
  reason: Int32Array;
  /** r of live features, rising: counts above a threshold are found by halving. */
  sorted: Int16Array;
  figures: Record<string, (number | null)[]>;
  /** By feature, of those that were looked at by themselves. */
  examined: Record<string, Examined>;
}
export interface EdgeColumns {
  edge: string;
  parent: string;
  child: string;
  threshold: number;
  ends: Record<EndName, End>;
}
export interface ModelColumns {
  name: string;
  size: number;
  /** Place of feature 0 among all features of the place. */
  first: number;
  firings: Int32Array;
  density: Float64Array;
  max: Float64Array;
  kind: Int16Array;
  domain: Int16Array;
  top: Int32Array;
  share: Uint8Array;
  text: (string | null)[];
  score: (number | null)[];
}

/** Which features of a model are live, and how many. */
export interface Alive {
  flags: Uint8Array;
  count: number;
}
/** Of a merge's features, through one parent: up to which threshold they are from further up, and whether at each edge's own. */
export interface Chain {
  r: Int16Array;
  own: Uint8Array;
}

/** Number of values of a rising array that are above one. */
function above(sorted: Int16Array, value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) high = middle;
    else low = middle + 1;
  }
  return sorted.length - low;
}

export class Columns {
  readonly models: ModelColumns[];
  readonly edges: EdgeColumns[];
  readonly unit: number;
  readonly none: number;
  readonly size: number;
  readonly chains: Record<string, Record<string, Chain>>;
  private readonly living = new Map<string, Alive>();

  constructor(readonly raw: RawColumns, readonly site: string) {
    this.unit = raw.unit;
    this.none = -raw.unit;
    let first = 0;
    this.models = Object.entries(raw.models).map(([name, own]) => {
      const size = own.firings.length;
      const model = {
        name, size, first,
        firings: Int32Array.from(own.firings),
        density: Float64Array.from(own.firings, (firings) => firings / own.counted),
        max: Float64Array.from(own.max),
        kind: Int16Array.from(own.class),
        domain: Int16Array.from(own.domain),
        top: Int32Array.from(own.top),
        share: Uint8Array.from(own.share),
        text: own.text,
        score: own.score,
      };
      first += size;
      return model;
    });
    this.size = first;
    this.chains = Object.fromEntries(Object.entries(raw.chains).map(([merge, parents]) => [merge, Object.fromEntries(
      Object.entries(parents).map(([parent, { r, own }]) => [parent, { r: Int16Array.from(r), own: Uint8Array.from(own) }]))]));
    this.edges = raw.edges.map((edge) => ({
      edge: edge.edge, parent: edge.parent, child: edge.child, threshold: edge.threshold,
      ends: {
        parent: this.end(edge.ends.parent, "parent", edge.parent, edge.child),
        child: this.end(edge.ends.child, "child", edge.child, edge.parent),
      },
    }));
  }

  private end(raw: RawEnd, name: EndName, model: string, other: string): End {
    const r = Int16Array.from(raw.r);
    return {
      name, model, other, r,
      match: Int32Array.from(raw.match),
      verdict: Uint8Array.from(raw.verdict),
      reason: Int32Array.from(raw.reason ?? []),
      sorted: r.filter((value) => value > this.none).sort(),
      figures: Object.fromEntries(FIGURES.filter((figure) => raw[figure]).map((figure) => [figure, raw[figure] as (number | null)[]])),
      examined: raw.examined ?? {},
    };
  }

  model(name: string): ModelColumns | undefined {
    return this.models.find((model) => model.name === name);
  }
  /** Ends of edges that are about features of a model. */
  endsOf(model: string): { edge: EdgeColumns; end: End }[] {
    return this.edges.flatMap((edge) => [edge.ends.parent, edge.ends.child].filter((end) => end.model === model)
      .map((end) => ({ edge, end })));
  }
  /** r as it is held, above which a match counts. */
  cut(threshold: number): number {
    return threshold * this.unit + 1e-6;
  }
  /** Features of a model that have an r at one of these ends. */
  alive(model: string, ends: End[]): Alive {
    const key = [model, ...ends.map((end) => `${end.name} ${end.other}`)].join("\n");
    let found = this.living.get(key);
    if (!found) {
      const flags = new Uint8Array(this.model(model)!.size);
      for (const { r } of ends) r.forEach((value, feature) => value !== this.none && (flags[feature] = 1));
      found = { flags, count: flags.reduce((sum, flag) => sum + flag, 0) };
      this.living.set(key, found);
    }
    return found;
  }
  /** Features of an end with a match whose r is above the threshold. */
  persist(end: End, threshold: number): number {
    return above(end.sorted, this.cut(threshold));
  }
  /** The same, of matches that are each other's best. */
  mutual(edge: EdgeColumns, name: EndName, threshold: number): number {
    const [end, back] = [edge.ends[name], edge.ends[name === "parent" ? "child" : "parent"]];
    const least = this.cut(threshold);
    let found = 0;
    for (let feature = 0; feature < end.r.length; feature++) {
      if (end.r[feature] > least && back.match[end.match[feature]] === feature) found++;
    }
    return found;
  }
  verdictName(end: End, feature: number): string {
    return this.raw.verdicts[end.verdict[feature]];
  }
  /** Why it has its verdict, as the package says it; empty where nothing was judged. */
  reason(end: End, feature: number): string {
    if (!end.reason.length) return "";
    const figure = (name: string): number | null => end.figures[name]?.[feature] ?? null;
    const rs = [figure("match_r"), figure("map_r")].filter(known);
    const r = rs.length ? Math.max(...rs) : null;
    return this.raw.reasons[end.reason[feature]].replace(/\{(\w+)\}/g, (_, name) => {
      const value = name === "r" ? r : figure(name);
      return known(value) ? (value / 100).toFixed(2) : "not measured";
    });
  }
}

/** A feature with its text, from the report's cards or from the server. */
export interface Shown {
  model: string;
  feature: number;
  site: string;
  density: number;
  max: number;
  firings: number;
  kind: string | null;
  notes: { by: string; text: string; tags: string[] }[];
  histogram: number[];
  tokens: Fired[];
  family: Member[];
  verdicts: Verdict[];
  contexts: Context[];
  levels: { low: number; high: number; examples: Excerpt[] }[];
  drawn: Excerpt[];
  silent: Excerpt[];
  logits: Logits | null;
  said: Said[];
}
/** What a feature's explanation says, and what it predicts. */
export interface Explained {
  explanation: Label | null;
  audit: Audit[];
}
export interface Logits {
  promoted: Pushed[];
  suppressed: Pushed[];
  no_logits: string;
}
/** How people agree on tags, and the features on which two of them differ. */
export interface Raters {
  table: Table;
  apart: { instrument: string; site: string; model: string; feature: number; tag: string; by: string; beside: string }[];
}
export interface Note {
  model: string;
  feature: number;
  site: string;
  instrument: string;
  by: string;
  text: string;
  tags: string;
  current: boolean;
}
/** `base/158` as a model and a number. */
export function parseId(id: string): { model: string; feature: number } | null {
  const match = /^(.+)\/(\d+)$/.exec(id.trim());
  return match ? { model: match[1], feature: +match[2] } : null;
}
