// @ts-check
// The page is put together, then listens.

const KEYS = [
  ["/", "Search names and sources"],
  ["1  2  3", "Random sample, most confident, least confident"],
  ["j  k", "Next, previous cluster"],
  ["n", "Name the cluster at the top of the window"],
  ["Enter", "In a name: on to the next cluster’s"],
  ["s", "Save the names as names.toml"],
  ["← → ↑ ↓", "Move between images, or cells of the matrix"],
  ["Enter", "Open the image, or the images of a cell"],
  ["+  −", "Larger, smaller thumbnails"],
  ["m", "Only images whose label is not their cluster’s"],
  ["e", "Errors only"],
  ["Esc", "Close; else show all again"],
  ["?", "These keys"],
];

function buildTotals() {
  /** @type {(term: string, n: number, note: string) => HTMLElement} */
  const total = (term, n, note) =>
    el(
      "div",
      {},
      el("dt", { textContent: term }),
      el("dd", { textContent: count(n) }),
      el("dd", { className: "quiet", textContent: note }),
    );
  const used = clusters.filter(({ size }) => size > 0).length;
  $("totals").append(
    total("Images", counts.images, `= ${count(counts.clustered)} sorted + ${counted(counts.errors, "error")}`),
    total("Clusters", K, used === K ? "none is empty" : `${counted(K - used, "empty one")}`),
    total("Errors", counts.errors, counts.errors ? percent(counts.errors, counts.images) : "all images could be read"),
    total(
      "Exact duplicates",
      counts.copies,
      counts.copies
        ? `copies of ${counted(counts.copied, "image")}; ${count(counts.distinct)} distinct`
        : `${count(counts.distinct)} distinct images`,
    ),
    total(
      "Near duplicates",
      counts.near,
      counts.near ? `in ${counted(counts.nearGroups, "group")}, at least` : "none found",
    ),
  );
  const shown = `${count(counts.shown)} of the ${counted(counts.images, "image")}`;
  const compared = `${count(counts.compared)} closest of ${count(counts.candidates)} candidate pairs`;
  $("about").textContent = [
    `This page shows ${shown}; sizes, means and histograms are of all.`,
    `Names are edited here: save them and ${WHERE}.`,
  ].join(" ");
  $("notes").textContent = [
    "Exact duplicates have the same bytes (arrays: the same pixels); the first is shown, the others are counted.",
    "Near duplicates: fingerprints at most 6 of 128 bits apart,",
    `of which the ${compared} were compared on the pixels of their thumbnails (correlation at least 0.99).`,
    "Crops, rotations and mirrored pictures are not found; strokes on an empty ground may look alike.",
    "Of the confident and the doubtful, the extremes are shown; the rest is a random sample.",
  ].join(" ");
}

function buildControls() {
  const all = Array.from({ length: clusters[0]?.histogram.length ?? 0 }, (_, bin) =>
    sum(clusters.map((each) => each.histogram[bin])),
  );
  $("range-histogram").append(...histogram(all, "").children);
  if (labels.length) {
    $("label-field").hidden = false;
    $("label").append(el("option", { value: "", textContent: "all" }));
    if (truth) $("label").append(el("option", { value: MISMATCHED, textContent: "not the cluster’s" }));
    $("label").append(...labels.map((label) => el("option", { value: `=${label}`, textContent: plain(label) })));
  }
  $("errors-only-field").hidden = counts.errors === 0;
  const largest = rows.size.reduce((most, [width, height]) => Math.max(most, width, height), 0);
  $("thumb").value = largest <= SMALL ? "56" : "96";
  resizeThumbnails();
  renderRange();
}

const resizeThumbnails = () => document.documentElement.style.setProperty("--thumb", `${$("thumb").value}px`);

function renderRange() {
  $("range-text").textContent = `${decimal(state.low)} – ${decimal(state.high)}`;
  $("low").parentElement?.style.setProperty("--low", String(state.low));
  $("low").parentElement?.style.setProperty("--high", String(state.high));
}

