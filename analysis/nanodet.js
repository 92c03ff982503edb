// The NanoDet network in TensorFlow.js: reads images from standard input, writes what the network says to standard output.
//
//     node nanodet.js MODULES
//
// An image: float32 [3, 416, 416] as `nanodet.py` normalises it. An answer: float32, for each stride (8, 16, 32) the
// scores [cells, 80], then for each the distances' logits [cells, 44]. One answer for each image, in order.

const fs = require('fs');
const path = require('path');

const [modules] = process.argv.slice(2);
const load = (name) => require(path.resolve(modules, '@tensorflow', name));
const tf = load('tfjs-core');
const { loadGraphModel } = load('tfjs-converter');
const wasm = load('tfjs-backend-wasm');

const SHAPE = [1, 3, 416, 416];
const BYTES = 4 * 3 * 416 * 416;
const OUTPUTS = ['Identity', 'Identity_1', 'Identity_2', 'Identity_3', 'Identity_4', 'Identity_5'];

async function loadModel(folder) {
  const model = JSON.parse(fs.readFileSync(path.join(folder, 'nanodet.json'), 'utf8'));
  const [weights] = model.weightsManifest;
  const bytes = fs.readFileSync(path.join(folder, 'nanodet.bin'));
  const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const artifacts = { modelTopology: model.modelTopology, weightSpecs: weights.weights, weightData };
  return loadGraphModel({ load: async () => ({ ...artifacts, format: model.format, signature: model.signature }) });
}

function answer(model, bytes) {
  const pixels = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + BYTES));
  const found = tf.tidy(() => model.execute(tf.tensor(pixels, SHAPE), OUTPUTS).map((each) => each.dataSync()));
  return Buffer.concat(found.map((each) => Buffer.from(each.buffer, each.byteOffset, each.byteLength)));
}

async function main() {
  wasm.setWasmPaths(path.resolve(modules, '@tensorflow/tfjs-backend-wasm/dist') + path.sep);
  if (!(await tf.setBackend('wasm'))) throw new Error('WebAssembly cannot be started');
  const model = await loadModel(path.join(modules, 'models'));
  let waiting = Buffer.alloc(0);
  for await (const chunk of process.stdin) {
    waiting = Buffer.concat([waiting, chunk]);
    for (; waiting.length >= BYTES; waiting = waiting.subarray(BYTES)) {
      const written = process.stdout.write(answer(model, waiting));
      if (!written) await new Promise((resolve) => process.stdout.once('drain', resolve));
    }
  }
}

main().catch((error) => {
  console.error(String(error));
  process.exitCode = 1;
});
