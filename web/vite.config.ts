import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

/** Names each library that is built in, with its version, licence and holder, at the head of the script, and keeps
 * markup out of it that would end the script element that it stands in. */
function finished(): Plugin {
  return {
    name: "finished",
    generateBundle(_, bundle) {
      for (const file of Object.values(bundle)) {
        if (file.type !== "chunk") continue;
        const folders = new Set<string>();
        for (const id of Object.keys(file.modules)) {
          const found = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(id.replace(/^\0/, ""));
          if (found && file.modules[id].renderedLength) folders.add(found[1]);
        }
        const lines = [...folders].sort().map((folder) => {
          const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
          const text = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
          const holder = text && /^.*copyright.*\d{4}.*$/im.exec(readFileSync(join(folder, text), "utf8"));
          return ` * ${name} ${version} (${license})${holder ? `: ${holder[0].trim()}` : ""}`;
        });
        const code = file.code.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
        file.code = `/*! Built from web/. Contains:\n${lines.join("\n")}\n */\n${code}`;
      }
    },
  };
}

export default defineConfig({
  plugins: [svelte(), finished()],
  define: { "process.env.NODE_ENV": JSON.stringify("production") },
  build: {
    outDir: "../src/heredity/show/page",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    rolldownOptions: { input: "src/main.ts", output: { entryFileNames: "page.js", assetFileNames: "page.[ext]" } },
  },
});
