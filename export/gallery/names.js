// @ts-check
// Names of clusters, edited here and saved as names.toml.

let saved = [...names];
/** @type {FileSystemFileHandle | null | undefined} */
let fileHandle = null;
const WHERE = "put names.toml beside clusters.parquet: the next stdac cluster reads it";

const changedNames = () => names.filter((name, cluster) => name !== saved[cluster]).length;

/** @param {HTMLInputElement} input */
function editName(input) {
  const cluster = Number(input.dataset.cluster);
  names[cluster] = input.value;
  const item = within($(`item-${cluster}`), ".item-name");
  if (item) item.textContent = titleOf(cluster);
  for (const title of document.querySelectorAll(`.heat th[data-cluster="${cluster}"]`))
    title.textContent = numberAndName(cluster);
  renderSave();
}

function renderSave() {
  const n = changedNames();
  $("save").textContent = n === 0 ? "Save names" : `Save names (${n} new)`;
  $("save").classList.toggle("changed", n > 0);
}

/**
 * A basic string of TOML: JSON's, but for the control character DEL.
 * @param {string} text
 */
const tomlString = (text) => JSON.stringify(text.toWellFormed?.() ?? text).replaceAll("\u007f", "\\u007f");

function namesToml() {
  const lines = names
    .map((name, cluster) => ({ name, cluster }))
    .filter(({ name }) => name !== "")
    .map(({ name, cluster }) => `${cluster} = ${tomlString(name)}`);
  return [`model = ${tomlString(data.model)}`, "", "[clusters]", ...lines, ""].join("\n");
}

async function saveNames() {
  const text = namesToml();
  try {
    if (window.showSaveFilePicker) await saveToFile(text);
    else download(text);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") return;
    fileHandle = null;
    download(text);
  }
  saved = [...names];
  renderSave();
  say(`Saved: ${WHERE}.`);
}

/** @param {string} text */
async function saveToFile(text) {
  fileHandle ??= await window.showSaveFilePicker?.({
    suggestedName: "names.toml",
    types: [{ description: "TOML", accept: { "application/toml": [".toml"] } }],
  });
  if (!fileHandle) return;
  const file = await fileHandle.createWritable();
  await file.write(text);
  await file.close();
}

/** @param {string} text */
function download(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/toml" }));
  el("a", { href: address, download: "names.toml" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
