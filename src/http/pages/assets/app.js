// What every page runs: the stream, the elements that follow it, the keys, and one tick a second.

import { tick } from "./fill.js";
import "./keys.js";
import "./stream.js";
import "./overview.js";
import "./log.js";
import "./follow.js";
import "./nodes.js";
import "./projections.js";
import "./events.js";
import "./travel.js";
import "./integrity.js";

function everySecond() {
  if (document.hidden) return;
  tick();
  document.dispatchEvent(new Event("milepost:tick"));
}

// A page of the past stands still: its clocks are told from then.
if (document.querySelector("mp-stream")) {
  setInterval(everySecond, 1000);
  document.addEventListener("visibilitychange", everySecond);
}
