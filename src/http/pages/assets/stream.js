// The stream: one EventSource for all tabs of a browser, since HTTP/1.1 gives an origin six
// connections. The tab that holds the lock leads: it opens the union of what all tabs want and
// passes every message on. Without locks (plain HTTP from afar) each tab leads for itself.

import { announce, slot, text } from "./fill.js";
import { learnTime, now, number, time } from "./format.js";

const STREAM = "/api/stream";
const SESSION = "/api/session";
const NAME = "milepost-stream";

/** Bookmarks come every 5 s: after this long without a word, the connection is dead. */
const SILENCE_MS = 12_000;
/** A leading tab says how it is this often; one that says nothing for longer has been frozen. */
const LEADER_WORD_MS = 4_000;
const LEADER_DEAD_MS = 15_000;
/** Tabs answer a roll call well within this. */
const ROLL_MS = 60;
const BACKOFF_FIRST_MS = 1_000;
const BACKOFF_MAX_MS = 30_000;
/** A log that keeps beginning anew must not keep a page reloading. */
const RELOAD_MIN_MS = 10_000;

const EVENTS = ["instance", "job", "node", "log", "recorded", "bookmark", "reset"];
const TOPICS = ["agent", "job", "node", "log", "events"];

const me = `${Math.random()}`.slice(2);
const channel = "BroadcastChannel" in self ? new BroadcastChannel(NAME) : null;
const canShare = Boolean(channel && navigator.locks);

/** What this tab wants, has seen, and knows of the connection. */
let page = null;
let wants = {};
let receive = () => {};
let epoch = 0;
/** Everything up to here has been seen by this tab. */
let seen = 0;
let newest = 0;
let heardAt = Date.now();
let leaderAt = Date.now();
/** `connecting`, `catching-up`, `live`, `waiting`, `signed-out`; `nextTry` while waiting. */
let link = { state: "connecting", caughtUp: 0, nextTry: 0 };

/** What the leading tab knows besides. */
let leading = false;
let release = () => {};
let source = null;
let openedAt = 0;
let tabs = new Map();
let opened = "";
let failures = 0;
let retryTimer = 0;
let rollTimer = 0;

/** The log's size as far as this tab was told. */
export const head = () => newest;

/** Follows those topics; `update` changes them. */
export function subscribe(topics, handler) {
  wants = topics;
  receive = handler;
  sayWants();
  return {
    update(changed) {
      wants = changed;
      sayWants();
    },
    close() {
      wants = {};
      receive = () => {};
      sayWants();
    },
  };
}

function sayWants() {
  if (!page) return;
  const mine = { wants, since: seen };
  if (leading) tabWants(me, mine);
  else post({ kind: "wants", tab: me, mine });
}

function post(message) {
  if (canShare) channel.postMessage(message);
}

function start() {
  link = { state: "connecting", caughtUp: 0, nextTry: 0 };
  leaderAt = Date.now();
  if (!canShare) return lead();
  sayWants();
  requestLead({});
}

function requestLead(options) {
  navigator.locks
    .request(NAME, options, () => {
      lead();
      return new Promise((resolve) => (release = resolve));
    })
    .catch(() => {
      // Another tab took over while this one was frozen.
      unlead();
      if (page) requestLead({});
    });
}

function lead() {
  leading = true;
  failures = 0;
  roll();
}

function unlead() {
  leading = false;
  closeSource();
  clearTimeout(retryTimer);
  clearTimeout(rollTimer);
}

/** Asks all tabs what they want, then opens the stream for it. */
function roll() {
  tabs = new Map([[me, { wants, since: seen }]]);
  setLink({ state: "connecting" });
  post({ kind: "roll" });
  clearTimeout(retryTimer);
  clearTimeout(rollTimer);
  rollTimer = setTimeout(open, ROLL_MS);
}

