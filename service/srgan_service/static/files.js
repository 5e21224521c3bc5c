// Files with the paths that they have in their folders: what is dropped or chosen may be a folder, and hold more of them.

const PICTURE = /\.(png|jpe?g|jfif|webp|avif|tiff?|gif|bmp|p[bgpn]m|hei[cf]|jxl)$/i;

/** What is in an input or on the clipboard: [{file, path}], the path as in "holiday/cat.jpg". */
export const plain = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name || "pasted.png" }));

/** What was dropped, folders opened. To be called while the event lasts: its files are gone after it. */
export async function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const opened = items.map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry ? within(entry) : plain([item.getAsFile()]);
  });
  return (await Promise.all(opened)).flat();
}

async function within(entry) {
  const asked = (method, from) => new Promise((resolve, reject) => from[method](resolve, reject));
  if (entry.isFile) return [{ file: await asked("file", entry), path: entry.fullPath.slice(1) }];
  const reader = entry.createReader(), entries = [];
  // It gives a hundred at a time, and none after the last.
  for (let some; (some = await asked("readEntries", reader)).length; ) entries.push(...some);
  return (await Promise.all(entries.map(within))).flat();
}

/** Return {pictures, others}: of folders only what may be a picture, in order; a file given alone is its giver's choice. */
export function sorted(given) {
  const isWanted = ({ path }) => !path.includes("/") || (PICTURE.test(path) && !path.split("/").some((part) => part.startsWith(".")));
  const pictures = given.filter(isWanted);
  if (pictures.some(({ path }) => path.includes("/"))) pictures.sort((a, b) => a.path.localeCompare(b.path, undefined, { numeric: true }));
  return { pictures, others: given.length - pictures.length };
}
