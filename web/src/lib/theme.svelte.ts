/** Light, dark, or as the system is; kept where the browser lets a page keep anything. */
const KEY = "heredity-theme";
export type Theme = "system" | "light" | "dark";

function kept(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "system";
  } catch {
    return "system";
  }
}
const system = matchMedia("(prefers-color-scheme: dark)");
const state = $state({ chosen: kept(), dark: system.matches });
system.addEventListener("change", () => (state.dark = system.matches));

export const theme = {
  get chosen(): Theme {
    return state.chosen;
  },
  get dark(): boolean {
    return state.chosen === "system" ? state.dark : state.chosen === "dark";
  },
  choose(chosen: Theme): void {
    state.chosen = chosen;
    try {
      localStorage.setItem(KEY, chosen);
    } catch {
      // a page that may keep nothing forgets it
    }
  },
};
