/** Elements in one call. Text goes in as text and never as HTML, so nobody's words can be markup. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [props] attributes; `class`; functions are event listeners by name
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** @param {string} name of a symbol in index.html */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** @param {string} id @returns {any} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return element;
}

/**
 * Makes `parent` hold exactly these children, moving only what is not in its place.
 * @param {Element} parent @param {Element[]} wanted
 */
export function arrange(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((child, index) => {
    const there = parent.children[index] ?? null;
    if (there !== child) parent.insertBefore(child, there);
  });
}

/** @param {Element} element @param {string} text written only when it differs, for screen readers' sake */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const LINK = /https?:\/\/[^\s<>"'`]+[^\s<>"'`.,;:!?)\]}]/g;

/** @param {string} text @returns {Node} its addresses as links */
export function linked(text) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(LINK)) {
    fragment.append(text.slice(end, match.index));
    const props = { href: match[0], target: "_blank", rel: "noopener noreferrer nofollow" };
    fragment.append(h("a", props, match[0]));
    end = match.index + match[0].length;
  }
  fragment.append(text.slice(end));
  return fragment;
}
