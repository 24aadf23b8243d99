// What the page shows of a datapath, on each of them: a Service and how its traffic spreads, numbers that agree, where a packet would go,
// a change, and drift that is repaired.

import assert from "node:assert/strict";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import * as stage from "./stage.mjs";
import { ask, browsing, having, metric, objects, run, service, until } from "./stage.mjs";

const visit = browsing();

/** A number as the page writes it. */
const read = (text) => Number(text.replaceAll(",", ""));

/** Does something to the datapath behind the proxy's back. */
async function tamper() {
  const { backend } = await ask("node");
  assert.equal(backend, stage.BACKEND);
  if (backend === "nftables") return run("nft", ["delete", "element", "inet", "kubeferry", "cluster_ips4", "{ 10.96.0.50 }"]);
  const links = join(stage.BPFFS, "kubeferry", "links");
  const [link] = (await readdir(links)).filter((name) => name.startsWith("tc_"));
  return rm(join(links, link));
}

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
    assert.equal(await page.getByLabel(/^Search/).isVisible(), false, "three need no search");
    await until("shares beside the promise", async () => /promised 33\.3 %, lately [1-9]\d\.\d %, overall [1-9]\d\.\d %/.test(await rows.first().innerText()));
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
    await tamper();
    const repaired = await until("the proxy to repair it", async () => {
      const { drift } = await ask("node");
      return drift.repairs > repairs && drift.repairs;
    });
    await page.getByText(`${repaired} repairs`).waitFor();
    await page.getByRole("link", { name: "Changes" }).click();
    await page.getByText("repair", { exact: true }).first().waitFor();
  }));
