// The stream: one EventSource for all tabs of a browser, since HTTP/1.1 gives an origin six
// connections. The tab that holds the lock leads: it opens the union of what all tabs want and
// passes every message on. Without locks (plain HTTP from afar) each tab leads for itself.

import { announce, slot, text } from "./fill.js";
import { learnTime, now, number, time } from "./format.js";

const STREAM = "/api/stream";
const SESSION = "/api/session";
/** Scripts of another version may speak otherwise: the tabs of each version share a stream. */
const NAME = `milepost-stream ${import.meta.url}`;

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
/** Topics one connection may carry: WANTS_MAX in subscription.rs. */
const TOPICS_MAX = 64;

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
let heardAt = Date.now();
let leaderAt = Date.now();
/** `connecting`, `catching-up`, `live`, `waiting`, `signed-out`; `nextTry` while waiting; `carries`
    are the tabs whose topics the connection has. */
const BEGINNING = { state: "connecting", caughtUp: 0, nextTry: 0, carries: [] };
let link = BEGINNING;

/** What the leading tab knows besides. */
let leading = false;
let release = () => {};
let source = null;
/** When the connection was opened, or last said something. */
let spokenAt = 0;
/** What each tab wants, and has seen before the connection carried it; who spoke last stands last. */
let tabs = new Map();
let opened = "";
/** Everything up to here has been said by the connection, beginning where it resumed. */
let reached = Infinity;
let failures = 0;
let retryTimer = 0;
let rollTimer = 0;

/** The log's size as far as this tab was told. */
export const head = () => seen;

/** Follows those topics; `update` changes them. */
export function subscribe(topics, handler) {
  receive = handler;
  want(topics);
  return {
    update: want,
    close() {
      receive = () => {};
      want({});
    },
  };
}

/** Other topics: until the leading tab says that the connection has them, it has them not. */
function want(topics) {
  wants = topics;
  link = { ...link, carries: link.carries.filter((tab) => tab !== me) };
  sayWants();
}

/** What this tab has to say for itself. */
const own = () => ({ wants, since: seen, hidden: document.hidden });

function sayWants() {
  if (!page) return;
  if (leading) tabWants(me, own());
  else post({ kind: "wants", tab: me, mine: own() });
}

function post(message) {
  if (canShare) channel.postMessage(message);
}

function start() {
  link = BEGINNING;
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
  tabs = new Map([[me, own()]]);
  reached = Infinity;
  setLink({ state: "connecting" });
  post({ kind: "roll" });
  clearTimeout(retryTimer);
  clearTimeout(rollTimer);
  rollTimer = setTimeout(open, ROLL_MS);
}

function tabWants(tab, mine) {
  tabs.delete(tab);
  tabs.set(tab, mine);
  const { topics, carries } = union();
  // A tab that is behind needs what the others have; they know what they have seen.
  if (source && topics.join() === opened && mine.since >= reached) {
    if (!carries.includes(tab)) return;
    mine.since = Infinity;
    return setLink({ carries: [...new Set([...link.carries, tab])] });
  }
  if (link.state === "waiting") return;
  // Somebody may have logged in again, over there.
  if (link.state === "signed-out") return lookAgain();
  clearTimeout(rollTimer);
  rollTimer = setTimeout(open, ROLL_MS);
}

/** The topics of all tabs, each once, in a fixed order, and the tabs they are of. Where that is more
    than one connection may carry, those that are looked at go first, then those that spoke last;
    the others say again what they want when they are looked at. */
function union() {
  const topics = new Set();
  const carries = [];
  const latest = [...tabs].reverse().sort(([, one], [, other]) => one.hidden - other.hidden);
  for (const [tab, { wants: theirs }] of latest) {
    // A page that has not said yet what it follows is told nothing.
    if (!TOPICS.some((topic) => theirs[topic]?.length)) continue;
    const wider = new Set(topics);
    for (const topic of TOPICS) for (const id of theirs[topic] ?? []) wider.add(`${topic}=${encodeURIComponent(id)}`);
    if (wider.size > TOPICS_MAX) continue;
    for (const topic of wider) topics.add(topic);
    carries.push(tab);
  }
  return { topics: [...topics].sort(), carries };
}

