// @ts-check
// Thumbnails and the section of each cluster. A section is filled when it comes near the window.

/** @type {Map<string, Promise<ImageBitmap>>} */
const images = new Map();
/** @param {string} sheet */
function imageOf(sheet) {
  const known = images.get(sheet);
  if (known) return known;
  const image = new Image();
  image.src = $(`sheet-${sheet}`).text;
  const made = image.decode().then(() => createImageBitmap(image));
  images.set(sheet, made);
  return made;
}

/**
 * A thumbnail, cut from the sheet of its cluster.
 * @param {number} row
 */
function picture(row) {
  return cut(row, String(rows.cluster[row]), tile[row]);
}

/**
 * The most confident image of a cluster, cut from the sheet of these.
 * @param {number} cluster
 */
function face(cluster) {
  return cut(clusters[cluster].most[0], "faces", faceTile[cluster]);
}

/**
 * @param {number | undefined} row
 * @param {string} sheet
 * @param {number} place
 */
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
  imageOf(sheet).then((image) => canvas.getContext("2d")?.drawImage(image, x, y, width, height, 0, 0, width, height));
  return canvas;
}

/** @param {number} row */
function descriptionOf(row) {
  const label = labelOf(row);
  const parts = [`${plain(sourceOf(row))} #${rows.index[row]}`, `confidence ${decimal(rows.confidence[row])}`];
  if (label !== null) parts.push(`label ${plain(label)}${mismatched(row) ? ", not the cluster’s" : ""}`);
  if (rows.copies[row] > 1) parts.push(`${count(rows.copies[row])} copies`);
  return parts.join(", ");
}

/** @param {number} row */
function thumbnail(row, canvas = picture(row)) {
  const description = descriptionOf(row);
  const button = el(
    "button",
    { type: "button", className: "thumb", tabIndex: -1, title: description, "aria-label": description },
    canvas,
  );
  button.dataset.row = String(row);
  if (mismatched(row)) button.classList.add("wrong");
  const bar = el("i", { "aria-hidden": "true" });
  bar.style.setProperty("--confidence", String(rows.confidence[row]));
  button.append(bar);
  if (rows.copies[row] > 1)
    button.append(el("b", { "aria-hidden": "true", textContent: `×${count(rows.copies[row])}` }));
  return button;
}

/**
 * @param {number[]} list
 * @param {string} label
 */
function gridOf(list, label) {
  const thumbnails = list.map((row) => thumbnail(row));
  if (thumbnails.length) thumbnails[0].tabIndex = 0;
  return el("div", { className: "grid", role: "group", "aria-label": label }, ...thumbnails);
}

const VIEWS = { sample: "a random sample", most: "the most confident", least: "the least confident" };

/**
 * @param {number} cluster
 * @param {number[]} list
 */
function captionOf(cluster, list) {
  if (filtered())
    return `${count(list.length)} of the ${counted(held[cluster].length, "image")} that this page holds of it`;
  const { size } = clusters[cluster];
  if (list.length === size) return "all images";
  return state.view === "sample"
    ? `${VIEWS.sample}: ${count(list.length)} of ${count(size)}`
    : `${VIEWS[state.view]} ${count(list.length)} of ${count(size)}`;
}

/** @param {number} cluster */
function groupsOf(cluster) {
  const { exact, exactGroups, near: alike } = clusters[cluster];
  if (exact.length + alike.length === 0) return null;
  const groups = [
    ...exact.map((row) => ({ text: `${count(rows.copies[row])} identical`, list: [row] })),
    ...alike.map((list) => ({ text: `${count(list.length)} alike`, list })),
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

/** @param {number} cluster */
function factsOf(cluster) {
  const { size, mean } = clusters[cluster];
  const facts = [counted(size, "image"), percent(size, counts.clustered)];
  if (mean !== null) facts.push(`mean confidence ${decimal(mean)}`);
  const label = meantOf(cluster);
  if (truth !== null && label !== null) {
    const row = truth.confusion[cluster];
    const most = row.indexOf(Math.max(...row));
    const share = percent(row[meant[cluster]], sum(row));
    facts.push(`${truth.matching[cluster] < 0 ? "mostly " : ""}label ${plain(label)} (${share})`);
    if (row[most] > row[meant[cluster]])
      facts.push(`most are label ${plain(truth.labels[most])} (${percent(row[most], sum(row))})`);
  }
  return facts.join(" · ");
}

/** @param {number} cluster */
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
  input.dataset.cluster = String(cluster);
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
  section.dataset.cluster = String(cluster);
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

/** @type {HTMLElement[]} */
const sections = [];
/** @type {Set<number>} */
const stale = new Set(); // clusters whose section is not filled as the state asks
/** @type {Set<number>} */
const nearby = new Set(); // clusters whose section is near the window

/** @param {number} cluster */
function fill(cluster) {
  stale.delete(cluster);
  const body = sections[cluster].querySelector(".body");
  if (!body) return;
  const list = listOf(cluster);
  const groups = filtered() ? null : groupsOf(cluster);
  const focused = body.contains(document.activeElement);
  const caption = captionOf(cluster, list);
  const grid = gridOf(list.slice(0, PAGE), caption);
  body.replaceChildren(...(groups ? [groups] : []), el("h3", {}, caption[0].toUpperCase() + caption.slice(1)), grid);
  if (focused) within(grid, ".thumb")?.focus();
  if (list.length > PAGE) {
    const more = el("button", { type: "button", className: "more" });
    const grow = () => {
      const there = grid.children.length;
      grid.append(...list.slice(there, there + 2 * PAGE).map((row) => thumbnail(row)));
      more.textContent = `Show ${count(Math.min(2 * PAGE, list.length - grid.children.length))} more`;
      more.hidden = grid.children.length >= list.length;
      return childrenOf(grid)[there];
    };
    more.textContent = `Show ${count(Math.min(2 * PAGE, list.length - PAGE))} more`;
    more.addEventListener("click", () => focusThumbnail(grow()));
    body.append(more);
  }
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      const cluster = Number(around(target, "section")?.dataset.cluster);
      if (isIntersecting) nearby.add(cluster);
      else nearby.delete(cluster);
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
    if (nearby.has(cluster) && !section.hidden) fill(cluster);
    else section.querySelector(".body")?.replaceChildren();
    $(`item-${cluster}`).hidden = section.hidden;
  }
  $("page").classList.toggle("errors-only", state.errorsOnly);
  $("truth").hidden = state.errorsOnly || filtered() || (truth === null && data.note === "");
  $("errors").hidden = counts.errors === 0 || (filtered() && !state.errorsOnly);
  renderFilters(shown);
}

/** @param {number} shown */
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

/** @param {HTMLElement | null | undefined} button */
function focusThumbnail(button) {
  if (!button) return;
  childrenOf(around(button, ".grid")).forEach((other) => (other.tabIndex = -1));
  button.tabIndex = 0;
  button.focus();
}

/**
 * The neighbour of a thumbnail in its grid, in the direction of an arrow key.
 * @param {HTMLElement} button
 * @param {string} key
 */
function neighbour(button, key) {
  const all = childrenOf(button.parentElement);
  const at = all.indexOf(button);
  const columns = all.findIndex((other) => other.offsetTop > all[0].offsetTop);
  /** @type {Record<string, number>} */
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (columns < 0 && key !== "ArrowLeft" && key !== "ArrowRight") return null;
  return all[at + steps[key]] ?? null;
}
