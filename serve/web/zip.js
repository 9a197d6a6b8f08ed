// Reads a zip file with the browser's own decompression.

const END = 0x06054b50, ENTRY = 0x02014b50;
const MAX_BYTES = 2 ** 31;

/** The files of a zip as a Map from name to Blob, folders left out; stored and deflated entries, no zip64. */
export async function readZip(blob) {
  const view = new DataView(await blob.arrayBuffer());
  let end = view.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Error("the file is no whole zip file; save it again");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  let total = 0;
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (view.getUint32(at, true) !== ENTRY) throw new Error("the zip file is damaged; save it again");
    const method = view.getUint16(at + 10, true);
    const packed = view.getUint32(at + 20, true);
    total += view.getUint32(at + 24, true);
    if (total > MAX_BYTES) throw new Error("the zip file holds more than 2 GB; send one case");
    const [nameLength, extraLength, noteLength] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, at + 46, nameLength));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    at += 46 + nameLength + extraLength + noteLength;
    if (name.endsWith("/")) continue;
    const data = blob.slice(start, start + packed);
    if (method === 0) files.set(name, data);
    else if (method === 8) files.set(name, await inflate(data, name));
    else throw new Error(`${name} is compressed in a way that browsers do not read; zip it again`);
  }
  return files;
}

async function inflate(data, name) {
  try {
    return await new Response(data.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
  } catch {
    throw new Error(`${name} is damaged in the zip file; save it again`);
  }
}
