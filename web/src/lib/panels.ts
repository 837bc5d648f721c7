/** The pictures of a declared table, drawn by Observable Plot: one for each value of the keys that its plot leaves. */
import * as Plot from "@observablehq/plot";
import { NODE, rowsOf, textOf, type Row, type Table } from "./data";
import { fateColor, modelColor, TINTS } from "./colors";
import { arrow, fixed, known, spaced, tick } from "./format";

export interface Panel {
  title: string;
  rows: Row[];
}
export interface Series {
  name: string;
  words: string;
  tint: string;
  dash: string | undefined;
}
const REFERENCES: Record<string, string> = { ceiling: "6 4", floor: "1.5 4", chance: "1.5 4", unsteered: "1.5 4" };
const SHORT = /^blocks\.(\d+)\.hook_resid_pre$/;
const brief = (name: string): string => arrow(spaced(name.replace(SHORT, "$1")));

export function panelsOf(table: Table, rows: Row[]): Panel[] {
  const plot = table.plot!;
  const usable = rows.filter((row) => known(row[plot.x]) && known(row[plot.y]));
  const keys = table.columns.filter((column) => column.key && ![plot.x, plot.by, "instrument"].includes(column.name));
  let varying = keys.map(({ name }) => name).filter((name) => new Set(usable.map((row) => row[name])).size > 1);
  // a number that goes along with x, such as the step of a cost, tells no pictures apart; keys come from coarse to fine
  const longest = (names: string[]): number => {
    const sizes = new Map<string, number>();
    for (const row of usable) {
      const key = [plot.by, ...names].map((name) => row[name]).join("\n");
      sizes.set(key, (sizes.get(key) ?? 0) + 1);
    }
    return Math.max(0, ...sizes.values());
  };
  for (const { name, kind } of keys.toReversed()) {
    const others = varying.filter((one) => one !== name);
    if (kind !== "text" && ["lines", "points"].includes(plot.kind) && longest(varying) === 1 && longest(others) > 1) {
      varying = others;
    }
  }
  const panels = new Map<string, Panel>();
  for (const row of usable) {
    const title = keys.filter(({ name }) => varying.includes(name))
      .map(({ name, kind }) => (kind === "text" ? "" : `${spaced(name)} `) + arrow(textOf(table, name, row))).join(", ");
    if (!panels.has(title)) panels.set(title, { title, rows: [] });
    panels.get(title)!.rows.push(row);
  }
  return [...panels.values()];
}

export function seriesOf(table: Table, panel: Panel): Series[] {
  const plot = table.plot!;
  const names = [...new Set(panel.rows.map((row) => `${row[plot.by] ?? ""}`))];
  const { edge, model: own } = panel.rows[0];
  const ends = `${edge ?? ""}`.split("->");
  const alone = !plot.by && [own, ends[0]].find((name) => NODE[name]);
  let next = 0;
  return names.map((name) => {
    const model = { parent: ends[0], child: ends[1] }[name] ?? name;
    const colored = alone || (NODE[model] ? model : "");
    const dash = REFERENCES[name];
    const tint = dash ? "var(--soft)" : colored ? modelColor(colored) : (fateColor(name) ?? TINTS[next++ % TINTS.length]);
    return { name, tint, dash, words: NODE[model] && model !== name ? `${name}, ${model}` : spaced(name) };
  });
}

/** Where a panel is marked: the t of a merge, the threshold of an edge. */
function markOf(table: Table, panel: Panel): { x: number; low?: number; high?: number; text: string } | null {
  const { model, edge, instrument, site } = panel.rows[0];
  if (table.name === "sweeps") {
    const [merge] = rowsOf("merges", { model });
    return merge && known(merge.t) ? { x: merge.t, low: merge.t_low, high: merge.t_high, text: `t = ${fixed(merge.t, 3)}` } : null;
  }
  if (table.name !== "best_r" && table.name !== "curves") return null;
  const found = rowsOf("edges", { edge, instrument, site }).find((row) => row.rule !== "paper");
  return found && known(found.threshold) ? { x: found.threshold, text: `threshold ${fixed(found.threshold)}` } : null;
}

const axis = (ticks: number): Plot.ScaleOptions => ({ ticks, tickSize: 0, labelAnchor: "center", labelArrow: "none" });
const BASE = { marginLeft: 52, marginRight: 16, style: { fontFamily: "inherit", fontSize: "12px", overflow: "visible" } };

