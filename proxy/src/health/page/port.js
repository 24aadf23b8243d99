// A port of a Service in one family: its addresses, and its endpoints with what each got beside what it was promised.

import { h, number, percent, pill, bytes, duration } from "./dom.js";
import { portKey } from "./recent.js";

/** Heads of columns, and those of numbers. */
const HEADS = ["Endpoint", "Node", "State", "Weight", "Share: promised and got", "Connections", "Active", "Packets", "Bytes"];
const NUMBERS = new Set(["Weight", "Connections", "Active", "Packets", "Bytes"]);

/** The name that a port has in the page. */
function title(facts) {
  return `${facts.name || "port"} ${facts.protocol} ${facts.family}`;
}

/** Its endpoints that a search finds: all of them, if it finds the port; null: neither. */
export function found(facts, search) {
  const has = (text) => text?.toLowerCase().includes(search);
  if (has(title(facts)) || facts.frontends.some((one) => has(one.address))) return facts.endpoints;
  const endpoints = facts.endpoints.filter((one) => [one.address, one.node, one.zone].some(has));
  return endpoints.length > 0 ? endpoints : null;
}

/** Its elements, with these of its endpoints. `shown` is what the view remembers: recent looks, rooms of lists, parts that stay. */
export function port(facts, hits, shown) {
  const [key, name] = [portKey(facts), title(facts)];
  const scheduler = [facts.scheduler, facts.hashKey ? `by ${facts.hashKey}` : "", facts.tableSize ? `table of ${facts.tableSize}` : ""].filter(Boolean).join(", ");
  const uses = facts.endpoints.some((one) => one.promisedShareLocal !== undefined);
  const frontends = shown.rooms.take(`frontends ${key}`, "addresses", facts.frontends);
  const endpoints = shown.rooms.take(`endpoints ${key}`, "endpoints", hits);
  const lately = shown.recent.of(facts);
  const shares = lately.connections > 0 ? endpoints.items.map((one) => lately.share(one.address)) : [];
  const { endpoints: _all, ...others } = facts;
  const shows = [others, frontends.items.length, endpoints.items, hits.length, got(facts, lately), shares];
  return shown.kept.part("section", key, shows, () => h("section", { "data-key": key },
    h("h2", {}, name),
    h("p", { class: "quiet" }, `Scheduler ${scheduler}; ${number(facts.counts.ready)} ready, ${number(facts.counts.terminating)} ending, ${number(facts.counts.local)} on this node`),
    list(`Addresses of ${name}`, null, ["Address", "From", "State", "Why"], frontends.items.map(frontend)),
    frontends.rest,
    h("p", { class: "legend" }, h("span", {}, h("i"), got(facts, lately)), h("span", {}, h("i", { class: "tick" }), "promised by the scheduler"), uses ? h("span", {}, "L: where traffic policy Local chooses") : null),
    list(`Endpoints of ${name}`, "endpoints", HEADS,
      hits.length > 0 ? endpoints.items.map((one) => endpoint(one, lately)) : h("tr", {}, h("td", { colspan: HEADS.length, class: "quiet" }, "no endpoint"))),
    endpoints.rest));
}

function list(label, name, heads, rows) {
  const head = (text) => h("th", { scope: "col", class: NUMBERS.has(text) && "number" }, text);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "data-key": label, "aria-label": label },
    h("table", { class: name }, h("thead", {}, h("tr", {}, heads.map(head))), h("tbody", {}, rows)));
}

/** What the bars are made of. */
function got(facts, lately) {
  if (facts.connections === undefined) return "connections are not counted";
  if (lately.connections > 0) return `lately: ${number(lately.connections)} connections in the last ${duration(lately.seconds)}`;
  return "no connection came lately: of all since they are counted";
}

function frontend(one) {
  const state = one.state === "served" ? pill("ok", "served") : pill("warn", one.state === "contested" ? "another has it" : "left out");
  return h("tr", { "data-key": `${one.role} ${one.address}` }, h("td", { class: "mono" }, one.address), h("td", {}, one.role), h("td", {}, state), h("td", {}, one.why ?? one.heldBy ?? ""));
}

function endpoint(facts, lately) {
  const promised = facts.promisedShare ?? facts.promisedShareLocal;
  const local = facts.promisedShareLocal !== undefined && facts.promisedShare !== undefined ? `, L ${percent(facts.promisedShareLocal)}` : "";
  const now = lately.share(facts.address);
  const real = now ?? facts.share;
  const bar = h("div", { class: "bar", "aria-hidden": "true" },
    real === undefined ? null : h("div", { class: "real", "width%": real * 100 }),
    promised === undefined ? null : h("div", { class: "promise", "left%": Math.min(promised * 100, 99) }));
  const state = facts.draining ? pill("warn", "draining") : facts.terminating ? pill("warn", facts.serving ? "ending" : "ended") : facts.ready ? pill("ok", "ready") : pill("bad", "not ready");
  return h("tr", { "data-key": facts.address },
    h("td", { class: "mono" }, facts.address),
    h("td", {}, facts.node ?? "–", facts.zone ? h("span", { class: "quiet" }, ` ${facts.zone}`) : null, facts.local ? [" ", pill("plain", "here")] : null),
    h("td", {}, state),
    h("td", { class: "number" }, number(facts.weight)),
    h("td", { class: "share" }, bar, h("span", { class: "quiet" }, `promised ${percent(promised)}${local}, lately ${percent(now)}, overall ${percent(facts.share)}`)),
    h("td", { class: "number" }, number(facts.connections)),
    h("td", { class: "number" }, number(facts.active)),
    h("td", { class: "number" }, number(facts.packets)),
    h("td", { class: "number" }, bytes(facts.bytes)));
}
