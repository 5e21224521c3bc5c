// A worker: makes pictures larger in this browser, with a generator in ONNX Runtime Web.
//
// It does what `srgan upscale` does with opaque pictures of 8 bits: tiles with a full halo, grey that stays grey,
// other sizes than the model's by resampling and back-projection. Answers by the port that comes with a question.

import { taps } from "./resampling.js";

const HOME = new URL("../", import.meta.url);
const FEATURES_BYTES = 256; // of one pixel of the result, in a layer of 64 features in float32
const MOST_LAYER_BYTES = 400e6; // in WebAssembly, whose memory ends at 4 GB: three of that size are there at once
const MOST_RESULT_PX = 100e6; // at 4 bytes here, 4 in the canvas, and 4 while it is resampled
const MOST_RESULT_SIDE_PX = 16384; // of a canvas
const ROUNDS = 3, STEP = Math.fround(1.4); // of back-projection, as in srgan/pictures/resampling.py
const LOSSY_QUALITY = 0.95;
const LOOKED_AT = 2 ** 17; // bytes at either end of a file
const LUMA = [ // ITU T.81, table K.1
  16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
  18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112,
  100, 103, 99,
];
const ROWS_AT_ONCE = 256;

/** What is told instead of a result; `code`: as the service's problems have it. */
class Refused extends Error {
  constructor(message, code = "page") {
    super(message);
    this.code = code;
  }
}

/** Where this browser computes: {name, about, threads, layerBytes}; `asked`: "webgpu", "wasm" or nothing. */
async function chosen(asked) {
  let why = "as asked for";
  if (asked !== "wasm") {
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
    if (adapter && (asked === "webgpu" || !adapter.info?.isFallbackAdapter)) {
      const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
      const about = [adapter.info?.vendor, adapter.info?.architecture].filter(Boolean).join(" ");
      const layerBytes = Math.min(maxStorageBufferBindingSize, maxBufferSize, 2 * MOST_LAYER_BYTES);
      return { name: "WebGPU", about, threads: 1, layerBytes };
    }
    why = navigator.gpu ? "no graphics processor that it may use" : "no WebGPU in this browser";
    if (!isSecureContext) why = "browsers give WebGPU to https and to this machine's own address alone";
    if (asked === "webgpu") throw new Refused(`WebGPU was asked for, but there is ${why}.`);
  }
  // Threads share memory, which browsers allow to pages alone that are cross-origin isolated.
  const threads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const name = `WebAssembly, ${threads === 1 ? "one thread" : `${threads} threads`}`;
  return { name, about: why, threads, layerBytes: MOST_LAYER_BYTES };
}

let backend = null, runtime = null, session = null, sessionOf = null;

async function started() {
  const gpu = backend.name === "WebGPU";
  const [library, binary] = gpu ? ["ort.webgpu", "ort-webgpu"] : ["ort.wasm", "ort-wasm"];
  const at = (name) => new URL(`runtime/${name}`, HOME).href;
  const ort = await import(at(`${library}.js`));
  ort.env.wasm.wasmPaths = { mjs: at(`${binary}.js`), wasm: at(`${binary}.wasm`) };
  ort.env.wasm.numThreads = backend.threads;
  ort.env.logLevel = "error";
  return ort;
}

/** Load a model, the one before making room. What the chosen back-end cannot compute is an error, never another's work. */
async function loaded({ file }) {
  if (sessionOf === file) return;
  await session?.release();
  session = sessionOf = null;
  const answer = await fetch(new URL(`models/${file}`, HOME));
  if (!answer.ok) throw new Refused(`The model ${file} is not beside this page (${answer.status}).`);
  const gpu = backend.name === "WebGPU";
  runtime ??= await started();
  session = await runtime.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), {
    executionProviders: [gpu ? "webgpu" : "wasm"],
    ...(gpu && { extra: { session: { disable_cpu_ep_fallback: "1" } } }),
  });
  sessionOf = file;
}

