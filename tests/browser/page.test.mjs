// The page as somebody uses it, whatever the datapath: what stays as it is while it updates itself; a proxy that hangs or is not well;
// long lists; names that try to be markup; keyboards and screen readers.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { test } from "node:test";
import { ask, browsing, having, service, until, URL, watched } from "./stage.mjs";

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const visit = browsing();

/** What axe finds, in a few words. */
async function violations(page) {
  // The page's own policy forbids scripts from elsewhere: this one comes by the browser's own door.
  await page.evaluate(await readFile(axe, "utf8"));
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  assert.ok(found.passes.length > 10, "axe looked at the page");
  return found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

test("moments are told whole, in the table and at the plot's ends", () =>
  visit("#/history", async (page) => {
    const rows = page.locator("tbody tr[data-key]");
    await rows.first().waitFor();
    const { items } = await ask("history?limit=100");
    const told = async (number) => page.locator(`tbody tr[data-key="${number}"] td`).nth(1).innerText();
    for (const sync of [items[0], items.at(-1)]) {
      const at = new Date(sync.at);
      const [hours, minutes, seconds] = [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) => String(part).padStart(2, "0"));
      assert.equal(await told(sync.number), `${hours}:${minutes}:${seconds}.${Math.floor(at.getMilliseconds() / 100)}`);
    }
    const texts = await page.locator("svg.plot text").allTextContents();
    for (const end of texts.slice(-2)) assert.match(end, /^\d\d:\d\d:\d\d\.\d$/);
  }));

/** Changes what the proxy answers to questions for a path. */
const answers = (page, path, change) =>
  page.route(`**/api/v1/${path}`, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: change(await response.json()) });
  });

test("what does not change stays: focus, selection, scrolling", () =>
  visit("#/", async (page) => {
    // Other numbers in each look: the rows change, and what else is in them does not.
    let looks = 0;
    await answers(page, "services/default/webapp-service", (service) => {
      looks += 1;
      for (const port of service.ports) for (const endpoint of port.endpoints) endpoint.connections = 1_000_000 + looks;
      return service;
    });
    await page.getByRole("link", { name: "default/webapp-service" }).click();
    const region = page.getByRole("region", { name: /^Endpoints of/ });
    await region.getByText("10.244.1.11:8080").waitFor();
    await region.focus();
    await region.evaluate((element) => {
      element.scrollLeft = 200;
      globalThis.getSelection().selectAllChildren(element.querySelector("td.mono"));
    });
    const state = () => region.evaluate((element) => [document.activeElement === element, String(globalThis.getSelection()), element.scrollLeft]);
    const before = await state();
    assert.deepEqual(before, [true, "10.244.1.11:8080", 200]);
    const counted = () => region.locator("tbody tr").first().locator("td").nth(5).innerText();
    for (let look = 0; look < 2; look += 1) {
      const last = await counted();
      await until("another look", async () => (await counted()) !== last);
    }
    assert.deepEqual(await state(), before);
  }, { viewport: { width: 500, height: 860 } }));

test("a proxy that hangs is told of, and so is its coming back", () =>
  visit("#/", async (page) => {
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    const node = page.locator("#node");
    await node.getByText("healthy", { exact: true }).waitFor();
    // It takes every question, and answers none.
    await page.route("**/api/v1/**", () => {});
    const alert = page.getByRole("alert");
    await alert.getByText(/has not answered for 5 s.*What is shown is of \d\d:\d\d:\d\d\.\d/).waitFor();
    await node.getByText("no answer", { exact: true }).waitFor();
    assert.equal(await node.getByText("healthy", { exact: true }).count(), 0);
    await page.getByRole("link", { name: "Changes" }).click();
    await page.getByText("asking the proxy").waitFor();
    assert.ok(await alert.isVisible());
    await page.unrouteAll({ behavior: "ignoreErrors" });
    await node.getByText("healthy", { exact: true }).waitFor();
    await alert.waitFor({ state: "hidden" });
    await page.locator("svg.plot polyline").first().waitFor();
  }));

