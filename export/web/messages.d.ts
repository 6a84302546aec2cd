// What the page and its workers send each other, and what page.py writes of the model.

type Provider = "webgpu" | "wasm";

/** Channels, height, width. */
type Shape = [number, number, number];

/** What transparency is laid on. */
type Background = "black" | "white" | "auto";

/** A picture's row of clusters.parquet; top: cluster and score of the best eight. */
interface SortedRow {
  cluster: number;
  confidence: number;
  runnerUp: number | null;
  margin: number;
  top: [number, number][];
  error?: undefined;
}

interface UnreadRow {
  error: string;
}

type Row = SortedRow | UnreadRow;

interface Parts {
  program: ArrayBuffer;
  binary: ArrayBuffer;
  model: ArrayBuffer;
  shape: Shape;
  background: Background;
}

/** By its kind, what a worker is asked. */
interface Questions {
  start: Parts & { provider: Provider };
  score: { images: ArrayBuffer; n: number };
  sort: { files: File[] };
}

/** By the question's kind, what it answers. */
interface Answers {
  start: object;
  score: { scores: Float32Array };
  sort: { rows: Row[] };
}

type Kind = keyof Questions;
type Message = { [K in Kind]: { id: number; kind: K; question: Questions[K] } }[Kind];
type Reply = { id: number; failed: string } | { id: number; failed?: undefined; answer: Answers[Kind] };