// Pictures: {height, width, planes}, one plane if grey, else three, of a byte a pixel

async function decoded(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Refused("This browser cannot read it; `srgan upscale` reads more formats.", "unsupported-format");
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const planes = [0, 1, 2].map(() => new Uint8ClampedArray(width * height));
  for (let top = 0; top < height; top += ROWS_AT_ONCE) {
    const { data } = context.getImageData(0, top, width, Math.min(ROWS_AT_ONCE, height - top));
    for (let from = 0, to = top * width; from < data.length; from += 4, to++) {
      if (data[from + 3] < 255) {
        throw new Refused("It has transparent parts, which only `srgan upscale` and `srgan serve` keep.", "unsupported-format");
      }
      for (let channel = 0; channel < 3; channel++) planes[channel][to] = data[from + channel];
    }
  }
  return withoutTint({ height, width, planes });
}

/** Colours that are all within two levels of grey, as exactly that. */
function withoutTint({ height, width, planes }) {
  const [red, green, blue] = planes;
  for (let i = 0; i < red.length; i++) {
    if (Math.max(red[i], green[i], blue[i]) - Math.min(red[i], green[i], blue[i]) > 2) return { height, width, planes };
  }
  return { height, width, planes: [red.map((level, i) => (level + green[i] + blue[i]) / 3)] };
}

/** What a file says of itself: its beginning and its end, a character a byte, and the bytes of the beginning. */
async function told(file) {
  const parts = [file.slice(0, LOOKED_AT), file.slice(Math.max(LOOKED_AT, file.size - LOOKED_AT))];
  const [head, tail] = (await Promise.all(parts.map((part) => part.arrayBuffer()))).map((part) => new Uint8Array(part));
  const [first, last] = [head, tail].map((bytes) => new TextDecoder("latin1").decode(bytes));
  const kind = /^.(PNG|IF8)|^.{8}(WEBP|avif|avis)/s.exec(first)?.slice(1).find(Boolean) ?? "";
  return { head, text: first + last, kind: head[0] === 0xff && head[1] === 0xd8 ? "JPEG" : kind };
}

/** What of it the result will not have, as texts for people. */
function warningsOf({ text, kind }) {
  const lost = [
    [/Exif\0\0|eXIf|EXIF/, "its EXIF data"], [/ns\.adobe\.com\/xap|XMP /, "its XMP data"],
    [/ICC_PROFILE\0|iCCP|ICCP|colrprof/, "its colour profile (colours are now sRGB)"],
  ].filter(([sign]) => sign.test(text)).map(([, words]) => `${words} was not kept`);
  if (kind === "PNG" && text.charCodeAt(24) === 16) lost.push("its 16 bits became 8");
  const moving = { PNG: "acTL", WEBP: "ANIM", avis: "", IF8: "NETSCAPE2.0" }[kind];
  if (moving !== undefined && text.includes(moving)) lost.push("it is an animation, of which this is the first frame");
  return lost;
}

/** Whether a picture is for the model that was trained on what compression leaves: as `weights.LossyRule` has it. */
function isLossy({ head, text, kind }, rule) {
  if (kind === "JPEG") return qualityOf(head) < rule.below_quality;
  if (kind === "WEBP") return rule.formats.includes("webp") && text.includes("VP8 ");
  return rule.formats.includes("avif") && kind.startsWith("avi");
}

/** The quality that a JPEG file was written with, on libjpeg's scale, by its first table; 100 if it shows none. */
function qualityOf(head) {
  for (let at = 2; at + 4 < head.length && head[at] === 0xff; at += 2 + (head[at + 2] << 8) + head[at + 3]) {
    if (head[at + 1] !== 0xdb) continue;
    const from = at + 5, isWide = head[at + 4] >> 4; // of two bytes each
    const wide = (i) => (head[from + 2 * i] << 8) + head[from + 2 * i + 1];
    const table = Array.from({ length: 64 }, (_, i) => (isWide ? wide(i) : head[from + i]));
    const distances = Array.from({ length: 100 }, (_, i) => distance(table, i + 1));
    return distances.indexOf(Math.min(...distances)) + 1;
  }
  return 100;
}

