// @ts-check
// Scores against ground truth, and the confusion matrix as a heat map: a cell shows its images.

const WIDE = 10; // labels, from which on their names stand upright and the cells shrink to the window

function buildTruth() {
  const box = $("truth");
  if (truth === null) {
    if (data.note)
      box.append(el("h2", { id: "truth-title", textContent: "Ground truth" }), el("p", { textContent: data.note }));
    return;
  }
  const scores = el(
    "dl",
    { className: "scores" },
    ...Object.entries(truth.scores).map(([name, value]) =>
      el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value })),
    ),
  );
  const note =
    [
      `${counted(truth.images, "labelled image")}.`,
      "Rows are clusters, in the order of the labels that the Hungarian method gives them;",
      "the shade is the share of the cluster. Choose a cell to see its images.",
      "A marked corner: the image’s label is not its cluster’s.",
    ].join(" ") + (truth.left > 0 ? ` ${counted(truth.left, "rarer label")} left out.` : "");
  box.append(
    el("div", { className: "truth-head" }, el("h2", { id: "truth-title", textContent: "Clusters and labels" }), scores),
    el("p", { className: "quiet", textContent: note }),
    el("div", { className: "truth-body" }, el("div", { className: "scroll" }, heatMap(truth)), mistakes(truth)),
  );
}

/**
 * The cells off the matching with the most images.
 * @param {Truth} scored
 */
function mistakes(scored) {
  const cells = scored.confusion.flatMap((row, cluster) => row.map((n, label) => ({ n, cluster, label })));
  const largest = cells
    .filter(({ n, cluster, label }) => n > 0 && meant[cluster] !== label)
    .sort((a, b) => b.n - a.n)
    .slice(0, 6);
  if (largest.length === 0) return null;
  const items = largest.map(({ n, cluster, label }) => {
    const where = names[cluster] ? numberAndName(cluster) : `cluster ${cluster} (label ${plain(meantOf(cluster) ?? "none")})`;
    const note = el("span", { className: "quiet", textContent: `in ${where}` });
    const button = el(
      "button",
      { type: "button", className: "link" },
      `${count(n)} × label ${plain(scored.labels[label])} `,
      note,
    );
    button.addEventListener("click", () => openCell(cluster, label));
    return el("li", {}, button);
  });
  return el("div", { className: "mistakes" }, el("h3", { textContent: "Most confused" }), el("ol", {}, ...items));
}

/** @param {Truth} scored */
function heatMap(scored) {
  /** @param {number} cluster */
  const last = (cluster) => Number(scored.matching[cluster] < 0);
  const order = [...Array(K).keys()].sort((a, b) => last(a) - last(b) || meant[a] - meant[b] || a - b);
  const head = el(
    "tr",
    {},
    el("td", { className: "quiet", textContent: "cluster \\ label" }),
    ...scored.labels.map((label) => el("th", { scope: "col", title: plain(label), textContent: plain(label) })),
    el("th", { scope: "col", className: "sum", textContent: "images" }),
  );
  const table = el(
    "table",
    {
      className: "heat" + (K * scored.labels.length > 900 ? " dense" : "") + (scored.labels.length > WIDE ? " tall" : ""),
      role: "grid",
      "aria-label": "Confusion matrix",
    },
    el("thead", {}, head),
  );
  table.style.setProperty("--labels", String(scored.labels.length));
  const body = el("tbody");
  for (const cluster of order) {
    const images = sum(scored.confusion[cluster]);
    const cells = scored.confusion[cluster].map((n, label) =>
      heatCell(n, n / Math.max(images, 1), cluster, label, scored.matching[cluster] === label),
    );
    const title = el("th", { scope: "row", textContent: numberAndName(cluster) });
    title.dataset.cluster = String(cluster);
    body.append(el("tr", {}, title, ...cells, el("td", { className: "sum", textContent: count(images) })));
  }
  table.append(body);
  const first = within(body, "td[data-cluster]");
  if (first) first.tabIndex = 0;
  return table;
}

/**
 * @param {number} n
 * @param {number} share of the cluster
 * @param {number} cluster
 * @param {number} label
 * @param {boolean} matched
 */
function heatCell(n, share, cluster, label, matched) {
  const cell = document.createElement("td");
  cell.dataset.cluster = String(cluster);
  cell.dataset.label = String(label);
  if (n > 0) {
    cell.textContent = count(n);
    cell.style.setProperty("--share", String(0.06 + 0.94 * share));
  }
  if (share > 0.69) cell.className = "full";
  if (matched) cell.classList.add("matched");
  return cell;
}

/**
 * Said on demand: a large matrix has ten thousand cells.
 * @param {HTMLElement} cell
 */
function describeCell(cell) {
  if (truth === null) return;
  const [cluster, label] = [Number(cell.dataset.cluster), Number(cell.dataset.label)];
  const row = truth.confusion[cluster];
  cell.title =
    `cluster ${numberAndName(cluster)}, label ${plain(truth.labels[label])}: ${counted(row[label], "image")}, ` +
    `${percent(row[label], sum(row))} of the cluster`;
}

/**
 * @param {number} cluster
 * @param {number} label
 */
function openCell(cluster, label) {
  if (truth === null) return;
  state.cluster = cluster;
  state.label = `=${truth.labels[label]}`;
  $("label").value = state.label;
  render();
  fill(cluster);
  focusThumbnail(within(sections[cluster], ".grid .thumb"));
  window.scrollTo({ top: 0 });
  if (listOf(cluster).length === 0) say("The page holds none of these images.");
}

/**
 * @param {HTMLElement} cell
 * @param {string} key
 */
function stepCell(cell, key) {
  const row = cell.parentElement;
  const at = childrenOf(row).indexOf(cell);
  /** @type {Record<string, Element | null | undefined>} */
  const neighbours = {
    ArrowLeft: cell.previousElementSibling,
    ArrowRight: cell.nextElementSibling,
    ArrowUp: row?.previousElementSibling?.children[at],
    ArrowDown: row?.nextElementSibling?.children[at],
  };
  const next = neighbours[key];
  if (!(next instanceof HTMLElement) || !next.dataset.label) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  describeCell(next);
  next.focus();
}
