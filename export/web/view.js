// Shows the result: shares of the clusters, their pictures, one picture in full.


const FIRST = 24; // tiles that a cluster shows at first
const MORE = 120; // tiles that "more" adds
const SMALL = 64; // pixels a side up to which pictures are shown with sharp pixels

const $ = (id) => document.getElementById(id);
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** A share in [0, 1] in per cent; near its ends with a decimal. */
function percent(x) {
  if (x > 0.9995 && x < 1) return ">99.9%";
  if (x > 0 && x < 0.0005) return "<0.1%";
  return `${(100 * x).toFixed(x > 0 && x < 1 && (x < 0.1 || x >= 0.9) ? 1 : 0)}%`;
}

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A bar of a share in [0, 1]. */
function track(share) {
  const bar = make("i");
  bar.style.setProperty("--share", share);
  return make("span", { className: "track", ariaHidden: "true" }, bar);
}

const ORDERS = {
  sure: (a, b) => b.row.confidence - a.row.confidence || a.place - b.place,
  unsure: (a, b) => a.row.confidence - b.row.confidence || a.place - b.place,
  given: (a, b) => a.place - b.place,
};

/** The pictures of the page, by cluster. Tiles are made once and kept, so that an update moves no picture's load. */
class View {
  constructor(names) {
    this.names = names;
    this.shown = names.map(() => FIRST);
    this.links = names.map((_, k) => this.newLink(k));
    this.tiles = new Map();
    this.urls = new Map();
    this.order = "sure";
    this.sequence = []; // the pictures in the order shown, for the arrows of the dialog
    $("clusters").addEventListener("keydown", (event) => moveFocus(event));
    $("detail").addEventListener("keydown", (event) => this.turn({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0));
    $("detail").addEventListener("close", () => this.tiles.get(this.open)?.focus());
    $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
    $("previous").onclick = () => this.turn(-1);
    $("next").onclick = () => this.turn(1);
    $("close").onclick = () => $("detail").close();
  }

  label(k) {
    return this.names[k] || String(k);
  }

  /** Show the items that have a row, and what could not be read. */
  update(items) {
    const groups = this.names.map(() => []);
    const unread = [];
    for (const x of items) if (x.row) (x.row.error ? unread : groups[x.row.cluster]).push(x);
    const done = items.length && groups.reduce((sum, group) => sum + group.length, 0);
    this.showSummary(done, groups, unread.length);
    const focused = document.activeElement;
    groups.forEach((group, k) => this.updateLink(k, group.length, done, Math.max(...groups.map((g) => g.length))));
    place($("shares"), unread.length ? [...this.links, unreadLink(unread.length)] : this.links);
    const sections = groups.flatMap((group, k) => (group.length ? [this.section(k, group)] : []));
    this.sequence = sections.flatMap((section) => section.items);
    if (unread.length) sections.push({ element: this.unreadSection(unread) });
    place($("clusters"), sections.map((section) => section.element));
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  showSummary(done, groups, unread) {
    const used = groups.filter((group) => group.length).length;
    const text = `${counted(done, "picture")} in ${counted(used, "cluster")}`;
    $("summary").replaceChildren(text, make("small", {}, unread ? `, ${counted(unread, "file")} could not be read` : ""));
  }

  newLink(k) {
    const link = make("a", {}, make("span", { className: "who" }, this.label(k)), track(0), make("span"));
    return make("li", {}, link);
  }

  updateLink(k, n, done, largest) {
    const link = this.links[k].firstChild;
    link.ariaLabel = link.title = `${this.label(k)}: ${counted(n, "picture")}, ${percent(n / Math.max(1, done))}`;
    link.querySelector("i").style.setProperty("--share", n / Math.max(1, largest));
    link.lastChild.textContent = n.toLocaleString("en");
    link.classList.toggle("none", !n);
    if (n) link.href = `#cluster-${k}`;
    else link.removeAttribute("href");
  }

  /** The section of a cluster, made at its first picture, and the items whose tiles it shows. */
  section(k, group) {
    const items = group.sort(ORDERS[this.order]).slice(0, this.shown[k]);
    const element = $(`cluster-${k}`) ?? this.newSection(k);
    const mean = group.reduce((sum, x) => sum + x.row.confidence, 0) / group.length;
    element.querySelector("h2 span").textContent = `${counted(group.length, "picture")}, mean confidence ${percent(mean)}`;
    place(element.querySelector(".tiles"), items.map((x) => this.tile(x)));
    const more = element.querySelector(".more");
    more.hidden = group.length <= items.length;
    more.textContent = `Show ${Math.min(MORE, group.length - items.length)} more of ${group.length.toLocaleString("en")}`;
    return { element, items };
  }

  newSection(k) {
    const name = this.names[k] || `Cluster ${k}`;
    const more = make("button", { type: "button", className: "more" });
    more.onclick = () => {
      this.shown[k] += MORE;
      this.onChange();
    };
    const tiles = make("div", { className: "tiles", role: "group", ariaLabel: name });
    return make("section", { id: `cluster-${k}`, className: "cluster" }, make("h2", {}, name, make("span")), tiles, more);
  }

  unreadSection(unread) {
    const rows = unread.slice(0, 1000).map(({ source, row }) => make("li", {}, source, make("span", {}, `: ${row.error}`)));
    if (unread.length > rows.length) rows.push(make("li", {}, `and ${counted(unread.length - rows.length, "file")} more, all in the CSV`));
    const heading = make("h2", {}, "Not read", make("span", {}, counted(unread.length, "file")));
    return make("section", { id: "unread", className: "cluster" }, heading, make("ol", {}, ...rows));
  }

  tile(x) {
    let tile = this.tiles.get(x);
    if (tile) return tile;
    const { row, source } = x;
    const picture = make("img", { alt: "", loading: "lazy", decoding: "async", src: this.url(x) });
    picture.onload = () => picture.classList.toggle("small", picture.naturalWidth <= SMALL);
    const best = [this.label(row.cluster), percent(row.confidence)];
    const then = row.runnerUp === null ? [] : [this.label(row.runnerUp), percent(row.confidence - row.margin)];
    tile = make(
      "button",
      { type: "button", className: "tile", title: source },
      make("span", { className: "picture" }, picture),
      track(row.confidence),
      make("b", {}, ...best.map((text) => make("span", {}, text))),
      make("span", { className: "then" }, ...then.map((text) => make("span", {}, text))),
    );
    tile.ariaLabel = `${source}: ${[...best, ...(then.length ? ["then", ...then] : [])].join(" ")}`;
    tile.onclick = () => this.show(x);
    this.tiles.set(x, tile);
    return tile;
  }

  url(x) {
    if (!this.urls.has(x)) this.urls.set(x, URL.createObjectURL(x.file));
    return this.urls.get(x);
  }

  /** One picture in full, with its best scores. */
  show(x) {
    this.open = x;
    const large = $("large");
    large.onload = () => {
      large.classList.toggle("small", large.naturalWidth <= SMALL);
      $("facts-size").textContent = `${large.naturalWidth} × ${large.naturalHeight} pixels`;
    };
    large.src = this.url(x);
    large.alt = x.source;
    $("facts-name").textContent = x.source;
    const rows = x.row.top.map(([k, score]) =>
      make("li", {}, make("span", { className: "who" }, this.label(k)), track(score), make("span", { className: "value" }, percent(score))),
    );
    $("scores").replaceChildren(...rows);
    const at = this.sequence.indexOf(x);
    $("previous").disabled = at <= 0;
    $("next").disabled = at < 0 || at === this.sequence.length - 1;
    if (!$("detail").open) $("detail").showModal();
  }

  turn(by) {
    const x = by && this.sequence[this.sequence.indexOf(this.open) + by];
    if (x) this.show(x);
  }

  clear() {
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
    this.urls.clear();
    this.tiles.clear();
    this.shown.fill(FIRST);
    $("clusters").replaceChildren();
  }
}

const unreadLink = (n) =>
  make("li", {}, make("a", { href: "#unread", className: "unread" }, make("span", {}, "not read"), make("span", {}, n.toLocaleString("en"))));

/** Make `wanted` the children of an element, moving only those that are not in place; of tiles, Tab meets one. */
function place(parent, wanted) {
  wanted.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  while (parent.children.length > wanted.length) parent.lastChild.remove();
  if (!parent.classList.contains("tiles")) return;
  const current = parent.contains(document.activeElement) ? document.activeElement : wanted[0];
  wanted.forEach((tile) => (tile.tabIndex = tile === current ? 0 : -1));
}

/** Arrow keys, Home and End go from tile to tile of a cluster. */
function moveFocus(event) {
  const tile = event.target.closest(".tile");
  if (!tile || event.altKey || event.ctrlKey || event.metaKey) return;
  const tiles = Array.from(tile.parentElement.children);
  const across = tiles.findIndex((x) => x.offsetTop > tiles[0].offsetTop);
  const row = across < 0 ? tiles.length : across;
  const at = tiles.indexOf(tile);
  const goals = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - row, ArrowDown: at + row, Home: 0, End: tiles.length - 1 };
  const goal = tiles[goals[event.key]];
  if (!(event.key in goals)) return;
  event.preventDefault();
  if (!goal) return;
  tile.tabIndex = -1;
  goal.tabIndex = 0;
  goal.focus();
}
