// Builds dist/: one script, one style sheet, and the licences of what is bundled. The same input gives the same bytes.
// With --test: bundles and runs the unit tests of the pure parts instead.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));

const common = { bundle: true, jsx: "automatic", jsxImportSource: "preact", absWorkingDir: here, logLevel: "warning" };

/** What may not stand in a script that is written into a page. */
function checkInline(text) {
  for (const bad of ["</script", "<!--", "<script"])
    if (text.toLowerCase().includes(bad)) throw new Error(`dist/explorer.js holds ${bad}; a page would end there`);
}

/** Libraries that others have taken into their own files. */
const WITHIN = { "@dagrejs/dagre": ["@dagrejs/graphlib"] };

/** The packages whose files went into the bundle, sorted. */
function packagesOf(metafile) {
  const names = Object.keys(metafile.inputs).map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
  return [...new Set(names.filter(Boolean).flatMap((name) => [name, ...(WITHIN[name] ?? [])]))].sort();
}

/** The name, version and licence text of one package. */
function licenceOf(name) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
}

/** A digest of all that dist/ is made from, so that a test without Node sees whether it is up to date. */
function digestOfSources() {
  const files = ["build.mjs", "package-lock.json", ...readdirSync(join(here, "src")).sort().map((file) => `src/${file}`)];
  const hash = createHash("sha256");
  for (const file of files) hash.update(`${file}\0`).update(readFileSync(join(here, file))).update("\0");
  return hash.digest("hex");
}

async function bundle() {
  const result = await build({
    ...common,
    entryPoints: { explorer: "src/main.tsx" },
    outdir: "dist",
    format: "iife",
    target: ["es2022"],
    charset: "utf8",
    minify: true,
    legalComments: "none",
    metafile: true,
  });
  await build({ ...common, entryPoints: { explorer: "src/styles.css" }, outdir: "dist", minify: true });
  checkInline(readFileSync(join(here, "dist", "explorer.js"), "utf8"));
  const rule = "\n" + "-".repeat(72) + "\n\n";
  const head = "The explorer page bundles these libraries.\n";
  writeFileSync(join(here, "dist", "LICENSES.txt"), [head, ...packagesOf(result.metafile).map(licenceOf)].join(rule));
  writeFileSync(join(here, "dist", "sources.sha256"), digestOfSources() + "\n");
}

async function test() {
  const out = mkdtempSync(join(tmpdir(), "explorer-test-"));
  try {
    const tests = readdirSync(join(here, "test")).filter((file) => file.endsWith(".test.ts"));
    await build({
      ...common,
      entryPoints: tests.map((file) => join("test", file)),
      outdir: out,
      outExtension: { ".js": ".mjs" },
      platform: "node",
      format: "esm",
    });
    const files = tests.map((file) => join(out, file.replace(/\.ts$/, ".mjs"))).filter(existsSync);
    process.exitCode = spawnSync(process.execPath, ["--test", ...files], { stdio: "inherit" }).status ?? 1;
  } finally {
    rmSync(out, { recursive: true });
  }
}

await (process.argv.includes("--test") ? test() : bundle());
