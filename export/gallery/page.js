// @ts-check
// The data, what the user asked to see, and small helpers. All text reaches the page as text nodes, never as HTML.

/**
 * The element with an id.
 * @template {keyof Ids} Id
 * @param {Id} id
 */
function $(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`there is no #${id}`);
  return /** @type {Ids[Id]} */ (/** @type {unknown} */ (found));
}

/** @type {Data} */
const data = JSON.parse($("data").text);
const { clusters, counts, labels, rows, truth } = data;
const K = clusters.length;
const PAGE = 60;
const MISMATCHED = "mismatched";
const SMALL = 32;

/** @type {State} */
const state = {
  text: "",
  low: 0,
  high: 1,
  label: "",
  view: "sample",
  order: "number",
  cluster: null,
  errorsOnly: false,
};
const names = [...data.names];

/**
 * A new element with properties or attributes, and with children; null is none.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number | boolean>} properties
 * @param {(Node | string | null)[]} children
 */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) Object.assign(node, { [key]: value });
    else node.setAttribute(key, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * What fits a selector: the node itself or what is around it.
 * @param {EventTarget | null | undefined} node
 * @param {string} selector
 */
function around(node, selector) {
  const found = node instanceof Element ? node.closest(selector) : null;
  return found instanceof HTMLElement ? found : null;
}

/**
 * The first that fits a selector within a node.
 * @param {ParentNode | null | undefined} node
 * @param {string} selector
 */
function within(node, selector) {
  const found = node?.querySelector(selector);
  return found instanceof HTMLElement ? found : null;
}

/**
 * The children of a node that are HTML, which all are here.
 * @param {ParentNode | null | undefined} node
 */
const childrenOf = (node) => [...(node?.children ?? [])].filter((child) => child instanceof HTMLElement);

/** @param {number[]} numbers */
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** @param {number} n */
const count = (n) => n.toLocaleString("en-GB");
/** @type {(n: number, noun: string) => string} */
const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
/** @param {number | null} x */
const decimal = (x) => (x === null ? "–" : x.toFixed(2));
/** @type {(part: number, whole: number) => string} */
const percent = (part, whole) => `${((100 * part) / Math.max(whole, 1)).toFixed(1)} %`;

// Line breaks, control characters, direction marks and lone surrogates become visible.
const UNSEEN = /[\p{Cc}\p{Cs}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
const ESCAPES = new Map([
  ["\n", "\\n"],
  ["\t", "\\t"],
  ["\r", "\\r"],
]);
/** @param {string} text */
const plain = (text) => text.replace(UNSEEN, (c) => ESCAPES.get(c) ?? `\\u{${c.codePointAt(0)?.toString(16)}}`);

/** @param {number} row */
const sourceOf = (row) => rows.sources[rows.source[row]];
/** @param {number} cluster */
const titleOf = (cluster) => (names[cluster] ? plain(names[cluster]) : `Cluster ${cluster}`);
/** @param {number} cluster */
const numberAndName = (cluster) => (names[cluster] ? `${cluster} · ${plain(names[cluster])}` : `${cluster}`);
/** @param {number} row */
const labelOf = (row) => (rows.label[row] < 0 ? null : labels[rows.label[row]]);

// The label that each cluster stands for: by the matching, else its most frequent one; -1 without labelled images.
const meant = (truth?.confusion ?? []).map((row, cluster) => {
  const matched = truth?.matching[cluster] ?? -1;
  if (matched >= 0) return matched;
  const most = Math.max(...row);
  return most > 0 ? row.indexOf(most) : -1;
});
/** @param {number} cluster */
const meantOf = (cluster) => (truth && meant[cluster] >= 0 ? truth.labels[meant[cluster]] : null);
/** @param {number} row */
const mismatched = (row) => truth !== null && labelOf(row) !== null && labelOf(row) !== meantOf(rows.cluster[row]);

/** @type {number[][]} */
const held = Array.from({ length: K }, () => []); // rows of each cluster
const filled = Array.from({ length: K }, () => 0); // tiles on the sheet of each cluster
const tile = rows.cluster.map((cluster, row) => {
  held[cluster].push(row);
  return rows.size[row][0] > 0 ? filled[cluster]++ : filled[cluster];
});
let faces = 0;
const faceTile = clusters.map(({ most }) => (most.length && rows.size[most[0]][0] > 0 ? faces++ : -1));
const lowered = rows.sources.map((source) => source.toLowerCase());

const filtered = () =>
  state.text !== "" || state.low > 0 || state.high < 1 || state.label !== "" || state.cluster !== null;

/** @param {number} row */
function matches(row) {
  const cluster = rows.cluster[row];
  const confidence = rows.confidence[row];
  const text = state.text.toLowerCase();
  if (state.cluster !== null && cluster !== state.cluster) return false;
  if (confidence < state.low - 1e-9 || confidence > state.high + 1e-9) return false;
  if (state.label === MISMATCHED ? !mismatched(row) : state.label !== "" && labelOf(row) !== state.label.slice(1))
    return false;
  return text === "" || lowered[rows.source[row]].includes(text) || names[cluster].toLowerCase().includes(text);
}

/**
 * The rows to show of a cluster: its view, or of all that the page holds those that the filters let through.
 * @param {number} cluster
 */
function listOf(cluster) {
  if (!filtered()) return clusters[cluster][state.view];
  const found = held[cluster].filter(matches);
  const sign = { sample: 0, most: -1, least: 1 }[state.view];
  return sign === 0 ? found : found.sort((a, b) => sign * (rows.confidence[a] - rows.confidence[b]) || a - b);
}

/** @param {number[]} bins */
function histogramPath(bins) {
  const top = Math.max(1, ...bins);
  return "M0 1" + bins.map((n, i) => `V${n ? Math.min(0.97, 1 - n / top) : 1}H${i + 1}`).join("") + "V1Z";
}

/**
 * @param {number[]} bins
 * @param {string} label
 */
function histogram(bins, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${bins.length} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", histogramPath(bins));
  svg.append(path);
  return svg;
}

let messageTimer = 0;
/** @param {string} text */
function say(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(messageTimer);
  messageTimer = setTimeout(() => ($("message").hidden = true), 8000);
}
