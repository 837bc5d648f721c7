/** The pages in the order of the navigation; one is shown where its data is there. A new page is a file and a line. */
import type { Component } from "svelte";
import { DATA } from "./lib/data";
import { hasFamilies, hasFeatures, hasLayers, hasLost, hasMerge, hasQuality, hasStitch } from "./lib/shows";
import Family from "./pages/Family.svelte";
import Feature from "./pages/Feature.svelte";
import Features from "./pages/Features.svelte";
import Flow from "./pages/Flow.svelte";
import Layers from "./pages/Layers.svelte";
import Lost from "./pages/Lost.svelte";
import Merge from "./pages/Merge.svelte";
import Notes from "./pages/Notes.svelte";
import Overview from "./pages/Overview.svelte";
import Provenance from "./pages/Provenance.svelte";
import Quality from "./pages/Quality.svelte";
import Results from "./pages/Results.svelte";
import Stitch from "./pages/Stitch.svelte";
import Try from "./pages/Try.svelte";

export interface Page {
  /** In the address. */
  id: string;
  title: string;
  component: Component;
  shows: boolean;
  /** Not in the navigation: reached from other pages. */
  hidden?: boolean;
  /** Takes all the width there is. */
  wide?: boolean;
}

export const PAGES: Page[] = [
  { id: "", title: "Overview", component: Overview, shows: true },
  { id: "flow", title: "Flow", component: Flow, shows: hasFeatures && Boolean(DATA.tables.edges) },
  { id: "features", title: "Features", component: Features, shows: hasFeatures, wide: true },
  { id: "feature", title: "Feature", component: Feature, shows: hasFeatures, hidden: true },
  { id: "family", title: "Families", component: Family, shows: hasFamilies },
  { id: "lost", title: "Lost and new", component: Lost, shows: hasLost },
  { id: "layers", title: "Layers", component: Layers, shows: hasLayers },
  { id: "merge", title: "Merge", component: Merge, shows: hasMerge },
  { id: "stitch", title: "Stitch", component: Stitch, shows: hasStitch },
  { id: "notes", title: "Notes", component: Notes, shows: DATA.served && hasFeatures },
  { id: "try", title: "Try your own text", component: Try, shows: DATA.served && hasFeatures },
  { id: "quality", title: "Quality", component: Quality, shows: hasQuality },
  { id: "results", title: "All results", component: Results, shows: DATA.sections.length > 0 },
  { id: "provenance", title: "Provenance", component: Provenance, shows: true },
].filter((page) => page.shows);