export function drawn(table: Table, panel: Panel, width: number): Element | null {
  const plot = table.plot!;
  const kindOf = (name: string): string => table.columns.find((column) => column.name === name)!.kind;
  const told = [...table.columns.filter((column) => column.kind === "feature").map(({ name }) => name), plot.by, plot.x, plot.y];
  const hint = (row: Row): string => told.filter(Boolean)
    .map((name) => `${spaced(name)}: ${arrow(textOf(table, name, row))}`).join("\n");
  const series = seriesOf(table, panel);
  const colors = { domain: series.map(({ name }) => name), range: series.map(({ tint }) => tint) };
  const by = (row: Row): string => `${row[plot.by] ?? ""}`;
  const mark = markOf(table, panel);
  const marks: Plot.Markish[] = mark
    ? [
        ...(known(mark.low) && known(mark.high)
          ? [Plot.rectX([mark], { x1: "low", x2: "high", fill: "var(--novel)", fillOpacity: 0.2 })] : []),
        Plot.ruleX([mark], { x: "x", stroke: "var(--ink)", strokeWidth: 1.2 }),
        Plot.text([mark], { x: "x", text: "text", frameAnchor: "top", dy: -12, fill: "var(--ink)" }),
      ]
    : [];
  const x = { ...axis(6), label: spaced(plot.x), tickFormat: tick(kindOf(plot.x)) };
  const y = { ...axis(4), label: null, grid: true, tickFormat: tick(kindOf(plot.y)) };
  if (plot.kind === "histogram") return histogram();
  if (plot.kind === "lines" || plot.kind === "points") return along();
  return plot.kind === "bars" ? bars() : heat();

  function histogram(): Element {
    const at = [...new Set(panel.rows.map((row) => +row[plot.x]))].sort((a, b) => a - b);
    const finest = Math.min(...at.slice(1).map((value, place) => value - at[place]), at.length > 1 ? Infinity : 1);
    const range = Math.round((at[at.length - 1] - at[0]) / finest) + 1;
    const size = finest * Math.ceil(range / 36); // no more bars than can be told apart
    const first = Math.floor(at[0] / size + 1e-9) * size;
    const edges = Array.from({ length: Math.ceil((at[at.length - 1] + finest - first) / size - 1e-9) + 1 },
      (_, place) => +(first + place * size).toFixed(10));
    const middle = (row: Row): number => +row[plot.x] + finest / 2;
    const of = (name: string): Row[] => panel.rows.filter((row) => by(row) === name);
    const binned = (options: object): any => Plot.binX({ y: "sum" } as any, { x: { value: middle, thresholds: edges }, y: plot.y, ...options } as any);
    // what only serves comparison may leave the picture at the top
    const sums = new Map<string, number>();
    for (const row of panel.rows) {
      if (REFERENCES[by(row)]) continue;
      const key = `${by(row)}\n${Math.floor((middle(row) - first) / size)}`;
      sums.set(key, (sums.get(key) ?? 0) + row[plot.y]);
    }
    const most = Math.max(0, ...sums.values());
    return Plot.plot({ ...BASE, width, height: 242, marginTop: 26, marginBottom: 42, x, y: { ...y, ...(most ? { domain: [0, 1.04 * most] } : {}) }, marks: [
      ...series.slice(0, 1).map(({ name, tint }) => Plot.rectY(of(name), binned({ fill: tint, fillOpacity: 0.8, inset: 0.5, clip: true, tip: true }))),
      ...series.slice(1).map(({ name, tint, dash }) => Plot.lineY(of(name),
        binned({ stroke: tint, strokeWidth: dash ? 1.4 : 2, strokeDasharray: dash, curve: "step", clip: true }))),
      Plot.ruleY([0], { stroke: "var(--line)" }), ...marks,
    ] });
  }

  function along(): Element {
    const xs = panel.rows.map((row) => +row[plot.x]);
    const positive = xs.filter((value) => value > 0);
    const wide = Math.max(...positive) / Math.min(...positive) > 20;
    const log = wide && (plot.kind === "points" || ["flops", "count", "seconds"].includes(kindOf(plot.x)));
    const type = !log ? {} : xs.some((value) => value <= 0)
      ? { type: "symlog" as const, constant: Math.min(...positive) } : { type: "log" as const };
    const ends = [`${plot.y}_low`, `${plot.y}_high`];
    const banded = panel.rows.filter((row) => ends.every((name) => known(row[name])));
    const points = plot.kind === "points";
    return Plot.plot({ ...BASE, width, height: 282, marginTop: 26, marginBottom: 42, x: { ...x, ...type },
      y: { ...y, zero: kindOf(plot.y) === "count", nice: true }, color: colors, marks: [
        ...(points ? [] : [
          Plot.areaY(banded, { x: plot.x, y1: ends[0], y2: ends[1], fill: by, fillOpacity: 0.16, sort: plot.x }),
          ...series.map(({ name, dash }) => Plot.lineY(panel.rows.filter((row) => by(row) === name),
            { x: plot.x, y: plot.y, stroke: by, strokeWidth: 2, strokeDasharray: dash, sort: plot.x }))]),
        Plot.dot(panel.rows, { x: plot.x, y: plot.y, fill: by, r: points ? 2.4 : panel.rows.length > 60 ? 1.8 : 3,
          fillOpacity: points ? 0.6 : 1, title: hint, tip: true }),
        ...marks,
      ] });
  }

  function bars(): Element | null {
    const rows = panel.rows.length > 12 ? panel.rows.filter((row) => row[plot.y] !== 0) : panel.rows;
    if (!rows.length) return null;
    const grouped = new Set(rows.map((row) => row[plot.x])).size < rows.length;
    const name = (row: Row): string => (grouped ? spaced(textOf(table, plot.by, row)) : brief(textOf(table, plot.x, row)));
    const group = (row: Row): string => brief(`${row[plot.x]}`);
    const longest = Math.max(...rows.map((row) => name(row).length));
    const left = Math.min(0.4 * width, 14 + 6.6 * longest);
    const ends = [`${plot.y}_low`, `${plot.y}_high`];
    const within = rows.filter((row) => ends.every((one) => known(row[one])));
    const groups = new Set(rows.map(group)).size;
    const facet = grouped ? { fy: group } : {};
    return Plot.plot({ ...BASE, width, height: 34 + rows.length * 21 + (grouped ? groups * 34 : 0), marginTop: grouped ? 22 : 4,
      marginLeft: left, marginRight: 84, x: { ...y, axis: null, grid: false, zero: true }, y: { label: null, tickSize: 0, padding: 0.25 },
      fy: { label: null, axis: null, padding: grouped ? 30 / (30 + (rows.length / groups) * 21) : 0.2 }, color: colors, marks: [
        ...(grouped ? [Plot.text(new Set(rows.map(group)), { fy: (one: string) => one, text: (one: string) => one,
          frameAnchor: "top-left", dx: 10 - left, dy: -16, fontWeight: 600, textAnchor: "start" })] : []),
        Plot.barX(rows, { ...facet, x: plot.y, y: name, fill: by, rx2: 2, title: hint, tip: true, sort: null }),
        Plot.ruleY(within, { ...facet, x1: ends[0], x2: ends[1], y: name, stroke: "var(--ink)", strokeWidth: 1.3 }),
        Plot.text(rows, { ...facet, x: (row: Row) => Math.max(row[plot.y] ?? 0, row[ends[1]] ?? 0), y: name, textAnchor: "start", dx: 7,
          text: (row: Row) => textOf(table, plot.y, row).replace(/ \[.*/, "") }),
        Plot.ruleX([0], { stroke: "var(--line)" }),
      ] });
  }

  function heat(): Element {
    const values = panel.rows.map((row) => +row[plot.y]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const shade = (row: Row): string =>
      `color-mix(in srgb, var(--c0) ${(6 + (56 * (row[plot.y] - low)) / (high - low || 1)).toFixed(0)}%, var(--card))`;
    const across = [...new Set(panel.rows.map((row) => brief(`${row[plot.x]}`)))];
    const down = [...new Set(panel.rows.map((row) => brief(`${row[plot.by]}`)))];
    const left = Math.min(0.36 * width, 20 + 6.8 * Math.max(...down.map((name) => name.length)));
    const cell = Math.min(110, (width - left - 8) / across.length);
    return Plot.plot({ ...BASE, width: left + cell * across.length + 8, height: 52 + 36 * down.length, marginLeft: left, marginRight: 8,
      marginTop: 44, marginBottom: 8, color: { type: "identity" },
      x: { domain: across, label: spaced(plot.x), axis: "top", tickSize: 0, labelAnchor: "left", labelArrow: "none",
        tickFormat: (name: string) => (name.length * 6.6 > cell ? `${name.slice(0, Math.max(1, cell / 6.6 - 1))}…` : name) },
      y: { domain: down, label: null, tickSize: 0 }, marks: [
        Plot.cell(panel.rows, { x: (row: Row) => brief(`${row[plot.x]}`), y: (row: Row) => brief(`${row[plot.by]}`),
          fill: shade, inset: 1.5, rx: 3, title: hint, tip: true }),
        ...(cell >= 34 ? [Plot.text(panel.rows, { x: (row: Row) => brief(`${row[plot.x]}`), y: (row: Row) => brief(`${row[plot.by]}`),
          text: (row: Row) => textOf(table, plot.y, row), fill: "var(--ink)" })] : []),
      ] });
  }
}
