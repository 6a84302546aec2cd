// @ts-check
// Reads the files of parts/: scripts, as a page opened from a disk may load nothing else.
"use strict";

const AT_ONCE = 4;
/** @type {Map<string, Uint8Array<ArrayBuffer>>} */
const received = new Map();

/**
 * Called by each script of parts/.
 * @param {string} name
 * @param {string} text
 */
function receive(name, text) {
  received.set(name, bytesOf(text));
}

/**
 * The bytes of a base64 text.
 * @param {string} text
 */
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * Load one script of parts/: its bytes.
 * @param {string} name
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
function loadPart(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `parts/${name}`;
    script.onerror = () => reject(new Error(`parts/${name} is missing: copy the whole folder of the page again`));
    script.onload = () => {
      const bytes = received.get(name);
      received.delete(name);
      script.remove();
      if (bytes) resolve(bytes);
      else reject(new Error(`parts/${name} is damaged: copy the whole folder of the page again`));
    };
    document.head.append(script);
  });
}

/**
 * Load a file from its parts: an ArrayBuffer. onPart is called with the bytes of each part as it comes in.
 * @param {PartFile} file
 * @param {(bytes: number) => void} onPart
 */
async function loadFile({ parts, gzip }, onPart = () => {}) {
  /** @type {Uint8Array<ArrayBuffer>[]} */
  const pieces = [];
  let next = 0;
  const loadSome = async () => {
    while (next < parts.length) {
      const i = next++;
      pieces[i] = await loadPart(parts[i]);
      onPart(pieces[i].length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, loadSome));
  const blob = new Blob(pieces);
  const stream = gzip ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
  return new Response(stream).arrayBuffer();
}