function distance(table, quality) {
  const percent = quality < 50 ? Math.floor(5000 / quality) : 200 - 2 * quality;
  const scaled = LUMA.map((value) => Math.min(255, Math.max(1, Math.floor((value * percent + 50) / 100))));
  const inOrder = (values) => [...values].sort((a, b) => a - b);
  const other = inOrder(table);
  return inOrder(scaled).reduce((sum, value, i) => sum + Math.abs(value - other[i]), 0);
}

/** Cut an axis so that `count` equally long reads cover it; what is kept of each has a full halo around, or the edge. */
function spans(length, count, halo) {
  const read = count === 1 ? length : Math.ceil((length - 2 * halo) / count) + 2 * halo;
  const starts = Array.from({ length: count }, (_, i) => Math.floor((i * (length - read)) / Math.max(1, count - 1)));
  return starts.map((from, i) => ({
    from, read, start: i ? from + halo : 0, stop: i + 1 < count ? starts[i + 1] + halo : length,
  }));
}

/** Return the tiles that run the fewest pixels in all, none above `mostPx`: pairs of spans, of rows and columns. */
function tiled(height, width, halo, mostPx) {
  const smallest = Math.max(1, halo);
  let best = null;
  const counts = (length) => Math.max(1, Math.ceil((length - 2 * halo) / smallest));
  for (let down = 1; down <= counts(height); down++) {
    const rows = spans(height, down, halo);
    const across = Array.from({ length: counts(width) }, (_, i) => i + 1)
      .find((count) => spans(width, count, halo)[0].read * rows[0].read <= mostPx);
    if (!across) continue;
    const columns = spans(width, across, halo);
    const px = rows[0].read * down * columns[0].read * across;
    if (!best || px < best.px) best = { px, rows, columns };
  }
  best ??= { rows: spans(height, counts(height), halo), columns: spans(width, counts(width), halo) };
  return best.rows.flatMap((row) => best.columns.map((column) => [row, column]));
}

const UNIT = Float32Array.from({ length: 256 }, (_, level) => level / 255);

/** Run the model over a picture; `tell(fraction)`. */
async function generated({ height, width, planes }, { scale, halo_lr_px: halo }, tell) {
  const out = { height: height * scale, width: width * scale };
  out.planes = planes.map(() => new Uint8ClampedArray(out.height * out.width));
  const tiles = tiled(height, width, halo, Math.floor(backend.layerBytes / (FEATURES_BYTES * scale ** 2)));
  for (const [number, [row, column]] of tiles.entries()) {
    tell(tiles.length > 1 ? number / tiles.length : null);
    const size = row.read * column.read, lr = new Float32Array(3 * size);
    for (let channel = 0; channel < 3; channel++) {
      const plane = planes[channel] ?? planes[0];
      for (let y = 0, to = channel * size; y < row.read; y++) {
        const from = (row.from + y) * width + column.from;
        for (let x = 0; x < column.read; x++) lr[to++] = UNIT[plane[from + x]];
      }
    }
    const tensor = new runtime.Tensor("float32", lr, [1, 3, row.read, column.read]);
    const { sr } = await session.run({ lr: tensor });
    keep(await sr.getData(), out, row, column, scale);
    sr.dispose();
    tensor.dispose();
  }
  return out;
}

