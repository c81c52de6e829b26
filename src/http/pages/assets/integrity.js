// The integrity page: the checkpoint's signature, its consistency with the last one this browser
// saw, and whatever else is asked. The server answers with proofs; what they prove is computed here.

import { slot } from "./fill.js";
import { full, number } from "./format.js";
import { canHash, fromBase64, fromHex, isConsistent, isIncluded, isSignedBy, leafHash, parseKey, parseLeaf, parseNote, same, toBase64, toHex } from "./merkle.js";
import { element } from "./refresh.js";

/** What this browser remembers, by origin: `{size, root, key, at}`. */
const MEMORY = "milepost.checkpoint ";

const recall = (origin) => {
  try {
    return JSON.parse(localStorage.getItem(MEMORY + origin));
  } catch {
    return null;
  }
};

const remember = (origin, checkpoint) => {
  try {
    localStorage.setItem(MEMORY + origin, JSON.stringify(checkpoint));
    return true;
  } catch {
    return false;
  }
};

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail ?? answer.statusText);
}

const askJson = async (path) => (await ask(path)).json();

/** One line of what was found: `ok`, `wrong` or `open`. */
function line(check, words, more) {
  const element = document.createElement("li");
  element.dataset.check = check;
  const icon = document.createElement("span");
  icon.className = "icon";
  icon.setAttribute("aria-hidden", "true");
  const said = document.createElement("span");
  said.textContent = words;
  element.append(icon, said);
  if (more) {
    const pre = document.createElement("pre");
    pre.tabIndex = 0;
    pre.textContent = more;
    said.append(pre);
  }
  return element;
}

function put(place, lines) {
  const list = document.createElement("ul");
  list.className = "checks";
  list.append(...lines);
  place.replaceChildren(list);
}

