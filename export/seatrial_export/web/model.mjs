// The model that lies beside this file, run by ONNX Runtime Web. Needs a web server for the folder, and no other file.
//
//   import { open } from "./model.mjs";
//   const model = await open();
//   const { logits } = await model.predict({ pixels: { shape: [1, 784], data: new Float32Array(784) } });
//
// Knows what the bundle's manifest says of its tensors. Knows nothing of pictures, words or labels.

import * as ort from "./ort.wasm.bundle.min.mjs";

const HERE = new URL(".", import.meta.url).href;
ort.env.wasm.wasmPaths = { wasm: `${HERE}ort-wasm-simd-threaded.wasm` }; // whole: the runtime would take it relative to a blob
ort.env.wasm.numThreads = 1; // more take headers that isolate the page from other origins

const ARRAYS = {
  BOOL: ["bool", Uint8Array],
  UINT8: ["uint8", Uint8Array],
  UINT16: ["uint16", Uint16Array],
  UINT32: ["uint32", Uint32Array],
  UINT64: ["uint64", BigUint64Array],
  INT8: ["int8", Int8Array],
  INT16: ["int16", Int16Array],
  INT32: ["int32", Int32Array],
  INT64: ["int64", BigInt64Array],
  FP32: ["float32", Float32Array],
  FP64: ["float64", Float64Array],
};

export async function open() {
  const manifest = await (await read("bundle.json")).json();
  const graph = await (await read(manifest.graphs.main)).arrayBuffer();
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return new Model(manifest, session);
}

export async function read(file) {
  const answer = await fetch(HERE + file);
  if (!answer.ok) throw new Error(`${file} cannot be read: ${answer.status} ${answer.statusText}`);
  return answer;
}

export class Model {
  constructor(manifest, session) {
    this.manifest = manifest;
    this.inputs = manifest.signature.inputs;
    this.outputs = manifest.signature.outputs;
    this._session = session;
  }

  // Takes and gives { shape, data } by the name of the tensor; data is a typed array. Rejects what is not in the signature.
  async predict(given) {
    const feeds = {};
    for (const spec of this.inputs) {
      const [type, kind] = arrayOf(spec);
      const { shape, data } = given[spec.name] ?? {};
      if (!(data instanceof kind)) throw new TypeError(`'${spec.name}' takes { shape, data } with a ${kind.name}`);
      if (shape.length !== spec.shape.length || spec.shape.some((size, axis) => size >= 0 && size !== shape[axis]))
        throw new RangeError(`'${spec.name}' has shape [${shape}], expected [${spec.shape}], -1 being any size`);
      feeds[spec.name] = new ort.Tensor(type, data, shape);
    }
    const found = await this._session.run(feeds);
    return Object.fromEntries(
      this.outputs.map(({ name }) => [name, { shape: [...found[name].dims], data: found[name].data }]),
    );
  }

  close() {
    return this._session.release();
  }
}

export function arrayOf({ name, datatype }) {
  if (!(datatype in ARRAYS)) throw new TypeError(`'${name}' is ${datatype}, and ONNX Runtime Web is given no such tensors`);
  return ARRAYS[datatype];
}
