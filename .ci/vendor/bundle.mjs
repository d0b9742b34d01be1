// Bundles what the pages of the service are made with into one folder: what is served is what is committed.
// Writes a file for each library, the licences, and SHA256SUMS, by which `make check` holds the files to this.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const out = process.argv[2];
const exported = `
  export { render, h, Fragment } from "preact";
  export { useEffect, useErrorBoundary, useRef, useState } from "preact/hooks";
  export { signal, computed, effect, batch } from "@preact/signals";
  import { h } from "preact";
  import htm from "htm";
  export const html = htm.bind(h);
`;
const options = { bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none" };

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({ ...options, stdin: { contents: exported, resolveDir: import.meta.dirname }, outfile: join(out, "preact.js") });
// Its own minified file is a tenth smaller than what esbuild makes of its module.
const uplot = import.meta.dirname + "/node_modules/uplot/dist";
writeFileSync(join(out, "uplot.js"), readFileSync(join(uplot, "uPlot.iife.min.js"), "utf8").trim() + "\nexport default uPlot;\n");
await build({ minify: true, entryPoints: [join(uplot, "uPlot.min.css")], outfile: join(out, "uplot.css") });
const swagger = import.meta.dirname + "/node_modules/swagger-ui-dist";
// The names of its own maps, which are not served, are left out.
const without = (text) => text.replace(/\n?(\/\/|\/\*)# sourceMappingURL=.*$/m, "");
for (const name of ["swagger-ui-bundle.js", "swagger-ui.css"]) {
  writeFileSync(join(out, name), without(readFileSync(join(swagger, name), "utf8")));
}
const licences = [];
for (const name of ["preact", "@preact/signals", "@preact/signals-core", "htm", "uplot", "swagger-ui-dist"]) {
  const folder = join(import.meta.dirname, "node_modules", name);
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const files = readdirSync(folder).filter((each) => /^(licen[cs]e|notice)/i.test(each)).sort();
  const texts = files.map((each) => readFileSync(join(folder, each), "utf8").trim());
  licences.push([`${name} ${about.version}, ${about.license}`, ...texts].join("\n\n"));
}
copyFileSync(join(swagger, "swagger-ui-bundle.js.LICENSE.txt"), join(out, "swagger-ui-bundle.LICENSE.txt"));
writeFileSync(join(out, "LICENSES.txt"), licences.join(`\n\n${"-".repeat(72)}\n\n`) + "\n");
const sums = readdirSync(out).sort().map((name) => {
  const sum = createHash("sha256").update(readFileSync(join(out, name))).digest("hex");
  return `${sum}  ${name}\n`;
});
writeFileSync(join(out, "SHA256SUMS"), sums.join(""));
