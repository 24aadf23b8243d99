// The page as somebody uses it: searching, opening a Service, asking where a packet would go, seeing a change arrive and drift
// repaired; with 10,000 Services; with names that try to be markup; for keyboards and screen readers.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { ask, launch, objects, open, run, service, until, URL } from "./stage.mjs";

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

/** Opens the page for a test, which must leave nothing in the console and ask nobody else. */
async function visit(hash, work, options) {
  const { page, faults, close } = await open(browser, hash, options);
  await work(page);
  assert.deepEqual(faults, []);
  await close();
}

/** What axe finds, in a few words. */
async function violations(page) {
  // The page's own policy forbids scripts from elsewhere: this one comes by the browser's own door.
  await page.evaluate(await (await import("node:fs/promises")).readFile(axe, "utf8"));
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

test("a Service is found, opened, and shows how traffic spreads", () =>
  visit("#/", async (page) => {
    await page.keyboard.press("/");
    await page.keyboard.type("webapp");
    const link = page.getByRole("link", { name: "default/webapp-service" });
    await link.waitFor();
    await page.getByText(/1 of \d+ Services/).waitFor();
    await link.click();
    await page.getByRole("heading", { name: "default/webapp-service" }).waitFor();
    await page.getByText("10.96.0.50:80").waitFor();
    const rows = page.locator("table.endpoints tbody tr");
    await until("three endpoints", async () => (await rows.count()) === 3);
    const { traffic } = await ask("node");
    // What nobody counts is a dash, and not a zero.
    const real = traffic.countsConnections ? /promised 33\.3 %, real [1-9]\d\.\d %/ : /promised 33\.3 %, real –/;
    await until("shares beside the promise", async () => real.test(await rows.first().innerText()));
    const told = await ask("services/default/webapp-service");
    const counted = (endpoint) => (traffic.countsConnections ? endpoint.connections > 0 : endpoint.connections === undefined);
    assert.ok(told.ports[0].endpoints.every(counted));
  }));

test("the path of a packet is drawn", () =>
  visit("#/trace", async (page) => {
    await page.getByLabel(/^From/).fill("10.244.1.100");
    await page.getByLabel(/^To/).fill("10.96.0.50:80");
    await page.keyboard.press("Enter");
    const path = page.getByRole("list", { name: "The path" });
    await path.getByText("10.96.0.50:80 is the ClusterIP of default/webapp-service").waitFor();
    await path.getByText("10.244.1.11:8080").waitFor();
    await page.getByLabel(/^To/).fill("nonsense");
    await page.keyboard.press("Enter");
    await page.getByText(/is no destination|no destination/).waitFor();
    // A refused question is told by its code, which the browser's console notes.
  }).catch((error) => assert.match(String(error.actual), /400/)));

test("a change arrives by itself, and is in the history", () =>
  visit("#/history", async (page) => {
    await page.getByRole("heading", { name: "What changed lately" }).waitFor();
    await objects("arrives.json", service("arrives", "10.96.7.1", ["10.244.1.11"]));
    await page.getByText("default/arrives").first().waitFor({ timeout: 30_000 });
    await page.getByRole("link", { name: "Services", exact: true }).click();
    await page.getByRole("link", { name: "default/arrives" }).waitFor();
    await objects("arrives.json", null);
    await page.getByRole("link", { name: "default/arrives" }).waitFor({ state: "detached", timeout: 30_000 });
  }));

test("drift is seen repaired", () =>
  visit("#/", async (page) => {
    const { repairs } = (await ask("node")).drift;
    await run("nft", ["delete", "element", "inet", "kubeferry", "cluster_ips4", "{ 10.96.0.50 }"]);
    await until("the proxy to repair it", async () => (await ask("node")).drift.repairs > repairs);
    await page.getByText(`${repairs + 1} repairs`).waitFor({ timeout: 15_000 });
    await page.getByRole("link", { name: "Changes" }).click();
    await page.getByText("repair", { exact: true }).first().waitFor();
  }));

test("names that look like markup are names, and what is left out is told", () =>
  visit("#/ignored", async (page) => {
    const markup = '<img src=x onerror="document.title=1">';
    const [bad, slice] = service("marked", "10.96.7.2", ["10.244.1.11"], 80, { metadata: { annotations: { "kubeferry.dev/scheduler": markup } } });
    await objects("marked.json", [bad, slice]);
    await page.getByText(/<img src=x/).first().waitFor({ timeout: 30_000 });
    assert.equal(await page.locator("main img").count(), 0);
    assert.match(await page.title(), /Kubeferry/);
    await objects("marked.json", null);
  }));

test("it is usable without a mouse, in light and dark, and has no fault that axe knows", async () => {
  for (const colorScheme of ["light", "dark"]) {
    for (const hash of ["#/", "#/service/default/webapp-service", "#/history", "#/ignored", "#/trace?from=10.244.1.100&to=tcp:10.96.0.50:80"]) {
      await visit(hash, async (page) => {
        await page.waitForLoadState("networkidle").catch(() => {});
        await page.locator("main h1").waitFor();
        await page.waitForTimeout(500);
        assert.deepEqual(await violations(page), [], `${colorScheme} ${hash}`);
      }, { colorScheme, reducedMotion: "reduce" });
    }
  }
  await visit("#/", async (page) => {
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    const reached = () => page.evaluate(() => document.activeElement.matches("a[href*='webapp-service']"));
    for (let step = 0; step < 40 && !(await reached()); step += 1) await page.keyboard.press("Tab");
    assert.ok(await reached(), "the link is reached by the Tab key");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "default/webapp-service" }).waitFor();
  });
});

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
  await objects("many.json", items);
  await until("all of them to be served", async () => (await ask("node")).counts.services > 10_000, 120_000);
  await visit("#/", async (page) => {
    await page.getByText(/^10,\d\d\d Services$/).waitFor({ timeout: 30_000 });
    const scroll = page.getByRole("region", { name: "Services, a list to scroll" });
    assert.ok((await page.locator("tbody tr").count()) < 100, "only rows that can be seen are there");
    const frames = await scroll.evaluate(async (element) => {
      const gaps = [];
      let before = performance.now();
      for (let step = 0; step < 120; step += 1) {
        element.scrollTop += 300;
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        gaps.push(now - before);
        before = now;
      }
      return gaps.sort((one, other) => one - other);
    });
    console.log(`scrolling: half of the frames within ${frames[60].toFixed(1)} ms, 95 of 100 within ${frames[114].toFixed(1)} ms`);
    await scroll.evaluate((element) => {
      element.scrollTop = element.scrollHeight;
    });
    await page.getByRole("link", { name: /webapp-service/ }).waitFor({ timeout: 60_000 });
    await page.getByLabel(/^Search/).fill("many-07777");
    await page.getByRole("link", { name: "default/many-07777" }).waitFor();
    await page.getByText(/^1 of 10,\d\d\d Services$/).waitFor();
  });
  await objects("many.json", null);
  await until("them to be gone", async () => (await ask("node")).counts.services < 10_000, 120_000);
});
