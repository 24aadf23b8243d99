// Pictures of the page, for the README.

import { join } from "node:path";
import { launch, open, until } from "./stage.mjs";

const folder = process.argv[2];
const browser = await launch();

for (const [name, hash, word] of [["page-services", "#/", "default/webapp-service"], ["page-service", "#/service/default/webapp-service", "real"], ["page-trace", "#/trace?from=192.0.2.9&to=tcp:172.18.0.2:30080", "The path"]]) {
  const { page, close } = await open(browser, hash, { viewport: { width: 1200, height: 640 } });
  await until(word, () => page.evaluate((text) => document.body.innerHTML.includes(text), word));
  await page.waitForTimeout(4000);
  await page.screenshot({ path: join(folder, `${name}.png`) });
  await close();
}

await browser.close();
