// @ts-check
// Where pictures come from: dropped, chosen, pasted; single files, and folders with all that is below them.

const SUFFIX = /\.(png|jpe?g|webp|tiff?|bmp|gif|p[gp]m|avif)$/i;

/**
 * What a user gave: a File, and its path as it is shown.
 * @type {(file: File, source?: string) => Item}
 */
const item = (file, source = file.name) => ({ file, source, place: -1 });

/**
 * Pictures in folders: visible files with a picture's suffix, sorted by name within each folder.
 * @param {string} path
 */
const isWanted = (path) => SUFFIX.test(path) && !path.split("/").some((part) => part.startsWith("."));

/** @type {(a: Item, b: Item) => number} */
function compareItems(a, b) {
  const x = a.source.split("/");
  const y = b.source.split("/");
  let i = 0;
  while (i < x.length && x[i] === y[i]) i++;
  return x[i] === y[i] ? 0 : x[i] === undefined || (y[i] !== undefined && x[i] < y[i]) ? -1 : 1;
}

/**
 * The items of an <input>, or of a clipboard.
 * @param {Iterable<File>} files
 */
function itemsOfFiles(files) {
  const inFolders = Array.from(files).filter((file) => file.webkitRelativePath);
  const single = Array.from(files).filter((file) => !file.webkitRelativePath);
  const found = inFolders.map((file) => item(file, file.webkitRelativePath)).filter(({ source }) => isWanted(source));
  return [...single.map((file) => item(file)), ...found.sort(compareItems)];
}

/**
 * The items of a drop; its handles must be taken before the event ends. onFound(n): how many so far.
 * @param {DataTransfer} transfer
 * @param {(n: number) => void} onFound
 */
async function itemsOfDrop(transfer, onFound) {
  const dropped = Array.from(transfer.items ?? []).filter((x) => x.kind === "file");
  const handles = dropped.map((x) => ({
    file: x.getAsFile(),
    handle: x.getAsFileSystemHandle?.().catch(() => null), // webkitGetAsEntry cannot read from file:// in Chromium
    entry: x.webkitGetAsEntry?.(),
  }));
  /** @type {Item[]} */
  const found = [];
  for (const { file, handle, entry } of handles) {
    const modern = await handle;
    const before = found.length;
    let below = 0;
    const count = () => onFound(before + ++below);
    let inside;
    if (isFolder(modern)) inside = await filesOfHandle(modern, modern.name, count);
    else if (!modern && isDirectory(entry)) inside = await filesOfEntry(entry, entry.name, count);
    else inside = file ? [item(file)] : [];
    for (const x of inside.sort(compareItems)) found.push(x);
  }
  return found;
}

/** @type {(handle: FileSystemHandle | null | undefined) => handle is FileSystemDirectoryHandle} */
const isFolder = (handle) => handle?.kind === "directory";

/** @type {(handle: FileSystemHandle) => handle is FileSystemFileHandle} */
const isFileHandle = (handle) => handle.kind === "file";

/** @type {(entry: FileSystemEntry | null | undefined) => entry is FileSystemDirectoryEntry} */
const isDirectory = (entry) => entry?.isDirectory ?? false;

/** @type {(entry: FileSystemEntry) => entry is FileSystemFileEntry} */
const isFile = (entry) => entry.isFile;

/**
 * All wanted items below a folder; onFile is called for each.
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} path
 * @param {() => void} onFile
 * @returns {Promise<Item[]>}
 */
async function filesOfHandle(folder, path, onFile) {
  /** @type {Promise<Item | Item[]>[]} */
  const found = [];
  for await (const handle of folder.values()) {
    const below = `${path}/${handle.name}`;
    if (handle.name.startsWith(".")) continue;
    if (isFolder(handle)) found.push(filesOfHandle(handle, below, onFile));
    else if (isFileHandle(handle) && isWanted(below))
      found.push(handle.getFile().then((file) => (onFile(), item(file, below))));
  }
  return (await Promise.all(found)).flat();
}

/**
 * @param {FileSystemDirectoryEntry} folder
 * @param {string} path
 * @param {() => void} onFile
 * @returns {Promise<Item[]>}
 */
async function filesOfEntry(folder, path, onFile) {
  /** @type {Promise<Item | Item[]>[]} */
  const found = [];
  const reader = folder.createReader();
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at a time
    if (!entries.length) return (await Promise.all(found)).flat();
    for (const entry of entries) {
      const below = `${path}/${entry.name}`;
      if (entry.name.startsWith(".")) continue;
      if (isDirectory(entry)) found.push(filesOfEntry(entry, below, onFile));
      else if (isFile(entry) && isWanted(below))
        found.push(fileOfEntry(entry).then((file) => (onFile(), item(file, below))));
    }
  }
}

/**
 * @param {FileSystemFileEntry} entry
 * @returns {Promise<File>}
 */
const fileOfEntry = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));
