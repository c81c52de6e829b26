// The colours of a printed line. The sixteen are classes, in the page's own tones; every other
// one is set by the object model, moved towards black or white as far as it takes to be read.

const ESCAPE = /\u001b\[([0-9;:]*)m/g;
const LEVELS = [0, 95, 135, 175, 215, 255];

/** The grounds of log.css in light and dark: --sunk in tokens.css. */
const GROUNDS = [[0xee, 0xee, 0xea], [0x0b, 0x0e, 0x10]];
const BLACK = [0, 0, 0];
const WHITE = [255, 255, 255];
const CONTRAST_MIN = 4.5;

/** A line as nodes; whatever it says goes in as text. */
export function coloured(line) {
  const nodes = document.createDocumentFragment();
  let look = {};
  let at = 0;
  for (const escape of line.matchAll(ESCAPE)) {
    add(nodes, line.slice(at, escape.index), look);
    look = after(look, escape[1]);
    at = escape.index + escape[0].length;
  }
  add(nodes, line.slice(at), look);
  return nodes;
}

function add(nodes, text, look) {
  if (!text) return;
  const { colour, ground } = look.inverse ? { colour: look.ground, ground: look.colour } : look;
  const names = ["bold", "dim", "italic", "under"].filter((name) => look[name]);
  if (look.inverse && ground === undefined) names.push("inverse");
  if (typeof colour === "number") names.push(`f${colour}`);
  if (typeof ground === "number") names.push(`b${ground}`, "on");
  if (names.length === 0 && !colour && !ground) return nodes.append(text);
  const span = document.createElement("span");
  span.className = names.join(" ");
  span.textContent = text;
  if (Array.isArray(ground)) {
    span.style.setProperty("background-color", css(ground));
    span.style.setProperty("color", css(contrast(ground, BLACK) > contrast(ground, WHITE) ? BLACK : WHITE));
  } else if (Array.isArray(colour) && ground === undefined) {
    span.style.setProperty("color", readable(colour));
  }
  nodes.append(span);
}

function after(before, numbers) {
  let look = { ...before };
  const list = numbers.split(/[;:]/).map(Number);
  while (list.length) {
    const n = list.shift();
    if (n === 0) look = {};
    else if (n === 1) look.bold = true;
    else if (n === 2) look.dim = true;
    else if (n === 3) look.italic = true;
    else if (n === 4) look.under = true;
    else if (n === 7) look.inverse = true;
    else if (n === 22) look.bold = look.dim = false;
    else if (n === 23) look.italic = false;
    else if (n === 24) look.under = false;
    else if (n === 27) look.inverse = false;
    else if (n >= 30 && n <= 37) look.colour = n - 30;
    else if (n === 38) look.colour = extended(list);
    else if (n === 39) look.colour = undefined;
    else if (n >= 40 && n <= 47) look.ground = n - 40;
    else if (n === 48) look.ground = extended(list);
    else if (n === 49) look.ground = undefined;
    else if (n >= 90 && n <= 97) look.colour = n - 82;
    else if (n >= 100 && n <= 107) look.ground = n - 92;
  }
  return look;
}

/** One of 256 colours, or red, green and blue; a number for the sixteen. */
function extended(list) {
  const kind = list.shift();
  if (kind === 2) {
    const channels = list.splice(0, 3);
    return channels.length === 3 ? channels.map((it) => Math.min(it || 0, 255)) : undefined;
  }
  if (kind !== 5 || list.length === 0) return undefined;
  const index = Math.min(list.shift() || 0, 255);
  if (index < 16) return index;
  if (index > 231) return Array(3).fill(8 + 10 * (index - 232));
  return [36, 6, 1].map((step) => LEVELS[Math.floor((index - 16) / step) % 6]);
}

/** Colours remembered: a run that prints every one of 16 million must not keep them all. */
const KNOWN_MAX = 1_024;
const known = new Map();

function readable(colour) {
  const key = colour.join();
  if (!known.has(key)) {
    if (known.size >= KNOWN_MAX) known.clear();
    const [light, dark] = GROUNDS.map((ground, dark) => css(towards(colour, dark ? WHITE : BLACK, ground)));
    known.set(key, `light-dark(${light}, ${dark})`);
  }
  return known.get(key);
}

function towards(colour, end, ground) {
  let best = colour;
  for (let part = 0.1; contrast(best, ground) < CONTRAST_MIN; part += 0.1) {
    best = colour.map((channel, index) => Math.round(channel + (end[index] - channel) * Math.min(part, 1)));
  }
  return best;
}

/** Source: WCAG 2.2, relative luminance and contrast ratio. */
function contrast(one, other) {
  const [more, less] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (more + 0.05) / (less + 0.05);
}

function luminance(colour) {
  const [red, green, blue] = colour.map((channel) => {
    const value = channel / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

const css = (colour) => `rgb(${colour.join(" ")})`;