function buildList() {
  const largest = Math.max(1, ...clusters.map(({ size }) => size));
  for (let cluster = 0; cluster < K; cluster++) {
    const { size } = clusters[cluster];
    const bar = el("span", { className: "share", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(size / largest));
    const link = el(
      "a",
      { href: `#cluster-${cluster}`, title: factsOf(cluster) },
      face(cluster),
      el("span", { className: "item-name", textContent: titleOf(cluster) }),
      el("span", { className: "item-size", textContent: count(size) }),
      bar,
    );
    $("list").append(el("li", { id: `item-${cluster}` }, link));
    sections.push(sectionOf(cluster));
    stale.add(cluster);
  }
  $("clusters").append(...sections);
  sections.forEach((section) => near.observe(section));
}

function buildErrors() {
  if (counts.errors === 0) return;
  const { reasons, rows: bad } = data.errors;
  const box = $("errors");
  const list = el("tbody");
  const more = el("button", { type: "button", className: "more" });
  const grow = () => {
    const there = list.children.length;
    list.append(
      ...bad
        .slice(there, there + 100)
        .map(([source, index, reason]) =>
          el(
            "tr",
            {},
            el("td", { className: "source", textContent: plain(source) }),
            el("td", { textContent: count(index) }),
            el("td", { textContent: plain(reason) }),
          ),
        ),
    );
    more.hidden = list.children.length >= bad.length;
    more.textContent = `Show ${count(Math.min(100, bad.length - list.children.length))} more`;
  };
  grow();
  more.addEventListener("click", grow);
  box.append(
    el("h2", { id: "errors-title", textContent: `Errors: ${counted(counts.errors, "image")} could not be read` }),
    el(
      "ul",
      { className: "reasons" },
      ...reasons
        .slice(0, 12)
        .map(([reason, n]) => el("li", {}, el("strong", { textContent: count(n) }), ` ${plain(reason)}`)),
    ),
    el(
      "div",
      { className: "scroll" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el("tr", {}, ...["Source", "Index", "Reason"].map((text) => el("th", { scope: "col", textContent: text }))),
        ),
        list,
      ),
    ),
    more,
  );
  if (bad.length < counts.errors)
    box.append(
      el("p", {
        className: "quiet",
        textContent: `The first ${count(bad.length)}; the column error of clusters.parquet has all.`,
      }),
    );
}

function buildKeys() {
  const close = el("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", () => $("keys").close());
  $("keys").append(
    el("h2", { id: "keys-title", textContent: "Keyboard" }),
    el(
      "dl",
      {},
      ...KEYS.flatMap(([keys, what]) => [
        el("dt", {}, ...keys.split("  ").map((key) => el("kbd", { textContent: key }))),
        el("dd", { textContent: what }),
      ]),
    ),
    close,
  );
}

function reorder() {
  /** @type {Record<State["order"], (a: number, b: number) => number>} */
  const orders = {
    number: (a, b) => a - b,
    size: (a, b) => clusters[b].size - clusters[a].size || a - b,
    mean: (a, b) => (clusters[b].mean ?? -1) - (clusters[a].mean ?? -1) || a - b,
  };
  const order = [...Array(K).keys()].sort(orders[state.order]);
  $("clusters").append(...order.map((cluster) => sections[cluster]));
  $("list").append(...order.map((cluster) => $(`item-${cluster}`)));
}

function clearFilters() {
  Object.assign(state, { text: "", low: 0, high: 1, label: "", cluster: null, errorsOnly: false });
  $("text").value = $("label").value = "";
  $("low").value = "0";
  $("high").value = "1";
  $("errors-only").checked = false;
  renderRange();
  render();
}

const visibleSections = () => childrenOf($("clusters")).filter((section) => !section.hidden);
const underBar = () => $("bar").getBoundingClientRect().bottom + 8;
const currentSection = () =>
  visibleSections().find((section) => section.getBoundingClientRect().bottom > underBar() + 40);

/** @param {number} step */
function stepSection(step) {
  const all = visibleSections();
  const here = currentSection();
  const begun = here && here.getBoundingClientRect().top <= underBar() + 8;
  const at = (here ? all.indexOf(here) : -1) + (step > 0 && !begun ? 0 : step);
  all[Math.max(0, Math.min(all.length - 1, at))]?.scrollIntoView({ behavior: "instant" });
}

/** @param {HTMLElement | null} section */
function nameNext(section) {
  const all = visibleSections();
  const next = all[(section ? all.indexOf(section) : -1) + 1];
  next?.scrollIntoView({ behavior: "instant" });
  within(next, ".name")?.focus({ preventScroll: true });
}

function markCurrent() {
  const here = currentSection();
  for (const item of childrenOf($("list"))) {
    const link = item.firstChild;
    if (!(link instanceof HTMLAnchorElement)) continue;
    const current = here !== undefined && link.hash === `#${here.id}`;
    if (current === link.hasAttribute("aria-current")) continue;
    if (!current) {
      link.removeAttribute("aria-current");
      continue;
    }
    link.setAttribute("aria-current", "true");
    $("list").parentElement?.scrollTo({ top: item.offsetTop - 120 });
  }
}

/** @param {State["view"]} view */
function setView(view) {
  state.view = view;
  const radio = within($("view"), `input[value=${view}]`);
  if (radio instanceof HTMLInputElement) radio.checked = true;
  render();
}

