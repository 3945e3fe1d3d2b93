import { defineConfig } from "vite";

// The built files are served by the board from any base path, under a policy that allows no inline script, style or data: URL.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../static",
    emptyOutDir: true,
    assetsDir: "assets",
    assetsInlineLimit: 0,
    sourcemap: false,
    modulePreload: { polyfill: false },
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    cssCodeSplit: true,
    // What several pages share is one file beside the first: a page is then one more, not twenty.
    rolldownOptions: { output: { codeSplitting: { groups: [{ name: "shared", test: /src\/|node_modules\/preact/, minShareCount: 4 }] } } },
    license: { fileName: "licenses.md" },
  },
  server: { proxy: { "/api": "http://127.0.0.1:8099", "/events": "http://127.0.0.1:8099" } },
});