test("why the proxy is not well is text, and a sync that goes on failing is seen to", () =>
  visit("#/", async (page) => {
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    let times = 0;
    await answers(page, "node", (node) => ({ ...node, healthy: false, problem: "the last sync failed: no nft", sync: { ...node.sync, pending: 7 } }));
    await answers(page, "history?*", (history) => {
      times += 1;
      const failing = { ...history.items[0], number: history.newest + 1, error: "no nft", failedTimes: times + 1 };
      return { ...history, newest: history.newest + 1, items: [failing, ...history.items] };
    });
    const alert = page.getByRole("alert");
    await alert.getByText("The proxy is not well: the last sync failed: no nft. Services whose changes wait for it: 7.").waitFor();
    await page.locator("#node").getByText("not healthy").waitFor();
    await page.getByText("7 changes wait").waitFor();
    await page.getByRole("link", { name: "Changes" }).click();
    await page.getByText("wait for a sync: 7").waitFor();
    for (const goes of [2, 3, 4]) await page.getByText(`(${goes} times)`).waitFor();
  }));

test("an endpoint that came later is not said to get nothing", () =>
  visit("#/", async (page) => {
    let counts = [500, 500];
    await answers(page, "services/default/webapp-service", (service) => {
      const [port, ...others] = service.ports;
      const all = counts.reduce((sum, count) => sum + count, 0);
      const endpoints = counts.map((connections, at) => ({ ...port.endpoints[at], connections, share: connections / all, promisedShare: 1 / counts.length }));
      return { ...service, ports: [{ ...port, connections: all, endpoints }, ...others] };
    });
    await page.getByRole("link", { name: "default/webapp-service" }).click();
    const row = (address) => page.locator("table.endpoints tbody tr", { hasText: address }).first();
    await row("10.244.1.11").getByText("promised 50.0 %, lately –, overall 50.0 %").waitFor();
    await page.getByText("no connection came lately").first().waitFor();
    counts = [533, 522, 35];
    await row("10.244.2.12").getByText("promised 33.3 %, lately 38.9 %, overall 3.2 %").waitFor();
    await row("10.244.1.11").getByText("promised 33.3 %, lately 36.7 %, overall 48.9 %").waitFor();
    await page.getByText("lately: 90 connections in the last").first().waitFor();
  }));

test("5,000 endpoints are found, and not all of them in the page", async () => {
  const addresses = Array.from({ length: 5_000 }, (_, at) => `10.245.${Math.floor(at / 250)}.${(at % 250) + 1}`);
  await having("crowd.json", service("crowd", "10.96.7.3", addresses), () =>
    visit("#/service/default/crowd", async (page) => {
      await page.getByText("200 of 5,000 endpoints are shown").waitFor();
      const rows = page.locator("table.endpoints tbody tr");
      assert.ok((await rows.count()) <= 200, "only some are there");
      const last = page.getByText("10.245.9.99:8080", { exact: true });
      assert.equal(await last.count(), 0);
      // Looks at the same make nothing anew.
      await page.evaluate(() => {
        globalThis.made = 0;
        new MutationObserver((changes) => {
          for (const change of changes) globalThis.made += change.addedNodes.length;
        }).observe(document.querySelector("main"), { childList: true, subtree: true });
      });
      for (let look = 0; look < 2; look += 1) await page.waitForResponse(/services\/default\/crowd/);
      const made = await page.evaluate(() => globalThis.made);
      assert.ok(made < 50, `${made} nodes were made for looks at what did not change`);
      await page.getByRole("button", { name: "Show 200 more" }).click();
      await page.getByText("400 of 5,000 endpoints are shown").waitFor();
      await page.keyboard.press("/");
      await page.keyboard.type("10.245.9.99:");
      await last.waitFor();
      assert.equal(await rows.count(), 1);
    }));
});

/** A Service with so many ports, and so many endpoints for each of them. */
function wide(name, clusterIP, ports, endpoints) {
  const numbers = Array.from({ length: ports }, (_, at) => at);
  const [whole] = service(name, clusterIP, []);
  whole.spec.ports = numbers.map((at) => ({ name: `port-${at}`, port: 1_000 + at }));
  const addresses = Array.from({ length: endpoints }, (_, at) => ({ addresses: [`10.245.100.${at + 1}`] }));
  // No slice may have more than a hundred ports.
  const slices = numbers.filter((at) => at % 100 === 0).map((first) => {
    const [, slice] = service(name, clusterIP, []);
    slice.metadata.name = `${name}-${first}`;
    slice.ports = numbers.slice(first, first + 100).map((at) => ({ name: `port-${at}`, port: 8_000 + at }));
    return { ...slice, endpoints: addresses };
  });
  return [whole, ...slices];
}

