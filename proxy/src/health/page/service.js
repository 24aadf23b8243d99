// One Service: where it is reached, whom it goes to, and how traffic really spreads beside what the scheduler promises.

import { ask, Refused } from "./api.js";
import { h, fill, number, percent, pill, bytes } from "./dom.js";

export function service(main, namespace, name) {
  const title = `${namespace}/${name}`;
  const body = h("div");
  fill(main, h("h1", { tabindex: "-1" }, title), body);
  return {
    name: "services",
    title,
    async update() {
      try {
        draw(body, await ask(`services/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`));
      } catch (error) {
        if (!(error instanceof Refused) || error.code !== 404) throw error;
        fill(body, h("p", {}, "This Service is not served on this node now: it was deleted, has no ClusterIP, or is left out. "), h("p", {}, h("a", { href: "#/ignored" }, "What is left out")));
      }
    },
  };
}

function draw(body, facts) {
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
  fill(
    body,
    list,
    faults.length > 0 ? [h("h2", {}, "Left out of it"), h("ul", {}, faults)] : null,
    facts.ports.map(port),
    facts.truncated ? h("p", { class: "quiet" }, "There are more ports or endpoints than are shown here.") : null,
  );
}

function port(facts) {
  const name = `${facts.name || "port"} ${facts.protocol} ${facts.family}`;
  const scheduler = [facts.scheduler, facts.hashKey ? `by ${facts.hashKey}` : "", facts.tableSize ? `table of ${facts.tableSize}` : ""].filter(Boolean).join(", ");
  const frontend = (one) =>
    h("tr", {}, h("td", { class: "mono" }, one.address), h("td", {}, one.role), h("td", {}, one.state === "served" ? pill("ok", "served") : pill("warn", one.state === "contested" ? "another has it" : "left out")), h("td", {}, one.why ?? one.heldBy ?? ""));
  const uses = facts.endpoints.some((endpoint) => endpoint.promisedShareLocal !== undefined);
  const heads = ["Endpoint", "Node", "State", "Weight", "Share: promised and real", "Connections", "Active", "Packets", "Bytes"];
  const numbers = new Set(["Weight", "Connections", "Active", "Packets", "Bytes"]);
  return [
    h("h2", {}, name),
    h("p", { class: "quiet" }, `Scheduler ${scheduler}; ${number(facts.counts.ready)} ready, ${number(facts.counts.terminating)} ending, ${number(facts.counts.local)} on this node`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Addresses of ${name}` },
      h("table", {}, h("thead", {}, h("tr", {}, ["Address", "From", "State", "Why"].map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, facts.frontends.map(frontend)))),
    h("p", { class: "legend" }, h("span", {}, h("i"), "connections that it got"), h("span", {}, h("i", { class: "tick" }), "promised by the scheduler"), uses ? h("span", {}, "L: where traffic policy Local chooses") : null),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Endpoints of ${name}` },
      h("table", { class: "endpoints" },
        h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: numbers.has(head) && "number" }, head)))),
        h("tbody", {}, facts.endpoints.length > 0 ? facts.endpoints.map(endpoint) : h("tr", {}, h("td", { colspan: heads.length, class: "quiet" }, "no endpoint"))))),
  ];
}

function endpoint(facts) {
  const promised = facts.promisedShare ?? facts.promisedShareLocal;
  const local = facts.promisedShareLocal !== undefined && facts.promisedShare !== undefined ? `, L ${percent(facts.promisedShareLocal)}` : "";
  const bar = h("div", { class: "bar", "aria-hidden": "true" },
    facts.share === undefined ? null : h("div", { class: "real", "width%": facts.share * 100 }),
    promised === undefined ? null : h("div", { class: "promise", "left%": Math.min(promised * 100, 99) }));
  const state = facts.terminating ? pill("warn", facts.serving ? "ending" : "ended") : facts.ready ? pill("ok", "ready") : pill("bad", "not ready");
  return h("tr", {},
    h("td", { class: "mono" }, facts.address),
    h("td", {}, facts.node ?? "–", facts.zone ? h("span", { class: "quiet" }, ` ${facts.zone}`) : null, facts.local ? [" ", pill("plain", "here")] : null),
    h("td", {}, state),
    h("td", { class: "number" }, number(facts.weight)),
    h("td", { class: "share" }, bar, h("span", { class: "quiet" }, `promised ${percent(promised)}${local}, real ${percent(facts.share)}`)),
    h("td", { class: "number" }, number(facts.connections)),
    h("td", { class: "number" }, number(facts.active)),
    h("td", { class: "number" }, number(facts.packets)),
    h("td", { class: "number" }, bytes(facts.bytes)));
}
