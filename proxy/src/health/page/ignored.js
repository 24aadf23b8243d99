// What is not served as it is asked for, why, and what to do.

import { ask } from "./api.js";
import { h, fill, number } from "./dom.js";
import { renew } from "./renew.js";

export function ignored(main) {
  const body = h("div", {}, h("p", { class: "quiet" }, "asking the proxy…"));
  fill(main, h("h1", {}, "Left out"), h("p", { class: "quiet" }, "Objects, or parts of them, that this node does not serve as they are asked for. Everything else is served."), body);
  let before = null;
  return {
    name: "ignored",
    title: "Left out",
    async update(_node, signal) {
      const page = await ask("ignored", {}, signal);
      const now = JSON.stringify(page);
      if (now === before) return;
      before = now;
      const heads = ["Object", "What", "Why", "What to do"].map((head) => h("th", { scope: "col" }, head));
      const row = (fault) => h("tr", {}, h("td", {}, `${fault.kind} ${fault.namespace ? `${fault.namespace}/` : ""}${fault.name}`, h("br"), h("span", { class: "quiet" }, fault.reason)), h("td", {}, fault.what), h("td", {}, fault.why), h("td", {}, fault.fix));
      const more = page.total - page.items.length;
      renew(body, page.total === 0 ? h("p", {}, "Nothing is left out.") : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Faults" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, page.items.map(row)))),
        more > 0 ? h("p", { class: "quiet" }, `and ${number(more)} more`) : null);
    },
  };
}
