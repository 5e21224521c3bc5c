// A worker: enlarges a picture as Pillow's BICUBIC does, which is what the service means by strength 0.

import { taps } from "./resampling.js";

/** Resample RGBA rows to `length` pixels each, or columns if `step` says how far apart their pixels are. */
function pass(levels, lines, lineStep, pixelStep, from, length, outLineStep, outPixelStep) {
  const out = new Uint8ClampedArray(lines * length * 4);
  taps(from, length).forEach(({ start, weights }, index) => {
    for (let line = 0; line < lines; line++) {
      const first = line * lineStep + start * pixelStep;
      const to = line * outLineStep + index * outPixelStep;
      let r = 0, g = 0, b = 0, a = 0;
      for (let i = 0, at = first; i < weights.length; i++, at += pixelStep) {
        const weight = weights[i];
        r += weight * levels[at];
        g += weight * levels[at + 1];
        b += weight * levels[at + 2];
        a += weight * levels[at + 3];
      }
      out[to] = r;
      out[to + 1] = g;
      out[to + 2] = b;
      out[to + 3] = a;
    }
  });
  return out;
}

/** Multiply colour by opacity, or divide it again: clear pixels must not colour their neighbours. */
function weighColour(levels, undo) {
  for (let at = 0; at < levels.length; at += 4) {
    const alpha = levels[at + 3] / 255;
    if (alpha === 1 || alpha === 0) continue;
    for (let i = at; i < at + 3; i++) levels[i] = undo ? levels[i] / alpha : levels[i] * alpha;
  }
}

function enlarged(image, width, height) {
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  weighColour(data, false);
  const wide = pass(data, image.height, image.width * 4, 4, image.width, width, width * 4, 4);
  const levels = pass(wide, width, 4, width * 4, image.height, height, 4, width * 4);
  weighColour(levels, true);
  return createImageBitmap(new ImageData(levels, width, height));
}

// Answers with null where the browser has not the memory for it.
onmessage = async ({ data: { image, width, height, port } }) => {
  try {
    const result = await enlarged(image, width, height);
    port.postMessage(result, [result]);
  } catch {
    port.postMessage(null);
  }
};
