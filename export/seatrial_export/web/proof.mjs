// Is this browser, here and now, one that answers as was verified? Replays the golden requests of the bundle.

import { arrayOf, read } from "./model.mjs";

// How many requests were answered within both bounds. Throws at the first that is not.
export async function replay(model) {
  const { golden, tolerance } = model.manifest;
  for (const [number, recorded] of golden.entries()) {
    const found = await model.predict(tensors(await body(recorded.request), "inputs"));
    for (const whose of ["source", "rerun"]) {
      const wanted = tensors(await body(recorded[whose]), "outputs");
      for (const name of Object.keys(wanted)) check(number, name, found[name], wanted[name], tolerance[whose][name]);
    }
  }
  return golden.length;
}

async function body({ file, json_length }) {
  const bytes = new Uint8Array(await (await read(file)).arrayBuffer());
  return { head: JSON.parse(new TextDecoder().decode(bytes.subarray(0, json_length))), bytes, at: json_length };
}

// The arrays lie behind the JSON, one after the other, at whatever address: each is copied to one of its own.
function tensors({ head, bytes, at }, which) {
  const found = {};
  for (const tensor of head[which]) {
    const [, kind] = arrayOf(tensor);
    const size = tensor.parameters.binary_data_size;
    found[tensor.name] = { shape: tensor.shape, data: new kind(bytes.slice(at, at + size).buffer) };
    at += size;
  }
  return found;
}

function check(number, name, found, wanted, { absolute, relative = 0, top1 = false }) {
  const where = `golden request ${number}: '${name}'`;
  if (`${found.shape}` !== `${wanted.shape}`) throw new Error(`${where} has shape [${found.shape}], expected [${wanted.shape}]`);
  for (let i = 0; i < wanted.data.length; i++) {
    const [got, expected] = [Number(found.data[i]), Number(wanted.data[i])];
    const allowed = absolute + relative * Math.abs(expected);
    if (!(got === expected || Math.abs(got - expected) <= allowed)) // NaN is never near
      throw new Error(`${where} is ${got} at ${i}, expected ${expected} within ${allowed}`);
  }
  const width = wanted.shape.at(-1);
  for (let row = 0; top1 && row < wanted.data.length; row += width)
    if (largest(found.data, row, width) !== largest(wanted.data, row, width))
      throw new Error(`${where}: the largest element is another one from ${row} on`);
}

function largest(data, from, width) {
  let best = from;
  for (let i = from; i < from + width; i++) if (data[i] > data[best]) best = i;
  return best - from;
}
