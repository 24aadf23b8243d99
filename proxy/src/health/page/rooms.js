// How much of long lists is in the page: what is not asked for costs the browser nothing.

import { h, number } from "./dom.js";

/** Rows that all lists of one kind in a view have together. */
const ROOM = 200;
/** Rows that each list has in any case. */
const LEAST = 5;
/** Rows that a press of the button adds to its list. */
const MORE = 200;

/** Lists by a key, each with the rows that were asked for. */
export function rooms() {
  const asked = new Map();
  const left = new Map();
  return {
    /** The view is drawn from its beginning. */
    begin() {
      left.clear();
    },
    /** More of this list is wanted. */
    more(key) {
      asked.set(key, (asked.get(key) ?? 0) + MORE);
    },
    /** The items of a list that there is room for, `most` at first, and what says how many more there are; null: none. `what` is what they are. */
    take(key, what, list, most = ROOM) {
      const room = left.get(what) ?? most;
      const own = Math.max(LEAST, room);
      const items = list.slice(0, own + (asked.get(key) ?? 0));
      left.set(what, room - Math.min(items.length, own));
      const more = list.length - items.length;
      if (more === 0) return { items, rest: null };
      const rest = h("p", { class: "rest", "data-key": `rest ${key}` }, `${number(items.length)} of ${number(list.length)} ${what} are shown. `,
        h("button", { type: "button", "data-key": `more ${key}`, "data-more": key }, `Show ${number(Math.min(more, MORE))} more`));
      return { items, rest };
    },
  };
}
