// A zip archive of files that are compressed already: stored as they are (APPNOTE.TXT, 4.3 and 4.4).

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Little-endian numbers, as pairs of [bytes, value]. */
function pack(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view;
}

/** Return a Blob with `files`, a list of {name, blob}. Throws RangeError above 4 GB, which would need zip64. */
export async function zip(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new TextEncoder().encode(name);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    const common = [
      [2, 20], [2, 0x800], [2, 0], // version, names in UTF-8, stored
      [2, 0], [2, 0x21], // midnight of 1980-01-01, the least that the format can say
      [4, crc], [4, blob.size], [4, blob.size], [2, bytes.length], [2, 0],
    ];
    directory.push(pack([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), bytes);
    parts.push(pack([4, 0x04034b50], ...common), bytes, blob);
    offset += 30 + bytes.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const count = files.length;
  if (offset + size > 0xffffffff) throw new RangeError("more than 4 GB");
  if (count > 0xffff) throw new RangeError("more than 65535 files");
  const end = pack([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
