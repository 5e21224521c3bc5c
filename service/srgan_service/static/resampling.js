// Bicubic resampling as Pillow does it: Keys' kernel, wider where it reduces.

const SUPPORT = 2;

/** Keys' cubic kernel with a = -0.5. */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** Where each of `length` outputs begins to read its `from` inputs, and with which weights. */
export function taps(from, length) {
  const ratio = from / length, wider = Math.max(1, ratio);
  return Array.from({ length }, (_, index) => {
    const centre = (index + 0.5) * ratio;
    const start = Math.max(0, Math.trunc(centre - SUPPORT * wider + 0.5));
    const stop = Math.min(from, Math.trunc(centre + SUPPORT * wider + 0.5));
    const weights = Array.from({ length: stop - start }, (_, i) => cubic((start + i - centre + 0.5) / wider));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}
