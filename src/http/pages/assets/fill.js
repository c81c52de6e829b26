// Fills the slots of markup the server rendered. Text only ever goes in as text.

import { duration, full, now, number, spoken, time } from "./format.js";

const words = new Map();
for (const entry of document.getElementById("words")?.content.children ?? []) {
  words.set(entry.getAttribute("value"), entry.textContent);
}

/** The word for a key; the table is words.rs, carried along by the page. */
export const word = (key) => words.get(key) ?? "";

const people = new Map();
for (const entry of document.getElementById("people")?.content.children ?? []) {
  people.set(entry.getAttribute("value"), entry.textContent);
}

/** Who did something, by the name people know them by; events have an id. */
export const who = (actor) => people.get(actor) ?? actor;

export const slot = (root, name) => root.querySelector(`[data-slot="${name}"]`);

export function text(element, value) {
  const next = value ?? "";
  if (element && element.textContent !== String(next)) element.textContent = next;
}

export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

export function show(element, shown) {
  if (element && element.hidden === Boolean(shown)) element.hidden = !shown;
}

/** Fills a slot and shows the pair it stands in when there is something to show. */
export function pair(root, name, value) {
  const element = slot(root, name);
  text(element, value);
  show(element?.closest("[hidden], .pair, [data-slot$='-pair'], dl > div"), Boolean(value));
}

