// The list of 10,000 Services: searched, scrolled, and what a step of that costs beside a list of few.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, browsing, having, service, until, watched } from "./stage.mjs";

const visit = browsing();

/** So many Services without a slice. */
function crowd(count) {
  return Array.from({ length: count }, (_, number) => {
    const ip = `10.97.${Math.floor(number / 250)}.${(number % 250) + 1}`;
    return service(`many-${String(number).padStart(5, "0")}`, ip, [])[0];
  });
}

test("10,000 Services are searched and scrolled, and a step costs what it costs with 200", async () => {
  let few, many;
  await having("few.json", crowd(200), async () => {
    await until("all of them to be served", async () => (await ask("node")).counts.services > 200);
    await visit("#/", async (page) => {
      few = await scrolledDown(page);
    });
  });
  const items = crowd(10_000);
  await having("many.json", items, async () => {
    await until("all of them to be served", async () => (await ask("node")).counts.services > 10_000, 300_000);
    await visit("#/", scrolled);
    await visit("#/", async (page) => {
      many = await scrolledDown(page);
    });
  });
  await until("them to be gone", async () => (await ask("node")).counts.services < 10_000, 300_000);
  const each = ({ made, passed }) => made / passed;
  for (const [name, work] of Object.entries({ few, many })) {
    console.log(`scrolling through ${name}: ${work.passed.toFixed()} rows in ${work.steps} steps, ${work.rows} there at a time, ${each(work).toFixed(1)} elements made for each, ${work.most} in a step`);
  }
  assert.ok(few.passed > 150 && many.passed > 9_500, "all of it went by");
  // All that can be seen is another in each step: it is made once, or twice where it had to wait for what it shows.
  assert.ok(many.rows <= few.rows + 2, `${many.rows} rows at a time, and ${few.rows} with few`);
  assert.ok(many.most <= 3 * few.most, `${many.most} elements in a step, and ${few.most} with few`);
  assert.ok(each(many) <= 3 * each(few), `${each(many)} elements for each row, and ${each(few)} with few`);
});

/** Goes down the whole list, by what can be seen at a time, while nothing but that changes it: how many rows were there at once, and the
 * elements that were made, in all and in the step with the most. */
async function scrolledDown(page) {
  await page.getByRole("link", { name: "default/many-00000" }).waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await watched(page);
  return page.getByRole("region", { name: "Services, a list to scroll" }).evaluate(async (element) => {
    const body = element.querySelector("tbody");
    const frame = () => new Promise(requestAnimationFrame);
    const height = body.rows[1].getBoundingClientRect().height;
    const found = { passed: 0, steps: 0, rows: 0, made: 0, most: 0 };
    for (let at = -1; at !== element.scrollTop; found.steps += 1) {
      at = element.scrollTop;
      const before = globalThis.made;
      element.scrollTop += element.clientHeight;
      // In the first frame the event comes and asks for the second, in which rows are drawn.
      await frame();
      await frame();
      found.most = Math.max(found.most, globalThis.made - before);
      found.rows = Math.max(found.rows, body.rows.length);
    }
    return { ...found, made: globalThis.made, passed: element.scrollTop / height };
  });
}

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
