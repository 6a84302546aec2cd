// @ts-check
// A worker: decodes pictures and runs the model on them. It gets all it needs in its first message, and fetches nothing.
"use strict";

const BATCH = 64;
/** @type {Ort} */
let ort;
/** @type {Session} */
let session;
/** @type {Shape} */
let shape;
/** @type {Background} */
let background = "black";
let padded = false;
/** @type {OffscreenCanvas | null} */
let canvas = null;

let last = Promise.resolve(); // a session runs one batch at a time

onmessage = ({ data }) => {
  last = last.then(() => reply(data));
};

/** @param {Message} message */
async function reply(message) {
  /** @type {Reply} */
  let said;
  try {
    said = { id: message.id, answer: await answerTo(message) };
  } catch (error) {
    said = { id: message.id, failed: (error instanceof Error ? error.message : String(error)).split("\n")[0] };
  }
  postMessage(said);
}

/** @param {Message} message */
function answerTo(message) {
  if (message.kind === "start") return answers.start(message.question);
  return message.kind === "score" ? answers.score(message.question) : answers.sort(message.question);
}

/** @type {{ [K in Kind]: (question: Questions[K]) => Promise<Answers[K]> }} */
const answers = {
  /** Start a session. program, binary: onnxruntime-web; model: the ONNX file; provider: "wasm" or "webgpu". */
  async start({ program, binary, model, provider, shape: given, background: ground }) {
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    ort = /** @type {Ort} */ (await import(url));
    URL.revokeObjectURL(url);
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.numThreads = 1; // more need headers of the server; the page starts more workers instead
    ort.env.logLevel = "fatal";
    session = await ort.InferenceSession.create(new Uint8Array(model), {
      executionProviders: [provider],
      logSeverityLevel: 4,
    });
    shape = given;
    background = ground;
    padded = provider === "webgpu"; // each new batch size would compile its shaders anew
    return {};
  },

  /** The scores of images, (n, C, H, W) bytes: (n, K) numbers. */
  async score({ images, n }) {
    return { scores: (await run(new Uint8Array(images), n)).scores };
  },

  /** Sort picture files: for each a row of what `clusters.parquet` holds, or { error }. */
  async sort({ files }) {
    /** @type {(Uint8Array | UnreadRow)[]} */
    const read = await Promise.all(
      files.map((file) => pixelsOf(file).catch((error) => ({ error: reason(error, file) }))),
    );
    const good = read.filter((x) => x instanceof Uint8Array);
    const size = shape[0] * shape[1] * shape[2];
    const images = new Uint8Array(good.length * size);
    good.forEach((x, i) => images.set(x, i * size));
    const { cluster, scores } = await run(images, good.length);
    const k = good.length && scores.length / good.length;
    let i = 0;
    return {
      rows: read.map((x) => (x instanceof Uint8Array ? rowOf(cluster[i], scores.subarray(i * k, ++i * k)) : x)),
    };
  },
};

/**
 * Run the model on n images, at most BATCH at a time: cluster (n,) and scores (n, K).
 * @param {Uint8Array} images
 * @param {number} n
 */
async function run(images, n) {
  const size = shape[0] * shape[1] * shape[2];
  /** @type {number[]} */
  const cluster = [];
  /** @type {Float32Array[]} */
  const parts = [];
  for (let start = 0; start < n; start += BATCH) {
    const count = Math.min(BATCH, n - start);
    const batch = new Uint8Array((padded ? BATCH : count) * size);
    batch.set(images.subarray(start * size, (start + count) * size));
    const input = new ort.Tensor("uint8", batch, [batch.length / size, ...shape]);
    const out = await session.run({ images: input }, ["cluster", "scores"]);
    cluster.push(...Array.from(out.cluster.data.subarray(0, count), Number));
    parts.push(out.scores.data.slice(0, (count * out.scores.data.length * size) / batch.length));
  }
  const scores = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    scores.set(part, at);
    at += part.length;
  }
  return { cluster, scores };
}

/**
 * One image's row: its cluster, the score of it, the best of the others, their difference, the best eight scores.
 * @param {number} cluster
 * @param {Float32Array} scores
 * @returns {SortedRow}
 */
function rowOf(cluster, scores) {
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  const others = order.filter((k) => k !== cluster);
  const confidence = scores[cluster];
  const margin = others.length ? Math.fround(confidence - scores[others[0]]) : confidence;
  const best = [cluster, ...others].slice(0, 8);
  const runnerUp = others[0] ?? null;
  return { cluster, confidence, runnerUp, margin, top: best.map((k) => [k, scores[k]]) };
}

/**
 * A picture file as the model's input, (C, H, W) bytes: its first frame, upright, transparency laid on the background.
 * @param {File} file
 */
async function pixelsOf(file) {
  const picture = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  try {
    const { width, height } = picture;
    if (width * height > MAX_PIXELS) throw new RangeError(`its ${width} x ${height} pixels are too many`);
    const ground = background === "auto" ? groundOf(sampleOf(picture)) : background;
    return resample(width, height, (top, rows) => rowsOf(picture, top, rows, ground), shape);
  } finally {
    picture.close();
  }
}

/**
 * RGBA bytes of at most 512 x 512 of a picture's pixels, transparent as they are.
 * @param {ImageBitmap} picture
 */
function sampleOf(picture) {
  const width = Math.min(512, picture.width);
  const height = Math.min(512, picture.height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("this browser draws nothing in a worker");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/**
 * RGBA bytes of some rows of a picture, laid on a colour.
 * @param {ImageBitmap} picture
 * @param {number} top
 * @param {number} rows
 * @param {string} ground
 */
function rowsOf(picture, top, rows, ground) {
  if (!canvas || canvas.width !== picture.width || canvas.height < rows)
    canvas = new OffscreenCanvas(picture.width, rows);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (context === null) throw new Error("this browser draws nothing in a worker");
  context.fillStyle = ground;
  context.fillRect(0, 0, picture.width, rows);
  context.drawImage(picture, 0, -top);
  return context.getImageData(0, 0, picture.width, rows).data;
}

/**
 * Why a picture could not be read, as a sentence.
 * @param {unknown} error
 * @param {File} file
 */
function reason(error, file) {
  if (error instanceof RangeError) return error.message;
  if (error instanceof DOMException && ["NotFoundError", "NotReadableError"].includes(error.name))
    return "the file was moved, or may not be read";
  if (!file.size) return "the file is empty";
  return /\.(tiff?|p[bgpnf]m|j[p2][2fxkc]|jpc)$/i.test(file.name)
    ? "browsers do not read this format: convert it to PNG, or use stdac cluster"
    : "not a picture that this browser can read";
}
