/** Findings, in the order they are read, and the evidence that each leads to. */
import { address } from "./address.svelte";
import { DATA, NODE, rowsOf, type Statement } from "./data";
import { hasFeatures } from "./shows";

/** First questions, with their words; others are folded away. */
export const QUESTIONS: Record<string, string> = {
  merge: "made", sites: "by site", inherited: "kept", lost: "lost", changed: "changed", new: "new", sure: "how sure", matches: "by matches",
};
const FIRST = Object.keys(QUESTIONS).filter((name) => name !== "matches");
const rank = (one: Statement): number => {
  const place = FIRST.indexOf(one.question);
  return place < 0 ? FIRST.length : place;
};

/** Tables that say what a question asks, the one that says most first. */
const TABLES: Record<string, string[]> = {
  merge: ["merges", "merge_accuracy"], sites: ["layers"], inherited: ["verdicts"], lost: ["verdicts"], new: ["verdicts"],
  changed: ["examined", "fingerprints"], sure: ["references"], matches: ["edges"], density: ["density_change"],
  case: ["case_verdicts"], kinds: ["group_gaps"], meaning: ["explained"],
};

export interface Evidence {
  title: string;
  href: string;
}
/** The table behind a finding, then the features that it counts. */
export function evidenceOf(one: Statement): Evidence[] {
  const names = TABLES[one.question] ?? [];
  const name = [...names, ...Object.keys(DATA.tables)].find((table) => DATA.tables[table] && (names.includes(table) || !names.length));
  const part = DATA.sections.find((section) => name && section.tables.includes(name));
  const links = [{ title: "table", href: part ? address.link("results", { part: part.kind, table: name }) : address.link("results") }];
  const verdict = { inherited: "kept", lost: "lost", changed: "changed", new: "new" }[one.question];
  const edges = rowsOf("verdicts", { instrument: one.instrument, text: "common", end: "parent" }).map((row) => row.edge as string);
  // the sentence names the parent that it is about
  const edge = edges.find((name) => {
    const [parent, child] = name.split("->");
    return child === one.about && new RegExp(`(?:of|with) ${parent.replace(/\W/g, "\\$&")}(?:\\W|$)`).test(one.text);
  });
  if (hasFeatures && verdict && edge) {
    const model = verdict === "new" ? one.about : edge.split("->")[0];
    links.push({ title: `the ${verdict} features`, href: address.link("features", { model, edge, verdict }) });
  }
  return links;
}

export interface Subject {
  name: string;
  first: Statement[];
  rest: Statement[];
}
/** Findings at a place by what they are about: models, the last child first, as the study leads up to it; then others. */
export function subjects(instrument: string, site: string): { models: Subject[]; others: Subject[] } {
  const mine = DATA.statements.filter((one) => [instrument, ""].includes(one.instrument) && [site, ""].includes(one.site));
  const names = [...new Set(mine.map((one) => one.about))];
  const subject = (name: string): Subject => {
    const rows = mine.filter((one) => one.about === name).sort((a, b) => rank(a) - rank(b));
    const first = rows.filter((one) => FIRST.includes(one.question));
    return first.length ? { name, first, rest: rows.filter((one) => !first.includes(one)) } : { name, first: rows, rest: [] };
  };
  const models = Object.keys(NODE).filter((name) => names.includes(name)).reverse().map(subject);
  return { models, others: names.filter((name) => !NODE[name]).map(subject) };
}
