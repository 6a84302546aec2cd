// Sort pictures with a model.onnx of stdac and nothing of stdac: node bare_onnxruntime.mjs model.onnx *.png
//
// Needs npm install onnxruntime-web sharp. The file itself says what it takes; scaling is inside it.
import fs from "node:fs";
import * as ort from "onnxruntime-web";
import sharp from "sharp";

const session = await ort.InferenceSession.create(fs.readFileSync(process.argv[2]));
const [, channels, height, width] = session.inputMetadata[0].shape; // 1 channel: gray, 3: RGB

for (const path of process.argv.slice(3)) {
  const upright = sharp(path).rotate().flatten({ background: "black" }).toColourspace("srgb");
  const rgb = await upright.resize(width, height, { fit: "fill", kernel: "linear" }).removeAlpha().raw().toBuffer();
  const pixels = new Uint8Array(channels * height * width); // (C, H, W)
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = rgb.subarray(3 * i, 3 * i + 3);
    if (channels === 1) pixels[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16; // ITU-R 601-2
    else for (let c = 0; c < 3; c++) pixels[c * height * width + i] = rgb[3 * i + c];
  }
  const images = new ort.Tensor("uint8", pixels, [1, channels, height, width]);
  const { cluster, confidence } = await session.run({ images }, ["cluster", "confidence"]);
  console.log([path, cluster.data[0], confidence.data[0].toFixed(6)].join("\t"));
}
