// Where pictures come from: dropped, chosen, pasted; single files, and folders with all that is below them.


const SUFFIX = /\.(png|jpe?g|webp|tiff?|bmp|gif|p[gp]m|avif)$/i;

/** What a user gave: a File, and its path as it is shown. */
const item = (file, source = file.name) => ({ file, source });

/** Pictures in folders: visible files with a picture's suffix, sorted by name within each folder. */
const isWanted = (path) => SUFFIX.test(path) && !path.split("/").some((part) => part.startsWith("."));

function comparePaths(a, b) {
  const x = a.split("/");
  const y = b.split("/");
  let i = 0;
  while (i < x.length && x[i] === y[i]) i++;
  return x[i] === y[i] ? 0 : x[i] === undefined || (y[i] !== undefined && x[i] < y[i]) ? -1 : 1;
}

/** The items of an <input>, or of a clipboard. */
function itemsOfFiles(files) {
  const inFolders = Array.from(files).filter((file) => file.webkitRelativePath);
  const single = Array.from(files).filter((file) => !file.webkitRelativePath);
  const found = inFolders.map((file) => item(file, file.webkitRelativePath)).filter(({ source }) => isWanted(source));
  return [...single.map((file) => item(file)), ...found.sort((a, b) => comparePaths(a.source, b.source))];
}

/** The items of a drop; its handles must be taken before the event ends. onFound(n): how many so far. */
async function itemsOfDrop(transfer, onFound) {
  const dropped = Array.from(transfer.items ?? []).filter((x) => x.kind === "file");
  const handles = dropped.map((x) => ({
    file: x.getAsFile(),
    handle: x.getAsFileSystemHandle?.().catch(() => null), // webkitGetAsEntry cannot read from file:// in Chromium
    entry: x.webkitGetAsEntry?.(),
  }));
  const found = [];
  for (const { file, handle, entry } of handles) {
    const modern = await handle;
    const isFolder = (modern ? modern.kind === "directory" : entry?.isDirectory) ?? false;
    if (!isFolder) {
      if (file) found.push(item(file));
      continue;
    }
    const before = found.length;
    let below = 0;
    const count = () => onFound(before + ++below);
    const inside = await (modern ? filesOfHandle(modern, modern.name, count) : filesOfEntry(entry, entry.name, count));
    for (const x of inside.sort((a, b) => comparePaths(a.source, b.source))) found.push(x);
  }
  return found;
}

/** All wanted items below a folder; onFile is called for each. */
async function filesOfHandle(folder, path, onFile) {
  const found = [];
  for await (const handle of folder.values()) {
    const below = `${path}/${handle.name}`;
    if (handle.name.startsWith(".")) continue;
    if (handle.kind === "directory") found.push(filesOfHandle(handle, below, onFile));
    else if (isWanted(below)) found.push(handle.getFile().then((file) => (onFile(), item(file, below))));
  }
  return (await Promise.all(found)).flat();
}

async function filesOfEntry(folder, path, onFile) {
  const found = [];
  const reader = folder.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at a time
    if (!entries.length) return (await Promise.all(found)).flat();
    for (const entry of entries) {
      const below = `${path}/${entry.name}`;
      if (entry.name.startsWith(".")) continue;
      if (entry.isDirectory) found.push(filesOfEntry(entry, below, onFile));
      else if (isWanted(below)) found.push(new Promise(entry.file.bind(entry)).then((file) => (onFile(), item(file, below))));
    }
  }
}
