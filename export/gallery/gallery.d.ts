// What gallery.py puts into the page, and the elements that gallery.html and these scripts give an id.

interface Cluster {
  size: number;
  mean: number | null;
  histogram: number[];
  sample: number[]; // rows, as in the next ones
  most: number[];
  least: number[];
  exact: number[];
  exactGroups: number;
  near: number[][];
}

/** Of each image that the page shows; label: its place among the labels, -1 for none; size: width and height. */
interface Rows {
  sources: string[];
  source: number[];
  index: number[];
  cluster: number[];
  confidence: number[];
  runnerUp: (number | null)[];
  margin: (number | null)[];
  label: number[];
  copies: number[];
  size: [number, number][];
}

interface Counts {
  images: number;
  errors: number;
  clustered: number;
  distinct: number;
  copies: number;
  copied: number;
  near: number;
  nearGroups: number;
  compared: number;
  candidates: number;
  shown: number;
}

/** matching: the label of each cluster, -1 for none. left: labels that are not in the confusion matrix (K, labels). */
interface Truth {
  images: number;
  scores: Record<string, string>;
  labels: string[];
  left: number;
  confusion: number[][];
  matching: number[];
}

interface Data {
  title: string;
  model: string;
  names: string[];
  labels: string[];
  counts: Counts;
  truth: Truth | null;
  note: string;
  errors: { reasons: [string, number][]; rows: [string, number, string][] };
  rows: Rows;
  copies: Record<number, [string, number][]>;
  clusters: Cluster[];
  sheets: Record<string, { columns: number; tile: [number, number] }>;
}

interface State {
  text: string;
  low: number;
  high: number;
  label: string; // "" for all, MISMATCHED, or = and the label
  view: "sample" | "most" | "least";
  order: "number" | "size" | "mean";
  cluster: number | null;
  errorsOnly: boolean;
}

interface Ids {
  about: HTMLElement;
  bar: HTMLFormElement;
  clusters: HTMLElement;
  data: HTMLScriptElement;
  errors: HTMLElement;
  "errors-only": HTMLInputElement;
  "errors-only-field": HTMLElement;
  filters: HTMLElement;
  help: HTMLButtonElement;
  high: HTMLInputElement;
  keys: HTMLDialogElement;
  label: HTMLSelectElement;
  "label-field": HTMLElement;
  list: HTMLOListElement;
  low: HTMLInputElement;
  message: HTMLElement;
  notes: HTMLElement;
  order: HTMLSelectElement;
  page: HTMLElement;
  "range-histogram": HTMLElement;
  "range-text": HTMLOutputElement;
  range: HTMLElement;
  save: HTMLButtonElement;
  text: HTMLInputElement;
  thumb: HTMLInputElement;
  totals: HTMLElement;
  truth: HTMLElement;
  view: HTMLFieldSetElement;
  zoom: HTMLDialogElement;
  [item: `item-${number}`]: HTMLLIElement;
  [sheet: `sheet-${string}`]: HTMLScriptElement;
}

/** The File System Access API, which only some browsers have. */
interface Window {
  showSaveFilePicker?: (options: {
    suggestedName: string;
    types: { description: string; accept: Record<string, string[]> }[];
  }) => Promise<FileSystemFileHandle>;
}
