// The list of nodes follows them all: rows are filled in place, new ones come on top.

import { announce, attribute, copy, fillStanding, setMoment, slot, text, word } from "./fill.js";
import { number } from "./format.js";
import { ofNode } from "./standing.js";
import { subscribe } from "./stream.js";

class Nodes extends HTMLElement {
  #answers = new Map();
  #subscription = null;

  connectedCallback() {
    this.rows = this.querySelector(".rows");
    this.#subscription = subscribe({ node: ["all"] }, (message) => this.#receive(message));
    document.addEventListener("milepost:tick", this.#tick);
  }

  disconnectedCallback() {
    this.#subscription.close();
    document.removeEventListener("milepost:tick", this.#tick);
  }

  #receive({ event, data }) {
    if (event !== "node") return;
    let row = document.getElementById(`node-${data.id}`);
    if (row && Number(row.dataset.position) > data.position) return;
    if (!row) {
      row = copy("row");
      row.classList.add("fresh-row");
      this.rows.prepend(row);
    }
    this.removeAttribute("data-empty");
    this.#answers.set(data.id, data);
    this.#fill(row, data);
  }

  #fill(row, node) {
    const page = `/nodes/${node.id}`;
    const before = row.dataset.nodeStatus;
    attribute(row, "id", `node-${node.id}`);
    attribute(row, "data-node", node.id);
    attribute(row, "data-node-status", node.status);
    attribute(row, "data-position", node.position);
    text(slot(row, "name"), node.hostname);
    attribute(slot(row, "name"), "href", page);
    text(slot(row, "address"), node.public_ip);
    text(slot(row, "node-status"), word(`node-status.${node.status}`));
    text(slot(row, "position"), `#${number(node.position)}`);
    attribute(slot(row, "position"), "href", `${page}#e${node.position}`);
    const updated = [node.updated_at, node.job?.updated_at].filter(Boolean).map(Date.parse);
    setMoment(slot(row, "at").querySelector(".moment"), new Date(Math.max(...updated)).toISOString());
    this.#stand(row, node);
    if (before !== node.status) announce(`${node.hostname}: ${word(`node-status.${node.status}`)}`);
  }

  #stand(row, node) {
    fillStanding(row, ofNode(node, Number(this.dataset.silentAfter)));
  }

  /** Time alone can make a job silent. */
  #tick = () => {
    for (const row of this.querySelectorAll('.row[data-state="running"]')) {
      const node = this.#answers.get(row.dataset.node);
      if (node) this.#stand(row, node);
    }
  };
}

customElements.define("mp-nodes", Nodes);
