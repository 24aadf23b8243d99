// Pictures of the page, for the README: the demo's Service under load, beside a few that nobody asks for.

import { join } from "node:path";
import { launch, objects, open, service, until } from "./stage.mjs";

const folder = process.argv[2];
const browser = await launch();

const beside = (namespace, name, address, endpoints, annotations = {}) => service(name, address, endpoints, 80, { metadata: { namespace, annotations } });
await objects("beside.json", [
  ...beside("kube-system", "metrics", "10.96.0.20", ["10.244.1.11", "10.244.2.12"]),
  ...beside("shop", "cart", "10.96.0.61", ["10.244.1.13", "10.244.2.12"], { "kubeferry.dev/scheduler": "wrr" }),
  ...beside("shop", "search", "10.96.0.62", []),
]);

/** Name, view, height, and what is there when all of it is. */
const PICTURES = [
  ["page-services", "#/", 500, /default\/webapp-service\s[^\n]*[1-9]\d*\.\d\s+[\d,]+\s+\d[\s\S]*shop\/cart\s[^\n]*0\.0/],
  ["page-service", "#/service/default/webapp-service", 720, /lately [1-9][\s\S]*KiB|lately [1-9][\s\S]*MiB/],
  ["page-trace", "#/trace?from=192.0.2.9&to=tcp:172.18.0.2:30080", 860, /one of 3 endpoints/],
];

for (const [name, hash, height, there] of PICTURES) {
  const { page, faults, quiet, close } = await open(browser, hash, { viewport: { width: 1200, height } });
  await until(`${there}`, async () => there.test(await page.locator("body").innerText()));
  await quiet();
  await page.screenshot({ path: join(folder, `${name}.png`) });
  if (faults.length > 0) throw new Error(faults.join("; "));
  await close();
}

await browser.close();
