// @ts-check
// One image, large, with all that is known of it; arrow keys go on to its neighbours.

/** @type {{ list: number[], at: number, from: HTMLElement | null }} */
let zoomed = { list: [], at: 0, from: null };

/** @param {HTMLElement} button */
function openZoom(button) {
  const row = Number(button.dataset.row);
  const section = around(button, ".cluster");
  const group = around(button, ".groups figure, .representative");
  const grid = around(button, ".grid");
  const list =
    group || !section
      ? (grid ? childrenOf(grid) : [button]).map((b) => Number(b.dataset.row))
      : listOf(Number(section.dataset.cluster));
  zoomed = { list, at: Math.max(0, list.indexOf(row)), from: button };
  renderZoom();
  $("zoom").showModal();
}

/** @param {number} step */
function stepZoom(step) {
  const at = zoomed.at + step;
  if (at < 0 || at >= zoomed.list.length) return;
  zoomed.at = at;
  renderZoom();
}

/** @param {number} row */
function copiesOf(row) {
  if (rows.copies[row] < 2) return [];
  const others = data.copies[row] ?? [];
  const left = rows.copies[row] - 1 - others.length;
  const lines = others.map(([source, index]) => `${plain(source)} #${index}`);
  return left > 0
    ? [...lines, `${lines.length ? "and " : ""}${counted(left, lines.length ? "other" : "other image")}`]
    : lines;
}

function renderZoom() {
  const row = zoomed.list[zoomed.at];
  const cluster = rows.cluster[row];
  const [width, height] = rows.size[row];
  const facts = [
    ["Source", plain(sourceOf(row))],
    ["Index", count(rows.index[row])],
    ["Cluster", numberAndName(cluster)],
    ["Confidence", rows.confidence[row].toFixed(3)],
  ];
  const [runnerUp, margin, label] = [rows.runnerUp[row], rows.margin[row], labelOf(row)];
  if (runnerUp !== null && margin !== null)
    facts.push(["Runner-up", `${numberAndName(runnerUp)}, behind by ${margin.toFixed(3)}`]);
  if (label !== null)
    facts.push([
      "Label",
      plain(label) + (mismatched(row) ? ` (the cluster’s: ${plain(meantOf(cluster) ?? "none")})` : ""),
    ]);
  if (width > 0) facts.push(["Thumbnail", `${width} × ${height} pixels`]);
  const copies = copiesOf(row);
  if (copies.length) facts.push(["Identical to", copies.join("\n")]);
  const canvas = picture(row);
  canvas.removeAttribute("aria-hidden");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", descriptionOf(row));
  /** @type {(text: string, title: string, act: () => void) => HTMLButtonElement} */
  const button = (text, title, act) => {
    const made = el("button", { type: "button", textContent: text, title, "aria-label": title });
    made.addEventListener("click", act);
    return made;
  };
  const previous = button("←", "Previous image", () => stepZoom(-1));
  const next = button("→", "Next image", () => stepZoom(1));
  previous.disabled = zoomed.at === 0;
  next.disabled = zoomed.at === zoomed.list.length - 1;
  const pressed = around(document.activeElement, "#zoom button")?.title ?? "";
  $("zoom").replaceChildren(
    el("div", { className: "stage" }, canvas),
    el(
      "div",
      { className: "told" },
      el("h2", { id: "zoom-title", textContent: titleOf(cluster) }),
      el(
        "dl",
        {},
        ...facts.flatMap(([term, fact]) => [el("dt", { textContent: term }), el("dd", { textContent: fact })]),
      ),
      el(
        "div",
        { className: "buttons" },
        previous,
        el("span", { className: "quiet", textContent: `${count(zoomed.at + 1)} of ${count(zoomed.list.length)}` }),
        next,
        button("Copy source", "Copy the source’s name", copySource),
        button("Close", "Close", () => $("zoom").close()),
      ),
    ),
  );
  const again = [...$("zoom").querySelectorAll("button")].find((b) => b.title === pressed && !b.disabled);
  (again ?? within($("zoom"), "button:not([disabled])"))?.focus();
}

async function copySource() {
  const source = sourceOf(zoomed.list[zoomed.at]);
  try {
    await navigator.clipboard.writeText(source);
    const copy = childrenOf(within($("zoom"), ".told .buttons")).at(-2);
    if (copy) copy.textContent = "Copied";
  } catch {
    say("The browser does not let this page write to the clipboard.");
  }
}

function closeZoom() {
  const row = zoomed.list[zoomed.at];
  const thumbnails = childrenOf(around(zoomed.from, ".grid"));
  focusThumbnail(thumbnails.find((b) => Number(b.dataset.row) === row) ?? zoomed.from);
}
