// What changed lately: syncs, how long each took, and how long from a change to the kernel.

import { ask } from "./api.js";
import { h, s, fill, number, seconds, clock, pill } from "./dom.js";
import { renew } from "./renew.js";

/** Syncs that are shown. */
const SHOWN = 100;

export function history(main) {
  const plot = h("div");
  const waiting = h("p", { class: "quiet" }, "asking the proxy…");
  const body = h("tbody");
  const heads = ["No.", "At", "What", "Changed", "Rows", "Took", "Change to kernel", "Since the cluster's change"];
  const table = h("table", { "aria-label": "Syncs" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), body);
  fill(main, h("h1", {}, "What changed lately"), waiting, h("div", { class: "legend" }, h("span", {}, "— a sync took"), h("span", {}, "- - from change to kernel"), h("span", {}, "● failed")), plot,
    h("h2", {}, "Syncs"), h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Syncs, a list to scroll" }, table));
  let [newest, shown] = [null, null];
  return {
    name: "history",
    title: "Changes",
    async update(node, signal) {
      const page = await ask("history", { limit: SHOWN }, signal);
      const { pending } = node.sync;
      renew(waiting, pending > 0 ? `Services that changed and wait for a sync: ${number(pending)}.` : "No change waits for a sync.");
      // A sync that goes on failing stays the newest, and is told anew.
      const now = JSON.stringify(page.items);
      if (now === shown) return;
      shown = now;
      const before = newest;
      newest = page.newest;
      renew(plot, draw(page.items.toReversed()));
      renew(body, page.items.length > 0 ? page.items.map((sync) => row(sync, before)) : h("tr", {}, h("td", { colspan: heads.length, class: "quiet" }, "no sync yet")));
    },
  };
}

function row(sync, before) {
  const kind = { partial: pill("plain", "changes"), full: pill("plain", "everything"), repair: pill("warn", "repair") }[sync.kind];
  const more = sync.objectsTotal - sync.objects.length;
  const changed = [...sync.objects, ...(more > 0 ? [`and ${number(more)} more`] : []), ...(sync.nodeChanged ? ["the node"] : [])].join(", ");
  const maps = Object.entries(sync.rows).map(([map, rows]) => `${map} +${rows.added} −${rows.deleted}`).join("\n");
  const rows = h("span", { title: maps }, number(sync.rowsWritten), sync.repaired > 0 ? ` (${number(sync.repaired)} repaired)` : "");
  const failed = sync.error ? [" ", pill("bad", "failed"), ` ${sync.error}`, sync.failedTimes > 1 ? ` (${sync.failedTimes} times)` : ""] : null;
  return h("tr", { "data-key": sync.number, class: before !== null && sync.number > before && "changed" },
    h("td", { class: "number" }, number(sync.number)), h("td", {}, clock(sync.at)), h("td", {}, kind, failed), h("td", {}, changed || "–"),
    h("td", { class: "number" }, rows), h("td", { class: "number" }, seconds(sync.tookSeconds)),
    h("td", { class: "number" }, seconds(sync.changeToKernelSeconds)), h("td", { class: "number" }, seconds(sync.lagSeconds)));
}

/** Times over the syncs, the oldest at the left, on a scale of powers of ten. */
function draw(syncs) {
  const [width, height, left, bottom] = [1000, 220, 60, 24];
  const all = syncs.flatMap((sync) => [sync.tookSeconds, sync.changeToKernelSeconds]).filter((value) => value > 0);
  const [low, high] = [Math.floor(Math.log10(Math.min(...all, 0.001))), Math.ceil(Math.log10(Math.max(...all, 0.01)))];
  const x = (at) => left + ((width - left - 10) * (syncs.length > 1 ? at / (syncs.length - 1) : 0.5));
  const y = (value) => 10 + (height - bottom - 10) * (1 - (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low));
  const line = (name, of) => {
    const points = syncs.map((sync, at) => [at, of(sync)]).filter(([, value]) => value !== undefined);
    return s("polyline", { class: name, points: points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
  };
  const grid = [];
  for (let power = low; power <= high; power += 1) {
    grid.push(s("line", { class: "grid", x1: left, x2: width - 10, y1: y(10 ** power), y2: y(10 ** power) }));
    grid.push(s("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, seconds(10 ** power)));
  }
  const failed = syncs.map((sync, at) => [sync, at]).filter(([sync]) => sync.error).map(([sync, at]) => s("circle", { class: "failed", cx: x(at), cy: y(sync.tookSeconds), r: 4 }));
  const ends = syncs.length > 0 ? [s("text", { x: left, y: height - 6 }, clock(syncs[0].at)), s("text", { x: width - 10, y: height - 6, "text-anchor": "end" }, clock(syncs.at(-1).at))] : [];
  const label = `How long the last ${syncs.length} syncs took, and how long from change to kernel; the table below has the numbers`;
  return s("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    ...grid, line("took", (sync) => sync.tookSeconds), line("change", (sync) => sync.changeToKernelSeconds), ...failed, ...ends);
}
