// Thumbnails and the section of each cluster. A section is filled when it comes near the window.

const images = new Map();
function imageOf(sheet) {
  if (!images.has(sheet)) {
    const image = new Image();
    image.src = $(`sheet-${sheet}`).textContent;
    images.set(
      sheet,
      image.decode().then(() => createImageBitmap(image)),
    );
  }
  return images.get(sheet);
}

// A thumbnail, cut from the sheet of its cluster.
function picture(row) {
  return cut(row, rows.cluster[row], tile[row]);
}

// The most confident image of a cluster, cut from the sheet of these.
function face(cluster) {
  return cut(clusters[cluster].most[0], "faces", faceTile[cluster]);
}

function cut(row, sheet, place) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const [width, height] = row === undefined ? [0, 0] : rows.size[row];
  if (width === 0) {
    canvas.className = "missing";
    return canvas;
  }
  const {
    columns,
    tile: [wide, high],
  } = data.sheets[sheet];
  canvas.width = width;
  canvas.height = height;
  if (Math.max(width, height) <= SMALL) canvas.className = "pixelated";
  const x = (place % columns) * wide;
  const y = Math.floor(place / columns) * high;
  imageOf(sheet).then((image) => canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height));
  return canvas;
}

function descriptionOf(row) {
  const label = labelOf(row);
  const parts = [`${plain(sourceOf(row))} #${rows.index[row]}`, `confidence ${decimal(rows.confidence[row])}`];
  if (label !== null) parts.push(`label ${plain(label)}${mismatched(row) ? ", not the cluster’s" : ""}`);
  if (rows.copies[row] > 1) parts.push(`${count(rows.copies[row])} copies`);
  return parts.join(", ");
}

function thumbnail(row, canvas = picture(row)) {
  const description = descriptionOf(row);
  const button = el(
    "button",
    { type: "button", className: "thumb", tabIndex: -1, title: description, "aria-label": description },
    canvas,
  );
  button.dataset.row = row;
  if (mismatched(row)) button.classList.add("wrong");
  const bar = el("i", { "aria-hidden": "true" });
  bar.style.setProperty("--confidence", rows.confidence[row]);
  button.append(bar);
  if (rows.copies[row] > 1)
    button.append(el("b", { "aria-hidden": "true", textContent: `×${count(rows.copies[row])}` }));
  return button;
}

function gridOf(list, label) {
  const grid = el(
    "div",
    { className: "grid", role: "group", "aria-label": label },
    ...list.map((row) => thumbnail(row)),
  );
  if (grid.firstChild) grid.firstChild.tabIndex = 0;
  return grid;
}

const VIEWS = { sample: "a random sample", most: "the most confident", least: "the least confident" };

function captionOf(cluster, list) {
  if (filtered())
    return `${count(list.length)} of the ${counted(held[cluster].length, "image")} that this page holds of it`;
  const { size } = clusters[cluster];
  if (list.length === size) return "all images";
  return state.view === "sample"
    ? `${VIEWS.sample}: ${count(list.length)} of ${count(size)}`
    : `${VIEWS[state.view]} ${count(list.length)} of ${count(size)}`;
}

function groupsOf(cluster) {
  const { exact, exactGroups, near } = clusters[cluster];
  if (exact.length + near.length === 0) return null;
  const groups = [
    ...exact.map((row) => ({ text: `${count(rows.copies[row])} identical`, list: [row] })),
    ...near.map((list) => ({ text: `${count(list.length)} alike`, list })),
  ];
  const more =
    exactGroups > exact.length ? ` (the ${count(exact.length)} largest of ${count(exactGroups)} identical groups)` : "";
  const box = el(
    "div",
    { className: "groups" },
    el("h3", {}, "Duplicates", el("span", { className: "quiet", textContent: more })),
  );
  const line = el("div", { className: "groups-line" });
  for (const { text, list } of groups) {
    line.append(el("figure", {}, gridOf(list, text), el("figcaption", { textContent: text })));
  }
  box.append(line);
  return box;
}

function factsOf(cluster) {
  const { size, mean } = clusters[cluster];
  const facts = [counted(size, "image"), percent(size, counts.clustered)];
  if (mean !== null) facts.push(`mean confidence ${decimal(mean)}`);
  const label = meantOf(cluster);
  if (label !== null) {
    const row = truth.confusion[cluster];
    const share = percent(
      row[meant[cluster]],
      row.reduce((a, b) => a + b, 0),
    );
    facts.push(`${truth.matching[cluster] < 0 ? "mostly " : ""}label ${plain(label)} (${share})`);
  }
  return facts.join(" · ");
}

