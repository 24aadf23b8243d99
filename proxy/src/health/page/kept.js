// Parts of a view that show the same as in the last look: they are not made anew, only to be found the same.

import { unchanged } from "./renew.js";

/** Remembers what parts of a view show, by a key. */
export function kept() {
  let before = new Map();
  let now = new Map();
  return {
    /** The view is drawn anew, all of it. */
    begin() {
      [before, now] = [now, new Map()];
    },
    /** The view is something else now: nothing of it is there. */
    forget() {
      now.clear();
    },
    /** What `make` makes, an element of this tag and key that shows `what`; where it is in the page and shows that, what says so. */
    part(tag, key, what, make) {
      const text = JSON.stringify(what);
      now.set(key, text);
      return before.get(key) === text ? unchanged(tag, key) : make();
    },
  };
}
