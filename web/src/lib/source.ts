/** Where features come from: the page itself, or the server that gave it. Pages ask a `Source` and do not know which. */
import { DATA, unpacked, type Card } from "./data";
import { followed } from "./family";
import { Columns, type Asked, type Explained, type Family, type Logits, type Note, type Raters, type RawColumns, type Shown } from "./features";

export interface Place {
  instrument: string;
  site: string;
}
export interface Source {
  /** Whether notes and texts can be asked for, and every feature has its text. */
  readonly served: boolean;
  /** All features of a place; null where none are followed, or the matches are not done. */
  columns(place: Place): Promise<Columns | null>;
  /** A feature with its text; null where the page does not hold it. Rejects with the reason of a refusal. */
  feature(place: Place, model: string, feature: number): Promise<Shown | null>;
  /** Its explanation, which a server makes where the run has none; null where the page does not hold it. */
  explained(place: Place, model: string, feature: number): Promise<Explained | null>;
  /** The feature in every model; null where there is no such feature. */
  family(place: Place, model: string, feature: number): Promise<Family | null>;
  /** What a feature predicts; the server loads its model for that. */
  logits(place: Place, model: string, feature: number): Promise<Logits | null>;
  /** What language models were asked about a feature, in the order of what they say; only a server knows. */
  asked(place: Place, model: string, feature: number): Promise<Asked[]>;
  notes(): Promise<Note[]>;
  raters(): Promise<Raters | null>;
  tried(text: string, instrument: string): Promise<any>;
}

const cached = <T>(make: (place: Place) => Promise<T>): ((place: Place) => Promise<T>) => {
  const held = new Map<string, Promise<T>>();
  return (place) => {
    const key = `${place.instrument}\n${place.site}`;
    if (!held.has(key)) held.set(key, make(place));
    return held.get(key)!;
  };
};

/** The cards of a place, by list. */
export const cardsOf = (place: Place): Card[] => DATA.inspector[place.site]?.[place.instrument]?.cards ?? [];

const embedded: Source = {
  served: false,
  columns: cached(async (place) => {
    const text = DATA.features?.[place.instrument]?.[place.site];
    return text ? new Columns(await unpacked<RawColumns>(text), place.site) : null;
  }),
  async feature(place, model, feature) {
    const card = cardsOf(place).find((one) => one.model === model && one.feature === feature);
    if (!card) return null;
    const columns = await embedded.columns(place);
    const { card: own, label: _, ...rest } = card;
    const top = { low: 0, high: card.max, examples: [] };
    const levels = own.weaker.map(({ low, high, contexts }) => ({ low, high, examples: contexts }));
    const { promoted, suppressed, no_logits } = own;
    return { ...rest, ...own, site: place.site, kind: null, notes: [], levels: [top, ...levels], drawn: [], silent: [],
      logits: { promoted, suppressed, no_logits }, said: columns?.raw.said?.[`${model}/${feature}`] ?? [] };
  },
  async explained(place, model, feature) {
    const card = cardsOf(place).find((one) => one.model === model && one.feature === feature);
    if (!card) return null;
    const columns = await embedded.columns(place);
    return { explanation: card.label, audit: columns?.raw.audits?.[`${model}/${feature}`] ?? [] };
  },
  async family(place, model, feature) {
    const columns = await embedded.columns(place);
    return columns?.raw.families?.[`${model}/${feature}`] ?? (columns ? followed(columns, model, feature) : null);
  },
  async logits() {
    return null;
  },
  async asked() {
    return [];
  },
  async notes() {
    return [];
  },
  async raters() {
    return null;
  },
  async tried() {
    throw new Error("this page has no server");
  },
};

/** The answer of the server; rejects with the reason that it gives. */
async function ask(path: string, values: Record<string, string>, body?: object): Promise<any> {
  const query = new URLSearchParams(values).toString();
  const post = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(`/api/${path}${query ? `?${query}` : ""}`, body ? post : {});
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}
const server: Source = {
  served: true,
  columns: cached(async (place) => {
    const raw = await ask("columns", { ...place });
    return raw ? new Columns(raw, place.site) : null;
  }),
  async feature(place, model, feature) {
    const one = await ask("feature", { id: `${model}/${feature}`, ...place });
    const contexts = one.top.map(({ values, family, ...rest }: any) => ({ ...rest, values: { [model]: values, ...family } }));
    const kind = one.class && [one.class.class, one.class.domain && `in ${one.class.domain}`].filter(Boolean).join(", ");
    return { ...one, kind, contexts, logits: null };
  },
  explained: (place, model, feature) => ask("explanation", { id: `${model}/${feature}`, ...place }),
  family: (place, model, feature) => ask("family", { id: `${model}/${feature}`, ...place }),
  logits: (place, model, feature) => ask("logits", { id: `${model}/${feature}`, ...place }),
  asked: (place, model, feature) => ask("asked", { id: `${model}/${feature}`, ...place }),
  notes: () => ask("notes", {}),
  raters: () => ask("raters", {}),
  tried: (text, instrument) => ask("try", {}, { text, instrument }),
};

export const source: Source = DATA.served ? server : embedded;
