// What a job's runs have printed. Only the rows in sight stand in the page; the others are space,
// and come from the server a page at a time as they are scrolled to.

import { coloured } from "./ansi.js";
import { attribute, show, slot, text } from "./fill.js";
import { full, number } from "./format.js";

/** Rows asked for at once. */
const PAGE_ROWS = 500;
/** Pages kept; those furthest from what is in sight go first. */
const PAGES_MAX = 20;
/** Rows above and below those in sight that stand in the page too. */
const MARGIN_ROWS = 20;
/** Rows one can scroll over: browsers end at some 17 million pixels. Addresses lead to the others. */
const SPACE_ROWS_MAX = 500_000;
/** Who scrolls past a page does not need it: what is in sight is asked for this often at the most. */
const ASK_MS = 50;
/** Pages on their way at once. */
const ASKED_MAX = 4;
/** How long to wait before a page that did not come is asked for again, twice as long each time. */
const AGAIN_MS = 1_000;
const AGAIN_MAX_MS = 30_000;

class Log extends HTMLElement {
  #job = "";
  #total = 0;
  /** Rows before those one can scroll over. */
  #base = 0;
  #pages = new Map();
  #asked = new Set();
  /** Pages that did not come, one after the other. */
  #failures = 0;
  #isRefused = false;
  #following = true;
  /** Where a scroll of our own leads: any other is the reader's. */
  #scrolledTo = -1;
  #top = 0;
  #target = 0;
  #rowHeight = 20;
  #frame = 0;
  #asking = 0;
  #inSight = [];
  #ready = false;
  #observer = null;

