// @ts-check
// The page: takes pictures in, has them sorted, keeps the view up to date.

/** @type {PageModel} */
const page = JSON.parse($("page").text);
const view = new View(page.names);
/** @type {Item[]} */
const items = [];
/** @type {Engine | null} */
let engine = null;
/** @type {Item[]} */
let queue = []; // items that wait for the engine
/** @type {AbortController | null} */
let stopper = null; // stops the run at hand
let sorted = 0; // items that have a row
let shownUntil = 0; // before this time the view is not brought up to date again

view.onChange = () => view.update(items);

/** What the model is, in a line. */
function aboutText() {
  const [channels, height, width] = page.shape;
  const precision = page.precision === "fp32" ? [] : [page.precision];
  const pixels = `${width} × ${height} ${channels === 1 ? "gray" : "RGB"}`;
  return [page.model, page.method, pixels, ...precision].filter(Boolean).join(" · ");
}

/**
 * @param {"loading" | "ready" | "failed"} state
 * @param {string} text
 */
function tell(state, text) {
  $("engine").dataset.state = state;
  $("engine").ariaBusy = String(state === "loading"); // not every step is to be read aloud
  within($("engine"), "span").textContent = text;
}

/**
 * Say something about what was given; nothing, to take it back.
 * @param {string} text
 */
function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function start() {
  $("about").textContent = aboutText();
  $("about").title = `SHA-256 ${page.sha256}`;
  try {
    engine = await startEngine(page, $("worker").text, (text) => tell("loading", text));
  } catch (error) {
    const advice = "Try a current Chrome, Edge, Firefox or Safari.";
    tell("failed", `The model did not start in this browser (${messageOf(error)}). ${advice}`);
    $("engine").setAttribute("role", "alert");
    return;
  }
  tell("ready", `${PROVIDERS[engine.provider]}, checked against onnxruntime`);
  $("engine").title = `scores differ by at most ${engine.difference.toPrecision(2)} on ${page.scores.length} images`;
  run();
}

/**
 * Take pictures in, and sort them as soon as the engine is ready.
 * @param {Item[]} found
 */
function add(found) {
  notice(found.length ? "" : "There are no pictures in there.");
  if (!found.length) return;
  for (const x of found) {
    x.place = items.length;
    items.push(x);
    queue.push(x);
  }
  document.body.classList.add("filled");
  $("running").hidden = false;
  showProgress();
  run();
}

/** Sort what waits; what comes in meanwhile is sorted after it. */
async function run() {
  if (!engine || stopper) return;
  const stop = (stopper = new AbortController());
  const began = performance.now();
  let done = 0;
  while (queue.length && !stop.signal.aborted) {
    const batch = queue;
    queue = [];
    /** @type {(first: number, rows: Row[]) => void} */
    const onRows = (first, rows) => {
      rows.forEach((row, i) => (batch[first + i].row = row));
      done += rows.length;
      sorted += rows.length;
      showProgress(done, began);
      showSoon();
    };
    try {
      await engine.sort(batch.map((x) => x.file), onRows, stop.signal);
    } catch (error) {
      stop.abort();
      notice(`Sorting ended with an error (${messageOf(error)}). Reload the page and try fewer pictures.`);
    }
  }
  if (stopper !== stop) return; // cleared meanwhile
  stopper = null;
  if (stop.signal.aborted) dropUnsorted();
  $("running").hidden = true;
  show();
}

/** Forget what was given but not sorted. */
function dropUnsorted() {
  queue = [];
  sorted = 0;
  for (const x of items) if (x.row) items[(x.place = sorted++)] = x;
  items.length = sorted;
  document.body.classList.toggle("filled", items.length > 0);
}

function showProgress(done = 0, began = 0) {
  $("progress").max = items.length;
  $("progress").value = sorted;
  const rate = done / ((performance.now() - began) / 1000);
  const left = done ? Math.ceil((items.length - sorted) / rate) : 0;
  const waiting = engine ? "" : ", waiting for the model";
  const pace = done ? `, ${Math.round(rate).toLocaleString("en")} a second, ${left} s left` : waiting;
  $("pace").textContent = `${sorted.toLocaleString("en")} of ${items.length.toLocaleString("en")}${pace}`;
}

/** Bring the view up to date, but spend no more than about a tenth of the time on it. */
function showSoon() {
  const now = performance.now();
  if (now < shownUntil) return;
  show();
  shownUntil = performance.now() + Math.max(300, 10 * (performance.now() - now));
}

function show() {
  $("result").hidden = !items.some((x) => x.row);
  view.order = /** @type {Order} */ ($("order").value);
  view.update(items);
}

function clear() {
  stopper?.abort();
  stopper = null;
  queue = [];
  items.length = sorted = 0;
  view.clear();
  notice("");
  $("running").hidden = $("result").hidden = true;
  document.body.classList.remove("filled");
  $("choose-files").focus();
}

const COLUMNS = ["source", "cluster", "name", "confidence", "runner_up", "margin", "error"];

/** The result as CSV, a line an image in the order given, with columns of clusters.parquet. */
function csv() {
  /** @param {string} text */
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  /** @type {(source: string, row: Row) => (string | number)[]} */
  const valuesOf = (source, row) => {
    if (row.error !== undefined) return [source, "", "", "", "", "", row.error];
    const { cluster, confidence, runnerUp, margin } = row;
    return [source, cluster, page.names[cluster], confidence.toPrecision(7), runnerUp ?? "", margin.toPrecision(7), ""];
  };
  const rows = items.flatMap(({ source, row }) => (row ? [valuesOf(source, row)] : []));
  const lines = rows.map((values) => values.map((value) => quoted(String(value))).join(","));
  return [COLUMNS.join(","), ...lines, ""].join("\r\n");
}

function save() {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  make("a", { href: url, download: "clusters.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

for (const [button, input] of /** @type {const} */ ([
  ["choose-files", "files"],
  ["choose-folder", "folder"],
])) {
  $(button).onclick = () => $(input).click();
  $(input).onchange = () => {
    add(itemsOfFiles($(input).files ?? []));
    $(input).value = "";
  };
}
$("order").onchange = show;
$("save").onclick = save;
$("clear").onclick = clear;
$("stop").onclick = () => stopper?.abort();

let over = 0; // dragenter and dragleave come for every element below the body
addEventListener("dragenter", () => document.body.classList.toggle("over", ++over > 0));
addEventListener("dragleave", () => document.body.classList.toggle("over", --over > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  over = 0;
  try {
    if (event.dataTransfer)
      add(await itemsOfDrop(event.dataTransfer, (n) => notice(`${counted(n, "picture")} found`)));
  } catch (error) {
    notice(`The folder could not be read (${messageOf(error)}): use Choose a folder.`);
  }
});
addEventListener("paste", (event) => {
  const pasted = itemsOfFiles(event.clipboardData?.files ?? []);
  if (pasted.length) add(pasted);
});
start();
