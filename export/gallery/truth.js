// Scores against ground truth, and the confusion matrix as a heat map: a cell shows its images.

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
      el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value.toFixed(3) })),
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
    el("div", { className: "truth-body" }, el("div", { className: "scroll" }, heatMap()), mistakes()),
  );
}

// The cells off the matching with the most images.
function mistakes() {
  const cells = truth.confusion.flatMap((row, cluster) => row.map((n, label) => ({ n, cluster, label })));
  const largest = cells
    .filter(({ n, cluster, label }) => n > 0 && meant[cluster] !== label)
    .sort((a, b) => b.n - a.n)
    .slice(0, 6);
  if (largest.length === 0) return null;
  const items = largest.map(({ n, cluster, label }) => {
    const where = names[cluster] ? numberAndName(cluster) : `cluster ${cluster} (label ${plain(meantOf(cluster))})`;
    const note = el("span", { className: "quiet", textContent: `in ${where}` });
    const button = el(
      "button",
      { type: "button", className: "link" },
      `${count(n)} × label ${plain(truth.labels[label])} `,
      note,
    );
    button.addEventListener("click", () => openCell(cluster, label));
    return el("li", {}, button);
  });
  return el("div", { className: "mistakes" }, el("h3", { textContent: "Most confused" }), el("ol", {}, ...items));
}

function heatMap() {
  const order = [...Array(K).keys()].sort(
    (a, b) => (truth.matching[a] < 0) - (truth.matching[b] < 0) || meant[a] - meant[b] || a - b,
  );
  const head = el(
    "tr",
    {},
    el("td", { className: "quiet", textContent: "cluster \\ label" }),
    ...truth.labels.map((label) => el("th", { scope: "col", title: plain(label), textContent: plain(label) })),
    el("th", { scope: "col", className: "sum", textContent: "images" }),
  );
  const table = el(
    "table",
    {
      className: "heat" + (K * truth.labels.length > 900 ? " dense" : ""),
      role: "grid",
      "aria-label": "Confusion matrix",
    },
    el("thead", {}, head),
  );
  const body = el("tbody");
  for (const cluster of order) {
    const sum = truth.confusion[cluster].reduce((a, b) => a + b, 0);
    const cells = truth.confusion[cluster].map((n, label) => heatCell(cluster, label, n, sum));
    const title = el("th", { scope: "row", textContent: numberAndName(cluster) });
    title.dataset.cluster = cluster;
    body.append(el("tr", {}, title, ...cells, el("td", { className: "sum", textContent: count(sum) })));
  }
  table.append(body);
  const first = body.querySelector("td[data-cluster]");
  if (first) first.tabIndex = 0;
  return table;
}

function heatCell(cluster, label, n, sum) {
  const share = n / Math.max(sum, 1);
  const cell = document.createElement("td");
  cell.dataset.cluster = cluster;
  cell.dataset.label = label;
  if (n > 0) {
    cell.textContent = count(n);
    cell.style.setProperty("--share", 0.06 + 0.94 * share);
  }
  if (share > 0.69) cell.className = "full";
  if (truth.matching[cluster] === label) cell.classList.add("matched");
  return cell;
}

// Said on demand: a large matrix has ten thousand cells.
function describeCell(cell) {
  const [cluster, label] = [Number(cell.dataset.cluster), Number(cell.dataset.label)];
  const row = truth.confusion[cluster];
  cell.title =
    `cluster ${numberAndName(cluster)}, label ${plain(truth.labels[label])}: ${counted(row[label], "image")}, ` +
    `${percent(
      row[label],
      row.reduce((a, b) => a + b, 0),
    )} of the cluster`;
}

function openCell(cluster, label) {
  state.cluster = cluster;
  state.label = `=${truth.labels[label]}`;
  $("label").value = state.label;
  render();
  fill(cluster);
  focusThumbnail(sections[state.cluster].querySelector(".grid .thumb"));
  window.scrollTo({ top: 0 });
  if (listOf(state.cluster).length === 0) say("The page holds none of these images.");
}

function stepCell(cell, key) {
  const row = cell.parentElement;
  const at = [...row.children].indexOf(cell);
  const next = {
    ArrowLeft: cell.previousElementSibling,
    ArrowRight: cell.nextElementSibling,
    ArrowUp: row.previousElementSibling?.children[at],
    ArrowDown: row.nextElementSibling?.children[at],
  }[key];
  if (!next?.dataset.label) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  describeCell(next);
  next.focus();
}