function open() {
  closeSource();
  const { topics, carries } = union();
  if (!leading || topics.length === 0) return;
  opened = topics.join();
  const before = reached;
  reached = Math.min(reached, ...carries.map((tab) => tabs.get(tab).since));
  // From here on those tabs are told everything: only how far the others were still matters.
  for (const [tab, they] of tabs) they.since = carries.includes(tab) ? Infinity : Math.min(they.since, before);
  setLink({ state: "connecting", caughtUp: 0, carries });
  spokenAt = Date.now();
  const mine = new EventSource(`${STREAM}?${topics.join("&")}&since=${epoch}-${reached}`);
  source = mine;
  for (const event of EVENTS) {
    mine.addEventListener(event, ({ data, lastEventId }) => {
      if (source !== mine) return;
      const message = { kind: "message", event, data, id: lastEventId };
      post(message);
      deliver(message);
      advance(message);
    });
  }
  mine.addEventListener("error", () => source === mine && fail());
}

/** What a message says of the connection. */
function advance({ event, id }) {
  if (event === "reset") return;
  spokenAt = Date.now();
  failures = 0;
  reached = Math.max(reached, positionOf(id));
  if (link.state === "live") return;
  if (event === "bookmark") setLink({ state: "live" });
  else setLink({ state: "catching-up", caughtUp: link.caughtUp + (event === "recorded" ? 1 : 0) });
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

function lookAgain() {
  signedOut().then((still) => still || !leading || roll());
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

/** A message from this tab's own connection or from the leading tab's. */
function deliver({ event, data, id }) {
  // What comes before the connection has this tab's topics says nothing of them.
  if (!link.carries.includes(me)) return;
  heardAt = Date.now();
  const message = { event, data: JSON.parse(data) };
  if (event === "reset") return begunAnew(message.data);
  if (event === "bookmark") learnTime(Date.parse(message.data.at));
  else if (event !== "recorded" || follows(message.data)) receive(message);
  seen = Math.max(seen, positionOf(id));
  page?.soon();
}

/** Up to where everything has been said with the message of that id. */
const positionOf = (id) => Number(id.split("-")[1]);

/** Whether an event is of those that this tab wants, and not only another one: the same rule as
    subscription.rs. All that is told of a job stands in its own stream. */
function follows({ stream, type, data }) {
  const ids = wants.events ?? [];
  if (ids.includes("all") || ids.includes(stream)) return true;
  // What a run prints is no event of its agent or its node.
  return type !== "JobLogRecorded" && (ids.includes(data.agent_id) || ids.includes(data.node_id));
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
    if (source && Date.now() - spokenAt > SILENCE_MS) fail();
  } else if (canShare && !document.hidden && Date.now() - leaderAt > LEADER_DEAD_MS) {
    leaderAt = Date.now();
    requestLead({ steal: true });
  }
}

function cameBack() {
  if (document.hidden || !page) return;
  sayWants();
  if (!leading || link.state === "signed-out") return;
  if (link.state === "waiting" || Date.now() - spokenAt > SILENCE_MS) {
    failures = 0;
    roll();
  }
}

channel?.addEventListener("message", ({ data: said }) => {
  if (!page) return;
  if (said.kind === "roll") post({ kind: "wants", tab: me, mine: own() });
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
    seen = Number(this.dataset.position);
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
    this.title = `Position ${number(seen)} of the log; last word from the server at ${time(now() - age)} UTC`;
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
  if (link.state === "connecting" || !link.carries.includes(me)) return ["connecting", "connecting"];
  return ["live", `live · #${number(seen)} · ${(age / 1000).toFixed(1)} s`];
}

customElements.define("mp-stream", Stream);
