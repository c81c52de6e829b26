// The overview follows every agent and the queue: rows are filled in place, and move only when a
// state changes.

import { announce, attribute, copy, fillStanding, fillSteps, overdueAfter, setMoment, slot, text, word } from "./fill.js";
import { number } from "./format.js";
import { refresher } from "./refresh.js";
import { ofAgent } from "./standing.js";
import { subscribe } from "./stream.js";

/** States worth a word to those who listen. */
const TOLD = ["failed", "overdue", "silent", "waiting", "retry_scheduled", "succeeded", "cancelled"];

class Overview extends HTMLElement {
  #answers = new Map();
  #changed = new Map();
  #flushing = 0;
  #subscription = null;
  /** Somebody stopped the queue, or let it go on: the server says what stands there now. */
  #queueChanged = refresher("/", "aside.queue", (now) => {
    this.querySelector("aside.queue").replaceChildren(...now.childNodes);
    announce(this.querySelector(".paused strong")?.textContent ?? "The queue goes on.");
  });

  connectedCallback() {
    this.groups = [...this.querySelectorAll(".group")].map((element) => ({
      element,
      states: element.dataset.states.split(" "),
      rows: element.querySelector(".rows"),
    }));
    this.filter = this.querySelector("#filter");
    this.filter.value = new URLSearchParams(location.search).get("q") ?? "";
    this.filter.addEventListener("input", () => this.#filtered());
    if (this.filter.value) this.#filtered();
    // Who may not read events would get no stream at all with them.
    const { queue } = this.dataset;
    const topics = { agent: ["all"], events: queue ? [queue] : [] };
    this.#subscription = subscribe(topics, (message) => this.#receive(message));
    document.addEventListener("milepost:tick", this.#tick);
  }

  disconnectedCallback() {
    this.#subscription.close();
    document.removeEventListener("milepost:tick", this.#tick);
  }

  #receive({ event, data }) {
    if (event === "recorded") return this.#queueChanged();
    if (event !== "instance") return;
    // Only the newest state of each agent matters, however many came since the last frame.
    this.#changed.set(data.agent.id, data);
    this.#flushing ||= setTimeout(() => this.#flush(), 16);
  }

  #flush() {
    this.#flushing = 0;
    const changed = [...this.#changed.values()];
    this.#changed.clear();
    for (const answer of changed) this.#update(answer);
    this.#count();
  }

  #update(answer) {
    const id = answer.agent.id;
    let row = document.getElementById(`agent-${id}`);
    const known = Boolean(row);
    if (known && Number(row.dataset.position) > answer.position) return;
    row ??= copy("row");
    const before = row.dataset.state;
    this.#answers.set(id, answer);
    this.#fill(row, answer);
    this.#place(row);
    if (!known) row.classList.add("fresh-row");
    if (known && before !== row.dataset.state) this.#tell(row, answer);
    if (this.filter.value) this.#match(row);
  }

  #fill(row, answer) {
    const { agent, instance } = answer;
    const page = `/agents/${agent.id}`;
    attribute(row, "id", `agent-${agent.id}`);
    attribute(row, "data-agent", agent.id);
    attribute(row, "data-position", answer.position);
    attribute(row, "data-ordered", Date.parse(instance?.created_at ?? agent.created_at));
    text(slot(row, "name"), agent.name);
    attribute(slot(row, "name"), "href", page);
    text(slot(row, "name-again"), agent.name);
    text(slot(row, "region"), instance?.region ?? agent.region);
    text(slot(row, "position"), `#${number(answer.position)}`);
    attribute(slot(row, "position"), "href", `${page}#e${answer.position}`);
    const updated = [agent.updated_at, instance?.updated_at].filter(Boolean).map(Date.parse);
    setMoment(slot(row, "at").querySelector(".moment"), new Date(Math.max(...updated)).toISOString());
    const provision = slot(row, "provision");
    if (provision) attribute(provision, "action", `${page}/provision`);
    fillSteps(row.querySelector(".bar"), answer.steps);
    this.#stand(row, answer);
  }

  #stand(row, answer) {
    const after = overdueAfter(row.querySelector(".bar"));
    fillStanding(row, ofAgent(answer, after, Number(this.dataset.silentAfter)));
  }

  /** Puts a row where its state belongs, if it is not there, and keeps the focus in it. */
  #place(row) {
    const group = this.groups.find(({ states }) => states.includes(row.dataset.state));
    if (!group) return;
    const before = (a, b) => {
      const rank = (it) => group.states.indexOf(it.dataset.state);
      return rank(a) - rank(b) || Number(b.dataset.ordered) - Number(a.dataset.ordered);
    };
    const { previousElementSibling: above, nextElementSibling: below } = row;
    const placed = row.parentElement === group.rows && (!above || before(above, row) <= 0) && (!below || before(row, below) <= 0);
    if (placed) return;
    const next = [...group.rows.children].find((other) => other !== row && before(row, other) < 0) ?? null;
    const focused = row.contains(document.activeElement) ? document.activeElement : null;
    group.rows.insertBefore(row, next);
    focused?.focus({ preventScroll: true });
  }

  #tell(row, answer) {
    const { state } = row.dataset;
    if (TOLD.includes(state)) announce(`${answer.agent.name}: ${word(`state.${state}`)}`);
  }

  #count() {
    let all = 0;
    for (const { element, rows } of this.groups) {
      const count = rows.childElementCount;
      const shown = this.querySelector(`[data-count="${element.id}"]`);
      all += count;
      attribute(element, "data-zero", count ? null : "");
      attribute(shown, "data-zero", count ? null : "");
      text(slot(shown, "count"), count);
    }
    if (all) this.removeAttribute("data-empty");
    const needy = this.groups[0].rows.childElementCount;
    document.title = `${needy ? `(${needy}) ` : ""}Agents · Milepost`;
  }

  /** Time alone can make a job overdue, or a workflow silent. */
  #tick = () => {
    let moved = false;
    for (const row of this.querySelectorAll('.row:is([data-state="queued"], [data-state="dispatching"], [data-state="running"])')) {
      const answer = this.#answers.get(row.dataset.agent);
      if (!answer) continue;
      const before = row.dataset.state;
      this.#stand(row, answer);
      if (before === row.dataset.state) continue;
      this.#place(row);
      this.#tell(row, answer);
      moved = true;
    }
    if (moved) this.#count();
  };

  #filtered() {
    const wanted = this.filter.value.trim();
    // A page of the past stays there.
    const address = new URL(location.href);
    if (wanted) address.searchParams.set("q", wanted);
    else address.searchParams.delete("q");
    history.replaceState(null, "", address);
    for (const row of this.querySelectorAll(".row")) this.#match(row);
    const some = Boolean(this.querySelector(".row:not([hidden])"));
    this.querySelector("#filter-none").hidden = some || !wanted;
  }

  #match(row) {
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/);
    const said = ["name", "region", "word", "place"].map((name) => slot(row, name).textContent);
    const all = `${said.join(" ")} ${row.dataset.agent}`.toLowerCase();
    row.hidden = !wanted.every((part) => all.includes(part));
  }
}

customElements.define("mp-overview", Overview);
