/** The colors of models and verdicts, the same on every page. Values are custom properties, so that themes apply. */
import { GRAPH, NODE } from "./data";

const STARTS = GRAPH.filter((node) => !node.parents.length && !node.recipe_of).map((node) => node.name);
const COLORED = GRAPH.filter((node) => (node.parents.length ? node.parents.length === 1 : STARTS.length > 1));
/** The color of a model: starts, merges and all other models apart while colors last. */
export function modelColor(model: string): string {
  const place = COLORED.findIndex((node) => node.name === model);
  if (place >= 0) return `var(--c${1 + (place % 5)})`;
  return NODE[model]?.parents.length ? "var(--both)" : "var(--c0)";
}
/** Colors of series that are no models. */
export const TINTS = ["c0", "c1", "c2", "c3", "both", "c4", "c5", "novel"].map((name) => `var(--${name})`);

export const VERDICTS = ["kept", "inherited", "changed", "lost", "new", "undecided", "unstable"];
export const verdictColor = (verdict: string): string =>
  `var(--v-${{ inherited: "kept", unstable: "undecided" }[verdict] ?? verdict})`;
/** The color of a verdict, or of the fate that it stands for, where it is one of several series; none for other names. */
export const fateColor = (name: string): string | undefined => {
  const verdict = { persist: "kept", disappear: "lost", emerge: "new", emerged: "new" }[name] ?? name;
  return VERDICTS.includes(verdict) ? verdictColor(verdict) : undefined;
};
/** What a verdict says, in a sentence. */
export const VERDICT_WORDS: Record<string, string> = {
  kept: "There in the child as it was.",
  inherited: "There in the parent as it is here.",
  changed: "There in the other model, in another form.",
  lost: "Not there in the child.",
  new: "Not there in the parent.",
  undecided: "The evidence carries none of the verdicts.",
  unstable: "A second SAE of the same model does not have it, so it is not judged.",
};