  connectedCallback() {
    this.view = this.querySelector(".log-view");
    this.space = this.querySelector(".log-space");
    this.list = this.querySelector(".log-rows");
    this.button = slot(this, "log-follow");
    this.view.addEventListener("scroll", this.#scrolled, { passive: true });
    this.view.addEventListener("keydown", this.#key);
    this.list.addEventListener("click", this.#click);
    this.button.addEventListener("click", () => this.#follow(!this.#following));
    addEventListener("hashchange", this.#address);
    this.#observer = new ResizeObserver(() => this.#draw());
    this.#observer.observe(this.view);
    show(this.querySelector(".log-earlier"), false);
    this.#begin(this.dataset.job, Number(this.dataset.total));
  }

  disconnectedCallback() {
    removeEventListener("hashchange", this.#address);
    this.#observer.disconnect();
  }

  /** Shows the log of another job. */
  show(job) {
    if (job === this.#job) return;
    this.list.replaceChildren();
    attribute(slot(this, "log-file"), "href", `/api/jobs/${job}/log.txt`);
    this.#begin(job, 0);
  }

  #begin(job, total) {
    this.#job = job;
    this.#total = total;
    this.#base = Math.max(total - SPACE_ROWS_MAX, 0);
    this.#pages.clear();
    this.#asked.clear();
    this.#failures = 0;
    this.#refuse("");
    this.#following = true;
    this.#target = 0;
    this.#ready = false;
    this.#count();
    this.view.scrollTop = this.view.scrollHeight;
    // What the server rendered stays until its rows are there as data.
    if (job) this.#ask(Math.floor(Math.max(total - 1, 0) / PAGE_ROWS));
    this.#address();
  }

  /** Takes rows of the stream. Those that are there are passed over; after a gap they are asked for. */
  receive({ lines, total }) {
    for (const row of lines) if (row.line === this.#total + 1) this.#append(row);
    if (total > this.#total) this.#total = total;
    this.#count();
    this.#draw();
  }

  #append(row) {
    const index = Math.floor(this.#total / PAGE_ROWS);
    const within = this.#total % PAGE_ROWS;
    if (within === 0) {
      this.#pages.set(index, []);
      this.#forget(index);
    }
    const page = this.#pages.get(index);
    if (page?.length === within) page.push(row);
    this.#total = row.line;
    this.#ready ||= within === 0;
  }

  /** On a page of the past, where it is read. */
  #at() {
    return this.dataset.at ? `&at=${this.dataset.at}` : "";
  }

  #count() {
    const total = this.#total;
    text(slot(this, "log-count"), `${number(total)} ${total === 1 ? "line" : "lines"}`);
    for (const element of [this.view, slot(this, "log-file")]) show(element, total > 0);
    show(this.button, total > 0 && !this.dataset.at);
    show(this.querySelector(".none"), total === 0);
  }

  #row(line) {
    return this.#pages.get(Math.floor((line - 1) / PAGE_ROWS))?.[(line - 1) % PAGE_ROWS];
  }

  /** Asks for a page, unless all there is of it is here or on its way. */
  async #ask(index) {
    if (this.#isRefused) return;
    const there = this.#pages.get(index)?.length ?? 0;
    const whole = Math.min(PAGE_ROWS, this.#total - index * PAGE_ROWS);
    if ((there >= whole && this.#ready) || this.#asked.has(index) || this.#asked.size >= ASKED_MAX) return;
    const job = this.#job;
    this.#asked.add(index);
    try {
      const query = `after=${index * PAGE_ROWS}&limit=${PAGE_ROWS}`;
      const answer = await fetch(`/api/jobs/${job}/log?${query}${this.#at()}`, { cache: "no-store" });
      const said = await answer.json().catch(() => ({}));
      if (job !== this.#job) return;
      // Asked again, it would be the same.
      if (answer.status >= 400 && answer.status < 500) return this.#refuse(said.detail ?? `status ${answer.status}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const { lines, total } = said;
      this.#failures = 0;
      if (lines.length > (this.#pages.get(index)?.length ?? -1)) this.#pages.set(index, lines);
      this.#total = Math.max(this.#total, total);
      this.#ready = true;
      this.#asked.delete(index);
    } catch {
      if (job !== this.#job) return;
      const wait = Math.min(AGAIN_MS * 2 ** this.#failures, AGAIN_MAX_MS);
      this.#failures += 1;
      setTimeout(() => {
        this.#asked.delete(index);
        this.#ready ? this.#draw() : this.#ask(index);
      }, wait);
      return;
    }
    this.#forget(index);
    this.#count();
    this.#draw();
  }

  /** The server will not give the lines, and says why; nothing takes that back. */
  #refuse(detail) {
    this.#isRefused = Boolean(detail);
    text(slot(this, "log-refused"), detail && `Lines that are not here do not come: ${detail}`);
  }

  #forget(near) {
    while (this.#pages.size > PAGES_MAX) {
      const far = [...this.#pages.keys()].sort((a, b) => Math.abs(b - near) - Math.abs(a - near));
      this.#pages.delete(far[0]);
    }
  }

  #draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#ready && this.#total > 0) this.#drawNow();
    });
  }

  #drawNow() {
    const { view, list } = this;
    this.#measure();
    const height = this.#rowHeight;
    const rows = this.#total - this.#base;
    this.space.style.setProperty("block-size", `${rows * height}px`);
    if (this.#following) this.#scrollTo(view.scrollHeight);
    const top = Math.floor(view.scrollTop / height);
    const from = Math.max(top - MARGIN_ROWS, 0);
    const to = Math.min(top + Math.ceil(view.clientHeight / height) + MARGIN_ROWS, rows);
    const [first, last] = [this.#base + from + 1, this.#base + to];
    for (const element of [...list.children]) {
      if (element.line >= first && element.line <= last) continue;
      if (element.contains(document.activeElement)) view.focus({ preventScroll: true });
      element.remove();
    }
    list.style.setProperty("transform", `translateY(${from * height}px)`);
    for (let line = first; line <= last; line += 1) {
      const element = list.children[line - first];
      const row = this.#row(line);
      if (element?.line !== line) {
        list.insertBefore(this.#element(line, row), element ?? null);
        continue;
      }
      if (row && !element.filled) fill(element, row);
      this.#mark(element);
    }
    this.#inSight = [first, last].map((line) => Math.floor((line - 1) / PAGE_ROWS));
    this.#asking ||= setTimeout(() => {
      this.#asking = 0;
      for (const index of new Set(this.#inSight)) this.#ask(index);
    }, ASK_MS);
    attribute(this, "data-drawn", `${first}-${last}`);
  }

  #measure() {
    const [row] = this.list.children;
    const height = row?.getBoundingClientRect().height;
    if (height) this.#rowHeight = height;
  }

  #element(line, row) {
    const element = document.createElement("li");
    element.className = "log-row";
    element.id = `L${line}`;
    element.line = line;
    const link = document.createElement("a");
    link.className = "log-number";
    link.href = `#L${line}`;
    link.tabIndex = -1;
    link.textContent = line;
    const words = document.createElement("span");
    words.className = "log-text";
    element.append(link, words);
    if (row) fill(element, row);
    this.#mark(element);
    return element;
  }

  #mark(element) {
    attribute(element, "aria-current", element.line === this.#target ? "true" : null);
  }

  #scrollTo(top) {
    this.view.scrollTop = top;
    this.#scrolledTo = this.#top = this.view.scrollTop;
  }

  #scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = this.view;
    if (Math.abs(scrollTop - this.#scrolledTo) >= 1) {
      this.#scrolledTo = -1;
      const atEnd = scrollHeight - scrollTop - clientHeight < this.#rowHeight;
      if (atEnd) this.#follow(true);
      else if (scrollTop < this.#top) this.#follow(false);
    }
    this.#top = scrollTop;
    this.#draw();
  };

  #follow(following) {
    if (this.#following === following) return;
    this.#following = following;
    attribute(this.button, "aria-pressed", `${following}`);
    this.#draw();
  }

  /** An address of a line leads there. */
  #address = () => {
    const line = Number(/^#L(\d+)$/.exec(location.hash)?.[1]);
    if (!line || line > this.#total) return;
    this.#follow(false);
    this.#target = line;
    this.#base = Math.min(this.#base, Math.max(line - SPACE_ROWS_MAX / 2, 0));
    this.#measure();
    const rows = this.#total - this.#base;
    this.space.style.setProperty("block-size", `${rows * this.#rowHeight}px`);
    this.closest(".log").scrollIntoView({ block: "start" });
    this.#scrollTo((line - 1 - this.#base) * this.#rowHeight - this.view.clientHeight / 3);
    this.#draw();
  };

  #click = (event) => {
    const link = event.target.closest(".log-number");
    if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.#follow(false);
    this.#target = link.parentElement.line;
    history.replaceState(null, "", link.hash);
    this.#draw();
  };

  /** Enter goes from the lines to their numbers, the arrows from one to the next, Escape back. */
  #key = (event) => {
    const row = document.activeElement.closest?.(".log-row");
    const link = (element) => element?.querySelector(".log-number");
    if (event.key === "Escape" && row) this.view.focus({ preventScroll: true });
    else if (event.key === "Enter" && !row) {
      const { top } = this.view.getBoundingClientRect();
      link([...this.list.children].find((it) => it.getBoundingClientRect().top >= top))?.focus();
    } else if (row && event.key === "ArrowUp") link(row.previousElementSibling)?.focus();
    else if (row && event.key === "ArrowDown") link(row.nextElementSibling)?.focus();
    else return;
    event.preventDefault();
  };
}

function fill(element, row) {
  const words = element.lastElementChild;
  element.filled = true;
  element.dataset.kind = row.kind;
  element.title = `${full(Date.parse(row.recorded_at))}${row.number ? ` · attempt ${row.attempt}, line ${number(row.number)}` : ""}`;
  if (row.kind === "attempt") {
    words.setAttribute("role", "heading");
    words.setAttribute("aria-level", 3);
    const link = document.createElement("a");
    link.href = `#attempt-${row.attempt}`;
    link.textContent = row.text;
    words.replaceChildren(link);
  } else {
    words.replaceChildren(coloured(row.text));
  }
}

customElements.define("mp-log", Log);
