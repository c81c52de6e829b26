// What every page runs: the stream, the elements that follow it, the keys, and one tick a second.

import { tick } from "./fill.js";
import "./keys.js";
import "./stream.js";
import "./overview.js";
import "./log.js";
import "./follow.js";
import "./nodes.js";

function everySecond() {
  if (document.hidden) return;
  tick();
  document.dispatchEvent(new Event("milepost:tick"));
}

setInterval(everySecond, 1000);
document.addEventListener("visibilitychange", everySecond);
