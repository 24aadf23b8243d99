// Which view is shown, and when it is asked for anew.

import { ask } from "./api.js";
import { h, fill, pill, duration } from "./dom.js";
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

/** The view in place: { name, title, update(node), close() }. */
let view = null;
let paused = false;
let running = false;
let again = false;

/** Says something to who does not see the screen. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

function open() {
  const [path, words] = decodeHash();
  const [name, ...rest] = path;
  view?.close?.();
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
  const asked = view;
  try {
    const node = await ask("node");
    head(node);
    if (asked === view) await view.update(node);
    tell(null);
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
  running = false;
  if (again) {
    again = false;
    update();
  }
}

function tell(text) {
  problem.hidden = text === null;
  if (problem.textContent !== (text ?? "")) problem.textContent = text ?? "";
}

function head(node) {
  const state = node.healthy ? pill("ok", "healthy") : pill("bad", "not healthy", node.problem);
  const eligible = node.nodeEligible ? null : pill("warn", "node gets no new traffic");
  const facts = `${node.backend}, up ${duration(node.uptimeSeconds)}`;
  fill(document.getElementById("node"), h("strong", {}, node.node), " ", state, " ", eligible, " ", facts);
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