function tabWants(tab, mine) {
  tabs.set(tab, mine);
  // A tab that is behind needs what the others have; they know what they have seen.
  if (source && union().join() === opened && mine.since >= seen) return;
  if (link.state === "waiting" || link.state === "signed-out") return;
  clearTimeout(rollTimer);
  rollTimer = setTimeout(open, ROLL_MS);
}

/** The topics of all tabs, each once, in a fixed order. */
function union() {
  const parts = new Set();
  for (const { wants: theirs } of tabs.values()) {
    for (const topic of TOPICS) for (const id of theirs[topic] ?? []) parts.add(`${topic}=${encodeURIComponent(id)}`);
  }
  return [...parts].sort();
}

function open() {
  closeSource();
  const topics = union();
  if (!leading || topics.length === 0) return;
  opened = topics.join();
  const since = Math.min(seen, ...[...tabs.values()].map((tab) => tab.since));
  setLink({ state: "connecting", caughtUp: 0 });
  openedAt = Date.now();
  const mine = new EventSource(`${STREAM}?${topics.join("&")}&since=${epoch}-${since}`);
  source = mine;
  for (const event of EVENTS) {
    mine.addEventListener(event, ({ data, lastEventId }) => {
      if (source !== mine) return;
      const message = { kind: "message", event, data, id: lastEventId };
      post(message);
      deliver(message);
    });
  }
  mine.addEventListener("error", () => source === mine && fail());
}

function closeSource() {
  source?.close();
  source = null;
}

/** The connection is gone. An EventSource does not say why, so the session is asked for. */
async function fail() {
  closeSource();
  failures += 1;
  const most = Math.min(BACKOFF_FIRST_MS * 2 ** (failures - 1), BACKOFF_MAX_MS);
  retryIn(most * (0.5 + Math.random() / 2));
  if (await signedOut()) {
    clearTimeout(retryTimer);
    setLink({ state: "signed-out" });
  }
}

function retryIn(ms) {
  setLink({ state: "waiting", nextTry: Date.now() + ms });
  clearTimeout(retryTimer);
  retryTimer = setTimeout(roll, ms);
}