/** Copy what is kept of a tile's result; grey is the mean of its channels. Storing rounds to the nearest level. */
function keep(sr, out, row, column, scale) {
  const across = column.read * scale, size = row.read * scale * across;
  for (let y = row.start * scale; y < row.stop * scale; y++) {
    let from = (y - row.from * scale) * across + (column.start - column.from) * scale;
    let to = y * out.width + column.start * scale;
    for (const end = y * out.width + column.stop * scale; to < end; to++, from++) {
      const [red, green, blue] = [sr[from], sr[from + size], sr[from + 2 * size]];
      if (!Number.isFinite(red + green + blue)) throw new Refused("The model returned values that are no numbers.");
      if (out.planes.length === 1) out.planes[0][to] = 255 * ((red + green + blue) / 3);
      else [out.planes[0][to], out.planes[1][to], out.planes[2][to]] = [255 * red, 255 * green, 255 * blue];
    }
  }
}

/** Resample a plane as Pillow's BICUBIC does; `Kind`: of the levels that come out. */
function resampled(plane, height, width, toHeight, toWidth, Kind) {
  const wide = new Kind(height * toWidth), out = new Kind(toHeight * toWidth);
  taps(width, toWidth).forEach(({ start, weights }, x) => {
    for (let y = 0; y < height; y++) {
      let sum = 0;
      for (let i = 0, from = y * width + start; i < weights.length; i++) sum += weights[i] * plane[from + i];
      wide[y * toWidth + x] = sum;
    }
  });
  taps(height, toHeight).forEach(({ start, weights }, y) => {
    for (let x = 0; x < toWidth; x++) {
      let sum = 0;
      for (let i = 0, from = start * toWidth + x; i < weights.length; i++) sum += weights[i] * wide[from + i * toWidth];
      out[y * toWidth + x] = sum;
    }
  });
  return out;
}

function resized({ height, width, planes }, toHeight, toWidth) {
  const made = planes.map((plane) => resampled(plane, height, width, toHeight, toWidth, Uint8ClampedArray));
  return { height: toHeight, width: toWidth, planes: made };
}

/** Correct a result, in place, until it reduces to `source`. */
function projectBack({ height, width, planes }, source) {
  planes.forEach((plane, channel) => {
    for (let round = 0; round < ROUNDS; round++) {
      const missing = resampled(plane, height, width, source.height, source.width, Float32Array);
      const levels = source.planes[channel];
      for (let i = 0; i < missing.length; i++) missing[i] = levels[i] - Math.min(255, Math.max(0, missing[i]));
      const enlarged = resampled(missing, source.height, source.width, height, width, Float32Array);
      for (let i = 0; i < plane.length; i++) plane[i] += STEP * enlarged[i];
    }
  });
}

/** To the nearest whole number, halves to the even one, as Python rounds. */
const rounded = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));

/** What the model is given and what is kept of its result, run by run, as [height, width]. */
function passes(given, wanted, scale) {
  let runs = 1;
  while (scale > 1 && scale ** runs < Math.max(wanted[0] / given[0], wanted[1] / given[1])) runs++;
  const kept = Array.from({ length: runs }, (_, i) => wanted.map((side) => Math.ceil(side / scale ** (runs - 1 - i))));
  return kept.map((size, i) => [i ? kept[i - 1] : given, size]);
}

