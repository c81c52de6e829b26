// The page of an agent, a node or a job follows it: its line, its attempts, its facts and its events.

import { announce, attribute, copy, fillAttempt, fillEvent, fillStanding, overdueAfter, slot, text, who, word } from "./fill.js";
import { full } from "./format.js";
import { ofAgent, ofJob } from "./standing.js";
import { subscribe } from "./stream.js";

/** Events the server puts on the page: EVENTS_SHOWN in handlers.rs. */
const EVENTS_SHOWN = 200;
/** Events kept on the page; older ones stay behind the link. */
const EVENTS_MAX = 500;

class Follow extends HTMLElement {
  #agent = null;
  #job = null;
  #subscription = null;
  #told = "";

  connectedCallback() {
    this.events = this.querySelector(".event-list");
    this.fields = this.events.dataset.summary.split(" ");
    this.heading = this.querySelector("h1");
    this.log = this.querySelector("mp-log");
    this.#told = this.#line();
    this.#subscription = subscribe(this.#wants(), (message) => this.#receive(message));
    document.addEventListener("milepost:tick", this.#tick);
    addEventListener("hashchange", this.#open);
    this.#open();
  }

  disconnectedCallback() {
    this.#subscription.close();
    document.removeEventListener("milepost:tick", this.#tick);
    removeEventListener("hashchange", this.#open);
  }

  #wants() {
    const { agent, job, node, events } = this.dataset;
    return {
      agent: agent ? [agent] : [],
      job: job ? [job] : [],
      node: node ? [node] : [],
      log: job ? [job] : [],
      events: "live" in this.events.dataset ? [events] : [],
    };
  }

  #receive({ event, data }) {
    if (event === "instance" && data.agent.id === this.dataset.agent) this.#instance(data);
    if (event === "node" && data.id === this.dataset.node) this.#node(data);
    if (event === "job" && data.id === this.dataset.job) this.#jobAnswer(data);
    if (event === "log" && data.job_id === this.dataset.job) this.log.receive(data);
    if (event === "recorded") this.#recorded(data);
  }

  #instance(answer) {
    if (this.#agent && this.#agent.position > answer.position) return;
    this.#agent = answer;
    const { agent, instance } = answer;
    text(this.heading, agent.name);
    this.#fact("server", instance?.server_id);
    this.#fact("ip", instance?.server_ip);
    this.#fact("tailnet", instance?.tailscale_ip);
    this.#fact("region", instance?.region ?? agent.region);
    const missing = instance?.missing.join(", ");
    text(slot(this, "missing"), missing);
    slot(this, "missing-pair").hidden = !missing;
    slot(this, "gone-pair").hidden = !instance?.server_missing_since;
    if (instance && instance.job_id !== this.dataset.job) {
      const { attempt, job_status: status, current_step, task } = instance;
      this.#newJob(instance.job_id, { timeline: [{ attempt, status, steps: answer.steps, current_step, task }] });
    }
    this.#stand();
  }

  #node({ status, job }) {
    attribute(this, "data-node-status", status);
    text(slot(this, "node-status"), word(`node-status.${status}`));
    if (job && job.id !== this.dataset.job) this.#newJob(job.id, job);
    if (job) this.#jobAnswer(job);
  }

  /** The agent or node has another job than the one shown: what is known of it comes with the
      answer, the rest with the job's own messages. */
  #newJob(id, job) {
    this.dataset.job = id;
    this.#job = null;
    for (const form of this.querySelectorAll("[data-job-action]")) {
      attribute(form, "action", `/jobs/${id}/${form.dataset.jobAction}`);
    }
    const link = slot(this, "job");
    link.hidden = false;
    attribute(link, "href", `/jobs/${id}`);
    text(link.firstElementChild, id);
    this.querySelector(".attempts").replaceChildren();
    this.#attempts(job);
    this.log.show(id);
    this.#subscription.update(this.#wants());
  }

  #jobAnswer(job) {
    if (this.#job && this.#job.position > job.position) return;
    this.#job = job;
    this.#attempts(job);
    for (const [key, at] of [["started-at", job.started_at], ["finished-at", job.finished_at], ["run-after", job.run_after]]) {
      this.#fact(key, at && full(Date.parse(at)));
    }
    this.#fact("locked-by", job.locked_by);
    this.#fact("priority", job.priority);
    // What somebody has written there stays.
    const priority = this.querySelector('[name="priority"]');
    if (priority) attribute(priority, "value", job.priority);
    this.#fact("cancelled-by", job.cancelled_by && who(job.cancelled_by));
    if (!this.dataset.agent) this.#stand();
  }

  #attempts(job) {
    const box = this.querySelector(".attempts");
    box.querySelector('[data-attempt="0"]')?.remove();
    job.timeline.forEach((attempt, index) => {
      const last = index === job.timeline.length - 1;
      let element = box.querySelector(`[data-attempt="${attempt.attempt}"]`);
      if (!element) {
        element = copy("attempt");
        element.open = last;
        for (const older of box.children) if (!older.contains(document.activeElement)) older.open = false;
        box.prepend(element);
      }
      fillAttempt(element, attempt, job, last);
    });
  }

  #fact(key, value) {
    const code = this.querySelector(`[data-fact="${key}"] code`);
    text(code, value);
  }

  #recorded(event) {
    if (document.getElementById(`e${event.position}`)) return;
    const next = [...this.events.children].find((other) => Number(other.dataset.position) < event.position) ?? null;
    // Older than all that is shown: it stands behind the link.
    if (!next && this.events.childElementCount >= EVENTS_SHOWN) return;
    const element = copy("event");
    fillEvent(element, event, this.fields);
    element.classList.add("fresh-row");
    this.events.insertBefore(element, next);
    this.querySelector(".events .none").hidden = true;
    while (this.events.childElementCount > EVENTS_MAX && !this.events.lastElementChild.contains(document.activeElement)) {
      this.events.lastElementChild.remove();
      const older = this.querySelector(".older");
      older.hidden = false;
      older.firstElementChild.href = `?before=${this.events.lastElementChild.dataset.position}#events`;
    }
  }

  #stand() {
    const list = this.querySelector(".attempts .steps");
    if (!list) return;
    const silent = Number(this.dataset.silentAfter);
    const after = overdueAfter(list);
    if (this.#agent) fillStanding(this, ofAgent(this.#agent, after, silent));
    else if (this.#job) fillStanding(this, ofJob(this.#job, after, silent));
    else return;
    // A button that no longer applies takes no focus along.
    const focused = document.activeElement;
    if (this.contains(focused) && focused !== this.heading && focused.getClientRects().length === 0) this.heading.focus({ preventScroll: true });
    const line = this.#line();
    if (line !== this.#told) announce(`${this.dataset.name}: ${line}`);
    this.#told = line;
  }

  #line() {
    const part = this.querySelector('[data-part="standing"]');
    return ["word", "place", "attempt"].map((name) => slot(part, name).textContent).filter(Boolean).join(", ");
  }

  /** An address of an event or an attempt opens it. */
  #open = () => {
    const target = document.getElementById(location.hash.slice(1));
    const details = target?.matches("details") ? target : target?.querySelector("details");
    if (details) details.open = true;
  };

  #tick = () => {
    if (["queued", "dispatching", "running"].includes(this.dataset.state)) this.#stand();
  };
}

customElements.define("mp-follow", Follow);
