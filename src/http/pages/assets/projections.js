// The projections follow the log: the server says how each view stands, and what changed is put in
// its place.
//
// Orders and their ends are events. How far a view or a rebuild is, is in no event: while one moves,
// it is asked for with each tick, and otherwise only once the log has grown.

import { announce, attribute } from "./fill.js";
import { refresher } from "./refresh.js";
import { head, subscribe } from "./stream.js";

class Projections extends HTMLElement {
  #subscription = null;
  #look = refresher("/projections", "mp-projections", (now) => this.#put(now));

  connectedCallback() {
    const { streams } = this.dataset;
    if (streams) this.#subscription = subscribe({ events: streams.split(" ") }, () => this.#look());
    document.addEventListener("milepost:tick", this.#tick);
  }

  disconnectedCallback() {
    this.#subscription?.close();
    document.removeEventListener("milepost:tick", this.#tick);
  }

  #tick = () => {
    if ("moving" in this.dataset || head() > Number(this.dataset.position)) this.#look();
  };

  #put(now) {
    attribute(this, "data-position", now.dataset.position);
    attribute(this, "data-moving", now.dataset.moving);
    for (const view of now.querySelectorAll(".view")) {
      const here = document.getElementById(view.id);
      if (!here) continue;
      attribute(here, "data-tone", view.dataset.tone);
      if (here.dataset.told !== view.dataset.told) announce(`${view.id}: ${view.dataset.told}`);
      attribute(here, "data-told", view.dataset.told);
      for (const part of view.querySelectorAll("[data-live]")) this.#replace(here, part);
    }
  }

  /** A form that somebody fills in stays; whoever was in what went is at the view's heading. */
  #replace(view, part) {
    const here = document.getElementById(part.id);
    if (!here || here.isEqualNode(part) || here.querySelector("details[open]")) return;
    const had = here.contains(document.activeElement);
    here.replaceChildren(...part.childNodes);
    if (had) view.querySelector("h2").focus({ preventScroll: true });
  }
}

customElements.define("mp-projections", Projections);
