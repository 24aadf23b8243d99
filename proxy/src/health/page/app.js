// Which view is shown, and when it is asked for anew.

import { ask } from "./api.js";
import { h, number, pill, clock, duration } from "./dom.js";
import { renew } from "./renew.js";
import { services } from "./services.js";
import { service } from "./service.js";
import { history } from "./history.js";
import { ignored } from "./ignored.js";
import { trace } from "./trace.js";

/** Milliseconds between two looks. */
const PAUSE = 2000;

const main = document.getElementById("main");
const problem = document.getElementById("problem");
const pauseButton = document.getElementById("pause");

/** The view in place: { name, title, update(node, signal) → Promise, close() }. */
let view = null;
let paused = false;
let running = false;
let again = false;
/** Ends the questions of the view in place. */
let asking = new AbortController();
/** When the proxy last said how it is, and what it said. */
let known = null;
/** Why facts are missing; null: none is. */
let fault = null;

/** Says something to who does not see the screen. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

function open() {
  const [path, words] = decodeHash();
  const [name, ...rest] = path;
  view?.close?.();
  asking.abort();
  asking = new AbortController();
  if (fault?.code !== 0) fault = null;
  const views = { history, ignored, trace };
  view = name === "service" && rest.length === 2 ? service(main, rest[0], rest[1]) : (views[name] ?? services)(main, words);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view.title} – Kubeferry`;
  main.focus({ preventScroll: true });
  update();
}

function decodeHash() {
  const [path, words] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return [parts, new URLSearchParams(words ?? "")];
}

async function update() {
  if (running) {
    again = true;
    return;
  }
  running = true;
  const [asked, { signal }] = [view, asking];
  try {
    const node = await ask("node", {}, signal);
    known = { at: Date.now(), node };
    // It answers again; what it said of another question stands until that is answered.
    if (fault?.code === 0) fault = null;
    tell();
    if (asked === view) await view.update(node, signal);
    fault = null;
  } catch (error) {
    if (error.name !== "AbortError") fault = error;
  }
  tell();
  running = false;
  if (again) {
    again = false;
    update();
  }
}

/** Says how the proxy is: as it said last, or that it says nothing. */
function tell() {
  const silent = fault?.code === 0;
  if (known) head(known.node, silent);
  const { problem: unwell, sync } = (!silent && known?.node) || {};
  const old = silent && known ? ` What is shown is of ${clock(known.at)}.` : "";
  const lines = [
    fault ? `${fault.message}${old}` : null,
    unwell ? `The proxy is not well: ${unwell}. Services whose changes wait for it: ${number(sync.pending)}.` : null,
  ].filter(Boolean);
  problem.hidden = lines.length === 0;
  renew(problem, lines.map((line) => h("p", {}, line)));
}

function head(node, silent) {
  const well = node.healthy && node.problem === undefined;
  const state = silent ? pill("bad", "no answer") : well ? pill("ok", "healthy") : pill(node.healthy ? "warn" : "bad", node.healthy ? "not well" : "not healthy");
  const eligible = node.nodeEligible ? null : pill("warn", "node gets no new traffic");
  const facts = `${node.backend}, up ${duration(node.uptimeSeconds)}`;
  renew(document.getElementById("node"), h("strong", {}, node.node), " ", state, " ", eligible, " ", facts);
  const count = document.getElementById("ignored-count");
  count.hidden = node.counts.ignored === 0;
  count.textContent = node.counts.ignored;
}

pauseButton.addEventListener("click", () => {
  paused = !paused;
  pauseButton.setAttribute("aria-pressed", paused);
  pauseButton.textContent = paused ? "Go on" : "Pause";
  say(paused ? "Paused" : "Updating again");
  if (!paused) update();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  }
});

window.addEventListener("hashchange", open);
document.addEventListener("visibilitychange", () => !document.hidden && !paused && update());
setInterval(() => !paused && !document.hidden && update(), PAUSE);
open();
