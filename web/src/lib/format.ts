/** Figures that the page computes itself, and names as they are read; all other cells come written. */

export const known = <T>(value: T | null | undefined): value is T => value !== null && value !== undefined;
export const arrow = (text: string): string => text.replaceAll("->", " → ");
/** A name in words; widths, such as d_sae, keep theirs. */
export const spaced = (name: string): string => name.replaceAll(/(?<!\bd)_/g, " ");
export const short = (text: string, most = 60): string => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);
export const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

export const count = (value: number | null | undefined): string =>
  known(value) ? Math.round(value).toLocaleString("en-US") : "–";
export const fixed = (value: number | null | undefined, digits = 2): string =>
  known(value) ? value.toFixed(digits).replace("-", "−") : "–";
/** A share as `74 %`, `4.3 %` or `< 0.1 %`. */
export function percent(share: number | null | undefined, digits?: number): string {
  if (!known(share) || !isFinite(share)) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.1 && digits === undefined) return "<\u202f0.1\u202f%";
  return `${value.toFixed(digits ?? (value > 0 && value < 9.95 ? 1 : 0)).replace("-", "−")}\u202f%`;
}
export const share = (part: number, whole: number): string => (whole ? percent(part / whole) : "–");
/** How often a feature fires. */
export function rate(value: number | null | undefined): string {
  if (!known(value)) return "–";
  return value >= 0.01 || value === 0 ? percent(value, value ? 1 : 0) : `${(1e4 * value).toPrecision(2)} in 10,000`;
}
/** The same as a share of two digits, for columns. */
export const sparse = (value: number): string =>
  value >= 0.01 ? percent(value, 1) : `${(100 * value).toFixed(value >= 1e-3 ? 2 : value >= 1e-4 ? 3 : 4)}\u202f%`;
const UNITS: [number, string][] = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
export function compact(value: number): string {
  const [size, unit] = UNITS.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  return `${+(value / size).toPrecision(3)}${unit}`.replace("-", "−");
}
/** A price in USD, in two digits where it is less than a cent. */
export const dollars = (value: number): string => `$${value >= 0.01 ? value.toFixed(2) : value.toFixed(Math.max(2, 1 - Math.floor(Math.log10(value))))}`;
/** Ticks of an axis by the kind of its column. */
export const tick = (kind: string) => (value: number): string =>
  kind === "share" ? percent(value, Math.abs((100 * value) % 1) > 1e-6 ? 1 : 0) : compact(value);
/** The minus of a number that was written elsewhere, where a number can begin. */
export const minus = (text: string): string => text.replace(/(^|[\s([])-(?=\d)/g, "$1−");
/** A sentence made elsewhere: a figure and its percent sign stay on one line. */
export const bound = (text: string): string =>
  minus(arrow(text)).replaceAll(" %", "\u202f%").replace(/(\d) of (?=\d)/g, "$1\u00a0of ")
    .replace(/r > (?=\d)/g, "r\u00a0>\u00a0").replace(/(\d)–(?=\d)/g, "$1\u2060–\u2060");
/** The short name of a site. */
export const siteName = (site: string): string =>
  site.replace(/^blocks\.(\d+)\.(?:hook_)?/, "$1 · ").replaceAll("_", " ").replace("mlp.hook ", "mlp ");
export const SAES: Record<string, string> = { joint: "joint", parent: "continued", independent: "independent" };
