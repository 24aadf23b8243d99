// Where would this packet go? The model's answer, with the path.

import { ask } from "./api.js";
import { h, fill } from "./dom.js";

export function trace(main, words) {
  const input = (id, label, example, value) => [
    h("label", { for: id }, label),
    h("input", { id, name: id, required: id !== "iif", value: value ?? "", placeholder: example, autocomplete: "off", spellcheck: "false" }),
  ];
  const [protocol, to] = split(words.get("to") ?? "");
  const option = (name) => h("option", { value: name, selected: name === protocol }, name.toUpperCase());
  const answer = h("div", { "aria-live": "polite" });
  const form = h("form", { class: "form", onsubmit: submit },
    h("div", {}, input("from", "From (address, or address:port)", "10.244.0.7", words.get("from"))),
    h("div", {}, h("label", { for: "protocol" }, "Protocol"), h("select", { id: "protocol", name: "protocol" }, ["tcp", "udp", "sctp"].map(option))),
    h("div", {}, input("to", "To (address:port)", "10.96.0.10:80", to)),
    h("div", {}, input("iif", "In by interface (if it matters)", "", words.get("iif"))),
    h("button", { type: "submit" }, "Show the way"));
  fill(main, h("h1", {}, "Where would this packet go?"), h("p", { class: "quiet" }, "The first packet of a new connection, as this node sees it. No packet is sent."), form, answer);
  if (words.get("from") && to) show();

  function submit(event) {
    event.preventDefault();
    const query = new URLSearchParams({ from: form.elements.from.value.trim(), to: `${form.elements.protocol.value}:${form.elements.to.value.trim()}` });
    if (form.elements.iif.value.trim()) query.set("iif", form.elements.iif.value.trim());
    window.history.replaceState(null, "", `#/trace?${query}`);
    show();
  }

  async function show() {
    const value = (name) => form.elements[name].value.trim();
    try {
      const facts = await ask("trace", { from: value("from"), to: `${value("protocol")}:${value("to")}`, iif: value("iif") });
      fill(answer, path(facts));
    } catch (error) {
      fill(answer, h("p", { class: "problem" }, error.message));
    }
  }

  return { name: "trace", title: "Where would it go?", async update() {} };
}

function split(to) {
  const at = to.indexOf(":");
  return at < 0 ? ["tcp", to] : [to.slice(0, at), to.slice(at + 1)];
}

function path(facts) {
  const names = { packet: "the packet", decision: "decided", outcome: "so" };
  const endpoints = facts.steps.filter((step) => step.kind === "endpoint");
  const item = (step) => h("li", { class: `${step.kind} ${step.kind === "outcome" ? facts.outcome : ""}` }, h("span", { class: "kind" }, names[step.kind] ?? ""), step.text);
  const items = [];
  for (const step of facts.steps) {
    if (step.kind !== "endpoint") items.push(item(step));
    else if (step === endpoints[0]) {
      const word = endpoints.length === 1 ? "the endpoint" : `one of ${endpoints.length} endpoints`;
      items.push(h("li", { class: "endpoint" }, h("span", { class: "kind" }, word), h("ul", { class: "branches" }, endpoints.map((endpoint) => h("li", { class: "mono" }, endpoint.addresses[0], weight(facts, endpoint.addresses[0]))))));
    }
  }
  return [facts.service ? h("p", {}, "Service port ", link(facts.service)) : null, h("ol", { class: "path", "aria-label": "The path" }, items)];
}

function weight(facts, endpoint) {
  const given = facts.weights?.[endpoint];
  return given === undefined ? null : h("span", { class: "quiet" }, ` weight ${given}`);
}

function link(service) {
  const name = service.split(":")[0];
  const [namespace, ...rest] = name.split("/");
  return h("a", { href: `#/service/${encodeURIComponent(namespace)}/${encodeURIComponent(rest.join("/"))}` }, service);
}