async function enlarged(source, model, { scale, long_side: side, strength = 1 }, warnings, tell) {
  const { height, width } = source;
  const ratio = side ? side / Math.max(height, width) : Number(scale ?? model.scale);
  if (!(ratio > 0 && ratio <= 16)) throw new Refused("At most 16 times are possible.", "invalid-parameter");
  const wanted = [height, width].map((length) => Math.max(1, rounded(length * ratio)));
  const isPlain = Number(strength) === 0 || wanted[0] < height || wanted[1] < width; // without the model
  const runs = isPlain ? [] : passes([height, width], wanted, model.scale);
  for (const size of [wanted, ...runs.map(([given]) => given.map((length) => length * model.scale))]) {
    if (size[0] * size[1] > MOST_RESULT_PX || Math.max(...size) > MOST_RESULT_SIDE_PX) {
      throw new Refused(`${size[1]} × ${size[0]} pixels are too many for this page, which makes up to ${MOST_RESULT_PX / 1e6} `
        + `megapixels and ${MOST_RESULT_SIDE_PX} a side; \`srgan upscale\` makes more.`, "too-many-pixels");
    }
  }
  if (isPlain) {
    if (Number(strength)) warnings.push("it is larger than what was asked for, so it was reduced without the model");
    return resized(source, ...wanted);
  }
  await loaded(model);
  const all = runs.reduce((sum, [given]) => sum + given[0] * given[1], 0);
  let result = source, before = 0;
  for (const [number, [given, kept]] of runs.entries()) {
    const share = (given[0] * given[1]) / all;
    const isWhole = runs.length === 1; // of one tile nobody knows how far it is
    result = await generated(result, model, (fraction) => tell(isWhole ? fraction : before + share * (fraction ?? 0)));
    before += share;
    const isResampled = kept[0] !== result.height || kept[1] !== result.width;
    if (isResampled) result = resized(result, ...kept);
    if (model.faithful && (isResampled || number)) projectBack(result, source);
  }
  if (strength < 1) {
    const soft = resized(source, ...wanted);
    result.planes.forEach((plane, channel) => {
      const smooth = soft.planes[channel];
      for (let i = 0; i < plane.length; i++) plane[i] = smooth[i] + strength * (plane[i] - smooth[i]);
    });
  }
  return result;
}

/** Return the blob of a picture; `format`: auto for that of a file of this `kind`, as far as browsers write it. */
async function encoded({ height, width, planes }, kind, { format = "auto", quality }, warnings) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  for (let top = 0; top < height; top += ROWS_AT_ONCE) {
    const band = new ImageData(width, Math.min(ROWS_AT_ONCE, height - top));
    for (let from = top * width, to = 0; to < band.data.length; from++, to += 4) {
      for (let channel = 0; channel < 3; channel++) band.data[to + channel] = (planes[channel] ?? planes[0])[from];
      band.data[to + 3] = 255;
    }
    context.putImageData(band, 0, top);
  }
  const own = { JPEG: "jpeg", WEBP: "webp" }[kind] ?? "png";
  const type = `image/${{ auto: own, jpg: "jpeg" }[format] ?? format}`;
  const blob = await canvas.convertToBlob({ type, quality: quality ? quality / 100 : LOSSY_QUALITY });
  if (blob.type !== type) warnings.push(`this browser writes no ${type.slice(6).toUpperCase()}, so it is a PNG`);
  return blob;
}

/** Return {blob, warnings, model} of a file, by the model that is named or, of those beside the page, the one that suits it. */
async function made(file, { models, lossy }, settings, tell) {
  const facts = await told(file), warnings = warningsOf(facts);
  const suits = lossy && isLossy(facts, lossy) ? ({ name }) => name === lossy.model : (listed) => listed.default;
  const model = models.find(({ name }) => name === settings.model) ?? models.find(suits);
  const result = await enlarged(await decoded(file), model, settings, warnings, tell);
  return { blob: await encoded(result, facts.kind, settings, warnings), warnings, model: model.name };
}

onmessage = async ({ data: { asked, file, beside, settings, port } }) => {
  try {
    backend ??= await chosen(asked);
    const tell = (fraction) => port.postMessage({ fraction });
    const { name, about } = backend;
    const offered = { name, about, megapixels: MOST_RESULT_PX / 1e6 };
    port.postMessage({ result: file ? await made(file, beside, settings, tell) : offered });
  } catch (error) {
    if (error instanceof Refused) return port.postMessage({ error: error.message, code: error.code });
    const place = backend?.name ?? "This page", hint = place === "WebGPU" ? " ?backend=wasm in the address does without." : "";
    port.postMessage({ error: `${place} failed: ${error.message ?? error}.${hint}`, code: "page", isBroken: true });
  }
};
