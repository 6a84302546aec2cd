// @ts-check
// Runs the model in workers: the first is checked against onnxruntime's own answers before any picture is taken.

const CHUNK = 64; // files that a worker gets at once
const MAX_WORKERS = 4;
const MODEL_BYTES = 400 << 20; // of the model, in all workers together

/** A worker that answers one message after another. */
class Sorter {
  /** @param {string} source */
  constructor(source) {
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    /** @type {Map<number, (reply: Reply) => void>} */
    this.waiting = new Map();
    this.asked = 0;
    this.worker.onmessage = ({ data }) => this.settle(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      for (const id of [...this.waiting.keys()]) this.settle({ id, failed: event.message || "the worker ended" });
    };
  }

  /** @param {Reply} reply */
  settle(reply) {
    this.waiting.get(reply.id)?.(reply);
    this.waiting.delete(reply.id);
  }

  /**
   * @template {Kind} K
   * @param {K} kind
   * @param {Questions[K]} question
   * @returns {Promise<Answers[K]>}
   */
  ask(kind, question) {
    const id = this.asked++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, (reply) => {
        if (reply.failed !== undefined) reject(new Error(reply.failed));
        else resolve(/** @type {Answers[K]} */ (reply.answer));
      });
      this.worker.postMessage({ id, kind, question });
    });
  }

  end() {
    this.worker.terminate();
  }
}

/** The model, ready to sort. provider: "webgpu" or "wasm"; difference: to onnxruntime's scores on the check images. */
class Engine {
  /**
   * @param {Provider} provider
   * @param {Sorter} sorter
   * @param {number} difference
   */
  constructor(provider, sorter, difference) {
    this.provider = provider;
    this.sorters = [sorter];
    this.difference = difference;
    /** @type {(sorter: Sorter) => void} */
    this.onJoin = () => {};
  }

  /**
   * Take in one more worker, into the run at hand too.
   * @param {Sorter} sorter
   */
  join(sorter) {
    this.sorters.push(sorter);
    this.onJoin(sorter);
  }

  /**
   * Sort files; onRows(start, rows) is called as each chunk is done. signal: stops it after the chunks at hand.
   * @param {File[]} files
   * @param {(start: number, rows: Row[]) => void} onRows
   * @param {AbortSignal} signal
   */
  async sort(files, onRows, signal) {
    let next = 0;
    /** @param {Sorter} sorter */
    const work = async (sorter) => {
      while (next < files.length && !signal.aborted) {
        const start = next;
        const chunk = files.slice(start, (next += CHUNK));
        const { rows } = await sorter.ask("sort", { files: chunk });
        if (!signal.aborted) onRows(start, rows);
      }
    };
    const jobs = this.sorters.map(work);
    this.onJoin = (sorter) => {
      jobs.push(work(sorter));
    };
    for (let i = 0; i < jobs.length; i++) await jobs[i];
    this.onJoin = () => {};
  }
}

/** @typedef {(text: string, share: number) => void} Say where it is, in words and as a share in [0, 1] */

/**
 * Load all parts that a provider needs, start it and check it.
 * @param {PageModel} page
 * @param {string} source
 * @param {Say} say
 */
async function startEngine(page, source, say) {
  const { files } = page;
  const model = await loadModel(files.model, say);
  const check = await loadFile(files.check);
  const failures = [];
  for (const provider of await providersToTry(page)) {
    say(`starting ${PROVIDERS[provider]}`, 1);
    try {
      const program = await loadFile(files[`${provider}program`]);
      const binary = await loadFile(files[`${provider}binary`]);
      const { shape, background } = page;
      return await startProvider(provider, { program, binary, model, shape, background }, page, source, check);
    } catch (error) {
      failures.push(`${PROVIDERS[provider]}: ${messageOf(error)}`);
    }
  }
  throw new Error(failures.join("; "));
}

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));

/** @type {Record<Provider, string>} */
const PROVIDERS = { webgpu: "WebGPU", wasm: "WebAssembly" };

/**
 * WebGPU where there is a GPU, then WebAssembly; ?provider=wasm in the address leaves no choice.
 * @param {PageModel} page
 * @returns {Promise<Provider[]>}
 */
async function providersToTry(page) {
  const wish = new URLSearchParams(location.search).get("provider");
  if (wish === "webgpu" || wish === "wasm") return [wish];
  const adapter = page.precision === "int8" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  const computes = adapter && !adapter.info?.isFallbackAdapter;
  const serves = computes && (page.precision !== "fp16" || adapter.features.has("shader-f16"));
  return serves ? ["webgpu", "wasm"] : ["wasm"];
}

/**
 * @param {PartFile} file
 * @param {Say} say
 */
async function loadModel(file, say) {
  let done = 0;
  const all = (file.bytes / 1e6).toFixed(1);
  return loadFile(file, (bytes) => {
    done += bytes;
    say(`loading the model: ${(done / 1e6).toFixed(1)} of ${all} MB`, done / file.bytes);
  });
}

/** @type {(provider: Provider, parts: Parts, page: PageModel, source: string, check: ArrayBuffer) => Promise<Engine>} */
async function startProvider(provider, parts, page, source, check) {
  const first = new Sorter(source);
  try {
    await first.ask("start", { provider, ...parts });
    const { scores } = await first.ask("score", { images: check, n: page.scores.length });
    const expected = page.scores.flat();
    const difference = Math.max(...expected.map((x, i) => Math.abs(x - scores[i])));
    if (!(difference <= page.tolerance))
      throw new Error(`its scores differ from onnxruntime's by ${difference.toPrecision(2)}`);
    const engine = new Engine(provider, first, difference);
    startMore(engine, parts, source);
    return engine;
  } catch (error) {
    first.end();
    throw error;
  }
}

/**
 * Start more workers, as the processor and the memory allow; a GPU is kept busy by one.
 * @param {Engine} engine
 * @param {Parts} parts
 * @param {string} source
 */
async function startMore(engine, parts, source) {
  const { provider } = engine;
  const room = Math.floor(MODEL_BYTES / parts.model.byteLength);
  const cores = navigator.hardwareConcurrency ?? 2;
  const count = provider === "webgpu" ? 1 : Math.min(MAX_WORKERS, room, cores > 2 ? cores - 1 : cores);
  while (engine.sorters.length < count) {
    const sorter = new Sorter(source);
    try {
      await sorter.ask("start", { provider, ...parts });
    } catch {
      sorter.end(); // no memory for it: those that run do
      return;
    }
    engine.join(sorter);
  }
}
