// The browser of the log follows it: what matches the filters comes on top, until it is told not to.

import { announce, copy, fillEvent, slot, text } from "./fill.js";
import { number } from "./format.js";
import { subscribe } from "./stream.js";

/** Events kept on the page; older ones stay behind the link. */
const EVENTS_MAX = 500;

class Events extends HTMLElement {
  #subscription = null;
  #following = true;
  #waiting = [];

  connectedCallback() {
    this.list = this.querySelector(".event-list");
    this.fields = this.list.dataset.summary.split(" ");
    if (!("live" in this.dataset)) return;
    this.button = slot(this, "follow");
    this.button.addEventListener("click", () => this.#follow(!this.#following));
    const { agent, node } = this.dataset;
    this.#subscription = subscribe({ events: [agent || node || "all"] }, ({ event, data }) => {
      if (event === "recorded" && this.#matches(data)) this.#take(data);
    });
  }

  disconnectedCallback() {
    this.#subscription?.close();
  }

  #matches({ stream, type, data, metadata }) {
    const wanted = this.dataset;
    return (!wanted.stream || wanted.stream === stream)
      && (!wanted.type || wanted.type === type)
      && (!wanted.actor || wanted.actor === metadata.actor)
      && (!wanted.text || JSON.stringify(data).toLowerCase().includes(wanted.text.toLowerCase()));
  }

  #take(event) {
    if (this.#following) return this.#insert(event);
    this.#waiting.push(event);
    // More than fits the page is read by loading it again.
    if (this.#waiting.length > EVENTS_MAX) this.#waiting.shift();
    text(this.button, `Follow (${number(this.#waiting.length)} new)`);
  }

  #insert(event) {
    if (document.getElementById(`e${event.position}`)) return;
    const next = [...this.list.children].find((other) => Number(other.dataset.position) < event.position) ?? null;
    const element = copy("event");
    fillEvent(element, event, this.fields);
    element.classList.add("fresh-row");
    this.list.insertBefore(element, next);
    this.querySelector(".none").hidden = true;
    while (this.list.childElementCount > EVENTS_MAX && !this.list.lastElementChild.contains(document.activeElement)) {
      this.list.lastElementChild.remove();
      this.#leadOn();
    }
  }

  /** The older page begins behind the last row that is left. */
  #leadOn() {
    const older = slot(this, "older");
    const query = new URLSearchParams(location.search);
    query.set("before", this.list.lastElementChild.dataset.position);
    older.href = `?${query}`;
    older.parentElement.hidden = false;
  }

  #follow(on) {
    this.#following = on;
    this.button.setAttribute("aria-pressed", String(on));
    text(this.button, "Follow");
    if (!on) return;
    if (this.#waiting.length) announce(`${this.#waiting.length} new events`);
    for (const event of this.#waiting.splice(0)) this.#insert(event);
  }
}

customElements.define("mp-events", Events);
