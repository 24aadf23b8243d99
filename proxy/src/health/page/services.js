// All Services: at a glance, to search, in any order. Only rows that can be seen are in the page, however many there are.

import { ask } from "./api.js";
import { h, fill, number, seconds, pill, card } from "./dom.js";
import { become, renew } from "./renew.js";

/** Rows that are asked for at one time. */
const PAGE = 200;
/** Rows beyond the edges of what is seen. */
const BEYOND = 10;

const COLUMNS = [
  { name: "Service", sort: "name", text: (row) => h("a", { href: address(row), "data-key": `${row.namespace}/${row.name}` }, `${row.namespace}/${row.name}`) },
  { name: "Health", sort: "health", text: (row) => pill(row.health.state, row.health.state, row.health.reason) },
  { name: "Type", text: (row) => row.type },
  { name: "Addresses", text: (row) => h("span", { class: "mono", title: row.addresses.join(" ") }, row.addresses.join(" ")) },
  { name: "Ports", text: (row) => row.ports.map((port) => `${port.port}/${port.protocol}`).join(" ") },
  { name: "Endpoints", sort: "endpoints", number: true, text: (row) => endpoints(row.endpoints) },
  { name: "Scheduler", text: (row) => row.scheduler },
  { name: "Connections/s", sort: "rate", number: true, text: (row) => number(row.connectionsPerSecond, 1) },
  { name: "Connections", sort: "connections", number: true, text: (row) => number(row.connections) },
  { name: "Active", sort: "active", number: true, text: (row) => number(row.active) },
];

/** The page of a Service. */
function address(row) {
  return `#/service/${encodeURIComponent(row.namespace)}/${encodeURIComponent(row.name)}`;
}

function same(one, other) {
  return one !== undefined && JSON.stringify(one) === JSON.stringify(other);
}

/** A row in the place of those that are not in the page. */
function gap() {
  return h("tr", { class: "gap", "aria-hidden": "true" }, h("td", { colspan: COLUMNS.length }));
}

function height(gap, pixels) {
  gap.cells[0].style.height = `${pixels}px`;
}

/** The row at a place; without facts, one that waits for them. */
function row(at, facts) {
  const cells = facts
    ? COLUMNS.map((column) => h("td", { class: column.number && "number" }, column.text(facts)))
    : [h("td", { colspan: COLUMNS.length, class: "quiet" }, "…")];
  return h("tr", { "aria-rowindex": at + 2 }, cells);
}

function endpoints(counts) {
  const more = counts.terminating > 0 ? ` +${counts.terminating} ending` : "";
  return `${number(counts.ready)}${more}`;
}

