// Elements out of text. Nothing is ever read as markup: names of objects are whatever somebody chose.

/** Makes an element: `h("td", { class: "number" }, "7", child)`. Strings become text; null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...nodes(children));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  element.append(...children.map(text));
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width%") element.style.width = `${value}%`;
    else if (name === "left%") element.style.left = `${value}%`;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** What is to be put somewhere, without what is left out. */
export function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map(text);
}

function text(child) {
  return child instanceof Node ? child : document.createTextNode(plain(String(child)));
}

/** Without characters that turn or hide what stands beside them. */
export function plain(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
}

/** Puts `children` in place of what `parent` has, and leaves the focus where it was, if that is still there. */
export function fill(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  parent.replaceChildren(...nodes(children));
  if (focused) parent.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

/** 1234567 → 1,234,567; nothing: –. */
export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A part of one: 0.125 → 12.5 %. */
export function percent(value) {
  return value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)} %`;
}

/** Seconds, in the unit that fits. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 2 : 1)} ms`;
  return value < 120 ? `${value.toFixed(1)} s` : duration(value);
}

/** Minutes, hours, days. */
export function duration(value) {
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.floor(value)} s`;
  if (minutes < 120) return `${minutes} min`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} days`;
}

/** Bytes, in the unit that fits. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${number(value, unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${number(value, 1)} TiB`;
}

/** A moment, as the clock says it. */
export function clock(at) {
  // Whoever asks for a fraction gets nothing else that is not asked for.
  return new Date(at).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 1, hourCycle: "h23" });
}

/** A word in a colour; the word says the same without it. */
export function pill(kind, word, title) {
  return h("span", { class: `pill ${kind}`, title }, word);
}

/** One number with what it is. */
export function card(what, value, more) {
  return h("li", { class: "card" }, h("div", { class: "what" }, what), h("div", { class: "number" }, value), h("div", { class: "more" }, more));
}
