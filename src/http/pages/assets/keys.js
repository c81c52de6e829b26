// Keys: `/` filters, `j` and `k` move, `g` goes back to all agents, `?` helps. They can be turned off.

const STORED = "milepost.keys";
const help = document.getElementById("help");
const toggle = document.getElementById("keys-on");

const stored = () => {
  try {
    return localStorage.getItem(STORED) !== "off";
  } catch {
    return true;
  }
};

if (help) {
  toggle.checked = stored();
  toggle.addEventListener("change", () => {
    try {
      localStorage.setItem(STORED, toggle.checked ? "on" : "off");
    } catch {
      // Without storage it holds for this page only.
    }
  });
  document.getElementById("help-open").addEventListener("click", () => help.showModal());
  addEventListener("keydown", (event) => {
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open;
    if (busy) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (!toggle.checked) return;
    const act = ACTIONS[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
}

const ACTIONS = {
  "/": () => document.getElementById("filter")?.focus(),
  "?": () => help.showModal(),
  j: () => move(1),
  k: () => move(-1),
  g: () => location.assign("/"),
};

function move(by) {
  const items = [...document.querySelectorAll(".row:not([hidden]) .name, .event summary")];
  const at = items.findIndex((item) => item === document.activeElement || item.closest(".row, .event").contains(document.activeElement));
  const to = at === -1 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1);
  items[to]?.focus();
  items[to]?.closest(".row, .event").scrollIntoView({ block: "nearest" });
}
