// A worker: decodes pictures and runs the model on them. It gets all it needs in its first message, and fetches nothing.
"use strict";

const BATCH = 64;
let ort, session, shape, padded;
let canvas = null;

let last = Promise.resolve(); // a session runs one batch at a time

onmessage = ({ data }) => {
  last = last.then(() => answer(data));
};

async function answer(message) {
  try {
    postMessage({ id: message.id, ...(await answers[message.kind](message)) });
  } catch (error) {
    postMessage({ id: message.id, failed: String(error?.message ?? error).split("\n")[0] });
  }
}

const answers = {
  /** Start a session. program, binary: onnxruntime-web; model: the ONNX file; provider: "wasm" or "webgpu". */
  async start({ program, binary, model, provider, shape: given }) {
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    ort = await import(url);
    URL.revokeObjectURL(url);
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.numThreads = 1; // more need headers of the server; the page starts more workers instead
    ort.env.logLevel = "fatal";
    session = await ort.InferenceSession.create(new Uint8Array(model), {
      executionProviders: [provider],
      logSeverityLevel: 4,
    });
    shape = given;
    padded = provider === "webgpu"; // each new batch size would compile its shaders anew
    return {};
  },

  /** The scores of images, (n, C, H, W) bytes: (n, K) numbers. */
  async score({ images, n }) {
    return { scores: (await run(new Uint8Array(images), n)).scores };
  },

  /** Sort picture files: for each a row of what `clusters.parquet` holds, or { error }. */
  async sort({ files }) {
    const read = await Promise.all(files.map((file) => pixelsOf(file).catch((error) => ({ error: reason(error, file) }))));
    const good = read.filter((x) => !x.error);
    const size = shape[0] * shape[1] * shape[2];
    const images = new Uint8Array(good.length * size);
    good.forEach((x, i) => images.set(x, i * size));
    const { cluster, scores } = await run(images, good.length);
    const k = good.length && scores.length / good.length;
    let i = 0;
    return { rows: read.map((x) => (x.error ? x : rowOf(cluster[i], scores.subarray(i * k, ++i * k)))) };
  },
};

/** Run the model on n images, at most BATCH at a time: cluster (n,) and scores (n, K). */
async function run(images, n) {
  const size = shape[0] * shape[1] * shape[2];
  const cluster = [];
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

/** One image's row: its cluster, the score of it, the best of the others, their difference, the best eight scores. */
function rowOf(cluster, scores) {
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  const others = order.filter((k) => k !== cluster);
  const confidence = scores[cluster];
  const margin = others.length ? Math.fround(confidence - scores[others[0]]) : confidence;
  const top = [cluster, ...others].slice(0, 8).map((k) => [k, scores[k]]);
  return { cluster, confidence, runnerUp: others[0] ?? null, margin, top };
}

/** A picture file as the model's input, (C, H, W) bytes: its first frame, upright, transparency laid on black. */
async function pixelsOf(file) {
  const picture = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  try {
    const { width, height } = picture;
    if (width * height > MAX_PIXELS) throw new RangeError(`its ${width} x ${height} pixels are too many`);
    return resample(width, height, (top, rows) => rowsOf(picture, top, rows), shape);
  } finally {
    picture.close();
  }
}

/** RGBA bytes of some rows of a picture. */
function rowsOf(picture, top, rows) {
  if (!canvas || canvas.width !== picture.width || canvas.height < rows) canvas = new OffscreenCanvas(picture.width, rows);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, picture.width, rows);
  context.drawImage(picture, 0, -top);
  return context.getImageData(0, 0, picture.width, rows).data;
}

/** Why a picture could not be read, as a sentence. */
function reason(error, file) {
  if (error instanceof RangeError) return error.message;
  if (error?.name === "NotFoundError" || error?.name === "NotReadableError") return "the file was moved, or may not be read";
  if (!file.size) return "the file is empty";
  return /\.(tiff?|p[gp]m)$/i.test(file.name)
    ? "browsers do not read this format: convert it to PNG, or use stdac cluster"
    : "not a picture that this browser can read";
}
