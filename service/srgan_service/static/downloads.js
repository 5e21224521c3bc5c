// What results are called as files, and how they are saved.

import { zip } from "./zip.js";

/** Save a blob as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The name of a version's file: what the command line would call it, with the model if there are several. */
export function fileName(picture, version, extra = "") {
  const suffix = { "image/jpeg": "jpg", "image/x-portable-anymap": "ppm" }[version.blob.type];
  const { model, balance, scale, long_side: side, quality } = version.settings;
  const size = side ? `${side}px` : `x${scale}`;
  const rivals = picture.versions.filter(({ settings }) => settings.scale === scale && settings.long_side === side);
  const maker = model ?? (balance === undefined ? "auto" : `balance${Math.round(balance * 100)}`);
  const by = rivals.length > 1 ? `_${maker}${quality ? `_q${quality}` : ""}` : "";
  const stem = picture.name.replace(/\.[^.]*$/, "");
  return `${stem}${by}_${size}${extra}.${suffix ?? version.blob.type.split("/")[1]}`;
}

/** Save `files`, a list of {picture, name, blob}, as one archive, in the folders that the pictures came from. */
export async function saveAll(files) {
  const taken = new Set();
  const placed = files.map(({ picture, name: plain, blob }) => {
    const path = `${picture.path ?? ""}`.replace(/[^/]*$/, "") + plain;
    let name = path;
    for (let number = 2; taken.has(name); number++) name = path.replace(/(\.[^.]*)$/, `-${number}$1`);
    taken.add(name);
    return { name, blob };
  });
  const archive = await zip(placed).catch((error) => {
    throw new Error(`The archive cannot be made: ${error.message}. Download the pictures one by one.`);
  });
  save(archive, "upscaled.zip");
}
