// The hash tree of RFC 6962 and signed checkpoints (C2SP), checked with WebCrypto alone. Nothing in
// here trusts or asks a server. Sizes are plain numbers: exact up to 2^53 events.

const LEAF = 0;
const NODE = 1;
/** The signature type of Ed25519 in a verifier key. Source: C2SP signed-note. */
const ED25519 = 1;
const KEY_ID_BYTES = 4;

/** Whether this page may hash: browsers allow it over https and on the machine itself. */
export const canHash = Boolean(globalThis.crypto?.subtle);

export const fromHex = (text) => {
  if (!/^([0-9a-f]{2})*$/i.test(text)) throw new Error("no hex digits");
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
};

export const toHex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export const fromBase64 = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));

export const toBase64 = (bytes) => btoa(String.fromCharCode(...bytes));

function join(...parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", join(...parts)));

export const leafHash = (leaf) => sha256([LEAF], leaf);

const nodeHash = (left, right) => sha256([NODE], left, right);

export const same = (one, other) => one.length === other.length && one.every((byte, index) => byte === other[index]);

const half = (number) => Math.floor(number / 2);

const isOdd = (number) => number % 2 === 1;

const isSize = (number) => Number.isSafeInteger(number) && number >= 0;

/** Whether a leaf stands at `index` in the tree of `size` leaves with that root. RFC 9162, 2.1.3.2. */
export async function isIncluded(index, size, hash, path, root) {
  if (!isSize(index) || !isSize(size) || index >= size) return false;
  let at = index;
  let last = size - 1;
  let node = hash;
  for (const sibling of path) {
    if (last === 0) return false;
    if (isOdd(at) || at === last) {
      node = await nodeHash(sibling, node);
      while (!isOdd(at) && at !== 0) {
        at = half(at);
        last = half(last);
      }
    } else {
      node = await nodeHash(node, sibling);
    }
    at = half(at);
    last = half(last);
  }
  return last === 0 && same(node, root);
}

/** Whether the tree of `to` leaves begins with that of `from` leaves. RFC 9162, 2.1.4.2. */
export async function isConsistent(from, to, path, fromRoot, toRoot) {
  if (!isSize(from) || !isSize(to) || from > to) return false;
  if (from === to) return path.length === 0 && same(fromRoot, toRoot);
  // Before the first event there is nothing that could have been changed.
  if (from === 0) return path.length === 0 && same(fromRoot, await sha256());
  let at = from - 1;
  let last = to - 1;
  while (isOdd(at)) {
    at = half(at);
    last = half(last);
  }
  // A tree that is whole is itself where the way begins.
  const [first, ...rest] = at === 0 ? [fromRoot, ...path] : path;
  if (!first) return false;
  let older = first;
  let newer = first;
  for (const sibling of rest) {
    if (last === 0) return false;
    if (isOdd(at) || at === last) {
      older = await nodeHash(sibling, older);
      newer = await nodeHash(sibling, newer);
      while (!isOdd(at) && at !== 0) {
        at = half(at);
        last = half(last);
      }
    } else {
      newer = await nodeHash(newer, sibling);
    }
    at = half(at);
    last = half(last);
  }
  return last === 0 && same(older, fromRoot) && same(newer, toRoot);
}

/** A signed checkpoint: `{text, origin, size, root, signatures: [{name, keyId, signature}]}`. */
export function parseNote(note) {
  const end = note.lastIndexOf("\n\n");
  if (end < 0) throw new Error("it has no signatures");
  const text = note.slice(0, end + 1);
  const [origin, digits, root] = text.split("\n");
  const size = Number(digits);
  if (!origin || !/^(0|[1-9][0-9]*)$/.test(digits ?? "") || !isSize(size)) throw new Error("it has no size");
  const hash = fromBase64(root ?? "");
  if (hash.length !== 32) throw new Error("it has no root");
  const lines = note.slice(end + 2).split("\n").filter(Boolean);
  const signatures = lines.map((line) => {
    const [, name, encoded] = /^\u2014 (\S+) (\S+)$/.exec(line) ?? [];
    if (!name) throw new Error("a signature cannot be read");
    const bytes = fromBase64(encoded);
    return { name, keyId: bytes.slice(0, KEY_ID_BYTES), signature: bytes.slice(KEY_ID_BYTES) };
  });
  return { text, origin, size, root: hash, signatures };
}

/** A verifier key, `<name>+<key id>+<base64>`; its id must be that of its name and key. */
export async function parseKey(written) {
  const [, name, id, encoded] = /^([^+\s]+)\+([0-9a-f]{8})\+(\S+)$/.exec(written.trim()) ?? [];
  if (!name) throw new Error("it is no verifier key");
  const typed = fromBase64(encoded);
  const hash = await sha256(new TextEncoder().encode(name), [10], typed);
  if (typed[0] !== ED25519 || typed.length !== 33 || toHex(hash.slice(0, KEY_ID_BYTES)) !== id) throw new Error("its id is not its own");
  return { name, keyId: hash.slice(0, KEY_ID_BYTES), bytes: typed.slice(1) };
}

/** Whether that key signed that note: `true`, `false`, or `null` where this browser cannot tell. */
export async function isSignedBy(note, key) {
  const mine = note.signatures.filter(({ name, keyId }) => name === key.name && same(keyId, key.keyId));
  if (mine.length === 0) return false;
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", key.bytes, { name: "Ed25519" }, false, ["verify"]);
  } catch {
    return null;
  }
  const text = new TextEncoder().encode(note.text);
  const checked = await Promise.all(mine.map(({ signature }) => crypto.subtle.verify({ name: "Ed25519" }, imported, signature, text)));
  return checked.some(Boolean);
}

/** What a leaf says. The layout is that of `leaf.rs`: fixed parts, then header and body with their lengths. */
export function parseLeaf(leaf) {
  const view = new DataView(leaf.buffer, leaf.byteOffset, leaf.length);
  if (view.getUint8(0) !== 1) throw new Error("its layout is not known");
  const stream = toHex(leaf.slice(1, 17)).replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  const headerEnd = 37 + view.getUint32(33);
  const bodyEnd = headerEnd + 4 + view.getUint32(headerEnd);
  if (bodyEnd !== leaf.length) throw new Error("its parts do not add up");
  const words = new TextDecoder("utf-8", { fatal: true });
  return {
    stream,
    version: view.getUint32(17),
    code: view.getInt16(21),
    schemaVersion: view.getInt16(23),
    recordedAtUs: view.getBigInt64(25),
    header: words.decode(leaf.slice(37, headerEnd)),
    body: words.decode(leaf.slice(headerEnd + 4)),
  };
}
