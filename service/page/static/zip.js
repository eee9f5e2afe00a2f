// A folder that was chosen in a form, packed into a zip file.

const EXCLUDED = new Set([".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "node_modules"]);
const LARGEST = 100 * 2 ** 20;
const DAY_ONE = 0x21; // 1980-01-01, so that the same files are the same package
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** The zip file of the files of a folder (webkitRelativePath), without caches and version control. */
export async function pack(files) {
  const wanted = [...files].map((file) => [file.webkitRelativePath.split("/").slice(1), file])
    .filter(([parts]) => parts.length && !parts.some((part) => EXCLUDED.has(part)))
    .sort(([a], [b]) => (a.join("/") < b.join("/") ? -1 : 1));
  if (!wanted.length) throw new Error("the folder has no files");
  if (wanted.reduce((sum, [, file]) => sum + file.size, 0) > LARGEST) throw new Error(`the folder has more than ${LARGEST / 2 ** 20} MiB: leave out data and results`);
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const [path, file] of wanted) {
    const name = new TextEncoder().encode(path.join("/"));
    const content = new Uint8Array(await file.arrayBuffer());
    const packed = await deflated(content);
    const entry = [[2, 20], [2, 0x0800], [2, 8], [2, 0], [2, DAY_ONE], [4, crc(content)], [4, packed.length], [4, content.length], [2, name.length], [2, 0]];
    const head = bytes([[4, 0x04034b50], ...entry]);
    const central = bytes([[4, 0x02014b50], [2, 0x0314], ...entry, [2, 0], [2, 0], [2, 0], [4, (0o100644 << 16) >>> 0], [4, offset]]);
    parts.push(head, name, packed);
    directory.push(central, name);
    offset += head.length + name.length + packed.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = bytes([[4, 0x06054b50], [2, 0], [2, 0], [2, wanted.length], [2, wanted.length], [4, size], [4, offset], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

async function deflated(content) {
  const stream = new Blob([content]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function crc(content) {
  let value = 0xffffffff;
  for (const byte of content) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Numbers of 2 or 4 bytes, the low byte first. */
function bytes(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let place = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(place, value, true);
    else view.setUint32(place, value, true);
    place += size;
  }
  return new Uint8Array(view.buffer);
}
