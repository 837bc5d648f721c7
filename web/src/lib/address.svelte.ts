/** Where the reader is, in the hash of the address: the page, and every choice made on it.
 *
 * `#/features?model=base&verdict=lost`. It is the same for a file and for a server; what is chosen is a step that Back
 * takes back, what is dragged replaces itself. */
import { DATA, MEASURED } from "./data";

export type Params = Record<string, string>;
const KEPT = ["sae", "site"]; // that hold on every page

function parse(hash: string): { page: string; params: Params } {
  const [page, query = ""] = hash.replace(/^#\/?/, "").split("?"); // names of pages need no decoding
  return { page, params: Object.fromEntries(new URLSearchParams(query)) };
}
/** Half of a surrogate pair has no place in an address. */
const encode = (text: string): string =>
  encodeURIComponent(text.replace(/[\ud800-\udfff]/gu, "\ufffd")).replaceAll("%2F", "/").replaceAll("%3E", ">").replaceAll("%20", "+");

const state = $state(parse(location.hash));
addEventListener("hashchange", () => Object.assign(state, parse(location.hash)));

function written(page: string, params: Record<string, string | number | null | undefined>): string {
  const given = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = given.map(([name, value]) => `${encode(name)}=${encode(`${value}`)}`).join("&");
  return `#/${page}${query ? `?${query}` : ""}`;
}

export const address = {
  get page(): string {
    return state.page;
  },
  get params(): Params {
    return state.params;
  },
  /** Instrument and site that the page is about. */
  get instrument(): string {
    const asked = state.params.sae;
    return DATA.instruments.includes(asked) ? asked : (MEASURED[0] ?? DATA.instruments[0] ?? "");
  },
  get site(): string {
    const asked = state.params.site;
    return DATA.sites.includes(asked) ? asked : (DATA.sites[0] ?? "");
  },
  /** The address of a page with these choices, and those that hold everywhere. */
  link(page: string, params: Record<string, string | number | null | undefined> = {}): string {
    const kept = Object.fromEntries(KEPT.filter((name) => state.params[name]).map((name) => [name, state.params[name]]));
    return written(page, { ...kept, ...params });
  },
  /** Choose on this page; null takes a choice back. replace: without a step for Back. */
  choose(params: Record<string, string | number | null | undefined>, replace = false): void {
    const hash = written(state.page, { ...state.params, ...params });
    if (hash === location.hash) return;
    if (replace) location.replace(hash);
    else location.hash = hash;
  },
  go(page: string, params: Record<string, string | number | null | undefined> = {}): void {
    location.hash = address.link(page, params);
  },
};

/** Values of the place that rows of tables have. */
export const place = (): { instrument: string; site: string } => ({
  instrument: address.instrument,
  site: address.site,
});
