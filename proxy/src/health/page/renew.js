// Brings what is in the page up to date and leaves alone what is the same: focus, selection and scrolling outlive a look.

import { h, nodes } from "./dom.js";

/** Has `parent` show `children`. Elements with the same `data-key` are the same, and so are those without that follow each other. */
export function renew(parent, ...children) {
  match(parent, nodes(children));
}

/** Stands for the element of this tag and key that is there already, and stays as it is. */
export function unchanged(tag, key) {
  return h(tag, { "data-key": key, "data-unchanged": true });
}

function match(parent, wanted) {
  const keys = new Set(wanted.map(key));
  const known = new Map();
  for (const child of [...parent.childNodes]) {
    const name = key(child);
    // What goes is taken away first: what stays need not be moved then, which would cost it focus and scrolling.
    if (name !== undefined && !keys.has(name)) child.remove();
    else if (name !== undefined) known.set(name, child);
  }
  let place = parent.firstChild;
  for (const want of wanted) {
    const name = key(want);
    const have = name === undefined ? place : known.get(name);
    known.delete(name);
    if (!have || key(have) !== name || have.nodeName !== want.nodeName) {
      parent.insertBefore(want, place);
      continue;
    }
    if (have === place) place = place.nextSibling;
    else parent.insertBefore(have, place);
    become(have, want);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function key(node) {
  return node.dataset?.key;
}

/** Has an element, or a text, become as another one of its kind, which is not used any more then. */
export function become(have, want) {
  if (have.nodeType === Node.TEXT_NODE) {
    if (have.data !== want.data) have.data = want.data;
    return;
  }
  if (want.dataset?.unchanged !== undefined) return;
  for (const { name } of [...have.attributes]) if (!want.hasAttribute(name)) have.removeAttribute(name);
  for (const { name, value } of want.attributes) {
    if (have.getAttribute(name) === value) continue;
    // The page's policy takes a style from a script only, and no attribute of that name.
    if (name === "style") have.style.cssText = value;
    else have.setAttribute(name, value);
  }
  match(have, [...want.childNodes]);
}
