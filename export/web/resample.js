// @ts-check
// Pictures to the model's pixels, as `stdac cluster` makes them: Pillow's gray and Pillow's resize, digit for digit. (Of
// tall pictures Pillow 13 resamples the columns first, and here it is always the rows: at most one gray level.)
"use strict";

const PRECISION = 22; // bits of Pillow's fixed-point weights
const STRIP_PIXELS = 1 << 20; // pixels of a picture that are in memory at once
const MAX_PIXELS = 100_000_000;

/** @typedef {{ support: number, weight: (x: number) => number }} Filter */
/** @typedef {ReturnType<typeof weightsOf>} Kernel */

/** @type {Filter} */
const BOX = { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
/** @type {Filter} */
const BILINEAR = { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) };

/**
 * For each of `to` output pixels: its first of `from` input pixels, their number, and their weights.
 * @param {number} from
 * @param {number} to
 * @param {Filter} filter
 */
function weightsOf(from, to, filter) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const size = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const weights = new Int32Array(to * size);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    count[i] = Math.min(from, Math.trunc(centre + support + 0.5)) - first[i];
    const exact = Array.from({ length: count[i] }, (_, j) => filter.weight((first[i] + j - centre + 0.5) / stretch));
    const sum = exact.reduce((a, b) => a + b, 0);
    exact.forEach((w, j) => (weights[i * size + j] = Math.trunc(0.5 + (w / sum) * (1 << PRECISION))));
  }
  return { first, count, weights, size };
}

/**
 * Resample one line of `to` pixels: every `step`th byte of `source` from `start`, into every `outStep`th of `out`.
 * @type {(source: Uint8Array, start: number, step: number, out: Uint8Array, outStart: number, outStep: number,
 *   kernel: Kernel) => void}
 */
function resampleLine(source, start, step, out, outStart, outStep, kernel) {
  const { first, count, weights, size } = kernel;
  for (let i = 0; i < first.length; i++) {
    let sum = 1 << (PRECISION - 1);
    for (let j = 0, at = start + first[i] * step; j < count[i]; j++, at += step) sum += source[at] * weights[i * size + j];
    out[outStart + i * outStep] = Math.min(255, Math.max(0, sum >> PRECISION));
  }
}

/**
 * What a picture's transparency is laid on where that is to fit it: white below a dark one, black below a bright one.
 * The mean luminance counts, each pixel by its opacity.
 * @param {Uint8ClampedArray} rgba
 * @returns {"black" | "white"}
 */
function groundOf(rgba) {
  const luminance = channelsOf(rgba, 1);
  let sum = 0;
  let opacity = 0;
  for (let i = 0; i < luminance.length; i++) {
    sum += luminance[i] * rgba[4 * i + 3];
    opacity += rgba[4 * i + 3];
  }
  return sum < 127.5 * opacity ? "white" : "black";
}

/**
 * RGBA bytes to lines of gray or RGB bytes, one channel after the other.
 * @param {Uint8ClampedArray} rgba
 * @param {number} channels
 */
function channelsOf(rgba, channels) {
  const n = rgba.length / 4;
  const out = new Uint8Array(channels * n);
  if (channels === 1) {
    for (let i = 0, p = 0; i < n; i++, p += 4)
      out[i] = (rgba[p] * 19595 + rgba[p + 1] * 38470 + rgba[p + 2] * 7471 + 0x8000) >> 16; // ITU-R 601-2
  } else {
    for (let c = 0; c < 3; c++) for (let i = 0, p = c; i < n; i++, p += 4) out[c * n + i] = rgba[p];
  }
  return out;
}

/**
 * Resize a picture that is read in strips: (C, H, W) bytes.
 * strip(top, rows): the RGBA bytes of some rows of a picture of `height` rows of `width` pixels.
 * @type {(width: number, height: number, strip: (top: number, rows: number) => Uint8ClampedArray, shape: Shape)
 *   => Uint8Array}
 */
function resample(width, height, strip, [channels, toHeight, toWidth]) {
  const filter = width >= toWidth && height >= toHeight ? BOX : BILINEAR;
  const across = width === toWidth ? null : weightsOf(width, toWidth, filter);
  const lines = new Uint8Array(channels * height * toWidth);
  const step = Math.max(1, Math.floor(STRIP_PIXELS / width));
  for (let top = 0; top < height; top += step) {
    const rows = Math.min(step, height - top);
    const pixels = channelsOf(strip(top, rows), channels);
    for (let c = 0; c < channels; c++) {
      for (let y = 0; y < rows; y++) {
        const from = (c * rows + y) * width;
        const to = (c * height + top + y) * toWidth;
        if (across) resampleLine(pixels, from, 1, lines, to, 1, across);
        else lines.set(pixels.subarray(from, from + width), to);
      }
    }
  }
  if (height === toHeight) return lines;
  const down = weightsOf(height, toHeight, filter);
  const out = new Uint8Array(channels * toHeight * toWidth);
  for (let c = 0; c < channels; c++) {
    for (let x = 0; x < toWidth; x++)
      resampleLine(lines, c * height * toWidth + x, toWidth, out, c * toHeight * toWidth + x, toWidth, down);
  }
  return out;
}
