// The data, what the user asked to see, and small helpers. All text reaches the page as text nodes, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const { clusters, counts, labels, rows, truth } = data;
const K = clusters.length;
const PAGE = 60;
const MISMATCHED = "mismatched";
const SMALL = 32;

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

const $ = (id) => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const count = (n) => n.toLocaleString("en-GB");
const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const decimal = (x) => (x === null ? "–" : x.toFixed(2));
const percent = (part, whole) => `${((100 * part) / Math.max(whole, 1)).toFixed(1)} %`;

// Line breaks, control characters, direction marks and lone surrogates become visible.
const UNSEEN = /[\p{Cc}\p{Cs}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
const plain = (text) =>
  text.replace(
    UNSEEN,
    (c) => ({ "\n": "\\n", "\t": "\\t", "\r": "\\r" })[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`,
  );

const sourceOf = (row) => rows.sources[rows.source[row]];
const titleOf = (cluster) => (names[cluster] ? plain(names[cluster]) : `Cluster ${cluster}`);
const numberAndName = (cluster) => (names[cluster] ? `${cluster} · ${plain(names[cluster])}` : `${cluster}`);
const labelOf = (row) => (rows.label[row] < 0 ? null : labels[rows.label[row]]);

// The label that each cluster stands for: by the matching, else its most frequent one; -1 without labelled images.
const meant = truth?.confusion.map((row, cluster) => {
  if (truth.matching[cluster] >= 0) return truth.matching[cluster];
  const most = Math.max(...row);
  return most > 0 ? row.indexOf(most) : -1;
});
const meantOf = (cluster) => (truth && meant[cluster] >= 0 ? truth.labels[meant[cluster]] : null);
const mismatched = (row) => truth !== null && labelOf(row) !== null && labelOf(row) !== meantOf(rows.cluster[row]);

const held = Array.from({ length: K }, () => []); // rows of each cluster
const tile = rows.cluster.map((cluster, row) => {
  const place = held[cluster].filled ?? 0;
  held[cluster].push(row);
  held[cluster].filled = place + (rows.size[row][0] > 0 ? 1 : 0);
  return place;
});
let faces = 0;
const faceTile = clusters.map(({ most }) => (most.length && rows.size[most[0]][0] > 0 ? faces++ : -1));
const lowered = rows.sources.map((source) => source.toLowerCase());

const filtered = () =>
  state.text !== "" || state.low > 0 || state.high < 1 || state.label !== "" || state.cluster !== null;

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

// The rows to show of a cluster: its view, or of all that the page holds those that the filters let through.
function listOf(cluster) {
  if (!filtered()) return clusters[cluster][state.view];
  const found = held[cluster].filter(matches);
  const sign = { sample: 0, most: -1, least: 1 }[state.view];
  return sign === 0 ? found : found.sort((a, b) => sign * (rows.confidence[a] - rows.confidence[b]) || a - b);
}

function histogramPath(bins) {
  const top = Math.max(1, ...bins);
  return "M0 1" + bins.map((n, i) => `V${n ? Math.min(0.97, 1 - n / top) : 1}H${i + 1}`).join("") + "V1Z";
}

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
function say(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(messageTimer);
  messageTimer = setTimeout(() => ($("message").hidden = true), 8000);
}
