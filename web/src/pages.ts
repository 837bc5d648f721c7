/** The pages in the order of the navigation; one is shown where its data is there. A new page is a file and a line. */
import type { Component } from "svelte";
import { DATA } from "./lib/data";
import { hasFeatures } from "./lib/shows";
import Feature from "./pages/Feature.svelte";
import Features from "./pages/Features.svelte";
import Flow from "./pages/Flow.svelte";
import Overview from "./pages/Overview.svelte";
import Results from "./pages/Results.svelte";

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
  { id: "results", title: "All results", component: Results, shows: DATA.sections.length > 0 },
].filter((page) => page.shows);
