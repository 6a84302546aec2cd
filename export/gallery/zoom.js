// One image, large, with all that is known of it; arrow keys go on to its neighbours.

let zoomed = { list: [], at: 0, from: null };

function openZoom(button) {
  const row = Number(button.dataset.row);
  const section = button.closest(".cluster");
  const group = button.closest(".groups figure, .representative");
  const list =
    group || !section
      ? [...(button.closest(".grid")?.children ?? [button])].map((b) => Number(b.dataset.row))
      : listOf(Number(section.dataset.cluster));
  zoomed = { list, at: Math.max(0, list.indexOf(row)), from: button };
  renderZoom();
  $("zoom").showModal();
}

function stepZoom(step) {
  const at = zoomed.at + step;
  if (at < 0 || at >= zoomed.list.length) return;
  zoomed.at = at;
  renderZoom();
}

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
  if (rows.runnerUp[row] !== null)
    facts.push(["Runner-up", `${numberAndName(rows.runnerUp[row])}, behind by ${rows.margin[row].toFixed(3)}`]);
  if (labelOf(row) !== null)
    facts.push([
      "Label",
      plain(labelOf(row)) +
        (mismatched(row) ? ` (the cluster’s: ${meantOf(cluster) === null ? "none" : plain(meantOf(cluster))})` : ""),
    ]);
  if (width > 0) facts.push(["Thumbnail", `${width} × ${height} pixels`]);
  const copies = copiesOf(row);
  if (copies.length) facts.push(["Identical to", copies.join("\n")]);
  const canvas = picture(row);
  canvas.removeAttribute("aria-hidden");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", descriptionOf(row));
  const button = (text, title, act) => {
    const made = el("button", { type: "button", textContent: text, title, "aria-label": title });
    made.addEventListener("click", act);
    return made;
  };
  const previous = button("←", "Previous image", () => stepZoom(-1));
  const next = button("→", "Next image", () => stepZoom(1));
  previous.disabled = zoomed.at === 0;
  next.disabled = zoomed.at === zoomed.list.length - 1;
  const pressed = document.activeElement?.closest("#zoom") ? document.activeElement.title : "";
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
  (again ?? $("zoom").querySelector("button:not([disabled])")).focus();
}

async function copySource() {
  const source = sourceOf(zoomed.list[zoomed.at]);
  try {
    await navigator.clipboard.writeText(source);
    $("zoom").querySelector(".told .buttons").lastChild.previousSibling.textContent = "Copied";
  } catch {
    say("The browser does not let this page write to the clipboard.");
  }
}

function closeZoom() {
  const row = zoomed.list[zoomed.at];
  const grid = zoomed.from?.closest(".grid");
  focusThumbnail([...(grid?.children ?? [])].find((b) => Number(b.dataset.row) === row) ?? zoomed.from);
}
