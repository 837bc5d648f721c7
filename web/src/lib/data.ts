/** What the page is given: tables with their declarations, findings, the graph. One object, embedded in the page. */

import { minus } from "./format";

export type Value = string | number | boolean | null;

export interface Column {
  name: string;
  kind: string;
  doc: string;
  of: string;
  ci: boolean;
  key: boolean;
}
export interface PlotOf {
  kind: "histogram" | "lines" | "bars" | "heat" | "points";
  x: string;
  y: string;
  by: string;
}
export interface Table {
  name: string;
  doc: string;
  columns: Column[];
  brief: string[];
  plot: PlotOf | null;
  rows: number;
  values: Record<string, Value[]>;
  /** Cells as the package writes them, of columns where that is not the value itself. */
  text: Record<string, string[]>;
}
/** A row, with its place in the table. */
export type Row = Record<string, any> & { at: number };

export interface Statement {
  about: string;
  question: string;
  text: string;
  evidence: string[];
  instrument: string;
  site: string;
}
export interface ModelNode {
  name: string;
  kind: string;
  made: string;
  parents: string[];
  note: string;
  recipe_of: string | null;
  corpora: string[];
  trace: string[];
}
export interface Section {
  kind: string;
  title: string;
  doc: string;
  tables: string[];
  finds: boolean;
}
export interface Label {
  description: string | null;
  failure: string | null;
  by: string | null;
  origin_model: string | null;
  origin_feature: number | null;
  carried: boolean;
  re_explained: boolean;
  simulation: number | null;
  detection: number | null;
  fuzzing: number | null;
}
export interface Member {
  model: string;
  feature: number;
  r: number | null;
  via: string | null;
  density: number;
  max: number;
}
export interface Context {
  corpus: string;
  tokens: string[];
  position: number;
  values: Record<string, number[]>;
}
export interface Fired {
  token: string;
  share: number;
  firings: number;
  mean: number;
  fired: number;
  llr?: number;
}
export interface Pushed {
  token: string;
  weight: number;
}
export interface Excerpt {
  corpus: string;
  tokens: string[];
  position?: number;
  values?: number[];
}
/** A feature that the report shows with its text. */
export interface Card {
  list: string;
  model: string;
  feature: number;
  density: number;
  max: number;
  family: Member[];
  contexts: Context[];
  label: Label | null;
  verdicts: Verdict[];
  card: {
    firings: number;
    tokens: Fired[];
    histogram: number[];
    weaker: { low: number; high: number; contexts: Excerpt[] }[];
    promoted: Pushed[];
    suppressed: Pushed[];
    no_logits: string;
  };
}
export interface Verdict {
  edge: string;
  model: string;
  end: "parent" | "child";
  verdict: string;
  stability: number | null;
  match_r: number | null;
  map_r: number | null;
  p_lost: number | null;
  transmission: number | null;
  strength: number | null;
  reason: string;
}
export interface PageData {
  heredity: string;
  study: string;
  seconds: number;
  created: string;
  machine: string;
  tables: Record<string, Table>;
  statements: Statement[];
  notes: string[];
  sections: Section[];
  limits: string[];
  graph: ModelNode[];
  instruments: string[];
  sites: string[];
  inspector: Record<string, Record<string, { cards: Card[]; cases: Record<string, any> }>>;
  /** Columns of all features by instrument and site, packed; absent where a server gives them. */
  features?: Record<string, Record<string, string>>;
  /** Whether a server stands behind the page. */
  served: boolean;
  toml: string;
  seed: number;
  versions: Record<string, string>;
  artifacts: { stage: string; key: string; seconds: string }[];
}

/** A value that is packed as compressed JSON in base64. */
export async function unpacked<T>(text: string): Promise<T> {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
export const DATA = await unpacked<PageData>(document.getElementById("data")!.textContent!);
export const GRAPH = DATA.graph;
export const NODE: Record<string, ModelNode> = Object.fromEntries(GRAPH.map((node) => [node.name, node]));

/** All rows of a table. */
export const rowsIn = (table: Table): Row[] => Array.from({ length: table.rows }, (_, at) => {
  const row: Row = { at };
  for (const column of Object.keys(table.values)) row[column] = table.values[column][at];
  return row;
});
const objects: Record<string, Row[]> = {};
/** Rows of a table whose columns have these values; a value of undefined leaves its column free. */
export function rowsOf(name: string, where: Record<string, Value | undefined> = {}): Row[] {
  const table = DATA.tables[name];
  if (!table) return [];
  objects[name] ??= rowsIn(table);
  const wanted = Object.entries(where).filter(([column, value]) => value !== undefined && table.values[column]);
  return objects[name].filter((row) => wanted.every(([column, value]) => row[column] === value));
}
/** A cell as text, written by the one formatter of the package; numbers have the minus of the page. */
export function textOf(table: Table, column: string, row: Row): string {
  const text = `${table.text[column]?.[row.at] ?? row[column] ?? ""}`;
  return table.columns.find(({ name }) => name === column)?.kind === "text" ? text : minus(text);
}

/** Instruments that anything was measured with. */
export const MEASURED = DATA.instruments.filter((name) =>
  Object.values(DATA.tables).some((table) => table.values.instrument?.includes(name)));

/** A model and all that it descends from, parents first. */
export function ancestry(name: string): string[] {
  const members = new Set<string>();
  const visit = (model: string): void => {
    if (members.has(model) || !NODE[model]) return;
    members.add(model);
    NODE[model].parents.forEach(visit);
  };
  visit(name);
  return GRAPH.map((node) => node.name).filter((model) => members.has(model));
}
