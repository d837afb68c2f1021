// Packs files into an uncompressed tar archive (POSIX.1-1988 ustar), as a Blob that refers to the files: nothing is
// read into memory before it is sent.

const BLOCK = 512;
const encoder = new TextEncoder();

/** @param {{path: string, file: File}[]} entries @returns {Blob} */
export function pack(entries) {
  const parts = entries.flatMap(({path, file}) => [
    ...header(path, file.size, Math.max(0, Math.floor(file.lastModified / 1000))), // ustar has no time before 1970
    file,
    padding(file.size),
  ]);
  return new Blob([...parts, new Uint8Array(2 * BLOCK)], {type: "application/x-tar"});
}

function header(path, size, modified) {
  const name = encoder.encode(path);
  if (name.length <= 100) return [block(name, size, modified, "0")];
  // A longer name goes into a record of its own before the file (pax, POSIX.1-2001).
  const record = paxRecord("path", path);
  return [
    block(encoder.encode("pax"), record.length, modified, "x"), record, padding(record.length),
    block(name.subarray(0, 100), size, modified, "0"),
  ];
}

function block(name, size, modified, type) {
  const bytes = new Uint8Array(BLOCK);
  const put = (text, at) => bytes.set(encoder.encode(text), at);
  const octal = (value, digits) => value.toString(8).padStart(digits, "0");
  bytes.set(name, 0);
  put("0000644\0", 100);
  put("0000000\0", 108);
  put("0000000\0", 116);
  put(octal(size, 11) + "\0", 124);
  put(octal(modified, 11) + "\0", 136);
  put(" ".repeat(8), 148);
  put(type, 156);
  put("ustar\u000000", 257);
  put(octal(bytes.reduce((sum, byte) => sum + byte, 0), 6) + "\0 ", 148);
  return bytes;
}

function paxRecord(key, value) {
  const rest = encoder.encode(` ${key}=${value}\n`).length;
  let length = rest;
  while (String(length).length + rest !== length) length = String(length).length + rest;
  return encoder.encode(`${length} ${key}=${value}\n`);
}

function padding(size) {
  return new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
}
