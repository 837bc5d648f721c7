/** What there is to show. */
import { DATA } from "./data";

/** Whether features of any place are at hand. */
export const hasFeatures =
  DATA.instruments.length > 0 && (DATA.served || Object.keys(DATA.features ?? {}).length > 0);
export const hasVerdicts = Boolean(DATA.tables.verdicts);
/** Whether a feature can be followed from one model to another. */
export const hasFamilies = hasFeatures && DATA.graph.some((node) => node.parents.length > 0);

/** Tables that a page is about, by its name in the address; the page of all results has all of them. */
export const TABLES_OF: Record<string, string[]> = {
  lost: ["examined", "fingerprints", "lost_and_new", "newness", "effects", "splice"],
  layers: ["layers"],
  merge: ["merges", "sweeps", "merge_bases", "merge_accuracy", "merge_methods", "merge_tensors"],
  stitch: [
    "stitch_maps", "stitch_fits", "stitched_models", "stitch_costs", "stitch_layers", "alphas", "carried_directions", "sae_transfer", "sae_folding", "warm_starts",
    "warm_start_curves", "moved", "savings", "savings_by_level", "scaling_fits", "costs", "feature_transfer", "transfer_gaps", "transfer_correlations", "transfer_histograms",
    "transfer_split", "transfer_classes", "transfer_class_tests", "transfer_percentiles", "class_examples", "transfer_null_space", "null_shares", "entropy_features",
    "deactivation_features", "attention_curves", "probe_tasks", "probe_means", "probes", "steering_classifiers", "steering", "steering_gaps", "steering_frequencies",
    "steering_examples", "mapped_edges", "lineage_by_maps",
  ],
  quality: ["models", "accuracy", "saes", "density", "references", "grades", "repeats", "repeats_same"],
  provenance: ["corpora", "tokens", "tokens_apart", "deviations"],
};
const there = (page: string): boolean => TABLES_OF[page].some((name) => DATA.tables[name]);
export const hasLost = there("lost");
export const hasLayers = there("layers") && DATA.sites.length > 1;
export const hasMerge = Boolean(DATA.tables.merges);
export const hasStitch = Boolean(DATA.tables.stitch_maps);
export const hasQuality = there("quality");
/** The page that is about a table. */
export const pageOf = (table: string): string => {
  const shown = { lost: hasLost, layers: hasLayers, merge: hasMerge, stitch: hasStitch, quality: hasQuality, provenance: true };
  return Object.entries(shown).find(([page, shows]) => shows && TABLES_OF[page].includes(table))?.[0] ?? "results";
};
