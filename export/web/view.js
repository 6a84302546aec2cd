// @ts-check
// Shows the result: shares of the clusters, their pictures, one picture in full.

const FIRST = 24; // tiles that a cluster shows at first
const MORE = 120; // tiles that "more" adds
const SMALL = 64; // pixels a side up to which pictures are shown with sharp pixels

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

/**
 * The first that fits a selector within a node, which is there.
 * @param {ParentNode} node
 * @param {string} selector
 */
function within(node, selector) {
  const found = node.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`there is no ${selector}`);
  return found;
}

/** @type {(n: number, noun: string) => string} */
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/**
 * A share in [0, 1] in per cent; near its ends with a decimal.
 * @param {number} x
 */
function percent(x) {
  if (x > 0.9995 && x < 1) return ">99.9%";
  if (x > 0 && x < 0.0005) return "<0.1%";
  return `${(100 * x).toFixed(x > 0 && x < 1 && (x < 0.1 || x >= 0.9) ? 1 : 0)}%`;
}

/**
 * A new element with properties or attributes, and with children.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) Object.assign(element, { [name]: value });
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/**
 * A bar of a share in [0, 1].
 * @param {number} share
 */
function track(share) {
  const bar = make("i");
  bar.style.setProperty("--share", String(share));
  return make("span", { className: "track", ariaHidden: "true" }, bar);
}

/** @type {(x: Item) => x is Picture} */
const isSorted = (x) => x.row !== undefined && x.row.error === undefined;

/** @type {(x: Item) => x is Unread} */
const isUnread = (x) => x.row?.error !== undefined;

/** @type {Record<Order, (a: Picture, b: Picture) => number>} */
const ORDERS = {
  sure: (a, b) => b.row.confidence - a.row.confidence || a.place - b.place,
  unsure: (a, b) => a.row.confidence - b.row.confidence || a.place - b.place,
  given: (a, b) => a.place - b.place,
};

