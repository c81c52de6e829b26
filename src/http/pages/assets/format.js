// Durations, times and numbers, written as the server writes them (format.rs), and its clock.

const SAMPLES_MAX = 12;
const samples = [];

/** Learns the server's time from a message; the quickest of the last few is nearest to it. */
export function learnTime(serverMs) {
  samples.push(serverMs - Date.now());
  if (samples.length > SAMPLES_MAX) samples.shift();
}

/** The server's time, in milliseconds since 1970. */
export function now() {
  return Date.now() + (samples.length ? Math.max(...samples) : 0);
}

const two = (value) => String(value).padStart(2, "0");

export function duration(ms) {
  const s = Math.floor(Math.max(ms, 0) / 1000);
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`;
  if (s < 86400) return `${Math.floor(s / 3600)}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function spoken(ms) {
  const s = Math.floor(Math.max(ms, 0) / 1000);
  const parts = [[Math.floor(s / 3600), "hour"], [Math.floor((s % 3600) / 60), "minute"], [s % 60, "second"]];
  const said = parts.filter(([n]) => n > 0).map(([n, unit]) => `${n} ${unit}${n === 1 ? "" : "s"}`);
  return said.join(" ") || "0 seconds";
}

export function number(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export function time(ms) {
  const at = new Date(ms);
  const clock = at.toISOString().slice(11, 19);
  if (at.toISOString().slice(0, 10) === new Date(now()).toISOString().slice(0, 10)) return clock;
  return `${at.getUTCDate()} ${MONTHS[at.getUTCMonth()]} ${clock.slice(0, 5)}`;
}

export function full(ms) {
  return `${new Date(ms).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}
