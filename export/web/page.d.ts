// The page's model, its pictures, and the elements that index.html and these scripts give an id.

interface PartFile {
  parts: string[];
  bytes: number;
  gzip: boolean;
}

type FileName = "model" | "check" | `${Provider}program` | `${Provider}binary`;

interface PageModel {
  title: string;
  method: string | null;
  names: string[];
  shape: Shape;
  background: Background;
  precision: "fp32" | "fp16" | "int8";
  sha256: string;
  model: string;
  version: string;
  tolerance: number;
  scores: number[][];
  files: Record<FileName, PartFile>;
}

/** What a user gave; source: its path as it is shown; place: among all; row: undefined until it is sorted. */
interface Item {
  file: File;
  source: string;
  place: number;
  row?: Row;
}

type Picture = Item & { row: SortedRow };
type Unread = Item & { row: UnreadRow };
type Order = "sure" | "unsure" | "given";

interface Ids {
  about: HTMLElement;
  "choose-files": HTMLButtonElement;
  "choose-folder": HTMLButtonElement;
  clear: HTMLButtonElement;
  close: HTMLButtonElement;
  clusters: HTMLElement;
  detail: HTMLDialogElement;
  engine: HTMLElement;
  "facts-name": HTMLElement;
  "facts-size": HTMLElement;
  files: HTMLInputElement;
  folder: HTMLInputElement;
  large: HTMLImageElement;
  next: HTMLButtonElement;
  notice: HTMLElement;
  order: HTMLSelectElement;
  pace: HTMLElement;
  page: HTMLScriptElement;
  previous: HTMLButtonElement;
  progress: HTMLProgressElement;
  result: HTMLElement;
  running: HTMLElement;
  save: HTMLButtonElement;
  scores: HTMLOListElement;
  shares: HTMLOListElement;
  stop: HTMLButtonElement;
  summary: HTMLElement;
  worker: HTMLScriptElement;
}

/** Not all browsers have it. */
interface DataTransferItem {
  getAsFileSystemHandle?: () => Promise<FileSystemFileHandle | FileSystemDirectoryHandle | null>;
}
