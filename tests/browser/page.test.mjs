// The page as somebody uses it: searching, opening a Service, asking where a packet would go, seeing a change arrive and drift
// repaired; with 10,000 Services; with names that try to be markup; for keyboards and screen readers.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { ask, launch, metric, objects, open, run, service, until, URL } from "./stage.mjs";

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

/** Opens the page for a test, which must leave nothing in the console but what it `expects`, and ask nobody else. */
async function visit(hash, work, { expects, ...options } = {}) {
  const { page, faults, quiet, close } = await open(browser, hash, options);
  try {
    await work(page, quiet);
    assert.deepEqual(faults.filter((fault) => !expects?.test(fault)), []);
    if (expects) assert.ok(faults.some((fault) => expects.test(fault)), `no ${expects} in the console`);
  } finally {
    await close();
  }
}

/** Puts objects there for as long as a test runs. */
async function having(file, items, work) {
  await objects(file, items);
  try {
    await work();
  } finally {
    await objects(file, null);
  }
}

/** What axe finds, in a few words. */
async function violations(page) {
  // The page's own policy forbids scripts from elsewhere: this one comes by the browser's own door.
  await page.evaluate(await readFile(axe, "utf8"));
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  assert.ok(found.passes.length > 10, "axe looked at the page");
  return found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

/** A number as the page writes it. */
const read = (text) => Number(text.replaceAll(",", ""));

test("a Service is found, opened, and shows how traffic spreads", () =>
  visit("#/", async (page) => {
    await page.keyboard.press("/");
    await page.keyboard.type("webapp");
    await page.getByText(/^1 of \d+ Services$/).waitFor();
    await page.getByRole("link", { name: "default/webapp-service" }).click();
    await page.getByRole("heading", { name: "default/webapp-service" }).waitFor();
    await page.getByText("10.96.0.50:80").first().waitFor();
    const rows = page.locator("table.endpoints tbody tr");
    await until("three endpoints", async () => (await rows.count()) === 3);
    await until("shares beside the promise", async () => /promised 33\.3 %, real [1-9]\d\.\d %/.test(await rows.first().innerText()));
  }));

test("its numbers are those of the API and of the metrics", () =>
  visit("#/?search=webapp", async (page) => {
    const row = page.locator("tbody tr", { has: page.getByRole("link", { name: "default/webapp-service" }) });
    const heads = await page.locator("thead th").allInnerTexts();
    const at = heads.findIndex((head) => head.trim() === "Connections");
    const shown = async () => read(await row.locator("td").nth(at).innerText());
    const told = async () => (await ask("services/default/webapp-service")).ports[0].connections;
    const counted = () => metric("kubeferry_service_connections_total", 'service="webapp-service"');
    // It goes on counting: each looks between two looks of the other.
    const [before, first] = [await told(), await counted()];
    assert.ok(before > 0 && first >= before, `${before} ${first}`);
    await until("the page to have got that far", async () => (await shown()) >= first);
    const last = await shown();
    await until("the metrics, too", async () => (await counted()) >= last);
    assert.ok((await told()) >= last);
    const { counts } = await ask("node");
    assert.equal(counts.services, await metric("kubeferry_services"));
    await page.getByText(`1 of ${counts.services} Services`, { exact: true }).waitFor();
  }));

test("the path of a packet is drawn", () =>
  visit("#/trace", async (page) => {
    await page.getByLabel(/^From/).fill("10.244.1.100");
    await page.getByLabel(/^To/).fill("10.96.0.50:80");
    await page.keyboard.press("Enter");
    const path = page.getByRole("list", { name: "The path" });
    await path.getByText("10.96.0.50:80 is the ClusterIP of default/webapp-service").waitFor();
    await path.getByText("10.244.1.11:8080").first().waitFor();
    await page.getByLabel(/^To/).fill("nonsense");
    await page.keyboard.press("Enter");
    await page.getByText(/is no destination|no destination/).first().waitFor();
    // A refused question is told by its code, which the browser's console notes.
  }, { expects: /status of 400/ }));

test("a change arrives by itself, and is in the history", () =>
  visit("#/history", async (page) => {
    await page.getByRole("heading", { name: "What changed lately" }).waitFor();
    const endpoints = page.locator("table.endpoints tbody tr");
    await having("arrives.json", service("arrives", "10.96.7.1", ["10.244.1.11"]), async () => {
      await page.getByText("default/arrives").first().waitFor();
      await page.getByRole("link", { name: "Services", exact: true }).click();
      await page.getByRole("link", { name: "default/arrives" }).click();
      await until("its endpoint", async () => (await endpoints.count()) === 1);
      await objects("arrives.json", service("arrives", "10.96.7.1", ["10.244.1.11", "10.244.2.12"]));
      await until("another endpoint", async () => (await endpoints.count()) === 2);
    });
    await page.getByText("This Service is not served on this node now").waitFor();
    await page.getByRole("link", { name: "Services", exact: true }).click();
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    await page.getByRole("link", { name: "default/arrives" }).waitFor({ state: "detached" });
  }, { expects: /status of 404/ }));

test("drift is seen repaired", () =>
  visit("#/", async (page) => {
    await page.getByText(/\d+ repairs/).waitFor();
    const { repairs } = (await ask("node")).drift;
    await run("nft", ["delete", "element", "inet", "kubeferry", "cluster_ips4", "{ 10.96.0.50 }"]);
    const repaired = await until("the proxy to repair it", async () => {
      const { drift } = await ask("node");
      return drift.repairs > repairs && drift.repairs;
    });
    await page.getByText(`${repaired} repairs`).waitFor();
    await page.getByRole("link", { name: "Changes" }).click();
    await page.getByText("repair", { exact: true }).first().waitFor();
  }));

test("names that look like markup are names, and what is left out is told", () =>
  visit("#/ignored", async (page) => {
    const markup = '<img src=x onerror="document.title=1">';
    const marked = service("marked", "10.96.7.2", ["10.244.1.11"], 80, { metadata: { annotations: { "kubeferry.dev/scheduler": markup } } });
    await having("marked.json", marked, async () => {
      await page.getByText(/<img src=x/).first().waitFor();
      assert.equal(await page.locator("main img").count(), 0);
      assert.match(await page.title(), /Kubeferry/);
    });
  }));

/** Each view, and what shows that it is there. */
const VIEWS = [
  ["#/", (page) => page.getByRole("link", { name: "default/webapp-service" })],
  ["#/service/default/webapp-service", (page) => page.getByText("promised 33.3 %").first()],
  ["#/history", (page) => page.locator("svg.plot polyline").first()],
  ["#/ignored", (page) => page.locator("main h1")],
  ["#/trace?from=10.244.1.100&to=tcp:10.96.0.50:80", (page) => page.getByRole("list", { name: "The path" }).getByText("10.244.1.11:8080").first()],
];

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds no fault in any view, ${colorScheme}`, async () => {
    const colors = new Set();
    for (const [hash, there] of VIEWS) {
      await visit(hash, async (page, quiet) => {
        await there(page).waitFor();
        // What is looked at has to hold still.
        await page.getByRole("button", { name: "Pause" }).click();
        await quiet();
        assert.deepEqual(await violations(page), [], hash);
        colors.add(await page.evaluate(() => getComputedStyle(document.body).color));
      }, { colorScheme, reducedMotion: "reduce" });
    }
    const [text, ...others] = colors;
    assert.deepEqual(others, []);
    const bright = text.match(/\d+/g).slice(0, 3).every((part) => Number(part) > 127);
    assert.equal(bright, colorScheme === "dark", `${text} is what text has`);
  });
}

test("it is usable without a mouse", () =>
  visit("#/", async (page) => {
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    /** Presses Tab until this has the focus. */
    const reach = async (what, selector) => {
      const reached = () => page.evaluate((wanted) => document.activeElement.matches(wanted), selector);
      for (let step = 0; step < 60 && !(await reached()); step += 1) await page.keyboard.press("Tab");
      assert.ok(await reached(), `the Tab key reaches ${what}`);
      const seen = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.notEqual(seen, "none", `the focus can be seen on ${what}`);
    };
    await reach("the order by health", "button[data-key='sort-health']");
    await page.keyboard.press("Enter");
    await page.locator("th[aria-sort=descending]", { hasText: "Health" }).waitFor();
    await reach("a Service", "a[href*='webapp-service']");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "default/webapp-service" }).waitFor();
    await reach("the form", "nav a[data-view='trace']");
    await page.keyboard.press("Enter");
    await page.getByLabel(/^From/).waitFor();
    await reach("where from", "form input");
    await page.keyboard.type("10.244.1.100");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.type("10.96.0.50:80");
    await page.keyboard.press("Enter");
    await page.getByRole("list", { name: "The path" }).getByText("10.244.1.11:8080").first().waitFor();
    await reach("the pause", "#pause");
    await page.keyboard.press("Space");
    await page.locator("#pause[aria-pressed=true]").waitFor();
  }));

test("nothing can be changed through it, and it loads nothing from elsewhere", async () => {
  for (const path of ["/", "/assets/app.js", "/api/v1/services", "/api/v1/trace"]) {
    for (const method of ["POST", "PUT", "DELETE", "PATCH"]) {
      assert.equal((await fetch(`${URL}${path}`, { method })).status, 405, `${method} ${path}`);
    }
  }
  const policy = (await fetch(`${URL}/`)).headers.get("content-security-policy");
  for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]) assert.ok(policy.includes(part), policy);
  assert.ok(!policy.includes("unsafe"), policy);
});

test("10,000 Services are searched and scrolled", async () => {
  const items = [];
  for (let number = 0; number < 10_000; number += 1) {
    const ip = `10.97.${Math.floor(number / 250)}.${(number % 250) + 1}`;
    items.push(service(`many-${String(number).padStart(5, "0")}`, ip, [`10.244.1.${11 + (number % 3)}`])[0]);
  }
  await having("many.json", items, async () => {
    await until("all of them to be served", async () => (await ask("node")).counts.services > 10_000, 300_000);
    await visit("#/", scrolled);
  });
  await until("them to be gone", async () => (await ask("node")).counts.services < 10_000, 300_000);
});

async function scrolled(page) {
  await page.getByText(/^10,\d\d\d Services$/).waitFor();
  const scroll = page.getByRole("region", { name: "Services, a list to scroll" });
  await page.getByRole("link", { name: "default/many-00000" }).waitFor();
  const { gaps, most, made, blank, passed } = await scroll.evaluate(async (element) => {
    const body = element.querySelector("tbody");
    const found = { gaps: [], most: 0, made: 0, blank: 0, passed: 0 };
    const seen = new MutationObserver((changes) => {
      for (const change of changes) found.made += change.target === body ? change.addedNodes.length : 0;
    });
    seen.observe(body, { childList: true });
    const start = element.scrollTop;
    let before = performance.now();
    const frame = () => new Promise(requestAnimationFrame);
    for (let step = 0; step < 120; step += 1) {
      element.scrollTop += 300;
      // In the first frame the event comes and asks for the second, in which rows are drawn.
      await frame();
      await frame();
      const now = performance.now();
      found.gaps.push((now - before) / 2);
      before = now;
      found.most = Math.max(found.most, body.rows.length);
      const { left, top, height } = element.getBoundingClientRect();
      const middle = document.elementFromPoint(left + 20, top + height / 2);
      if (!middle?.closest("tr[aria-rowindex]")) found.blank += 1;
    }
    seen.disconnect();
    found.gaps.sort((one, other) => one - other);
    found.passed = (element.scrollTop - start) / body.rows[1].getBoundingClientRect().height;
    return found;
  });
  console.log(`scrolling: half of the frames within ${gaps[60].toFixed(1)} ms, 95 of 100 within ${gaps[114].toFixed(1)} ms; ${made} rows made for ${passed.toFixed()}`);
  assert.ok(passed > 500, `${passed} rows went by`);
  assert.equal(blank, 0, "there is a row wherever one looks");
  assert.ok(most < 100, `only rows that can be seen are there: ${most}`);
  // Each once, and once more where it had to wait for what it shows; not all of them in each frame.
  assert.ok(made < 3 * passed, `${made} rows were made for ${passed}`);
  await scroll.evaluate((element) => {
    element.scrollTop = element.scrollHeight;
  });
  await page.getByRole("link", { name: /webapp-service/ }).waitFor();
  await page.getByLabel(/^Search/).fill("many-07777");
  await page.getByRole("link", { name: "default/many-07777" }).waitFor();
  await page.getByText(/^1 of 10,\d\d\d Services$/).waitFor();
}