const size = (written) => {
  const value = Number(String(written).replace(/[#,\s]/g, ""));
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`${written} is no number of events`);
  return value;
};

/** A sealed text, as `token.rs` writes it: it stands in the tree, and gives way to what it says where it is shown. */
const TOKEN = /mp1\.[0-9a-f]{32}\.[A-Za-z0-9_-]+\./;

/** Whether a text is these parts, one behind the other, with anything in between. */
function isMadeOf(parts, shown) {
  const [first, ...others] = parts;
  if (others.length === 0) return shown === first;
  if (!shown.startsWith(first)) return false;
  const last = others.pop();
  let from = first.length;
  for (const part of others) {
    const at = shown.indexOf(part, from);
    if (at < 0) return false;
    from = at + part.length;
  }
  return shown.length - last.length >= from && shown.endsWith(last);
}

/** How many sealed texts there are in what is stored; `null` where what is shown differs in anything else. */
function sealedTexts(stored, shown) {
  if (typeof stored === "string") {
    const parts = stored.split(TOKEN);
    return typeof shown === "string" && isMadeOf(parts, shown) ? parts.length - 1 : null;
  }
  if (stored === null || typeof stored !== "object") return stored === shown ? 0 : null;
  if (shown === null || typeof shown !== "object" || Array.isArray(stored) !== Array.isArray(shown)) return null;
  const names = Object.keys(stored);
  if (Object.keys(shown).length !== names.length) return null;
  let sealed = 0;
  for (const name of names) {
    const within = Object.hasOwn(shown, name) ? sealedTexts(stored[name], shown[name]) : null;
    if (within === null) return null;
    sealed += within;
  }
  return sealed;
}

/** A time in microseconds since 1970; `null` for what is none. */
function microseconds(written) {
  const [, seconds, fraction = ""] = /^([^.]+)(?:\.([0-9]{1,6}))?Z$/.exec(written) ?? [];
  const at = Date.parse(`${seconds}Z`);
  return Number.isNaN(at) ? null : BigInt(at) * 1000n + BigInt(fraction.padEnd(6, "0"));
}

/** The tree of `to` begins with that of `from`: proven by the server's hashes, against both roots. */
async function consistent(from, fromRoot, to, toRoot) {
  const proof = await askJson(`/api/proofs/consistency?from=${from}&to=${to}`);
  return isConsistent(from, to, proof.hashes.map(fromHex), fromRoot ?? fromHex(proof.from_root), toRoot);
}

class Integrity extends HTMLElement {
  #checkpoint = null;
  #keys = [];

  async connectedCallback() {
    const checks = slot(this, "checks");
    for (const form of this.querySelectorAll("form[data-form]")) {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        this.#check(form);
      });
    }
    if (!canHash) {
      put(checks, [line("open", "This browser lets a page hash only over https: open it that way, or run milepost log verify.")]);
      return;
    }
    try {
      put(checks, await this.#latest());
      const form = this.querySelector('[data-form="inclusion"]');
      if (form.elements.position.value) this.#check(form);
    } catch (error) {
      put(checks, [line("open", `Nothing could be checked: ${error.message}`)]);
    }
    this.dataset.done = "";
  }

  /** The checkpoint that the page shows, on its own and against the last one seen here. */
  async #latest() {
    if (!slot(this, "note")) await this.#renew();
    if (!slot(this, "note")) throw new Error("there is no checkpoint yet");
    const note = parseNote(slot(this, "note").textContent);
    const { keys } = await askJson("/log/keys");
    this.#keys = await Promise.all(keys.map(({ verifier_key }) => parseKey(verifier_key)));
    const signed = await this.#signed(note);
    this.#checkpoint = note;
    return [signed, ...(await this.#since(note, signed.dataset.check === "wrong"))];
  }

  /** Shows the log's latest checkpoint: all that is said of it comes in one answer. */
  async #renew() {
    const about = '[aria-labelledby="latest"]';
    const now = await element("/integrity", about);
    if (now) this.querySelector(about).replaceChildren(...now.childNodes);
  }

  async #signed(note) {
    let unknown = false;
    for (const key of this.#keys.filter((key) => key.name === note.origin)) {
      const signed = await isSignedBy(note, key);
      if (signed) return line("ok", `The checkpoint of ${number(note.size)} events is signed by key ${toHex(key.keyId)}.`);
      unknown ||= signed === null;
    }
    if (unknown) return line("open", "This browser has no Ed25519: the signature was not checked. Hashes are, below.");
    return line("wrong", "The signature is wrong: no key that this server names has signed this checkpoint.");
  }

  /** Against what this browser saw last; what contradicts it never takes its place. */
  async #since(note, isForged) {
    const key = this.#keys.filter((key) => key.name === note.origin).map((key) => toHex(key.keyId)).join(" ");
    const last = recall(note.origin);
    const lines = [];
    let isKept = isForged;
    if (last) {
      const when = `on ${full(last.at)}, at ${number(last.size)} events`;
      if (last.size > note.size) {
        isKept = true;
        lines.push(line("wrong", `The log has become shorter: this browser saw it ${when}; now the checkpoint has ${number(note.size)}.`));
      } else if (await consistent(last.size, fromBase64(last.root), note.size, note.root)) {
        lines.push(line("ok", `Since this browser looked ${when}, the log has only been added to.`));
      } else {
        isKept = true;
        lines.push(line("wrong", `The log has been changed: what this browser saw ${when} is not how it begins now.`));
      }
      const known = last.key.split(" ").filter(Boolean);
      if (!known.every((id) => key.includes(id))) lines.push(line("wrong", `The key is another one: this browser knew ${last.key}.`));
      else if (key !== last.key) lines.push(line("open", `A key was added since: ${key}. A rotation is an event of the log.`));
    } else {
      lines.push(line("open", "This browser has not seen this log before: from now on it remembers the last checkpoint, and compares at the next visit."));
    }
    const kept = isKept || remember(note.origin, { size: note.size, root: toBase64(note.root), key, at: Date.now() });
    if (!kept) lines.push(line("open", "This browser keeps nothing for this page, so the next visit cannot be compared."));
    return lines;
  }

  async #check(form) {
    const place = slot(this, form.dataset.form);
    put(place, [line("wait", "Checking…")]);
    try {
      if (!canHash) throw new Error("this browser lets a page hash only over https");
      if (!this.#checkpoint) throw new Error("there is no checkpoint");
      put(place, await this[form.dataset.form](form.elements));
    } catch (error) {
      put(place, [line("open", `It could not be checked: ${error.message}`)]);
    }
  }

  async inclusion({ position }) {
    const at = size(position.value);
    const { size: tree, root } = this.#checkpoint;
    if (at < 1) throw new Error("positions begin at 1");
    if (at > tree) throw new Error(`#${number(at)} came after the checkpoint of ${number(tree)} events: load the page again in a second`);
    const proof = await askJson(`/api/proofs/inclusion?position=${at}&size=${tree}`);
    const leaf = fromBase64(proof.leaf);
    if (!(await isIncluded(at - 1, tree, await leafHash(leaf), proof.hashes.map(fromHex), root))) {
      return [line("wrong", `#${number(at)} is not what was sealed: its bytes do not lead to the checkpoint’s root.`)];
    }
    const sealed = parseLeaf(leaf);
    const event = await askJson(`/api/events/${at}`);
    const texts = sealedTexts([JSON.parse(sealed.header), JSON.parse(sealed.body)], [event.metadata, event.data]);
    const isShown = texts !== null && sealed.stream === event.stream && sealed.version === event.version
      && (this.#types.get(sealed.code) ?? "Unknown") === event.type && sealed.schemaVersion === event.schema_version
      && sealed.recordedAtUs === microseconds(event.recorded_at);
    if (!isShown) return [line("wrong", `#${number(at)} is sealed, but this server shows something else for it.`, sealed.body)];
    const included = line("ok", `#${number(at)}, ${event.type}, is in the log of ${number(tree)} events, in these bytes and at this place: ${proof.hashes.length} hashes lead from it to the root.`, sealed.body);
    if (texts === 0) return [included];
    const those = texts === 1 ? "One text of it is personal and" : `${texts} texts of it are personal and`;
    return [included, line("open", `${those} in the tree only encrypted: whether this server shows what was written could not be compared.`)];
  }

  /** The names of types by their codes. */
  get #types() {
    return new Map(this.dataset.types.split(",").map((type) => type.split(" ")).map(([code, name]) => [Number(code), name]));
  }

  async consistency({ from, to }) {
    const { size: tree, root } = this.#checkpoint;
    const older = size(from.value);
    const newer = to.value ? size(to.value) : tree;
    if (older > newer || newer > tree) throw new Error(`the first must not be above the second, nor that above ${number(tree)}, the latest checkpoint`);
    const proof = await askJson(`/api/proofs/consistency?from=${older}&to=${newer}`);
    const newerRoot = newer === tree ? root : fromHex(proof.to_root);
    const grown = await isConsistent(older, newer, proof.hashes.map(fromHex), fromHex(proof.from_root), newerRoot);
    // A root this server names is worth something only when the signed one begins with it.
    const sealed = newer === tree || (await consistent(newer, newerRoot, tree, root));
    if (!grown || !sealed) return [line("wrong", `The log of ${number(newer)} events does not begin with that of ${number(older)}.`)];
    return [line("ok", `The log of ${number(newer)} events begins with that of ${number(older)}, and both are the beginning of what is signed.`, `root of ${older}: ${proof.from_root}\nroot of ${newer}: ${toHex(newerRoot)}`)];
  }

  async kept({ kept }) {
    const note = parseNote(`${kept.value.trim()}\n`);
    // It may be newer than this page.
    if (note.size > this.#checkpoint.size) {
      await this.#renew();
      put(slot(this, "checks"), await this.#latest());
    }
    const { origin, size: tree, root } = this.#checkpoint;
    if (note.origin !== origin) throw new Error(`it is of ${note.origin}, and this log is ${origin}`);
    const signed = await this.#signed(note);
    if (note.size > tree) return [signed, ...this.#beyond(note, signed.dataset.check)];
    if (note.size === tree && !same(note.root, root)) return [signed, line("wrong", "Two checkpoints of the same size disagree.")];
    return [signed, (await consistent(note.size, note.root, tree, root))
      ? line("ok", `It is the beginning of this log: its ${number(note.size)} events are as they were.`)
      : line("wrong", `This log does not continue it: among its ${number(note.size)} events something was changed.`)];
  }

  /** What a checkpoint means that has more events than the log. */
  #beyond(note, signed) {
    const sizes = `it has ${number(note.size)} events, and the log has ${number(this.#checkpoint.size)} now`;
    if (signed === "ok") return [line("wrong", `The log has become shorter since this checkpoint was signed: ${sizes}.`)];
    return signed === "wrong" ? [] : [line("open", `If its signature holds, the log has become shorter: ${sizes}.`)];
  }
}

customElements.define("mp-integrity", Integrity);
