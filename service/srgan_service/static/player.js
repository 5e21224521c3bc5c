// Animations, frame by frame: canvases draw only the first one of a picture.

const KINDS = [
  ["image/gif", 0, "GIF8"], ["image/webp", 8, "WEBP"], ["image/png", 1, "PNG"], ["image/avif", 4, "ftypavis"],
];

/** Return {count, frame(index)} of an animation; null for what stands still, or where the browser cannot tell frames. */
export async function moving(blob) {
  const head = String.fromCharCode(...new Uint8Array(await blob.slice(0, 16).arrayBuffer()));
  const type = KINDS.find(([, at, text]) => head.startsWith(text, at))?.[0];
  if (!type || !window.ImageDecoder || !(await ImageDecoder.isTypeSupported(type))) return null;
  const decoder = new ImageDecoder({ data: await blob.arrayBuffer(), type, preferAnimation: true });
  try {
    await decoder.tracks.ready;
    await decoder.completed; // all frames are counted
    const { animated, frameCount: count } = decoder.tracks.selectedTrack;
    if (animated && count > 1) return { count, frame: (index) => frameOf(decoder, index % count) };
  } catch {
    // It is shown as far as it goes, by its first frame.
  }
  decoder.close();
  return null;
}

/** A frame as {image, ms}, for `ms` on the screen; of frames without a duration, what browsers take. */
async function frameOf(decoder, frameIndex) {
  const { image: frame } = await decoder.decode({ frameIndex });
  const ms = frame.duration ? frame.duration / 1000 : 100;
  const image = await createImageBitmap(frame);
  frame.close();
  return { image, ms };
}