async function signedOut() {
  try {
    const answer = await fetch(SESSION, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    return answer.status === 401;
  } catch {
    return false;
  }
}

function setLink(change) {
  link = { ...link, ...change };
  post({ kind: "link", link });
  page?.show();
}

/** A message for this tab, from its own connection or from the leading tab's. */
function deliver({ event, data, id }) {
  const [, position] = id.split("-").map(Number);
  heardAt = Date.now();
  const message = { event, data: JSON.parse(data) };
  if (event === "reset") return begunAnew(message.data);
  newest = Math.max(newest, position || 0);
  if (event === "bookmark") {
    learnTime(Date.parse(message.data.at));
    seen = Math.max(seen, message.data.position);
  } else {
    receive(message);
    if (event === "recorded" || event === "log") seen = Math.max(seen, position);
  }
  if (leading) {
    failures = 0;
    if (event === "bookmark") {
      if (link.state !== "live") setLink({ state: "live" });
    } else if (link.state !== "live") {
      setLink({ state: "catching-up", caughtUp: link.caughtUp + (event === "recorded" ? 1 : 0) });
    }
  }
  page?.soon();
}

function begunAnew({ epoch: other }) {
  const last = Number(sessionStorage.getItem("milepost.reload") ?? 0);
  if (other === epoch && Date.now() - last < RELOAD_MIN_MS) return;
  sessionStorage.setItem("milepost.reload", `${Date.now()}`);
  location.reload();
}

/** Looks after the connection: in time when it falls silent, at once when the tab or the network
    comes back. */
function watch() {
  if (leading) {
    if (source && Date.now() - Math.max(heardAt, openedAt) > SILENCE_MS) fail();
  } else if (canShare && !document.hidden && Date.now() - leaderAt > LEADER_DEAD_MS) {
    leaderAt = Date.now();
    requestLead({ steal: true });
  }
}

function cameBack() {
  if (document.hidden || !page) return;
  if (!leading) return sayWants();
  const silent = Date.now() - heardAt > SILENCE_MS;
  if (link.state === "signed-out") {
    signedOut().then((still) => still || roll());
  } else if (link.state === "waiting" || silent) {
    failures = 0;
    roll();
  }
}

channel?.addEventListener("message", ({ data: said }) => {
  if (!page) return;
  if (said.kind === "roll") post({ kind: "wants", tab: me, mine: { wants, since: seen } });
  if (said.kind === "wants" && leading) tabWants(said.tab, said.mine);
  if (said.kind === "bye" && leading) tabs.delete(said.tab);
  if (leading) return;
  if (said.kind === "message" || said.kind === "link") leaderAt = Date.now();
  if (said.kind === "message") deliver(said);
  if (said.kind === "link") {
    link = said.link;
    page.show();
  }
});

/** Shows how fresh the page is. */
class Stream extends HTMLElement {
  #soon = 0;
  #timers = [];
  #wasLive = true;

  connectedCallback() {
    page = this;
    epoch = Number(this.dataset.epoch);
    seen = newest = Number(this.dataset.position);
    const [loaded] = performance.getEntriesByType("navigation");
    const age = performance.now() - (loaded?.responseStart ?? performance.now());
    learnTime(Number(this.dataset.now) + age);
    heardAt = Date.now() - age;
    this.#timers = [
      setInterval(() => document.hidden || this.show(), 1000),
      setInterval(watch, 1000),
      setInterval(() => leading && post({ kind: "link", link }), LEADER_WORD_MS),
    ];
    document.addEventListener("visibilitychange", cameBack);
    addEventListener("online", cameBack);
    addEventListener("pagehide", this.#leave);
    addEventListener("pageshow", this.#return);
    start();
  }

  disconnectedCallback() {
    this.#leave();
    this.#timers.forEach(clearInterval);
  }

  /** A page that is left, or frozen in the history, lets another tab lead. */
  #leave = () => {
    post({ kind: "bye", tab: me });
    page = null;
    if (leading) {
      unlead();
      release();
    }
  };

  #return = ({ persisted }) => {
    if (!persisted) return;
    page = this;
    start();
  };

  soon() {
    this.#soon ||= setTimeout(() => {
      this.#soon = 0;
      this.show();
    }, 200);
  }

  show() {
    // A page that follows nothing is as old as it was when it was made, and says so.
    if (!Object.values(wants).some((ids) => ids.length > 0)) return;
    const age = Date.now() - heardAt;
    const again = Math.max(Math.ceil((link.nextTry - Date.now()) / 1000), 0);
    const [state, words] = freshness(age, again);
    if (this.dataset.state !== state) this.dataset.state = state;
    text(slot(this, "fresh"), words);
    this.title = `Position ${number(newest)} of the log; last word from the server at ${time(now() - age)} UTC`;
    const login = slot(this, "log-in");
    if (login) {
      login.hidden = state !== "signed-out";
      login.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    }
    this.#tell(state);
  }

  #tell(state) {
    if (this.#wasLive && (state === "stale" || state === "signed-out")) announce(state === "stale" ? "The connection is lost; this page is stale" : "Signed out");
    if (!this.#wasLive && state === "live") announce("Live again");
    if (["live", "stale", "signed-out"].includes(state)) this.#wasLive = state === "live";
  }
}

function freshness(age, again) {
  if (link.state === "signed-out") return ["signed-out", "signed out"];
  const since = `stale since ${time(now() - age)}`;
  const next = again > 0 ? `reconnecting in ${again} s` : "reconnecting";
  if (age > SILENCE_MS) return ["stale", `${since} · ${next}`];
  if (link.state === "waiting") return ["reconnecting", next];
  if (link.state === "catching-up") return ["catching-up", `catching up (${number(link.caughtUp)} events)`];
  if (link.state === "connecting") return ["connecting", "connecting"];
  return ["live", `live · #${number(newest)} · ${(age / 1000).toFixed(1)} s`];
}

customElements.define("mp-stream", Stream);
