// What the tests stand on: a browser, the page of a proxy that runs, and the folder of manifests that it follows. `cargo xtask page`
// makes all of it and says by the environment where it is; everything here runs inside the node's network namespace.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before } from "node:test";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

/** The page, and the API beside it. */
export const URL = setting("KUBEFERRY_PAGE");
/** The folder that the proxy reads its objects from. */
export const MANIFESTS = setting("KUBEFERRY_MANIFESTS");

/** The proxy's datapath: `nftables` or `ebpf`, and where programs are pinned on that. */
export const BACKEND = setting("KUBEFERRY_BACKEND");
export const BPFFS = process.env.KUBEFERRY_BPFFS;

/** Milliseconds until what has not come is a fault. */
export const PATIENCE = 120_000;

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run these tests by \`cargo xtask page\``);
  return value;
}

/** Runs a program in the node's namespace. */
export const run = promisify(execFile);

/** A browser without a window that asks nobody but the page. */
export function launch() {
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"];
  return chromium.launch({ executablePath: "/usr/bin/chromium", args });
}

/** Opens the page at `hash`, and writes down what goes wrong in it. `quiet` waits until it asks for nothing. */
export async function open(browser, hash = "#/", options = {}) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 860 }, ...options });
  // The machine may be busy: what takes longer than this never comes.
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  const faults = [];
  const asking = new Set();
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    asking.add(request);
    if (!request.url().startsWith(URL) && !request.url().startsWith("data:")) faults.push(`asked ${request.url()}`);
  });
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => asking.delete(request));
  await page.goto(`${URL}/${hash}`);
  const quiet = () => until("all answers", () => asking.size === 0);
  const close = async () => {
    // Whatever is still being answered for this page is nobody's any more.
    await page.unrouteAll({ behavior: "ignoreErrors" });
    await context.close();
  };
  return { page, faults, quiet, close };
}

/** Opens the page for a test, which must leave nothing in the console but what it `expects`, and ask nobody else. */
async function visit(browser, hash, work, { expects, ...options } = {}) {
  const { page, faults, quiet, close } = await open(browser, hash, options);
  try {
    await work(page, quiet);
    assert.deepEqual(faults.filter((fault) => !expects?.test(fault)), []);
    if (expects) assert.ok(faults.some((fault) => expects.test(fault)), `no ${expects} in the console`);
  } finally {
    await close();
  }
}

/** A browser for the tests of a file, and `visit` in it. */
export function browsing() {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
  });
  return (...what) => visit(browser, ...what);
}

/** Waits for a condition, with a word for it. */
export async function until(what, attempt, patience = PATIENCE) {
  const end = Date.now() + patience;
  let last;
  while (Date.now() < end) {
    try {
      const value = await attempt();
      if (value) return value;
    } catch (error) {
      last = error;
    }
    await new Promise((done) => setTimeout(done, 100));
  }
  throw new Error(`waited for ${what}${last ? `: ${last}` : ""}`);
}

/** The answer of the API. */
export async function ask(path) {
  const answer = await fetch(`${URL}/api/v1/${path}`);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** A metric, by its name and the labels that matter: `service="web"`. */
export async function metric(name, ...labels) {
  const text = await (await fetch(`${URL}/metrics`)).text();
  const lines = text.split("\n").filter((line) => [" ", "{"].includes(line[name.length]) && line.startsWith(name));
  const line = lines.find((one) => labels.every((label) => one.includes(label)));
  if (!line) throw new Error(`no ${name} of ${labels} in /metrics`);
  return Number(line.split("} ").at(-1).split(" ").at(-1));
}

/** Puts objects into a file of the folder, in one step; null takes the file away. */
export async function objects(file, items) {
  const path = join(MANIFESTS, file);
  if (items === null) return rm(path, { force: true });
  const draft = join(MANIFESTS, `.${file}.draft`);
  await writeFile(draft, JSON.stringify({ apiVersion: "v1", kind: "List", items }));
  return rename(draft, path);
}

/** Puts objects there for as long as a test runs. */
export async function having(file, items, work) {
  await objects(file, items);
  try {
    await work();
  } finally {
    await objects(file, null);
  }
}

/** A Service with its slice. */
export function service(name, clusterIP, endpoints, port = 80, more = {}) {
  const metadata = { name, namespace: "default", ...more.metadata };
  const slice = { metadata: { name: `${name}-1`, namespace: metadata.namespace, labels: { "kubernetes.io/service-name": name } } };
  return [
    { apiVersion: "v1", kind: "Service", metadata, spec: { clusterIP, ports: [{ name: "http", port }], ...more.spec } },
    {
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSlice",
      ...slice,
      addressType: "IPv4",
      ports: [{ name: "http", port: 8080 }],
      endpoints: endpoints.map((address) => ({ addresses: [address] })),
    },
  ];
}

/** Has a page count the elements that it makes from now on, and the milliseconds of its long tasks. */
export const watched = (page) =>
  page.evaluate(() => {
    globalThis.made = 0;
    globalThis.busy = [];
    for (const name of ["createElement", "createElementNS"]) {
      const make = document[name].bind(document);
      document[name] = (...what) => {
        globalThis.made += 1;
        return make(...what);
      };
    }
    new PerformanceObserver((list) => globalThis.busy.push(...list.getEntries().map((entry) => entry.duration))).observe({ type: "longtask" });
  });
