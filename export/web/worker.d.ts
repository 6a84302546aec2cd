// What worker.js uses of onnxruntime-web, whose program comes to it as bytes.

interface Session {
  run(
    feeds: Record<string, object>,
    names: string[],
  ): Promise<{ cluster: { data: BigInt64Array }; scores: { data: Float32Array } }>;
}

interface Ort {
  env: { wasm: { wasmBinary: ArrayBuffer; numThreads: number }; logLevel: string };
  InferenceSession: { create(model: Uint8Array, options: object): Promise<Session> };
  Tensor: new (type: "uint8", data: Uint8Array, dims: number[]) => object;
}