export function copy(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** Says something to those who listen rather than look. */
export function announce(words) {
  said.push(words);
  clearTimeout(saying);
  saying = setTimeout(() => {
    const line = said.length > 3 ? `${said.length} changes. ${said.at(-1)}` : said.join(". ");
    said.length = 0;
    text(document.getElementById("announcer"), line);
  }, 400);
}
const said = [];
let saying = 0;

export function setClock(clock, kind, ms, from) {
  if (!clock) return;
  attribute(clock, "data-clock", kind ?? "");
  attribute(clock, "data-ms", kind ? ms : 0);
  if (kind === "up" || kind === "down") {
    attribute(clock, "datetime", new Date(ms).toISOString());
    attribute(clock, "title", `${kind === "up" ? "since" : "at"} ${full(ms)}`);
    tickClock(clock);
  } else {
    attribute(clock, "datetime", kind ? `PT${ms / 1000}S` : "");
    attribute(clock, "title", kind && from ? `from ${full(from)}` : "");
    text(clock, kind ? duration(ms) : "");
  }
}

function tickClock(clock) {
  const ms = Number(clock.dataset.ms);
  text(clock, duration(clock.dataset.clock === "up" ? now() - ms : ms - now()));
}

export function setMoment(moment, iso) {
  if (!moment) return;
  attribute(moment, "datetime", iso ?? "");
  attribute(moment, "title", iso ? full(Date.parse(iso)) : "");
  text(moment, iso ? time(Date.parse(iso)) : "");
}

/** Once a second: clocks, and the step under way. */
export function tick() {
  for (const clock of document.querySelectorAll('[data-clock="up"], [data-clock="down"]')) tickClock(clock);
  for (const step of document.querySelectorAll('[data-step][data-status="active"]')) drawStep(step);
}

export function overdueAfter(list) {
  return [...list.children].map((step) => Number(step.dataset.overdueAfter) || 0);
}

/** Fills the five steps of a bar or an attempt. */
export function fillSteps(list, steps) {
  steps.forEach((step, index) => {
    const element = list.children[index];
    attribute(element, "data-started", step.started_at ? Date.parse(step.started_at) : null);
    attribute(element, "data-spent", step.duration_ms);
    attribute(element, "data-status", step.status);
    text(slot(element, "status"), word(`step.${step.status}`));
    const clock = element.querySelector(":scope > .clock");
    if (step.status === "active" && step.started_at) setClock(clock, "up", Date.parse(step.started_at));
    else if (step.status !== "pending" && step.duration_ms !== null) {
      setClock(clock, "fixed", step.duration_ms, step.started_at && Date.parse(step.started_at));
    } else setClock(clock, null);
    const track = element.querySelector(".track");
    if (step.status === "active") {
      attribute(track, "role", "progressbar");
      attribute(track, "aria-label", element.dataset.label);
      attribute(track, "aria-valuemin", 0);
      attribute(track, "aria-valuemax", 100);
    } else {
      for (const name of ["role", "aria-label", "aria-valuemin", "aria-valuemax", "aria-valuenow", "aria-valuetext"]) track.removeAttribute(name);
    }
  });
  for (const element of list.children) drawStep(element);
}

const TRACK = 1000;
const SCALE_MIN_MS = 60_000;

function spentMs(element) {
  if (element.dataset.status === "active") {
    return element.dataset.started ? Math.max(now() - Number(element.dataset.started), 0) : null;
  }
  return element.dataset.spent === undefined ? null : Number(element.dataset.spent);
}

/** The length of an attempt's tracks; the same rule as steps.rs. */
function scaleMs(list) {
  const known = [...list.children].flatMap((step) => [
    step.dataset.status === "active" ? 0 : Number(step.dataset.spent) || 0,
    Number(step.dataset.p95) || 0,
  ]);
  let scale = Math.max(SCALE_MIN_MS, ...known) * 1.1;
  const longest = Math.max(0, ...[...list.children].map((step) => spentMs(step) ?? 0));
  while (scale < longest) scale *= 2;
  return scale;
}

function drawStep(element) {
  const active = element.dataset.status === "active";
  const spent = spentMs(element);
  const p50 = Number(element.dataset.p50) || null;
  const limit = Number(element.dataset.overdueAfter) || Infinity;
  attribute(element, "data-overdue", active && spent !== null && spent > limit ? "" : null);
  const bounded = (value) => Math.round(Math.min(Math.max(value, 0), TRACK));
  const share = active ? (p50 ? bounded(((spent ?? 0) * TRACK) / p50) : TRACK / 2) : element.dataset.status === "pending" ? 0 : TRACK;
  if (element.parentElement.classList.contains("bar")) {
    attribute(element.querySelector(".spent"), "width", share);
  } else {
    const scale = scaleMs(element.parentElement);
    attribute(element.querySelector(".spent"), "width", spent === null ? 0 : bounded((spent * TRACK) / scale));
    attribute(element.querySelector(".usual"), "width", p50 ? bounded((p50 * TRACK) / scale) : 0);
    const mark = element.querySelector(".limit");
    if (mark) attribute(mark, "x", bounded((Number(element.dataset.p95) * TRACK) / scale));
  }
  if (active) speakStep(element, spent, p50, share);
}

/** Ears are told how far the step is when it begins, then every ten seconds. */
function speakStep(element, spent, p50, share) {
  const track = element.querySelector(".track");
  const label = element.dataset.label;
  const old = track.getAttribute("aria-valuetext");
  if (old?.startsWith(label) && spent !== null && Math.floor(spent / 1000) % 10 !== 0) return;
  const parts = [label, spent === null ? "" : spoken(spent), p50 ? `usually ${spoken(p50)}` : ""];
  attribute(track, "aria-valuetext", parts.filter(Boolean).join(", "));
  attribute(track, "aria-valuenow", Math.floor(share / 10));
}

export function fillStanding(root, standing) {
  const part = root.querySelector('[data-part="standing"]');
  attribute(root, "data-state", standing.state);
  const own = standing.node && word(`node.${standing.state}`);
  text(slot(part, "word"), own || word(`state.${standing.state}`));
  text(slot(part, "place"), standing.place);
  text(slot(part, "attempt"), standing.attempt);
  text(slot(part, "clock-word"), word(`clock.${standing.state}`));
  text(slot(part, "clock-after"), word(`after.${standing.state}`));
  setClock(part.querySelector(".clock"), ...standing.clock);
}

/** Fills one attempt; `job` gives what only the last one has. */
export function fillAttempt(element, attempt, job, last) {
  const list = element.querySelector(".steps");
  attribute(element, "id", `attempt-${attempt.attempt}`);
  attribute(element, "data-attempt", attempt.attempt);
  attribute(element, "data-state", attempt.status);
  text(slot(element, "number"), attempt.attempt);
  text(slot(element, "word"), word(`attempt.${attempt.status}`));
  const failed = attempt.steps.find((step) => step.status === "error");
  text(slot(element, "brief"), [failed?.label, attempt.error_code].filter(Boolean).join(" · "));
  const began = attempt.started_at && Date.parse(attempt.started_at);
  const took = slot(element, "took").querySelector(".clock");
  if (began && attempt.finished_at) setClock(took, "fixed", Date.parse(attempt.finished_at) - began, began);
  else if (began) setClock(took, "up", began);
  else setClock(took, null);
  fillSteps(list, attempt.steps);

  const waiting = last ? job.waiting_because : null;
  text(slot(element, "waiting"), waiting);
  show(slot(element, "waiting-pair"), waiting);
  const until = waiting && job.run_after;
  setClock(slot(element, "waiting-clock").querySelector(".clock"), until ? "down" : null, until && Date.parse(until));
  pair(element, "current-step", attempt.current_step);
  pair(element, "dispatcher", attempt.dispatcher);
  const started = slot(element, "started");
  setMoment(started.querySelector(".moment"), attempt.started_at);
  show(started.closest(".pair"), attempt.started_at);
  const run = slot(element, "run");
  const url = /^https?:\/\//.test(attempt.run_url ?? "") ? attempt.run_url : null;
  text(run, attempt.workflow_run_id ?? (url ? "open" : ""));
  attribute(run, "href", url);
  attribute(run, "rel", url ? "noreferrer" : null);
  show(run.closest(".pair"), attempt.workflow_run_id || url);

  fillTask(element, attempt);
  fillUndo(element, attempt.compensation);

  const failure = element.querySelector('[data-part="failure"]');
  show(failure, attempt.error_code);
  if (attempt.error_code) {
    const home = list.querySelector('[data-status="error"]');
    if (home && failure.parentElement !== home) home.append(failure);
    fillFailure(failure, attempt, job, last);
  } else if (failure.closest("li")) {
    list.after(failure);
  }
}

function fillTask(element, { task, status }) {
  const line = slot(element, "task");
  text(slot(element, "task-word"), word(status === "running" ? "task.now" : "task.last"));
  text(line, task && `TASK [${task.task}]`);
  attribute(line, "title", task?.play && `Play: ${task.play}`);
  const clock = slot(element, "task-clock").querySelector(".clock");
  setClock(clock, task && status === "running" ? "up" : null, task && Date.parse(task.started_at));
  show(slot(element, "task-pair"), task);
}

function fillUndo(element, undoing) {
  const things = (undoing?.resources ?? []).map(({ resource, id, outcome, detail }) =>
    `${resource}${id ? ` ${id}` : ""} ${word(`undo.${outcome}`)}${detail ? `: ${detail}` : ""}`);
  const line = things.join("; ") || (undoing && word(`undo-all.${undoing.status}`));
  text(slot(element, "undo"), line);
  const next = undoing?.next_try_at && Date.parse(undoing.next_try_at);
  text(slot(element, "undo-word"), next && word(`undo-next.${undoing.status}`));
  setClock(slot(element, "undo-clock").querySelector(".clock"), next ? "down" : null, next);
  const pair = slot(element, "undo-pair");
  attribute(pair, "data-undo", undoing?.status ?? "");
  show(pair, line);
}

function fillFailure(failure, attempt, job, last) {
  text(slot(failure, "code"), attempt.error_code);
  text(slot(failure, "phase"), attempt.failed_step);
  show(slot(failure, "phase-pair"), attempt.failed_step);
  text(slot(failure, "message"), attempt.error_message);
  show(slot(failure, "truncated"), last && job.error_truncated);
  text(slot(failure, "server"), attempt.server_id);
  show(slot(failure, "server-pair"), attempt.server_id && !attempt.compensation);
  const retry = last && attempt.retry_at ? Date.parse(attempt.retry_at) : null;
  const next = !last ? "followed" : retry ? "retry" : attempt.status === "cancelled" ? "cancelled" : "none";
  text(slot(failure, "next"), word(`next.${next}`));
  setClock(slot(failure, "next-clock").querySelector(".clock"), retry ? "down" : null, retry);
}

const SUMMARY_CHARS_MAX = 120;

/** The page of what an event is about: an agent's, a node's, else the overview. */
const subject = ({ agent_id: agent, node_id: node }) => (agent ? `/agents/${agent}` : node ? `/nodes/${node}` : "/");

/** Fills one event; `fields` are those that say most, as the server lists them. */
export function fillEvent(element, event, fields) {
  const { data, metadata } = event;
  const plain = (value) => typeof value === "number" || (typeof value === "string" && value !== "");
  const anchor = `e${event.position}`;
  attribute(element, "id", anchor);
  attribute(element, "data-position", event.position);
  attribute(slot(element, "position"), "href", `/events/${event.position}`);
  attribute(slot(element, "then"), "href", `${subject(data)}?at=${event.position}`);
  text(slot(element, "position"), `#${number(event.position)}`);
  text(slot(element, "kind"), event.type);
  const summary = fields.map((field) => data[field]).filter(plain).map(who).join(" · ");
  text(slot(element, "summary"), [...summary].slice(0, SUMMARY_CHARS_MAX).join(""));
  show(slot(element, "signed"), metadata.key_id);
  text(slot(element, "actor"), who(metadata.actor));
  setMoment(slot(element, "at").querySelector(".moment"), event.recorded_at);
  text(slot(element, "id"), `${event.epoch}-${event.position}`);
  text(slot(element, "stream"), event.stream);
  text(slot(element, "version"), event.version);
  text(slot(element, "cause"), who(metadata.actor));
  text(slot(element, "form"), metadata.signature_form);
  pair(element, "key", metadata.key_id);
  pair(element, "delivery", metadata.delivery_id);
  pair(element, "attempt", metadata.attempt);
  text(slot(element, "data"), JSON.stringify(data, null, 2));
  text(slot(element, "metadata"), JSON.stringify(metadata, null, 2));
}