/** The pictures of the page, by cluster. Tiles are made once and kept, so that an update moves no picture's load. */
class View {
  /** @param {string[]} names */
  constructor(names) {
    this.names = names;
    this.shown = names.map(() => FIRST);
    this.links = names.map((_, k) => this.newLink(k));
    /** @type {Map<Picture, HTMLButtonElement>} */
    this.tiles = new Map();
    /** @type {Map<Picture, string>} */
    this.urls = new Map();
    /** @type {Order} */
    this.order = "sure";
    /** @type {Picture[]} */
    this.sequence = []; // the pictures in the order shown, for the arrows of the dialog
    /** @type {Picture | null} */
    this.open = null; // what the dialog shows
    this.onChange = () => {};
    $("clusters").addEventListener("keydown", (event) => moveFocus(event));
    $("detail").addEventListener("keydown", (event) => this.turn({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0));
    $("detail").addEventListener("close", () => this.open && this.tiles.get(this.open)?.focus());
    $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
    $("previous").onclick = () => this.turn(-1);
    $("next").onclick = () => this.turn(1);
    $("close").onclick = () => $("detail").close();
  }

  /** @param {number} k */
  label(k) {
    return this.names[k] || String(k);
  }

  /**
   * Show the items that have a row, and what could not be read.
   * @param {Item[]} items
   */
  update(items) {
    /** @type {Picture[][]} */
    const groups = this.names.map(() => []);
    const unread = items.filter(isUnread);
    for (const x of items) if (isSorted(x)) groups[x.row.cluster].push(x);
    const done = groups.reduce((sum, group) => sum + group.length, 0);
    this.showSummary(done, groups, unread.length);
    const focused = document.activeElement;
    groups.forEach((group, k) => this.updateLink(k, group.length, done, Math.max(...groups.map((g) => g.length))));
    place($("shares"), unread.length ? [...this.links, unreadLink(unread.length)] : this.links);
    const sections = groups.flatMap((group, k) => (group.length ? [this.section(k, group)] : []));
    this.sequence = sections.flatMap((section) => section.items);
    if (unread.length) sections.push({ element: this.unreadSection(unread), items: [] });
    place($("clusters"), sections.map((section) => section.element));
    if (focused !== document.activeElement && focused instanceof HTMLElement && focused.isConnected)
      focused.focus({ preventScroll: true });
  }

  /**
   * @param {number} done
   * @param {Picture[][]} groups
   * @param {number} unread
   */
  showSummary(done, groups, unread) {
    const used = groups.filter((group) => group.length).length;
    const text = `${counted(done, "picture")} in ${counted(used, "cluster")}`;
    $("summary").replaceChildren(text, make("small", {}, unread ? `, ${counted(unread, "file")} could not be read` : ""));
  }

  /** @param {number} k */
  newLink(k) {
    const link = make("a", {}, make("span", { className: "who" }, this.label(k)), track(0), make("span"));
    return make("li", {}, link);
  }

  /**
   * @param {number} k
   * @param {number} n
   * @param {number} done
   * @param {number} largest
   */
  updateLink(k, n, done, largest) {
    const link = this.links[k].firstElementChild;
    if (!(link instanceof HTMLAnchorElement)) return;
    link.ariaLabel = link.title = `${this.label(k)}: ${counted(n, "picture")}, ${percent(n / Math.max(1, done))}`;
    within(link, "i").style.setProperty("--share", String(n / Math.max(1, largest)));
    within(link, "span:last-child").textContent = n.toLocaleString("en");
    link.classList.toggle("none", !n);
    if (n) link.href = `#cluster-${k}`;
    else link.removeAttribute("href");
  }

  /**
   * The section of a cluster, made at its first picture, and the items whose tiles it shows.
   * @param {number} k
   * @param {Picture[]} group
   */
  section(k, group) {
    const items = group.sort(ORDERS[this.order]).slice(0, this.shown[k]);
    const element = document.getElementById(`cluster-${k}`) ?? this.newSection(k);
    const mean = group.reduce((sum, x) => sum + x.row.confidence, 0) / group.length;
    const text = `${counted(group.length, "picture")}, mean confidence ${percent(mean)}`;
    within(element, "h2 span").textContent = text;
    placeTiles(within(element, ".tiles"), items.map((x) => this.tile(x)));
    const more = within(element, ".more");
    more.hidden = group.length <= items.length;
    more.textContent = `Show ${Math.min(MORE, group.length - items.length)} more of ${group.length.toLocaleString("en")}`;
    return { element, items };
  }

  /** @param {number} k */
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

  /** @param {Unread[]} unread */
  unreadSection(unread) {
    const shown = unread.slice(0, 1000);
    const rows = shown.map(({ source, row }) => make("li", {}, source, make("span", {}, `: ${row.error}`)));
    const left = unread.length - shown.length;
    if (left > 0) rows.push(make("li", {}, `and ${counted(left, "file")} more, all in the CSV`));
    const heading = make("h2", {}, "Not read", make("span", {}, counted(unread.length, "file")));
    return make("section", { id: "unread", className: "cluster" }, heading, make("ol", {}, ...rows));
  }

  /** @param {Picture} x */
  tile(x) {
    const known = this.tiles.get(x);
    if (known) return known;
    const { row, source } = x;
    const picture = make("img", { alt: "", loading: "lazy", decoding: "async", src: this.url(x) });
    picture.onload = () => picture.classList.toggle("small", picture.naturalWidth <= SMALL);
    const best = [this.label(row.cluster), percent(row.confidence)];
    const then = row.runnerUp === null ? [] : [this.label(row.runnerUp), percent(row.confidence - row.margin)];
    const tile = make(
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

  /** @param {Picture} x */
  url(x) {
    const url = this.urls.get(x) ?? URL.createObjectURL(x.file);
    this.urls.set(x, url);
    return url;
  }

  /**
   * One picture in full, with its best scores.
   * @param {Picture} x
   */
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
    const rows = x.row.top.map(([k, score]) => {
      const value = make("span", { className: "value" }, percent(score));
      return make("li", {}, make("span", { className: "who" }, this.label(k)), track(score), value);
    });
    $("scores").replaceChildren(...rows);
    const at = this.sequence.indexOf(x);
    $("previous").disabled = at <= 0;
    $("next").disabled = at < 0 || at === this.sequence.length - 1;
    if (!$("detail").open) $("detail").showModal();
  }

  /** @param {number} by */
  turn(by) {
    const x = this.open && by && this.sequence[this.sequence.indexOf(this.open) + by];
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

/** @param {number} n */
function unreadLink(n) {
  const words = ["not read", n.toLocaleString("en")].map((text) => make("span", {}, text));
  return make("li", {}, make("a", { href: "#unread", className: "unread" }, ...words));
}

/**
 * Make `wanted` the children of an element, moving only those that are not in place.
 * @param {HTMLElement} parent
 * @param {HTMLElement[]} wanted
 */
function place(parent, wanted) {
  wanted.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild?.remove();
}

/**
 * The same for tiles, of which Tab meets one.
 * @param {HTMLElement} parent
 * @param {HTMLElement[]} wanted
 */
function placeTiles(parent, wanted) {
  place(parent, wanted);
  const current = parent.contains(document.activeElement) ? document.activeElement : wanted[0];
  wanted.forEach((tile) => (tile.tabIndex = tile === current ? 0 : -1));
}

/**
 * Arrow keys, Home and End go from tile to tile of a cluster.
 * @param {KeyboardEvent} event
 */
function moveFocus(event) {
  const tile = event.target instanceof Element ? event.target.closest(".tile") : null;
  if (!(tile instanceof HTMLElement) || event.altKey || event.ctrlKey || event.metaKey) return;
  const tiles = Array.from(tile.parentElement?.children ?? []).filter((x) => x instanceof HTMLElement);
  const across = tiles.findIndex((x) => x.offsetTop > tiles[0].offsetTop);
  const row = across < 0 ? tiles.length : across;
  const at = tiles.indexOf(tile);
  const end = tiles.length - 1;
  /** @type {Record<string, number>} */
  const goals = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - row, ArrowDown: at + row, Home: 0, End: end };
  const goal = tiles[goals[event.key]];
  if (!(event.key in goals)) return;
  event.preventDefault();
  if (!goal) return;
  tile.tabIndex = -1;
  goal.tabIndex = 0;
  goal.focus();
}