export function services(main, words) {
  // An address may be anybody's, or of a page that had another order.
  const sort = COLUMNS.some((column) => column.sort && column.sort === words.get("sort")) ? words.get("sort") : "name";
  const state = { search: words.get("search") ?? "", sort, pages: [], found: 0, total: 0, height: 36 };
  const cards = h("ul", { class: "cards", "aria-label": "The node" });
  const search = h("input", { type: "search", id: "search", value: state.search, autocomplete: "off", placeholder: "name, address, port, type, health…" });
  const found = h("span", { class: "found", role: "status" });
  const [above, below] = [gap(), gap()];
  const body = h("tbody", {}, above, below);
  const table = h("table", { class: "windowed", "aria-label": "Services" }, h("thead", {}, h("tr")), body);
  const scroll = h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Services, a list to scroll" }, table);
  fill(main, h("h1", {}, "Services"), cards, h("div", { class: "tools" }, h("div", {}, h("label", { for: "search" }, "Search (key /)"), search), found), scroll);

  let aborter = new AbortController();
  /** The rows that are in the page, by their place: what they show, and the element. */
  const drawn = new Map();
  heads();

  function heads() {
    const head = (column) => {
      const sorted = column.sort === state.sort;
      const button = column.sort
        ? h("button", { type: "button", "data-key": `sort-${column.sort}`, onclick: () => order(column.sort) }, column.name)
        : column.name;
      const way = column.sort === "name" ? "ascending" : "descending";
      return h("th", { scope: "col", class: column.number && "number", "aria-sort": sorted ? way : null }, button, sorted ? (way === "ascending" ? " ▲" : " ▼") : "");
    };
    fill(table.tHead.rows[0], COLUMNS.map(head));
  }

  function order(sort) {
    state.sort = sort;
    heads();
    anew();
  }

  /** Forgets what was loaded: it is another list. */
  function anew() {
    aborter.abort();
    aborter = new AbortController();
    const query = new URLSearchParams();
    if (state.search) query.set("search", state.search);
    if (state.sort !== "name") query.set("sort", state.sort);
    window.history.replaceState(null, "", query.size > 0 ? `#/?${query}` : "#/");
    state.pages = [];
    scroll.scrollTop = 0;
    load(true).catch(() => {});
  }

  let typing = null;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state.search = search.value.trim();
      anew();
    }, 150);
  });

  /** Which rows can be seen. */
  function seen() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / state.height) - BEYOND);
    const last = Math.min(state.found, Math.ceil((scroll.scrollTop + scroll.clientHeight) / state.height) + BEYOND);
    return [first, Math.max(first, last)];
  }

  /** Whether rows that can be seen are not loaded. */
  function wants() {
    const [, last] = seen();
    return state.pages.length === 0 || (state.pages.length * PAGE < last && Boolean(state.pages.at(-1).next));
  }

  let loading = 0;

  /** Loads the pages up to what can be seen; with `fresh`, those that can be seen once more. */
  async function load(fresh) {
    const { signal } = aborter;
    const asked = async (at) => {
      const page = await ask("services", { search: state.search, sort: state.sort, limit: PAGE, continue: at === 0 ? undefined : state.pages[at - 1].next }, signal);
      state.found = page.found;
      state.total = page.total;
      const known = state.pages[at]?.items ?? [];
      state.pages[at] = { items: page.items.map((facts, place) => (same(known[place], facts) ? known[place] : facts)), next: page.continue };
    };
    loading += 1;
    try {
      while (wants()) {
        await asked(state.pages.length);
        draw();
      }
      if (fresh) {
        const [first, last] = seen();
        const [from, to] = [Math.floor(first / PAGE), Math.floor(Math.max(first, last - 1) / PAGE)];
        for (let at = from; at <= to && at < state.pages.length; at += 1) await asked(at);
      }
    } finally {
      loading -= 1;
    }
    state.pages.length = Math.min(state.pages.length, Math.max(1, Math.ceil(state.found / PAGE)));
    draw();
    measure();
  }

  /** Brings the rows that can be seen into the page. Those that are there already and show the same stay as they are. */
  function draw() {
    const [first, last] = seen();
    for (const [at, { element }] of drawn) {
      if (at >= first && at < last) continue;
      element.remove();
      drawn.delete(at);
    }
    let before = above;
    for (let at = first; at < last; at += 1) {
      const facts = state.pages[Math.floor(at / PAGE)]?.items[at % PAGE];
      const old = drawn.get(at);
      if (!old || old.facts !== facts) {
        const element = row(at, facts);
        if (old) become(old.element, element);
        else before.after(element);
        drawn.set(at, { facts, element: old?.element ?? element });
      }
      before = drawn.get(at).element;
    }
    height(above, first * state.height);
    height(below, (state.found - last) * state.height);
    if (table.getAttribute("aria-rowcount") !== String(state.found + 1)) table.setAttribute("aria-rowcount", state.found + 1);
    const text = state.search ? `${number(state.found)} of ${number(state.total)} Services` : `${number(state.total)} Services`;
    if (found.textContent !== text) found.textContent = text;
  }

  /** How high rows really are: asked for once they are there, as the browser has to lay all of it out for that. */
  function measure() {
    const real = drawn.values().next().value?.element.getBoundingClientRect().height;
    if (!real || Math.abs(real - state.height) <= 0.5) return;
    state.height = real;
    draw();
  }

  let drawing = false;
  scroll.addEventListener("scroll", () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      draw();
      // Whoever loads already goes on until all that can be seen is there.
      if (loading === 0 && wants()) load(false).catch(() => {});
    });
  });

  return {
    name: "services",
    title: "Services",
    async update(node) {
      overview(cards, node);
      await load(true);
    },
    close() {
      clearTimeout(typing);
      aborter.abort();
    },
  };
}

function overview(cards, node) {
  const { counts, sync, drift, traffic } = node;
  const served = `${number(counts.degraded)} degraded, ${number(counts.down)} down`;
  const rows = Object.values(node.rows).reduce((sum, count) => sum + count, 0);
  const off = traffic.countsConnections ? null : "not counted: see --service-metrics";
  const last = sync.last;
  renew(
    cards,
    card("Services", number(counts.services), served),
    card("Endpoints ready", number(counts.ready), `${number(counts.local)} on this node`),
    card("Connections/s", number(traffic.connectionsPerSecond, 1), off ?? `${number(traffic.connections)} in all, ${number(traffic.active)} active`),
    card("Change to kernel", seconds(sync.changeToKernel.p50Seconds), `99 of 100 within ${seconds(sync.changeToKernel.p99Seconds)}`),
    card("Syncs", number(sync.succeeded), last?.error ? `the last failed: ${last.error}` : `${number(sync.failures)} failed, ${number(sync.pending)} changes wait`),
    card("Drift", drift.unrepaired > 0 ? `${number(drift.unrepaired)} rows differ` : "none", `${number(drift.repairs)} repairs, ${number(drift.rows)} rows`),
    card("Rows in the kernel", number(rows), `in ${Object.keys(node.rows).length} maps`),
  );
}
