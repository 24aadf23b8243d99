// One Service: where it is reached, whom it goes to, and how traffic really spreads beside what the scheduler promises.

import { ask, Refused } from "./api.js";
import { h, fill, number, pill } from "./dom.js";
import { kept } from "./kept.js";
import { found, port } from "./port.js";
import { recent } from "./recent.js";
import { renew } from "./renew.js";
import { rooms } from "./rooms.js";

/** Endpoints of a port, and ports, from which on one wants to search them. */
const MANY = 50;
const MANY_PORTS = 10;
/** Ports that are in the page at first. */
const PORTS = 50;

export function service(main, namespace, name) {
  const title = `${namespace}/${name}`;
  const search = h("input", { type: "search", id: "search", autocomplete: "off", placeholder: "port, address, node, zone…" });
  const tools = h("div", { class: "tools", hidden: true }, h("div", {}, h("label", { for: "search" }, "Search its ports and endpoints (key /)"), search));
  const body = h("div", {}, h("p", { class: "quiet" }, "asking the proxy…"));
  fill(main, h("h1", { tabindex: "-1" }, title), tools, body);
  const shown = { recent: recent(), rooms: rooms(), kept: kept(), search: "" };
  let facts = null;

  const again = () => facts && renew(body, whole(facts, shown));
  search.addEventListener("input", () => {
    shown.search = search.value.trim().toLowerCase();
    again();
  });
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-more]");
    if (!button) return;
    shown.rooms.more(button.dataset.more);
    again();
    // All is shown now: whoever pressed it is not thrown back to the beginning of the page.
    if (!button.isConnected) main.focus({ preventScroll: true });
  });

  return {
    name: "services",
    title,
    async update(_node, signal) {
      try {
        facts = await ask(`services/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`, {}, signal);
      } catch (error) {
        if (!(error instanceof Refused) || error.code !== 404) throw error;
        facts = null;
        tools.hidden = true;
        shown.kept.forget();
        renew(body, h("p", {}, "This Service is not served on this node now: it was deleted, has no ClusterIP, or is left out. "), h("p", {}, h("a", { href: "#/ignored" }, "What is left out")));
        return;
      }
      shown.recent.note(performance.now(), facts.ports);
      tools.hidden = shown.search === "" && facts.ports.length <= MANY_PORTS && facts.ports.every((one) => one.endpoints.length <= MANY);
      again();
    },
  };
}

function whole(facts, shown) {
  shown.rooms.begin();
  shown.kept.begin();
  const policies = facts.policies;
  const affinity = policies.affinitySeconds ? `ClientIP, for ${number(policies.affinitySeconds)} s` : "none";
  const ranges = facts.sourceRanges.length > 0 ? facts.sourceRanges.join(", ") : "everybody";
  const fact = (what, ...value) => [h("dt", {}, what), h("dd", {}, ...value)];
  const list = h("dl", { class: "facts" }, [
    fact("Health", pill(facts.health.state, facts.health.state), " ", facts.health.reason ?? ""),
    fact("Type", facts.type),
    fact("Internal traffic policy", policies.internal),
    fact("External traffic policy", policies.external),
    fact("Session affinity", affinity),
    fact("Who may come to load balancer addresses", ranges),
    facts.healthCheckNodePort ? fact("Health check node port", String(facts.healthCheckNodePort)) : [],
    facts.slowStartSeconds ? fact("Slow start", `${facts.slowStartSeconds} s`) : [],
  ]);
  const faults = facts.ignored.map((fault) => h("li", {}, h("strong", {}, fault.what), ` ${fault.why} `, h("em", {}, fault.fix)));
  const hits = facts.ports.map((one) => ({ facts: one, endpoints: found(one, shown.search) })).filter((one) => one.endpoints);
  const ports = shown.rooms.take("ports", "ports", hits, PORTS);
  return [
    list,
    faults.length > 0 ? [h("h2", {}, "Left out of it"), h("ul", {}, faults)] : null,
    hits.length === 0 && shown.search ? h("p", { class: "quiet" }, "no port and no endpoint is found") : null,
    ports.items.map((one) => port(one.facts, one.endpoints, shown)),
    ports.rest,
    facts.truncated ? h("p", { class: "quiet" }, "There are more ports or endpoints than the proxy tells.") : null,
  ];
}