test("a Service of 300 ports with 16 endpoints each costs little while nothing changes, and its ports are found", () =>
  having("wide.json", wide("wide", "10.96.7.4", 300, 16), () =>
    visit("#/service/default/wide", async (page) => {
      let changed = 0;
      await answers(page, "services/default/wide", (service) => {
        service.ports[7].endpoints[2].weight += changed;
        return service;
      });
      await page.getByText("50 of 300 ports are shown").waitFor();
      const sections = page.locator("main section");
      assert.equal(await sections.count(), 50);
      /** The elements that are made for a look, and how long it takes. */
      const looks = async (change) => {
        const [looks, before] = [3, await page.evaluate(() => ({ made: globalThis.made, busy: globalThis.busy.length }))];
        for (let look = 0; look < looks; look += 1) {
          changed += change;
          await page.waitForResponse(/services\/default\/wide/);
        }
        const [made, busy] = await page.evaluate(({ made, busy }) => [globalThis.made - made, globalThis.busy.slice(busy)], before);
        console.log(`a look at 300 ports: ${(made / looks).toFixed()} elements made, ${(busy.reduce((sum, task) => sum + task, 0) / looks).toFixed()} ms in long tasks`);
        return made / looks;
      };
      await watched(page);
      // As counters begin, all of it changes: those looks are not meant.
      const same = await until("looks at what does not change that make next to nothing", async () => {
        const made = await looks(0);
        return made < 300 && made;
      });
      await until("looks at what changed in one port that make little", async () => {
        const made = await looks(1);
        return made > same && made < 700;
      });
      const eighth = sections.nth(7).locator("table.endpoints tbody tr").nth(2).locator("td").nth(3);
      await until("the change", async () => Number(await eighth.innerText()) > 1);
      const search = page.getByLabel(/^Search/);
      await page.keyboard.press("/");
      await page.keyboard.type("port-299");
      await page.getByRole("heading", { name: "port-299 tcp IPv4" }).waitFor();
      await until("that port alone, with its endpoints", async () => (await sections.count()) === 1 && (await page.locator("table.endpoints tbody tr").count()) === 16);
      await search.fill(":8256");
      await page.getByRole("heading", { name: "port-256 tcp IPv4" }).waitFor();
      await search.fill("nobody");
      await page.getByText("no port and no endpoint is found").waitFor();
      await search.fill("");
      await page.getByRole("button", { name: "Show 200 more", exact: true }).last().click();
      await page.getByText("250 of 300 ports are shown").waitFor();
      assert.equal(await sections.count(), 250);
    })));

test("an order that there is not is the usual one", () =>
  visit("#/?sort=bogus&search=webapp", async (page) => {
    await page.getByRole("link", { name: "default/webapp-service" }).waitFor();
    await page.locator("th[aria-sort=ascending]", { hasText: "Service" }).waitFor();
    assert.ok(!(await page.getByRole("alert").isVisible()));
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
  ["#/ignored", (page) => page.getByText("FrontendContested").first()],
  ["#/trace?from=10.244.1.100&to=tcp:10.96.0.50:80", (page) => page.getByRole("list", { name: "The path" }).getByText("10.244.1.11:8080").first()],
];

/** Services of which something is left out: an address that another has, and values that are none. */
const LEFT_OUT = [
  ...service("late", "10.96.7.5", ["10.244.1.11"], 80, { metadata: { creationTimestamp: "2036-01-02T00:00:00Z" }, spec: { externalIPs: ["10.96.0.50"] } }),
  ...service("malformed", "10.96.7.6", ["10.244.1.999"], 80, { metadata: { annotations: { "kubeferry.dev/scheduler": "roundrobin" } } }),
];

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds no fault in any view, ${colorScheme}`, () => having("left-out.json", LEFT_OUT, async () => {
    const colors = new Set();
    for (const [hash, there] of VIEWS) {
      await visit(hash, async (page, quiet) => {
        await there(page).waitFor();
        if (hash === "#/ignored") {
          for (const reason of ["FrontendContested", "SchedulerFallback", "Ignored"]) await page.locator("tbody tr", { hasText: reason }).first().waitFor();
        }
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
  }));
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