/** @param {boolean} on */
function toggleErrors(on) {
  state.errorsOnly = on && counts.errors > 0;
  $("errors-only").checked = state.errorsOnly;
  render();
}

/** @type {Record<string, () => void>} */
const SHORTCUTS = {
  "/": () => $("text").focus(),
  1: () => setView("sample"),
  2: () => setView("most"),
  3: () => setView("least"),
  j: () => stepSection(1),
  k: () => stepSection(-1),
  n: () => within(currentSection(), ".name")?.focus(),
  s: saveNames,
  e: () => toggleErrors(!state.errorsOnly),
  m: () => {
    if (truth) setLabel(state.label === MISMATCHED ? "" : MISMATCHED);
  },
  "+": () => ($("thumb").stepUp(2), resizeThumbnails()),
  "=": () => ($("thumb").stepUp(2), resizeThumbnails()),
  "-": () => ($("thumb").stepDown(2), resizeThumbnails()),
  "?": () => $("keys").showModal(),
  Escape: clearFilters,
};

/** @param {string} label */
function setLabel(label) {
  state.label = label;
  $("label").value = label;
  render();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if ($("zoom").open) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
    if (step) (stepZoom(step), event.preventDefault());
    return;
  }
  if ($("keys").open || !(target instanceof HTMLElement)) return;
  const typing = target.matches("input:not([type=range], [type=radio], [type=checkbox]), select");
  if (typing && key === "Escape") return target.blur();
  if (target.matches(".name") && key === "Enter") return nameNext(around(target, ".cluster"));
  if (typing || (target.matches("input") && key.startsWith("Arrow"))) return;
  if (target.matches(".grid .thumb") && /^(Arrow|Home|End)/.test(key)) {
    focusThumbnail(neighbour(target, key));
    event.preventDefault();
  } else if (target.matches("td[data-label]") && key.startsWith("Arrow")) {
    stepCell(target, key);
    event.preventDefault();
  } else if (target.matches("td[data-label]") && (key === "Enter" || key === " ")) {
    openCell(Number(target.dataset.cluster), Number(target.dataset.label));
    event.preventDefault();
  } else if (SHORTCUTS[key]) {
    SHORTCUTS[key]();
    event.preventDefault();
  }
}

function listen() {
  /** @param {() => void} act */
  const later = (act) => {
    let waiting = 0;
    return () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(act);
    };
  };
  const renderSoon = later(render);
  /** @type {(id: keyof Ids, type: string, act: (event: Event) => void) => void} */
  const on = (id, type, act) => $(id).addEventListener(type, act);
  on("text", "input", () => ((state.text = $("text").value.trim()), renderSoon()));
  on("label", "change", () => setLabel($("label").value));
  for (const [id, other] of /** @type {const} */ ([
    ["low", "high"],
    ["high", "low"],
  ])) {
    on(id, "input", () => {
      if (Number($("low").value) > Number($("high").value)) $(id).value = $(other).value;
      state[id] = Number($(id).value);
      renderRange();
      renderSoon();
    });
  }
  on("view", "change", ({ target }) => {
    if (target instanceof HTMLInputElement) setView(/** @type {State["view"]} */ (target.value));
  });
  on("order", "change", () => {
    state.order = /** @type {State["order"]} */ ($("order").value);
    reorder();
  });
  on("thumb", "input", resizeThumbnails);
  on("errors-only", "change", () => toggleErrors($("errors-only").checked));
  on("save", "click", saveNames);
  on("help", "click", () => $("keys").showModal());
  on("bar", "submit", (event) => event.preventDefault());
  on("zoom", "close", closeZoom);
  on("clusters", "input", ({ target }) => {
    if (target instanceof HTMLInputElement && target.matches(".name")) editName(target);
  });
  document.addEventListener("click", ({ target }) => {
    const thumb = around(target, ".thumb");
    const cell = around(target, "td[data-label]");
    if (thumb) openZoom(thumb);
    else if (cell) openCell(Number(cell.dataset.cluster), Number(cell.dataset.label));
    else if (target instanceof HTMLDialogElement) target.close();
  });
  on("truth", "pointerover", ({ target }) => {
    if (target instanceof HTMLElement && target.matches("td[data-label]")) describeCell(target);
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("scroll", later(markCurrent), { passive: true });
  new ResizeObserver(() =>
    document.documentElement.style.setProperty(
      "--bar",
      getComputedStyle($("bar")).position === "sticky" ? `${$("bar").offsetHeight}px` : "0px",
    ),
  ).observe($("bar"));
  window.addEventListener("beforeunload", (event) => changedNames() > 0 && event.preventDefault());
}

buildTotals();
buildControls();
buildTruth();
buildList();
buildErrors();
buildKeys();
render();
listen();
markCurrent();
document.documentElement.dataset.ready = "yes";