function sectionOf(cluster) {
  const { histogram: bins, most, size } = clusters[cluster];
  const input = el("input", {
    id: `name-${cluster}`,
    className: "name",
    value: names[cluster],
    placeholder: `Name cluster ${cluster}`,
    autocomplete: "off",
    "aria-label": `Name of cluster ${cluster}`,
  });
  input.dataset.cluster = cluster;
  const title = el(
    "h2",
    { id: `title-${cluster}` },
    el("span", { className: "number", textContent: cluster, "aria-label": `Cluster ${cluster}` }),
    input,
  );
  const head = el(
    "header",
    {},
    el("div", { className: "what" }, title, el("p", { className: "facts", textContent: factsOf(cluster) })),
  );
  const section = el(
    "section",
    { id: `cluster-${cluster}`, className: "cluster", "aria-label": `Cluster ${cluster}` },
    head,
  );
  section.dataset.cluster = cluster;
  if (size > 0) {
    const first = thumbnail(most[0], face(cluster));
    first.classList.add("representative");
    first.tabIndex = 0;
    head.prepend(first);
    head.append(
      el(
        "figure",
        { className: "histogram" },
        histogram(bins, "Histogram of the confidence, from 0 to 1"),
        el(
          "figcaption",
          {},
          el("span", { textContent: "0" }),
          el("span", { textContent: "confidence" }),
          el("span", { textContent: "1" }),
        ),
      ),
    );
    section.append(el("div", { className: "body" }));
  }
  return section;
}

const sections = [];
const stale = new Set(); // clusters whose section is not filled as the state asks

function fill(cluster) {
  stale.delete(cluster);
  const body = sections[cluster].querySelector(".body");
  if (!body) return;
  const list = listOf(cluster);
  const groups = filtered() ? null : groupsOf(cluster);
  const focused = body.contains(document.activeElement);
  const caption = captionOf(cluster, list);
  const grid = gridOf(list.slice(0, PAGE), caption);
  body.replaceChildren(...[groups, el("h3", {}, caption[0].toUpperCase() + caption.slice(1)), grid].filter(Boolean));
  if (focused) grid.firstChild?.focus();
  if (list.length > PAGE) {
    const more = el("button", { type: "button", className: "more" });
    const grow = () => {
      const there = grid.children.length;
      grid.append(...list.slice(there, there + 2 * PAGE).map((row) => thumbnail(row)));
      more.textContent = `Show ${count(Math.min(2 * PAGE, list.length - grid.children.length))} more`;
      more.hidden = grid.children.length >= list.length;
      return grid.children[there];
    };
    more.textContent = `Show ${count(Math.min(2 * PAGE, list.length - PAGE))} more`;
    more.addEventListener("click", () => focusThumbnail(grow()));
    body.append(more);
  }
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      target.near = isIntersecting;
      const cluster = Number(target.dataset.cluster);
      if (isIntersecting && stale.has(cluster)) fill(cluster);
    }
  },
  { rootMargin: "800px 0px" },
);

// Show what the state asks for.
function render() {
  let shown = 0;
  for (let cluster = 0; cluster < K; cluster++) {
    const section = sections[cluster];
    const list = listOf(cluster);
    section.hidden = state.errorsOnly || (filtered() && list.length === 0);
    if (!section.hidden) shown += list.length;
    stale.add(cluster);
    if (section.near && !section.hidden) fill(cluster);
    else section.querySelector(".body")?.replaceChildren();
    $("list").children.namedItem(`item-${cluster}`).hidden = section.hidden;
  }
  $("page").classList.toggle("errors-only", state.errorsOnly);
  $("truth").hidden = state.errorsOnly || filtered() || (truth === null && data.note === "");
  $("errors").hidden = counts.errors === 0 || (filtered() && !state.errorsOnly);
  renderFilters(shown);
}

function renderFilters(shown) {
  const parts = [];
  if (state.cluster !== null) parts.push(`cluster ${numberAndName(state.cluster)}`);
  if (state.label === MISMATCHED) parts.push("label is not the cluster’s");
  else if (state.label !== "") parts.push(`label ${plain(state.label.slice(1))}`);
  if (state.low > 0 || state.high < 1) parts.push(`confidence ${decimal(state.low)} to ${decimal(state.high)}`);
  if (state.text !== "") parts.push(`“${plain(state.text)}”`);
  $("filters").replaceChildren();
  if (parts.length === 0 || state.errorsOnly) return;
  const clear = el("button", { type: "button", textContent: "Show all" });
  clear.addEventListener("click", clearFilters);
  $("filters").append(
    el("strong", { textContent: parts.join(", ") }),
    ` : ${counted(shown, "image")} of the ${count(counts.shown)} in this page `,
    clear,
  );
}

function focusThumbnail(button) {
  if (!button) return;
  const grid = button.closest(".grid");
  grid?.querySelectorAll('[tabindex="0"]').forEach((other) => (other.tabIndex = -1));
  button.tabIndex = 0;
  button.focus();
}

// The neighbour of a thumbnail in its grid, in the direction of an arrow key.
function neighbour(button, key) {
  const all = [...button.parentElement.children];
  const at = all.indexOf(button);
  const columns = all.findIndex((other) => other.offsetTop > all[0].offsetTop);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (columns < 0 && key !== "ArrowLeft" && key !== "ArrowRight") return null;
  return all[at + step] ?? null;
}
